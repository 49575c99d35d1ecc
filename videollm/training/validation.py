"""Validation while a model trains: held-out questions answered by free generation, held-out pairs compared.

In: the model as it is, records that no training saw. Out: ``{metric: value}``, the same on every rank. Teacher forcing
would show a head the true frames, so spans are scored as they are generated. Writes no file.
"""

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from videollm.batches.dataset import VideoDataset
from videollm.batches.lengths import too_long
from videollm.batches.reader import VisualReader
from videollm.checkpoint import Bundle
from videollm.common.answers import AnswerLine
from videollm.common.config import ConfigError
from videollm.common.registry import function_at
from videollm.data import AnnotationError, Record, load_records
from videollm.data.conversation import SpanMark
from videollm.data.filters import exceeds
from videollm.data.mixture import below
from videollm.inference.answer import answer_records
from videollm.inference.plan import room_for_question
from videollm.model.objective import Objective
from videollm.training.features import fill_store
from videollm.training.settings import Settings
from videollm.training.trainer import BadVideosError

logger = logging.getLogger(__name__)


@torch.no_grad()
def held_out(
    bundle: Bundle, objective: Objective, records: Sequence[Record], reader: VisualReader, size: int
) -> dict[str, float]:
    """The objective's logged numbers over all answers of ``records``; each rank reads its ``share``, ``size`` at
    a time.

    Records that cannot be read are named in a warning and left out.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    dataset = VideoDataset(
        share(records, rank, world), reader, bundle.encoder(), max_length=bundle.config.context_length,
        rejected=objective.rejected and "all",
    )  # fmt: skip
    collate, model = bundle.collator(rank=objective.rejected is not None), bundle.model
    device = next(model.parameters()).device
    total = torch.zeros(2, len(objective.logged), dtype=torch.float64, device=device)  # sums, counts
    for start in range(0, len(dataset), size):
        batch = collate([dataset[i] for i in range(start, min(start + size, len(dataset)))]).to(device)
        for bad in batch.bad:
            logger.warning("validation leaves out %s", bad)
        sums, counts = objective.sums(model, batch, model.read(batch))[1], objective.counts(model, batch)
        total += torch.stack([torch.stack([of[n].double() for n in objective.logged]) for of in (sums, counts)])
    if dist.is_initialized():
        dist.all_reduce(total)
    return dict(zip(objective.logged, (total[0] / total[1]).tolist(), strict=True))


def share(records: Sequence[Record], rank: int, world: int) -> Sequence[Record]:
    """What a rank asks. Under ZeRO-3 all of it, as every other rank does: they have to run the same modules in the same
    order, and answers of shares would end at different steps."""
    return records if is_deepspeed_zero3_enabled() else records[rank::world]


@dataclass(frozen=True)
class Validation:
    """Called on every rank, it gives {metric: value}; ``questions`` is a digest of what is asked and held right."""

    run: Callable[[], dict[str, float]]
    questions: str

    def __call__(self) -> dict[str, float]:
        return self.run()


def make_validation(
    bundle: Bundle, settings: Settings, reader: VisualReader, arguments: TrainingArguments
) -> Validation | None:
    """Answers the validation questions by free generation and scores the spans, and has the objective compare their
    rejected answers; None without any."""
    if not settings.train.validate_every:
        return None
    if not settings.data.validation:
        raise ConfigError("data.validation: train.validate_every needs annotation files to validate on")
    known = below(load_records(settings.data.validation), Path(settings.data.videos), reader.root)
    objective = bundle.model.objective
    pairs = [r for r in known if objective.rejected and r.rejected][: settings.train.validation_size]
    truths = {r.id: (r, spans) for r in known if (spans := answer_spans(r))}
    truths = dict(itertools.islice(truths.items(), settings.train.validation_size))
    if not truths:
        raise ConfigError("data.validation: no record has an answer with a span; give some, or no train.validate_every")
    records, world = [record for record, _ in truths.values()], arguments.world_size
    check_questions_fit(bundle, settings, records)
    mine = share(records, arguments.process_index, world)
    plain = bundle.reader(reader.root, backend=settings.data.backend)
    plain.frames = reader.frames if plain.sampler == reader.sampler else None
    if reader.stored is not None and plain.sampler == reader.sampler:
        fill_store(reader.stored, records, bundle, arguments)
        plain.stored = reader.stored
    score, best = function_at(settings.train.metric, "train.metric"), settings.train.best
    names = [*try_metric(score, settings.train.metric, [spans for _, spans in truths.values()])]
    names += objective.logged if pairs else ()
    if best and best not in names:
        raise ConfigError(f"train.best: {settings.train.metric} gives no {best!r}, only {', '.join(names)}")

    def validate() -> dict[str, float]:
        device = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(device):  # training goes on as it would without validation
            lines = {line.id: line for line in answer_records(bundle, mine, plain, settings.generate, batch_size=32)}
        if dist.is_initialized():
            shares: list = [None] * world
            dist.all_gather_object(shares, lines)
            lines = {k: v for share in shares for k, v in share.items()}
        bad = limit_unasked(lines, settings.data.max_bad_fraction)
        good = [r.id for r in records if not lines[r.id].error]
        found = score([lines[i].spans for i in good], [truths[i][1] for i in good]) | {"unreadable": bad}
        return flat(found) | (held_out(bundle, objective, pairs, plain, size=8) if pairs else {})

    asked = [[r.id, r.question, spans] for r, spans in truths.values()]
    compared = [[r.id, r.question, [str(answer) for answer in r.rejected]] for r in pairs]
    return Validation(validate, hashlib.sha256(json.dumps([asked, compared]).encode()).hexdigest())


def check_questions_fit(bundle: Bundle, settings: Settings, records: Sequence[Record]) -> None:
    """AnnotationError before the first step where the first validation would fail, as more questions than are tolerated
    are too long to be asked; names every one. ``records`` end with an answer."""
    room, allowed = room_for_question(bundle.config, settings.generate), settings.data.max_bad_fraction
    found = too_long([replace(record, turns=record.turns[:-1]) for record in records], bundle.encoder(), room)
    if not exceeds(len(found), len(records), allowed):
        return
    share = f"raise data.max_bad_fraction={allowed:g} to leave out {len(found)} of {len(records)}"
    raise AnnotationError(
        [
            f"{records[i].where}: {tokens} tokens with the fewest frames, and the model has room for {room} beside its "
            f"answer (conversations) - shorten the question, lower generate.max_new_tokens, or {share}"
            for i, tokens in found.items()
        ]
    )


def answer_spans(record: Record) -> list[list[float]]:
    """The spans of the answer that is to be given, [start, end] in seconds; not those of the turns before it."""
    parts = record.turns[-1].parts if record.has_answer else ()
    return [list(record.spans_s[p.span]) for p in parts if isinstance(p, SpanMark)]


def limit_unasked(lines: dict[str, AnswerLine], allowed: float) -> int:
    """How many questions could not be asked; BadVideosError past the tolerated share, or if it is all of them."""
    bad = [line for line in lines.values() if line.error]
    if exceeds(len(bad), len(lines), allowed):
        raise BadVideosError(
            f"{len(bad)} of {len(lines)} validation questions could not be asked (data.max_bad_fraction={allowed}), "
            f"first {bad[0].id}: {bad[0].error}; mend them or raise the fraction, and resume"
        )
    for line in bad:
        logger.warning("validation leaves out %s: %s", line.id, line.error)
    return len(bad)


def flat(scores: dict, prefix: str = "") -> dict[str, float]:
    """Nested scores under one level of names: ``{"R@1": {"0.5": x}}`` as ``{"R@1_0.5": x}``."""
    found = {}
    for name, value in scores.items():
        found |= flat(value, f"{prefix}{name}_") if isinstance(value, dict) else {f"{prefix}{name}": float(value)}
    return found


def try_metric(score: Callable, name: str, truths: list) -> dict[str, float]:
    """What the metric ``name`` gives for the truth itself; ConfigError where it is no such function."""
    try:
        return flat(score(truths, truths))
    except Exception as error:  # of any kind
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        takes = "(predicted spans, true spans) -> {name: value}"
        raise ConfigError(f"train.metric: {name} is no function {takes} ({said}); name one") from error
