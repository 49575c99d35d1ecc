"""Preference records from any annotation file: right answers get wrong ones, each made by a named factor.

``python -m d2vlm.preference --annotations FILE [FILE ...] --output FILE [--config FILE] [key=value ...]``. In:
annotation files, optionally a model's own answers and a rewriting command. Out: the same records with ``rejected``, in
our own schema or the published one, and a report that names every record without any. Which answers are made depends on
the seed and on what the records say, never on their order. No video is opened, no model is run.
"""

import argparse
import hashlib
import json
import random
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from tqdm import tqdm

from d2vlm.preferences.factors import ATTRIBUTES, FACTORS, Library, Scene, Severity, visual_of, wording_of
from d2vlm.preferences.own_answers import OwnOptions, RewriteOptions, read_answers, rewrites, verdict
from d2vlm.preferences.packed import read_packed
from d2vlm.preferences.wording import Wording
from videollm.common.command import Parser, a_path, ended
from videollm.common.config import ConfigError, build, override, read_yaml, to_dict
from videollm.common.files import check_writable, json_text, write_text
from videollm.data import AnnotationError, Record, load_records, neutral_json
from videollm.data.annotations import SHOWN
from videollm.data.conversation import SpanMark, Turn, span_marks
from videollm.data.load import own_ids, parse_rows
from videollm.data.published import to_classes
from videollm.data.record import RejectedAnswer


@dataclass
class Mix:
    """How often each factor is drawn, relative to the others; 0 leaves it out. A factor that does not apply to a
    record leaves its place to the next one drawn."""

    shift: float = 2.0
    stretch: float = 2.0
    random: float = 1.0
    swap: float = 2.0
    missing: float = 1.0
    repeated: float = 1.0
    spurious: float = 1.0
    order: float = 1.0
    wording: float = 2.0
    foreign: float = 1.0
    attribute: float = 2.0
    option: float = 2.0
    rewrite: float = 0.0  # needs rewrite.command

    def __post_init__(self):
        for name, weight in vars(self).items():
            if not 0 <= weight < float("inf"):
                raise ConfigError(f"mix.{name}: {weight}, but a weight must be at least 0")


@dataclass
class PreferenceOptions:
    """What rejected answers are made, and how many."""

    seed: int = 0
    per_record: int = 4  # rejected answers made for one record, of as many factors; 0: only the model's own
    mix: Mix = field(default_factory=Mix)
    severity: Severity = field(default_factory=Severity)
    own: OwnOptions = field(default_factory=OwnOptions)
    rewrite: RewriteOptions = field(default_factory=RewriteOptions)
    attributes: list[list[str]] = field(default_factory=lambda: ATTRIBUTES)  # words that may stand for each other

    def __post_init__(self):
        if self.per_record < 0:
            raise ConfigError(f"per_record: {self.per_record}, but it must be at least 0")
        if bool(self.rewrite.command) != (self.mix.rewrite > 0):
            raise ConfigError("mix.rewrite, rewrite.command: one without the other; give both or neither")
        self.attributes = [[word.casefold() for word in group] for group in self.attributes]
        for k, group in enumerate(self.attributes):
            if len(set(group)) < max(2, len(group)):
                raise ConfigError(f"attributes[{k}]: {group} needs two different words, and none twice")


@dataclass
class Made:
    """What came out: the records with rejected answers, and those without, with the reason."""

    records: list[Record]
    without: list[tuple[Record, str]]

    @property
    def factors(self) -> Counter:
        """factor -> rejected answers."""
        return Counter(answer.factor for record in self.records for answer in record.rejected)


def add_rejected(
    records: Sequence[Record],
    options: PreferenceOptions,
    own: dict[str, list[Wording]] | None = None,
    progress: bool = False,
) -> Made:
    """Every record with rejected answers beside those that it has; ``own`` are a model's answers by record id.

    No rejected answer says the same as the chosen one, or as another rejected one of the record.

    Raises:
        ConfigError: the rewriting command fails.
    """
    library, own, made = Library.of(records), own or {}, Made([], [])
    drawn = {record.id: _draw(record, options) for record in records if record.has_answer}
    wanted = [r for r in records if "rewrite" in drawn.get(r.id, ((), None))[0][: options.per_record]]
    rewritten = rewrites(wanted, options.rewrite)
    for record in tqdm(records, unit="record", desc="rejecting", disable=not progress):
        if not record.has_answer:
            made.without.append((record, "no answer"))
            continue
        names, rng = drawn[record.id]
        scene = _scene(record, library, options)
        said = {scene.answer.key} | {wording_of(record.answered_by(answer)).key for answer in record.rejected}
        judged = _own(scene, own.get(record.id, []), options.own, rng)
        answers = [_rejected(record, *pair) for pair in _fresh(judged, said, options.own.most)]
        tried = ((name, rewritten.get(record.id) if name == "rewrite" else FACTORS[name](scene, rng)) for name in names)
        answers += [_rejected(record, *pair) for pair in _fresh(tried, said, options.per_record)]
        if answers or record.rejected:
            made.records.append(replace(record, rejected=(*record.rejected, *answers)))
        else:
            made.without.append((record, "no factor applies" if options.per_record else "no wrong answer of its own"))
    return made


def _draw(record: Record, options: PreferenceOptions) -> tuple[list[str], random.Random]:
    """The factors in the order in which they are tried, and the record's own random generator.

    The generator is seeded by what the record says, not by its id, which may hold the number of its line.
    """
    content = {key: value for key, value in neutral_json(record).items() if key not in ("id", "rejected")}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    rng = random.Random(f"{options.seed}/{digest}")
    weights = {name: weight for name, weight in vars(options.mix).items() if weight > 0}
    return sorted(weights, key=lambda name: rng.expovariate(1.0) / weights[name]), rng


def _scene(record: Record, library: Library, options: PreferenceOptions) -> Scene:
    answer, groups = wording_of(record), tuple(map(tuple, options.attributes))
    return Scene(answer, visual_of(record), record.task, record.question, library, options.severity, groups)


def _own(scene: Scene, answers: list[Wording], options: OwnOptions, rng: random.Random) -> list[tuple[str, Wording]]:
    """The wrong ones of a model's answers with their factors, in an order that is drawn.

    Spans are cut at the annotated end of the video, which may be before the end of the file.
    """
    answers = sorted(answers, key=lambda answer: answer.key)
    rng.shuffle(answers)
    inside = [a.with_spans([tuple(_inside(scene, t) for t in span) for span in a.spans]) for a in answers]
    judged = ((verdict(scene.answer, answer, options), answer) for answer in inside)
    return [(factor, answer) for factor, answer in judged if factor is not None]


def _inside(scene: Scene, time_s: float) -> float:
    """A model's time within the video, and as fine as the other times are."""
    return min(max(scene.severity.snapped(time_s), 0.0), scene.end_s)


def _fresh(candidates: Iterable[tuple[str, Wording | None]], said: set[tuple], most: int) -> list[tuple[str, Wording]]:
    """The first candidates that say something else than all that was ``said``, which grows by them."""
    kept: list[tuple[str, Wording]] = []
    for factor, answer in candidates if most else ():
        if answer is not None and answer.key not in said:
            said.add(answer.key)
            kept.append((factor, answer))
            if len(kept) == most:
                break
    return kept


def _rejected(record: Record, factor: str, answer: Wording) -> RejectedAnswer:
    """The answer as a turn that may stand in the place of the record's own."""
    before = len(record.spans_s) - len(span_marks(record.turns[-1]))
    first, *rest = answer.text.split("<span>")
    parts = [first, *(part for k, text in enumerate(rest) for part in (SpanMark(before + k), text))]
    return RejectedAnswer(factor, Turn("assistant", tuple(part for part in parts if part != "")), answer.spans)


# ---- the command -----------------------------------------------------------------------------------------------------


def write(made: Made, output: Path, layout: str) -> list[str]:
    """Write the records as lines (``.jsonl``) or as one list (``.json``); -> what the layout could not hold."""
    lines, left_out = [neutral_json(record) for record in made.records], []
    if layout == "official":
        turned = [to_classes(line) for line in lines]
        left_out = [f"{r.where}: {reason}" for r, (_, out) in zip(made.records, turned, strict=True) for reason in out]
        lines = [line for line, _ in turned if line is not None]
    whole = output.suffix.lower() == ".json"
    write_text(output, json.dumps(lines, ensure_ascii=False, indent=1) if whole else json_text(lines))
    return left_out


def read(args: argparse.Namespace, made: bool) -> list[Record]:
    """The records of all annotation files, and of the packed ones; AnnotationError names every bad one of either.

    Where no answer is ``made`` from them, packed ones are passed on to the letter, for ``compatibility: published``.
    """
    records = load_records(args.annotations) if args.annotations else []
    if args.packed:
        if not args.tokenizer:
            raise ConfigError("--packed: holds token ids; give their tokenizer with --tokenizer FOLDER")
        from videollm.checkpoint import load_tokenizer  # loads torch

        tokenizer = load_tokenizer(args.tokenizer, "--tokenizer")
        first_use, problems = {record.id: record for record in records}, []
        for path in args.packed:
            rows = list(enumerate(read_packed(path, tokenizer), start=1))
            records += parse_rows(path, rows, first_use, problems, raw_spans=not made)
        if problems:
            raise AnnotationError(problems)
        records = own_ids(records)[0]
    if not records:
        raise ConfigError("--annotations: no file named; name at least one, or a --packed one")
    return records


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="python -m d2vlm.preference", description="Make preference records.")
    parser.add_argument("--annotations", nargs="+", default=[], metavar="FILE", help="docs/annotations.md")
    parser.add_argument("--packed", nargs="+", default=[], metavar="FILE.pt", help="published packed records")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="of the packed records")
    parser.add_argument(
        "--answers", nargs="+", default=[], type=a_path, metavar="FILE", help="outputs of videollm.infer"
    )
    parser.add_argument("--output", required=True, type=a_path, metavar="FILE", help=".jsonl or .json")
    parser.add_argument("--format", choices=("ours", "official"), default="ours", help="layout of the output")
    parser.add_argument("--config", type=a_path, metavar="FILE.yaml")
    known = ", ".join(f.name for f in fields(PreferenceOptions))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"of {known}")
    return parser.parse_intermixed_args(argv)


def run(args: argparse.Namespace) -> None:
    """Read, make, write, report."""
    values = override(read_yaml(args.config) if args.config else {}, args.overrides)
    options = build(PreferenceOptions, values)
    if args.output.suffix.lower() not in (".json", ".jsonl"):
        raise ConfigError(f"--output: {args.output} must end in .json or .jsonl")
    check_writable(args.output, "--output", [*args.annotations, *args.packed, *args.answers])
    records = read(args, made=options.per_record > 0 or bool(args.answers))
    own, unused = read_answers(args.answers, {record.id for record in records})
    made = add_rejected(records, options, own, progress=True)
    if not made.records:
        raise ConfigError(f"per_record, mix: not one of {len(records)} records gets a rejected answer")
    left_out = write(made, args.output, args.format)
    report = {
        "records": len(records), "preference_records": len(made.records), "factors": dict(made.factors.most_common()),
        "without": [f"{r.where}: {reason} (id {r.id})" for r, reason in made.without],
        "answers_not_used": dict(unused), "not_in_this_layout": left_out, "options": to_dict(options),
    }  # fmt: skip
    path = args.output.with_name(args.output.name + ".report.json")
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    tell_report(report, args.output, path)


def tell_report(report: dict, output: Path, path: Path) -> None:
    """Print the counts, and the first of what was left out."""
    factors = report["factors"]
    print(f"{output}: {report['preference_records']} of {report['records']} records, {sum(factors.values())} rejected")
    print("\n".join(f"  {factor}: {count}" for factor, count in factors.items()))
    for name, lines in (
        ("records get no rejected answer", report["without"]),
        ("rejected answers or records do not fit the layout", report["not_in_this_layout"]),
        ("lines of --answers are not used", [f"{why}: {n}" for why, n in report["answers_not_used"].items()]),
    ):
        if lines:
            count = sum(report["answers_not_used"].values()) if name.startswith("lines") else len(lines)
            print(f"{count} {name} (all of them: {path}):", *lines[:SHOWN], sep="\n  ", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    return ended(lambda: run(arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
