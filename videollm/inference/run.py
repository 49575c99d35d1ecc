"""One inference command from its options to a proven output: load, answer this rank's share, merge, count.

In: the parsed command line (infer.py). Out: ``OUTPUT.jsonl`` and its meta file. Knows no benchmark.
"""

import argparse
import contextlib
import os
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from videollm.batches.reader import VisualReader, open_store
from videollm.batches.unknown import warn_unknown
from videollm.checkpoint import Bundle, load, read_config
from videollm.common.answers import AnswerLine
from videollm.common.code import code
from videollm.common.command import usable_device
from videollm.common.config import ConfigError, to_dict
from videollm.common.processes import Ranks, one_fate
from videollm.data import Record, load_records
from videollm.data.check import check_some
from videollm.inference import output
from videollm.inference.answer import Speed, answer_records
from videollm.inference.explain import explain
from videollm.inference.options import PRECISIONS, Options, pixels_of, read_options, what_absence_means
from videollm.inference.plan import Unit, plan, room_for_question
from videollm.model.generate import GenerateOptions

MOST_WORKERS = 4  # by default, for one process


def run(args: argparse.Namespace) -> None:
    """Load, answer this rank's share, merge, and prove that every question has its line."""
    with one_fate():
        device = usable_device(args.device)
        options = read_options(args.overrides, read_config(args.model), device, args.precision)
        records = load_records(args.annotations, raw_spans=options.raw_spans)
        if args.frames is None:
            check_some(records, args.videos, "--videos")
        units = plan(records, options.generate, args.batch_size)  # says bad options of a record before loading
        bundle = load(args.model, head=options.head, dtype=PRECISIONS[options.precision])
        reader = bundle.reader(
            args.videos, options.sampler, options.preprocess, backend=args.backend, timeout_s=args.decode_timeout
        )
        if args.frames is not None:
            open_store(args.frames, reader, records)
        for _, own in chain(*chain(*units)):
            room_for_question(bundle.config, own)  # said before a file is begun
    ranks = Ranks()
    if ranks.rank == 0:
        warn_unknown(records, bundle.tokenizer, "--annotations")
        show(bundle, records[: args.explain], reader, units)
    with output.locked(args.output) if ranks.rank == 0 else contextlib.nullcontext():
        missing, meta = None, {}
        if ranks.rank == 0:
            meta = output.begin_meta(args.output, meta_of(args, bundle, options), what_absence_means(bundle.config))
            answered = {i for i, line in output.gather(args.output, records).items() if not line.error}
            missing = {record.id for record in records} - answered
            output.write_meta(args.output, meta)
        missing = ranks.told(missing)  # told, not read: another node may still see an older file
        bundle.model.to(device)
        speed = answer_share(args, bundle, records, reader, units, missing, ranks)
        speeds = ranks.collected(speed)
        if ranks.rank == 0:
            finish(args.output, records, meta, speeds)
    ranks.close()


def meta_of(args: argparse.Namespace, bundle: Bundle, options: Options) -> dict:
    """What makes the answers, for the file beside them."""
    return {
        "model": str(args.model), "content": output.model_content(args.model),
        "annotations": list(map(str, args.annotations)),
        "sampler": to_dict(options.sampler), "preprocess": pixels_of(options.preprocess),
        "decoding": to_dict(options.generate) | {"precision": options.precision, "head": options.head},
        "sources": options.sources, "config": bundle.config.to_dict(), "commit": code()[0],
    }  # fmt: skip


def answer_share(
    args: argparse.Namespace, bundle: Bundle, records: list[Record], reader: VisualReader, units: list[Unit],
    missing: set[str], ranks: Ranks,
) -> Speed:  # fmt: skip
    """Answer this rank's units as far as they are missing. Questions that are decoded alike are always asked whole, so
    that their answers are those of a run without a break; lines that are there already are not written again."""
    left = [[alike for alike in unit if any(record.id in missing for record, _ in alike)] for unit in units]
    own = [alike for unit in [unit for unit in left if unit][ranks.rank :: ranks.world] for alike in unit]
    speed = Speed()
    if not own:
        return speed
    lines = answer_records(
        bundle, records, reader, GenerateOptions(), asked=own, batch_size=args.batch_size,
        workers=workers_for(args.workers, ranks.world), progress=ranks.rank == 0, speed=speed,
    )  # fmt: skip
    part = args.output if ranks.world == 1 else output.beside(args.output, f".part{ranks.rank}")
    with open(part, "ab", buffering=0) as out:
        for line in lines:
            if line.id in missing:
                output.add_line(out, line)
    return speed


def workers_for(asked: int | None, world: int) -> int:
    """Processes that read videos: as asked, or what the machine has for this rank, at most four."""
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", world))))


def show(bundle: Bundle, records: Sequence[Record], reader: VisualReader, units: Sequence[Unit]) -> None:
    """Print what the model gets of ``records``."""
    own = {record.id: options for record, options in chain(*chain(*units))}
    for record in records:
        print(explain(bundle, record, reader, own[record.id]), end="\n\n")


def finish(path: Path, records: list[Record], meta: dict, speeds: list[Speed]) -> None:
    """Merge and prove the output, complete the meta file, and say what came of it."""
    output.gather(path, records)
    lines = output.prove(path, records)
    errors = [line for line in lines if line.error]
    meta["counts"] = {"questions": len(records), "answered": len(lines) - len(errors), "errors": len(errors)}
    meta["finish_reasons"] = dict(Counter(line.finish_reason for line in lines))
    thinned = [line.thinned for line in lines if line.thinned]
    meta["thinned"] = {"questions": len(thinned), "frames": sum(thinned)}
    asked, tokens = sum(s.questions for s in speeds), sum(s.tokens for s in speeds)
    if asked:
        meta["speed"] = speed_of(speeds, asked, tokens)
    output.write_meta(path, meta)
    print(f"{path}: {len(lines) - len(errors)} answers, {len(errors)} errors of {len(records)} questions", end="; ")
    print("every id exactly once")
    if thinned:
        print(f"{len(thinned)} questions about videos longer than the context: {sum(thinned)} frames thinned uniformly")
    if asked:
        rates = "{samples_per_s} samples/s, {tokens_per_s} tokens/s, {data_wait_share:.0%} of the time without videos"
        print(rates.format(**meta["speed"]))
    if errors:
        report_errors(path, errors, len(lines))


def speed_of(speeds: list[Speed], asked: int, tokens: int) -> dict:
    """What the run that finished the output did, over all ranks."""
    longest, spent = max(s.seconds for s in speeds), sum(s.seconds for s in speeds)
    return {
        "questions": asked, "processes": len(speeds), "seconds": round(longest, 2),
        "samples_per_s": round(asked / longest, 2), "tokens_per_s": round(tokens / longest, 1),
        "data_wait_share": round(sum(s.wait_s for s in speeds) / spent, 3),
    }  # fmt: skip


def report_errors(path: Path, errors: list[AnswerLine], questions: int) -> None:
    """Name the first question that could not be asked; ConfigError if none could be."""
    first = f"first {errors[0].id}: {errors[0].error}"
    if len(errors) == questions:
        raise ConfigError(f"none of the {questions} questions could be asked, {first} (all of them: {path})")
    print(f"{len(errors)} questions could not be asked, {first} (all of them: {path})", file=sys.stderr)
