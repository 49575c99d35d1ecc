"""What a training run minimises: an object that turns one pass of the model into loss terms. No loop branches on it.

In: a batch, and a ``Reading`` (the states that a pass leaves behind). Out: sums of loss terms and of numbers that are
only logged; the core divides each by its count over the whole optimisation step. It is found by its
name (``common/registry.py``). It knows records and models; no files, no trainer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from videollm.batches.batch import Batch
from videollm.common.config import ConfigError, build
from videollm.common.registry import new_registry, registered
from videollm.data import Record
from videollm.heads import FrameBatch, SpanRefs
from videollm.model.loss import supervised_cross_entropy

OBJECTIVES = new_registry("objectives")
Sums = dict[str, Tensor]  # name -> scalar


@dataclass
class Reading:
    """What one pass over a batch of B rows and L columns leaves behind. D is the language model's width."""

    states: Tensor  # [B * L, D], after the final norm
    queries: Tensor  # [N, D], the states before the span tokens
    spans: SpanRefs  # N places: the batch's ``span_refs``
    frames: FrameBatch


@dataclass
class ObjectiveOptions:
    """Options of an objective without any."""


class Objective:
    """Subclass, register with ``OBJECTIVES.register(name=...)``, override.

    ``rejected`` and ``answers``, as in ``VideoDataset``: which wrong answers it reads beside the annotated ones, and
    whether it reads those at all. ``together`` is how many answers to a question stand behind one prompt in a row, None
    where a row is as the data have it. ``logged`` names the numbers that are no loss. ``model`` is the ``VideoLLM``,
    ``bundle`` (``checkpoint.Bundle``) holds it, ``settings`` are the run's: rooms that this one must not import.
    """

    Options: ClassVar[type] = ObjectiveOptions
    logged: ClassVar[tuple[str, ...]] = ()
    rejected: Literal["one", "all"] | None = None
    answers: ClassVar[bool] = True
    together: int | None = None

    def __init__(self, options: ObjectiveOptions):
        self.options = options

    def check(self, records: Sequence[Record], settings: Any) -> None:
        """Before anything is built: ConfigError where these records or settings cannot be trained on."""
        unanswered = [r for r in records if not r.has_answer]
        if unanswered:
            raise ConfigError(
                f"{unanswered[0].where}: no answer to train on ({len(unanswered)} such records); add or remove"
            )

    def prepare(self, bundle: Any, settings: Any) -> None:
        """Once the model is there: load what else is needed."""

    def collator(self, bundle: Any, settings: Any) -> Callable:
        """What makes the loader's batches of items, wherever they are read."""
        data, average = settings.data, settings.train.loss_average
        ranked = self.rejected is not None
        return bundle.collator(average=average, pack=data.pack, rank=ranked, unseen_id=data.unseen_id)

    def order(self, dataset: Any, settings: Any) -> Any:
        """A torch ``Sampler`` of the items of an epoch (of the ``VideoDataset``), the same on every rank; None: all in
        random order. Called once."""

    def state(self) -> dict:
        """What a checkpoint keeps of this rank's part of the run: numbers, texts, tensors, in dicts and lists."""
        return {}

    def resume(self, state: dict) -> None:
        """Go on from what ``state`` gave; empty where an older run kept none."""

    def made(self, batches: list, step: int) -> list[Batch]:
        """What optimisation step ``step`` (from 0) trains on, of what the loader gave for it on this rank."""
        return batches

    def validated(self, metric: str) -> None:
        """Once the run's log has another validation; ``metric`` is what models are compared by there."""

    def planned(self, batch: Batch) -> Batch:
        """A batch of the collator's as one of those that ``made`` gives, for an estimate of memory."""
        return batch

    def counts(self, model: nn.Module, batch: Batch) -> Sums:
        """What every loss term and every logged number of this batch is to be divided by."""
        raise NotImplementedError

    def sums(self, model: nn.Module, batch: Batch, reading: Reading) -> tuple[Sums, Sums]:
        """Loss terms (on the graph, weighted) and logged numbers (detached), both as sums; keys as ``counts``."""
        raise NotImplementedError


@OBJECTIVES.register(name="supervised")
class Supervised(Objective):
    """The annotated answers' cross-entropy and the head's own losses."""

    def counts(self, model: nn.Module, batch: Batch) -> Sums:
        """The language model's weights, and what the head counts."""
        spans = batch.refs.select(batch.span_refs)
        return {"lm": batch.label_weight.sum(), **model.head.counts(spans)}

    def sums(self, model: nn.Module, batch: Batch, reading: Reading) -> tuple[Sums, Sums]:
        """``lm`` and the head's terms; nothing is only logged."""
        sums = model.head.loss(reading.queries, reading.spans, reading.frames)
        sums["lm"] = supervised_cross_entropy(
            model.language_model, reading.states, batch.label_index, batch.label_ids, batch.label_weight
        )
        return sums, {}


def build_objective(config: dict) -> Objective:
    """Make the objective that ``config`` (``name`` and the objective's options) describes.

    Raises:
        ConfigError: unknown objective or option.
    """
    options = dict(config)
    cls = registered(OBJECTIVES, options.pop("name", "supervised"), "train.objective.name")
    return cls(build(cls.Options, options, "train.objective"))
