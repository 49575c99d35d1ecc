"""Where the types of turns and of heads were. They are in ``videollm.heads``."""

from videollm.heads import *  # noqa: F403
