"""A model's own wrong answers as rejected ones, and a language model's rewrites: what comes from outside.

In: lines of ``videollm.infer`` (several an id allowed), or a command that reads and writes JSON lines. Out: wordings by
record id. An answer is kept where it is measurably wrong: its spans by tIoU, its words by F1 with the right ones. No
model is loaded here.
"""

import json
import math
import shlex
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from d2vlm.preferences.factors import tiou, wording_of
from d2vlm.preferences.wording import MARK, Wording, take_apart, words
from videollm.common.answers import AnswerLine, split_spans
from videollm.common.config import ConfigError, need
from videollm.common.files import Bad, json_lines, json_text, read_json
from videollm.data import Record

SHOWN = 200  # characters of a command's own error that a message repeats


@dataclass
class OwnOptions:
    """When a model's own answer is wrong enough to be rejected."""

    iou: float = 0.5  # a span below this tIoU is wrong; so is another number of spans
    words: float = 0.9  # words below this F1 are wrong; lower it where answers are free text
    most: int = 2  # answers kept for one record

    def __post_init__(self):
        for name in ("iou", "words"):
            need(0 <= getattr(self, name) <= 1, f"own.{name}: {getattr(self, name)} is not in [0, 1]")
        need(self.most >= 1, f"own.most: {self.most}, but it must be at least 1")


@dataclass
class RewriteOptions:
    """A command that makes answers wrong: it reads lines ``{"id", "question", "answer"}`` and writes the same, without
    the question. The answers have the marks of the right ones."""

    command: str = ""  # as typed in a shell, but run without one; empty: no rewriting
    timeout_s: float = 3600.0  # for all lines together

    def __post_init__(self):
        need(self.timeout_s > 0, f"rewrite.timeout_s: {self.timeout_s}, but it must be above 0")


def read_answers(paths: Sequence[Path], known: set[str]) -> tuple[dict[str, list[Wording]], Counter]:
    """-> the answers by record id, and how many lines had none that can be used, and why.

    Raises:
        ConfigError: a file cannot be read, a line is no answer of ``videollm.infer``, or all ids are unknown.
    """
    found, left_out = defaultdict(list), Counter()
    for where, line in _lines(paths):
        reason = "its question could not be asked" if line.error else None
        reason = reason or (None if line.id in known else "no record has its id")
        answer = None if reason else _own_wording(line, where)
        if answer is None:
            left_out[reason or "empty, or times in its text that are no spans"] += 1
        else:
            found[line.id].append(answer)
    if paths and not found:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in left_out.items()) or "no line"
        raise ConfigError(f"--answers: no answer can be used ({reasons}); give answers to these annotations")
    return found, left_out


def _lines(paths: Sequence[Path]) -> Iterator[tuple[str, AnswerLine]]:
    """(FILE:LINE, answer) of all files."""
    remedy = "give an output of videollm.infer"
    for path in paths:
        try:
            for number, line in json_lines(path, parse=partial(AnswerLine.from_json, needed=("id", "text", "spans"))):
                yield f"{path}:{number}", line
        except OSError as error:
            raise ConfigError(f"--answers: {path}: {error}; {remedy}") from None
        except ValueError as error:
            raise ConfigError(f"--answers: {error}; {remedy}") from None


def _own_wording(line: AnswerLine, where: str) -> Wording | None:
    text = MARK.join(split_spans(line.text.replace(MARK, ""))[0]).strip()
    if not text or text.count(MARK) != len(line.spans):
        return None
    spans = [tuple(sorted((float(start), float(end)))) for start, end in line.spans]
    if not all(math.isfinite(time) for span in spans for time in span):
        raise ConfigError(f"--answers: {where}: spans are not [[start, end], ...] in seconds")
    return take_apart(text, spans)


def verdict(right: Wording, own: Wording, options: OwnOptions) -> str | None:
    """``own-span``, ``own-text``, ``own-both``, or None where the answer is not measurably wrong."""
    pairs = list(zip(right.spans, own.spans, strict=False))
    misplaced = len(right.spans) != len(own.spans) or any(tiou(a, b) < options.iou for a, b in pairs)
    told = [(a.words, b.words) for a, b in zip(right.events, own.events, strict=False)]
    whole = (words(right.text.replace(MARK, " ")), words(own.text.replace(MARK, " ")))
    same_count = len(right.events) == len(own.events)
    said = any(f1(*pair) < options.words for pair in ([*told, whole] if same_count else [whole]))
    return {(True, True): "own-both", (True, False): "own-span", (False, True): "own-text"}.get((misplaced, said))


def f1(a: Sequence[str], b: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the words of two texts; 1 for two empty ones."""
    common = (Counter(a) & Counter(b)).total()
    return 2 * common / (len(a) + len(b)) if a or b else 1.0


def rewrites(records: Sequence[Record], options: RewriteOptions) -> dict[str, Wording]:
    """Wrong answers that the command makes of the right ones, by id; fewer where it leaves some out.

    Raises:
        ConfigError: the command cannot be run, fails, takes too long, or writes something else.
    """
    if not records:
        return {}
    right = {record.id: wording_of(record) for record in records}
    asked = [{"id": r.id, "question": r.question, "answer": right[r.id].text} for r in records]
    lines = _run(json_text(asked), options)
    found = {}
    for number, text in enumerate(lines, start=1):
        where = f"rewrite.command: line {number} of its output"
        try:
            line = read_json(text)
            name, answer = line["id"], line["answer"]
            original = right[name]
            found[name] = take_apart(answer, original.spans)
        except (json.JSONDecodeError, Bad) as error:
            raise ConfigError(f"{where} is not JSON ({error}); it must write one object a line") from None
        except (TypeError, KeyError, AttributeError):
            raise ConfigError(f'{where} is not {{"id": one of the input, "answer": text}}: {text[:SHOWN]}') from None
        except ValueError as error:
            raise ConfigError(f"{where}: {error}; it must keep every {MARK} of the answer") from None
    return found


def _run(text: str, options: RewriteOptions) -> list[str]:
    """The lines that the command writes when it reads ``text``."""
    key = "rewrite.command"
    try:
        command = shlex.split(options.command)
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=options.timeout_s, check=True)
        return [line for line in done.stdout.decode().splitlines() if line.strip()]
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{key}: not done after {options.timeout_s:g} s; raise rewrite.timeout_s") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()[-SHOWN:] or "it said nothing"
        raise ConfigError(f"{key}: ended with status {error.returncode}: {said}") from None
    except (OSError, ValueError) as error:  # not found, not allowed, an open quotation mark, not UTF-8
        raise ConfigError(f"{key}: {options.command!r} cannot be run ({error})") from None
