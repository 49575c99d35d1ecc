"""Reinforcement learning on a model's own answers (docs/rl.md). Importing it registers the objective ``grpo``."""

from videollm.grpo.objective import GRPO, GRPOOptions
from videollm.grpo.rewards import REWARDS, reward

__all__ = ["GRPO", "REWARDS", "GRPOOptions", "reward"]
