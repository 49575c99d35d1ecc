"""Batched inference over an annotation file: one JSON line per question, appended as it comes.

``python -m videollm.infer --model DIR --annotations FILE --videos DIR --output FILE.jsonl``; under torchrun every rank
answers its share of the ids and rank 0 joins them. What the output file already answers is not asked again; a file made
by another model or with other settings is refused. Knows no benchmark: tasks build on its lines.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from tqdm import tqdm

from videollm.annotations import AnnotationError, Record
from videollm.assemble import template_stop
from videollm.checkpoint import Bundle, CheckpointError, load
from videollm.config import ConfigError, build, override, to_dict
from videollm.data import load_records
from videollm.dataset import VideoDataset, VisualReader
from videollm.errors import tell
from videollm.generate import GenerateOptions
from videollm.video import BACKENDS, Sampler


def answer_records(
    bundle: Bundle,
    records: Sequence[Record],
    reader: VisualReader,
    options: GenerateOptions,
    *,
    batch_size: int = 8,
    workers: int = 0,
    progress: bool = False,
) -> Iterator[dict]:
    """Answer every record, in order; a record whose video cannot be read gives a line with ``error``.

    The language model keeps the mode and device it has. Each line: id, video, question, text, raw_text, spans,
    evidence_spans, scores, duration (seconds), finish_reason, error.
    """
    room = room_for_question(bundle, options)
    if options.do_sample:
        torch.manual_seed(options.seed)
    dataset = VideoDataset(
        records,
        reader,
        bundle.encoder(),
        max_length=room,
        answers=False,
    )
    collate = Batches(bundle.collator(left=True))
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=collate)
    stop, device = template_stop(bundle), next(bundle.model.parameters()).device
    bar = tqdm(total=len(records), unit="question", disable=not progress, desc="answering")
    by_id = {record.id: record for record in records}
    for batch, bad in loader:
        lines = [error_line(by_id[record_id], reason) for record_id, reason in bad]
        if batch["ids"]:
            batch = to_device(batch, device)
            answers = bundle.model.answer(batch, bundle.tokenizer, stop, options)
            durations = batch["duration_s"].tolist()
            lines += [
                answer_line(by_id[i], answer, reason, duration)
                for i, (answer, reason), duration in zip(batch["ids"], answers, durations, strict=True)
            ]
        bar.update(len(lines))
        yield from lines
    bar.close()


def room_for_question(bundle: Bundle, options: GenerateOptions) -> int:
    """Tokens that the context has beside the answer; ConfigError if there are none."""
    room = bundle.config.context_length - options.max_new_tokens
    if room <= 0:
        raise ConfigError(
            f"generate.max_new_tokens: {options.max_new_tokens} leave no room for a question in the model's "
            f"{bundle.config.context_length} tokens; lower it"
        )
    return room


class Batches:
    """A collator that hands the unreadable items over by id."""

    def __init__(self, collator):
        self.collator = collator

    def __call__(self, items) -> tuple[dict, list[tuple[str, str]]]:
        bad = [(i, item.bad) for item in items if item.bad for i in item.ids]
        return self.collator(items), bad


def to_device(batch: dict, device: torch.device) -> dict:
    """The batch with its tensors on ``device``."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def answer_line(record: Record, answer, reason: str, duration_s: float) -> dict:
    """One output line; times rounded to the millisecond."""
    spans = [[round(s, 3), round(e, 3)] for s, e in answer.spans]
    evidence = [[round(s, 3), round(e, 3)] for s, e in answer.evidence_spans]
    return {
        "id": record.id,
        "video": record.video,
        "question": record.question,
        "text": answer.text,
        "raw_text": answer.raw_text,
        "spans": spans,
        "evidence_spans": evidence,
        "scores": [round(s, 4) for s in answer.scores],
        "duration": round(duration_s, 3),
        "finish_reason": reason,
        "error": None,
    }


def error_line(record: Record, reason: str) -> dict:
    """The output line of a question that could not be asked."""
    empty = {"text": "", "raw_text": "", "spans": [], "evidence_spans": [], "scores": []}
    head = {"id": record.id, "video": record.video, "question": record.question}
    return head | empty | {"duration": record.duration_s, "finish_reason": "error", "error": reason}


# ---- the command -------------------------------------------------------------------------------------------------


def usable_device(name: str) -> torch.device:
    """The device ``name``; ConfigError where it is unknown or not there."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device: {name!r} cannot be used here ({str(error).splitlines()[0]}); try cpu") from None


def share_of(ids: Sequence[str], rank: int, world: int) -> set[str]:
    """The ids that one rank answers: by hash, so that the share does not depend on the order of the file."""
    return {i for i in ids if int(hashlib.sha1(i.encode()).hexdigest(), 16) % world == rank}


def commit() -> str | None:
    """The git commit of this code, or None outside a checkout."""
    folder = Path(__file__).resolve().parent
    found = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def read_lines(path: Path) -> list[dict]:
    """The complete lines of an output file; a torn last line is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    whole = lines[:-1]
    return [json.loads(line) for line in whole if line]


def drop_torn_line(path: Path) -> None:
    """Cut off a last line without its end, as an interrupted run leaves it; the next line would be glued to it."""
    if path.is_file():
        with open(path, "rb+") as out:
            out.truncate(out.read().rfind(b"\n") + 1)


def check_output(output: Path) -> None:
    """Make the folder of the output; ConfigError where the file cannot be written."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.is_dir() or not os.access(output if output.exists() else output.parent, os.W_OK):
            raise OSError("it is a folder" if output.is_dir() else "no permission")
    except OSError as error:
        raise ConfigError(f"--output: cannot write {output} ({error}); choose another file") from None


def check_meta(output: Path, path: Path, meta: dict) -> None:
    """Write the settings beside the output, or refuse if it was made with others, or by something else."""
    if path.is_file():
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{path}: not JSON ({error}); delete it with the output it belongs to") from None
        differ = [k for k in ("model", "sampler", "decoding", "annotations") if old.get(k) != meta[k]]
        if differ:
            raise ConfigError(
                f"{path}: the output was made with another {', '.join(differ)}; choose another --output or delete it"
            )
    elif output.is_file() and output.stat().st_size:
        raise ConfigError(f"--output: {output} is there and not from this command; choose another file or delete it")
    path.write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")


def part_path(output: Path, rank: int, world: int) -> Path:
    """Where one rank writes: the output itself, or a part beside it."""
    return output if world == 1 else output.with_name(f"{output.name}.part{rank}")


def join_parts(output: Path, ids: Sequence[str]) -> dict[str, dict]:
    """All lines of the output and its parts, one an id, written to the output in the order of the annotations."""
    parts = sorted(output.parent.glob(f"{output.name}.part*"))
    lines = {line["id"]: line for path in (output, *parts) for line in read_lines(path)}
    ordered = [lines[i] for i in ids if i in lines]
    fresh = output.with_name(output.name + ".tmp")
    fresh.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in ordered), encoding="utf-8")
    os.replace(fresh, output)
    for path in parts:
        path.unlink()
    return lines


def whole(least: int) -> Callable[[str], int]:
    """Reads a whole number from ``least`` on, for argparse."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}")
        return int(text)

    return number


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="videollm.infer", description="Answer every question of an annotation file.")
    parser.add_argument("--model", required=True, help="checkpoint folder")
    parser.add_argument("--annotations", required=True, nargs="+", help="annotation files (docs/annotations.md)")
    parser.add_argument("--videos", required=True, help="folder below which the videos lie")
    parser.add_argument("--output", required=True, type=Path, help="FILE.jsonl, one line an answer")
    parser.add_argument("--batch-size", type=whole(1), default=8, metavar="N")
    parser.add_argument("--workers", type=whole(0), default=0, metavar="N", help="processes that read videos")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backend", choices=list(BACKENDS), default="pyav")
    parser.add_argument("overrides", nargs="*", help="sampler.num_frames=32 generate.max_new_tokens=64 ...")
    return parser.parse_intermixed_args(argv)


def run(args: argparse.Namespace) -> None:
    """Load, answer this rank's share, join."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    values = override({}, args.overrides)
    for key in values:
        if key not in ("sampler", "generate"):
            raise ConfigError(f"{key}: unknown key; known keys: sampler, generate")
    options = build(GenerateOptions, values.get("generate", {}), "generate")
    records = load_records(args.annotations)
    if not Path(args.videos).is_dir():
        raise ConfigError(f"--videos: {args.videos} is not a folder; give the one that the paths are below")
    bundle = load(args.model)
    sampler = replace(build(Sampler, bundle.config.sampler | values.get("sampler", {}), "sampler"))
    device = usable_device(args.device if args.device != "cuda" else f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
    check_output(args.output)
    if world > 1 and not dist.is_initialized():
        # Only to wait for each other: nothing travels, and one share may take hours longer than another.
        dist.init_process_group("gloo", timeout=timedelta(days=7))
    meta = {
        "model": str(args.model), "annotations": list(map(str, args.annotations)), "sampler": to_dict(sampler),
        "decoding": to_dict(options), "config": bundle.config.to_dict(), "commit": commit(),
    }  # fmt: skip
    meta_path = args.output.with_name(args.output.name + ".meta.json")
    if rank == 0:
        check_meta(args.output, meta_path, meta)
    if world > 1:
        dist.barrier()  # no rank answers before rank 0 has found that the output may be gone on with
    part = part_path(args.output, rank, world)
    done = {line["id"] for line in (*read_lines(args.output), *read_lines(part)) if not line["error"]}
    mine = share_of([r.id for r in records], rank, world) - done
    todo = [r for r in records if r.id in mine]
    bundle.model.to(device)
    reader = bundle.reader(args.videos, sampler, backend=args.backend)
    drop_torn_line(part)
    with open(part, "a", encoding="utf-8") as out:
        for line in answer_records(
            bundle, todo, reader, options, batch_size=args.batch_size, workers=args.workers, progress=rank == 0
        ):
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
            out.flush()
    if world > 1:
        dist.barrier()
    if rank == 0:
        lines = join_parts(args.output, [r.id for r in records])
        errors = [line for line in lines.values() if line["error"]]
        meta["counts"] = {"questions": len(records), "answered": len(lines) - len(errors), "errors": len(errors)}
        meta_path.write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
        print(f"{args.output}: {len(lines) - len(errors)} answers, {len(errors)} errors of {len(records)} questions")
        if errors:
            report_errors(args.output, errors, len(lines))
    if world > 1:
        dist.destroy_process_group()


def report_errors(output: Path, errors: list[dict], questions: int) -> None:
    """Name the first question that could not be asked; ConfigError if none could be."""
    first = f"first {errors[0]['id']}: {errors[0]['error']}"
    if len(errors) == questions:
        raise ConfigError(f"none of the {questions} questions could be asked, {first} (all of them: {output})")
    print(f"{len(errors)} questions could not be asked, {first} (all of them: {output})", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    try:
        run(arguments(argv))
    except (AnnotationError, CheckpointError, ConfigError) as error:
        return tell(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
