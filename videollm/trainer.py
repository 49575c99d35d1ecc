"""transformers' Trainer with what this project needs of it, and no more.

Loss terms are divided by their counts over the whole optimisation step (all ranks, all accumulated batches); every
term is logged; videos that could not be read are counted, named and limited; validation answers questions by free
generation, because teacher forcing shows a head the true frames.
"""

import json
import math
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_pt_utils import get_parameter_names

from videollm.assemble import part_of
from videollm.checkpoint import Bundle
from videollm.config import ConfigError
from videollm.settings import Settings

NOT_FOR_THE_MODEL = ("bad", "ids", "thinned")


class BadVideosError(RuntimeError):
    """More videos could not be read than the config tolerates."""


class VideoTrainer(Trainer):
    """See the module's docstring.

    Args:
        bundle: the model and its tokenizers.
        settings: the run's settings.
        validate: called on every rank without arguments, in evaluation mode; returns {metric: value}. Or None.
    """

    def __init__(self, bundle: Bundle, settings: Settings, validate=None, **kwargs):
        self.bundle, self.settings, self.validate = bundle, settings, validate
        self.term_sums: dict[str, torch.Tensor] = {}
        self.term_steps = 0
        self.skipped = torch.zeros(2)  # unreadable and thinned items so far, over all ranks
        self.first_bad = ""  # of this rank
        super().__init__(model=bundle.model, processing_class=bundle.tokenizer, **kwargs)

    # ---- loss ------------------------------------------------------------------------------------------------------

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> dict[str, torch.Tensor] | None:
        """Counts of every loss term over this optimisation step, summed over ranks; bad videos are counted too."""
        if not batch_samples:
            return None
        total: dict[str, torch.Tensor] = {}
        for batch in batch_samples:
            bad, _, thinned = (batch.pop(name) for name in NOT_FOR_THE_MODEL)
            self._note_bad(bad)
            counts = self.bundle.model.counts(batch) | {
                "bad": torch.tensor(float(len(bad))),
                "thinned": torch.tensor(float(thinned)),
            }
            for name, value in counts.items():
                total[name] = total.get(name, 0.0) + value.to(device, torch.float32)
        self.skipped = self.skipped.to(device)
        names = sorted(total)
        values = torch.stack([total[n] for n in names])
        if dist.is_initialized():
            dist.all_reduce(values)
        total = dict(zip(names, values.unbind(), strict=True))
        self.term_steps += 1
        # Counted on the device and looked at when logging, so that no step waits for the number.
        self.skipped = self.skipped + torch.stack([total.pop("bad"), total.pop("thinned")])
        return total

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This micro-batch's part of the step's loss, times the ranks (whose gradients are averaged)."""
        output = model(**inputs, counts=num_items_in_batch)
        for name, value in output.terms.items():
            self.term_sums[name] = self.term_sums.get(name, 0.0) + value
        loss = output.loss * self.args.world_size
        return (loss, output) if return_outputs else loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Add every loss term, averaged over the steps since the last log."""
        bad, thinned = map(int, self.skipped.tolist())
        self._limit_bad(bad)
        if "loss" in logs and self.term_sums:
            names = sorted(self.term_sums)
            values = torch.stack([self.term_sums[n].float() for n in names])
            if dist.is_initialized():
                dist.all_reduce(values)
            logs = logs | dict(zip(names, (values / max(1, self.term_steps)).tolist(), strict=True))
            logs |= {"bad_videos": bad, "thinned_videos": thinned}
            self.term_sums, self.term_steps = {}, 0
        super().log(logs, *args, **kwargs)

    # ---- bad videos ------------------------------------------------------------------------------------------------

    def _note_bad(self, bad: list[str]) -> None:
        """Name unreadable videos in ``skipped.jsonl``."""
        if bad:
            self.first_bad = self.first_bad or f", here first {bad[0]}"
            with open(Path(self.args.output_dir) / "skipped.jsonl", "a", encoding="utf-8") as out:
                out.writelines(json.dumps({"step": self.state.global_step, "video": b}) + "\n" for b in bad)

    def _limit_bad(self, bad: int) -> None:
        """Stop past the tolerated share of the data."""
        allowed = self.settings.data.max_bad_fraction
        passes = max(1, math.ceil(self.state.epoch or 0))  # a bad video is met again in every pass over the data
        if bad > allowed * len(self.train_dataset) * passes:
            raise BadVideosError(
                f"{bad} training items could not be read, of {len(self.train_dataset)} "
                f"(data.max_bad_fraction={allowed}){self.first_bad}; all are named in "
                f"{Path(self.args.output_dir) / 'skipped.jsonl'}: mend or remove them, or raise the fraction"
            )

    # ---- optimiser -------------------------------------------------------------------------------------------------

    def create_optimizer(self, *args, **kwargs):
        """AdamW with a learning rate and weight decay by part; none on biases and norms."""
        if self.optimizer is None:
            groups = parameter_groups(self.bundle.model, self.settings)
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, self.bundle.model)
            self.optimizer = cls(groups, **options)
        return self.optimizer

    # ---- validation and saving ---------------------------------------------------------------------------------------

    def evaluate(self, *_args, metric_key_prefix: str = "eval", **_kwargs) -> dict[str, float]:
        """Validation by free generation; a new best of ``train.best`` is saved in ``output/best``."""
        self.bundle.model.eval()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.validate().items()}
        self.bundle.model.train()
        self.log(metrics)
        best = self.settings.train.best
        if best:
            value = metrics.get(f"{metric_key_prefix}_{best}")
            if value is None:
                raise ConfigError(f"train.best: validation gives no {best!r}, only {', '.join(metrics)}")
            # In the state, so that a resumed run does not take a worse model for the best.
            if self.state.best_metric is None or value > self.state.best_metric:
                self.state.best_metric = value
                self.save_model(str(Path(self.args.output_dir) / "best"))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """One folder that ``checkpoint.load`` takes."""
        self.bundle.save(output_dir or self.args.output_dir, state_dict)
        torch.save(self.args, Path(output_dir or self.args.output_dir) / "training_args.bin")


def parameter_groups(model: nn.Module, settings: Settings) -> list[dict]:
    """Trainable parameters by part and decay. Groups keep the model's order, as resuming needs."""
    train = settings.train
    decayed = set(get_parameter_names(model, [nn.LayerNorm], [r"bias", r"norm"]))
    groups: dict[tuple[str, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part, decays = part_of(name), name in decayed
        given = train.parts.get(part)
        lr = train.lr if given is None or given.lr is None else given.lr
        decay = train.weight_decay if given is None or given.weight_decay is None else given.weight_decay
        group = groups.setdefault((part, decays), {"params": [], "lr": lr, "weight_decay": decay if decays else 0.0})
        group["params"].append(parameter)
    return list(groups.values())


class FreshFrames(TrainerCallback):
    """Tells the data set its epoch; accelerate does so only where one process reads the data."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        """Frames drawn at random are drawn anew."""
        train_dataloader.dataset.set_epoch(int(state.epoch or 0))


class JsonLog(TrainerCallback):
    """Writes every log entry as a line of ``log.jsonl``."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Append one entry."""
        if state.is_world_process_zero and logs:
            with open(Path(args.output_dir) / "log.jsonl", "a", encoding="utf-8") as out:
                out.write(json.dumps({"step": state.global_step, **logs}) + "\n")
