"""Damaged annotation lines: each is a good record or a documented complaint, and what is good can be written and read.

Lines of every documented form (examples of docs/annotations.md, both published styles, preferences, images, texts) are
damaged by one to three seeded changes: types, keys, numbers, marks, deep nesting, half characters, null bytes, long
texts, cut and flipped bytes. For each file of them: every line is a record or a complaint ``FILE:LINE: what (field) -
remedy``, nothing else is raised, and ``check --output`` writes records that are read back the same. Exit status 1 and
the line where that does not hold.

    python -m benchmarks.fuzz_annotations --lines 100000 --seed 0
"""

import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.rounds import command_line
from videollm.common.command import ended
from videollm.data.check import Visuals, write_clean
from videollm.data.foreign import NAMES
from videollm.data.load import load_with_problems, own_ids
from videollm.data.record import Record, neutral_json

DOCUMENT = Path(__file__).resolve().parents[1] / "docs/annotations.md"
A_FILE = 500  # lines
PROBLEM = re.compile(r":(?:item )?(\d+): .+ \(.+\) - .+", re.DOTALL)  # behind the file's name
HUMAN, GPT = "human", "gpt"
NUMBERS = (float("nan"), float("inf"), -1, -0.0, 1e-320, 1e15, -1e300, 10**400, 2**63, 0, True)
TEXTS = ("", " ", "\0", "\ud83d", "\U0001f600", "<span>", "</evi>", "<evi></evi>", "<video>", "<image>\n", "<VIDEO>",
         "<Video><VideoHere></Video>", "<video_1>", "../x", "/abs", "C:\\x", "a\0b", "\u2028",
         "<TIME_STAMP>")  # fmt: skip
KEYS = (*NAMES, *" ".join(NAMES.values()).split(), "videos", "Video", "srcs", "chosen", "x", "", "\0", "text_only",
        "reject_0_shift", "reject_1_qwen", "bound", "frames", "after_video", "generate", "fps", "first",
        "id")  # fmt: skip


def forms() -> list[dict]:
    """A good line of every form."""
    lines = re.findall(r"```json\n(.+)\n```", DOCUMENT.read_text(encoding="utf-8"))
    asked, film, image = (
        said("<video>\nwhen?"),
        {"video": "v.mp4"},
        {"conversations": said("<image>\n<image>\nwhat?", "a cat")},
    )
    talks = {"chosen": said("<image>\nq", "<evi></evi> At <evi>."), "reject_0_shift": said("<image>\nq", "In <evi>.")}
    return [
        *map(json.loads, lines),
        film | {"tgt": [1, 2, 3, 4], "conversations": said("At <TIME_STAMP>?", "a", "When?", "<TIME_STAMP>")},
        film | {"duration": 9.5, "src": [7.5], "task": "rvq", "conversations": said("at <evi>?", "</evi> x")},
        film | {"tgt": [1, 2, 3, 4],
         "conversations": said("<image>\ncook", "<evi>, <evi></evi> <evi>, cut. <evi>, fry.")},
        film | {"tgt": {"chosen": [1, 2], "reject_0_shift": [3, 4]}, "conversations": talks},
        {"image": ["a.png", "b/c.png"], **image},
        {"conversations": [{"from": "system", "value": "be brief"}, *said("hi", "hello")]},
        {"id": 7, "video": ["v.mp4"], "bound": [1, 5], "generate": {"top_p": 0.9}, "conversations": asked},
        {"video": "frames/7", "frames": {"fps": 3, "first": 0}, "source": "s", "events": [1], "conversations": asked},
        film | {"after_video": "", "conversations": asked},
    ]  # fmt: skip


def said(*texts: str) -> list[dict]:
    """Turns that alternate."""
    return [{"from": GPT if k % 2 else HUMAN, "value": text} for k, text in enumerate(texts)]


# ---- damage ----------------------------------------------------------------------------------------------------------


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key or index) of everything in JSON data."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from places(inner)


def odd_value(rng: random.Random) -> Any:
    """A value of any kind that might stand where none like it should."""
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice((None, [], {}, [[]], [None], {"a": 1}, [1, [2]], ["a.mp4"], ["a.mp4", "b.mp4"]))
    if kind == 1:  # around the limit mostly; far beyond it the text is damaged instead
        return json.loads("[" * (depth := rng.choice((3, 90, 99, 120, 400))) + "]" * depth)
    if kind == 2:
        return rng.choice("ab ") * rng.choice((200, 256, 5000, 20_000))
    if kind == 3:
        return [rng.uniform(-5, 70) for _ in range(rng.randrange(6))]
    return rng.choice(NUMBERS) if kind < 6 else "".join(rng.choices(TEXTS, k=rng.randint(1, 3)))


def damage(rng: random.Random, line: dict) -> None:
    """One change of a line, in place."""
    found = list(places(line)) or [(line, "x")]
    holder, key = rng.choice(found)
    kind = rng.randrange(8)
    if kind == 0 and isinstance(holder, dict):
        holder.pop(key, None)
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(KEYS)] = holder.pop(key, None)
    elif kind == 2 and isinstance(holder, list):
        holder.insert(key, holder[key])
    elif kind == 3 and isinstance(text := holder.get(key) if isinstance(holder, dict) else holder[key], str):
        at = rng.randint(0, len(text))
        holder[key] = text[:at] + rng.choice(TEXTS) + text[at:]
    elif kind > 5:
        line[rng.choice(KEYS)] = odd_value(rng)
    else:
        holder[key] = odd_value(rng)


def spoilt(rng: random.Random, data: bytes) -> bytes:
    """The bytes of a line, cut, flipped or stretched; still one line."""
    at, kind = rng.randrange(len(data)), rng.randrange(5)
    middle = (b"", bytes([rng.randrange(256)]), b"[" * 2000, b"1e400", b"\\ud83d\xed\xa0\xbd")[kind]
    return (data[:at] + middle + data[at + rng.choice((0, 1, 40)) :]).replace(b"\n", b" ").replace(b"\r", b" ")


def damaged(rng: random.Random, good: list[dict]) -> bytes:
    """One damaged line."""
    line = json.loads(json.dumps(rng.choice(good)))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        damage(rng, line)
    data = json.dumps(line, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return spoilt(rng, data) if rng.random() < 0.2 else data


# ---- what must hold --------------------------------------------------------------------------------------------------


class Broken(Exception):
    """A line that is neither good nor refused as documented, or not the same when it is read again."""


def content(record: Record) -> str:
    """All that a record says, as text: NaN equals itself there."""
    return json.dumps([neutral_json(record), record.turns, record.spans_s], default=vars, sort_keys=True)


def run_file(lines: list[bytes], folder: Path) -> tuple[int, Counter]:
    """-> how many of the lines are good, and how often each field was complained of.

    Raises:
        Broken: with the line.
    """
    path, clean = folder / "lines.jsonl", folder / "clean.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    records, problems = load_with_problems(path)
    told: dict[int, str] = {}
    for problem in problems:
        match = PROBLEM.fullmatch(problem.removeprefix(str(path)))
        if match is None:
            raise Broken(f"not as documented: {problem!r}")
        told[int(match[1])] = problem
    good = {record.line for record in records}
    for number, line in enumerate(lines, start=1):
        if line.strip() and number not in good and number not in told:
            raise Broken(f"neither read nor refused: {line[:500]!r}")
    kept, renamed = own_ids(records)
    write_clean(clean, kept, problems, Visuals(), long={}, renamed=renamed)
    again, wrong = load_with_problems(clean) if kept else ([], [])
    if wrong:
        raise Broken(f"written and then refused: {wrong[0]}")
    for before, after in zip(kept, again, strict=True):
        if content(before) != content(after):
            raise Broken(f"written and read otherwise: {lines[before.line - 1][:500]!r}")
    fields = Counter(re.sub(r"\[\d+\]", "[]", problem.rpartition(") - ")[0].rpartition("(")[2]) for problem in problems)
    return len(records), fields


def run(count: int, seed: int) -> tuple[int, Counter]:
    """``count`` damaged lines, in files; see ``run_file``."""
    rng, good, total, fields = random.Random(seed), forms(), 0, Counter()
    first = json.dumps(good[0]).encode()  # so that no file begins as one list
    with tempfile.TemporaryDirectory() as folder:
        for start in range(0, count, A_FILE):
            lines = [damaged(rng, good) for _ in range(min(A_FILE, count - start))]
            read, found = run_file([first, *lines], Path(folder))
            total, fields = total + read - 1, fields + found
    return total, fields


def main() -> int:
    args, start = command_line(__doc__, lines=(100_000, "how many"), seed=0).parse_args(), time.perf_counter()
    try:
        good, fields = run(args.lines, args.seed)
    except Broken as error:
        print(error)
        return 1
    print(f"{args.lines} damaged lines, seed {args.seed}: {good} still good, the others refused with their line")
    print(f"{time.perf_counter() - start:.0f} s; complaints by field:")
    print(", ".join(f"{field[:30]} {n}" for field, n in fields.most_common(30)))
    return 0


if __name__ == "__main__":
    sys.exit(ended(main))
