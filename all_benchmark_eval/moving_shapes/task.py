"""Moving shapes: grounding, dense captions and grounded multiple choice on synthetic clips (``quickstart.clips``).

The functions ``load``, ``to_record``, ``to_prediction``, ``score``, in the order of their use, and as every benchmark
``TASK``. It must not know which model or head wrote an answer. An annotation line, and the prediction made from it::

    {"id": "test-00003-dense", "video": "test/00003.mp4", "duration": 31.5, "task": "dense_caption",
     "source": "moving_shapes",
     "conversations": [{"from": "human", "value": "<video>\\ndescribe every event with its time ."},
                       {"from": "gpt", "value": "<span> red circle moving left . <span> blue square growing ."}],
     "tgt": [3.25, 9.0, 14.5, 20.75],
     "events": [{"color": "red", "shape": "circle", "motion": "left", "span": [3.25, 9.0]}, ...]}
    {"id": "test-00003-dense", "task": "dense_caption", "spans": [[3.1, 9.2], [14.4, 21.0]], "evidence_spans": [],
     "phrases": ["red circle moving left", "blue square growing"], "choice": null, "missing": false}
"""

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from all_benchmark_eval import benchmark
from all_benchmark_eval.benchmark import Benchmark, BenchmarkError, Explanation, Layout, Options, Scores, Setting, need
from all_benchmark_eval.forms import Content, Form, rows_with
from all_benchmark_eval.items import known_length, read_rows, seconds
from videollm.common.answers import AnswerLine, split_spans
from videollm.common.command import a_path, ended
from videollm.common.files import check_writable
from videollm.common.spans import as_spans, first_span_ious, mean_set_f1, set_f1, summarise, tiou, tiou_matrix

TASKS = ("grounding", "dense_caption", "grounded_mc")
DENSE_IOU = 0.5
READ = ("id", "text", "spans", "evidence_spans", "error")  # of an answer line
_MARK = "<span>"  # a span in an annotation


def load(path: str | Path) -> list[dict]:
    """The annotation lines of a file, plain or ``.gz``, checked. Raises ValueError with FILE:LINE."""
    items, seen = [], {}
    for where, item in read_rows(Path(path), ("id", "task"), "a line for every question"):
        _check(item, where)
        need(isinstance(item["id"], str), f"{where}: the id {item['id']!r:.60} is not a text")
        need(item["id"] not in seen, f"{where}: the id {item['id']!r} stands in {seen.get(item['id'])} already")
        seen[item["id"]] = where
        items.append(item)
    return items


def to_record(item: dict) -> dict:
    """The line that ``videollm.infer`` reads: the question without the answer turn and without any true time."""
    record = {key: item[key] for key in ("id", "video", "duration", "task", "source", "src") if key in item}
    return record | {"conversations": item["conversations"][:-1]}


def to_prediction(item: dict, answer: AnswerLine | None) -> dict:
    """What is scored of one answer.

    No answer (None) and one with an ``error`` are ``missing``. ``phrases`` are the texts behind the times written in
    the answer, one a span; empty if the text does not hold exactly one time a span.
    """
    prediction = {"id": item["id"], "task": item["task"], "spans": [], "evidence_spans": [], "phrases": []}
    if answer is None or answer.error:
        return prediction | {"choice": None, "missing": True}
    phrases = _phrases(split_spans(answer.text)[0])
    return prediction | {
        "spans": answer.spans,
        "evidence_spans": answer.evidence_spans,
        "phrases": phrases if len(phrases) == len(answer.spans) else [],
        "choice": _choice(answer.text) if item["task"] == "grounded_mc" else None,
        "missing": False,
    }


def score(items: list[dict], predictions: list[dict]) -> dict:
    """Every metric of the benchmark, as fractions; None where the annotations hold no sample of the task.

    ``mIoU``, ``R@1``: grounding, first span against the true one. ``dense_F1``: one-to-one pairs of spans at IoU 0.5.
    ``dense_caption_F1``: the same and the exact phrase. ``mc_accuracy``. ``evidence_mIoU``: first *evidence* span of
    grounding and grounded_mc, None if no answer has one. The span scored is the answer's, the evidence only where the
    answer has none. ``counts``: {task: scored, unparsed, missing}, which add up to the samples; unparsed and missing
    ones score 0. ``per_sample``: IoU of each grounding sample. Raises ValueError for ids unknown or repeated.
    """
    pairs = _pair(items, predictions)
    by_task = {task: [pair for pair in pairs if pair[0]["task"] == task] for task in TASKS}
    grounding, dense, choices = (by_task[task] for task in TASKS)
    ious = _ious(grounding, [_scored(prediction) for _, prediction in grounding])
    right = [prediction["choice"] == _true_choice(item) for item, prediction in choices]
    captions = [_caption_f1(item, prediction) for item, prediction in dense]
    return summarise(ious) | {
        "dense_F1": mean_set_f1([_scored(p) for _, p in dense], [_truth(i) for i, _ in dense], DENSE_IOU, _ids(dense)),
        "dense_caption_F1": _mean(captions),
        "mc_accuracy": _mean(right),
        "evidence_mIoU": _evidence_miou(grounding + choices),
        "counts": {task: _counts(group) for task, group in by_task.items() if group},
        "per_sample": dict(zip(_ids(grounding), np.nan_to_num(ious).tolist(), strict=True)),
    }


def baselines(items: list[dict], train_items: list[dict], seed: int) -> dict[str, dict]:
    """What guessing earns on the grounding samples: ``{name: {"mIoU", "R@1"}}``.

    ``whole_video``; ``mean_segment`` (mean relative start and end of the training spans); ``random_segment`` (one
    training span drawn for each sample); ``random_event`` (an event of the clip, the question ignored: the exact
    expectation over its events, not a draw).
    """
    grounding = [item for item in items if item["task"] == "grounding"]
    train = [item for item in train_items if item["task"] == "grounding"]
    need(grounding and train, f"baselines: {len(grounding)} grounding samples to score, {len(train)} to train on")
    true = _relative(grounding)  # [N, 2]
    segments = _relative(train)  # [M, 2]
    drawn = segments[np.random.default_rng(seed).integers(len(segments), size=len(true))]  # [N, 2]
    guesses = {
        "whole_video": np.broadcast_to([0.0, 1.0], true.shape),
        "mean_segment": np.broadcast_to(segments.mean(0), true.shape),
        "random_segment": drawn,
    }
    spans, ids = true[:, None].tolist(), [item["id"] for item in grounding]
    scores = {name: summarise(first_span_ious(guess[:, None].tolist(), spans, ids)) for name, guess in guesses.items()}
    return scores | {"random_event": _random_event(grounding)}


def oracle(items: list[dict], num_frames: int = 32) -> dict:
    """The best that spans made of whole frames can score on the grounding samples: ``{"mIoU", "R@1"}``.

    Frames stand in the middle of ``num_frames`` equal parts of the video; the run of frames a..b stands for
    [t_a - gap / 2, t_b + gap / 2], so every start and end is a multiple of duration / num_frames.
    """
    true = _relative([item for item in items if item["task"] == "grounding"])
    first, last = np.triu_indices(num_frames)
    runs = np.stack([first, last + 1], axis=-1) / num_frames  # [num_frames * (num_frames + 1) / 2, 2]
    return summarise(tiou_matrix(true, runs).max(1, initial=0.0))


def _check(item: dict, where: str) -> None:
    absent = [k for k in ("id", "video", "duration", "task", "conversations", "tgt", "events") if k not in item]
    need(not absent, f"{where}: no key {', '.join(absent)}")
    texts = all(isinstance(item[key], str) for key in ("id", "video", "task"))
    need(texts, f"{where}: id, video and task must be texts")
    duration, turns, tgt, task = item["duration"], item["conversations"], item["tgt"], item["task"]
    need(task in TASKS, f"{where}: task {task!r} is none of {', '.join(TASKS)}")
    need(known_length(duration), f"{where}: duration {duration!r:.40} is not a number of seconds above 0")
    answered = isinstance(turns, list) and len(turns) >= 2 and all(map(_is_turn, turns)) and turns[-1]["from"] == "gpt"
    need(answered, f"{where}: conversations must end with the answer ('from': 'gpt', 'value': text)")
    paired = isinstance(tgt, list) and tgt and len(tgt) % 2 == 0 and None not in map(seconds, tgt)
    need(paired, f"{where}: tgt needs a start and an end for every span, in seconds; it has {str(tgt)[:60]}")
    spans = as_spans(_truth(item), f"{where}: tgt")
    inside = spans.min() >= 0 and spans.max() <= duration
    need(inside, f"{where}: tgt {tgt} lies outside the video (0 to {duration} s)")
    need(task != "grounded_mc" or _true_choice(item), f"{where}: the answer names no option, such as (b)")
    each = task != "dense_caption" or len(_true_phrases(item)) == len(spans)
    need(each, f"{where}: the answer does not hold one <span> for each of the {len(spans)} spans of tgt")


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("from", "value"))


def _pair(items: list[dict], predictions: list[dict]) -> list[tuple[dict, dict]]:
    """Each item with its prediction; an item without one is missing."""
    known, by_id = {item["id"] for item in items}, {}
    for prediction in predictions:
        name = prediction["id"]
        need(name in known, f"prediction {name!r}: no annotation has this id")
        need(name not in by_id, f"prediction {name!r} is there twice")
        by_id[name] = prediction
    return [(item, by_id.get(item["id"]) or to_prediction(item, None)) for item in items]


def _ids(pairs: list[tuple[dict, dict]]) -> list[str]:
    return [item["id"] for item, _ in pairs]


def _truth(item: dict) -> list[list[float]]:
    return [item["tgt"][i : i + 2] for i in range(0, len(item["tgt"]), 2)]


def _scored(prediction: dict) -> list[list[float]]:
    return prediction["spans"] or prediction["evidence_spans"]


def _phrases(pieces: list[str]) -> list[str]:
    """What stands behind each span, of the texts before, between and behind them."""
    return [" ".join(piece.split()).strip(" .,;:") for piece in pieces[1:]]


def _choice(text: str) -> str | None:
    """The option that an answer names, in lower case: its last "(b)", else a text that is nothing but the letter."""
    letters = re.findall(r"\(([a-z])\)", text.lower()) or re.findall(r"^\s*([a-z])[.:)]?\s*$", text.lower())
    return letters[-1] if letters else None


def _true_phrases(item: dict) -> list[str]:
    return _phrases(item["conversations"][-1]["value"].split(_MARK))


def _true_choice(item: dict) -> str | None:
    return _choice(item["conversations"][-1]["value"])


def _ious(pairs: list[tuple[dict, dict]], spans: list[list]) -> np.ndarray:
    """IoU [N] of the first of each sample's ``spans``; NaN where there is none."""
    return first_span_ious(spans, [_truth(item) for item, _ in pairs], _ids(pairs))


def _caption_f1(item: dict, prediction: dict) -> float:
    spans, phrases = prediction["spans"], prediction["phrases"]
    if len(phrases) != len(spans):
        return 0.0
    same = [[mine == theirs for theirs in _true_phrases(item)] for mine in phrases]
    return set_f1(spans, _truth(item), DENSE_IOU, allowed=same)


def _evidence_miou(pairs: list[tuple[dict, dict]]) -> float | None:
    evidence = [prediction["evidence_spans"] for _, prediction in pairs]
    return summarise(_ious(pairs, evidence))["mIoU"] if any(evidence) else None


def _counts(pairs: list[tuple[dict, dict]]) -> dict[str, int]:
    answered = [prediction for _, prediction in pairs if not prediction["missing"]]
    parsed = sum(map(_is_parsed, answered))
    return {"scored": parsed, "unparsed": len(answered) - parsed, "missing": len(pairs) - len(answered)}


def _is_parsed(prediction: dict) -> bool:
    return bool(prediction["choice"] if prediction["task"] == "grounded_mc" else _scored(prediction))


def _mean(values: list) -> float | None:
    return float(np.mean(values)) if values else None


def _relative(items: list[dict]) -> np.ndarray:
    """The true span of each grounding sample as a fraction of its video, [N, 2]."""
    return np.array([np.divide(item["tgt"][:2], item["duration"]) for item in items]).reshape(-1, 2)


def _random_event(items: list[dict]) -> dict:
    """Expected scores of the true span of a random event: the mean over events within a clip, then over samples."""
    events = (as_spans([event["span"] for event in item["events"]], f"{item['id']}: events") for item in items)
    scores = [summarise(tiou(spans, item["tgt"][:2])) for spans, item in zip(events, items, strict=True)]
    recalls = {key: _mean([s["R@1"][key] for s in scores]) for key in scores[0]["R@1"]}
    return {"mIoU": _mean([s["mIoU"] for s in scores]), "R@1": recalls}


def _predictions(content: Content, truth: list[dict]) -> list[dict]:
    keys = to_prediction(truth[0], None).keys()
    rows = read_rows(content, tuple(keys))
    for where, row in rows:
        need(isinstance(row["id"], str), f"{where}: the id {row['id']!r:.40} is not a text")
    return [row for _, row in rows]


class MovingShapes(Benchmark):
    """The functions above as a benchmark; one wording, one protocol, the model's own frames."""

    name = "moving_shapes"
    title = "Moving shapes"
    layout = Layout(("test.jsonl",))
    settings = dict.fromkeys(("d2vlm", "distime", "plain"), Setting())
    forms = (Form("moving shapes", '[{"id", "task", "spans", "phrases", ...}]', rows_with("phrases"), _predictions),)

    def load(self, path: Path) -> list[dict]:
        with _as_benchmark_error():
            return load(path)

    def questions(self, truth: list[dict], wording: str) -> list[dict]:
        """As the clips' own annotations ask them, whatever the wording."""
        return [to_record(item) for item in truth]

    def from_answers(self, truth: list[dict], answers: Mapping[str, AnswerLine], wording: str) -> list[dict]:
        """One prediction (see above) a question."""
        return [to_prediction(item, answers.get(item["id"])) for item in truth]

    def score(self, truth: list[dict], predictions: list[dict], options: Options) -> Scores:
        """The metrics of :func:`score`, as fractions. There is no published script: both protocols are the same."""
        with _as_benchmark_error():
            found = score(truth, predictions)
        recalls = {f"R@1, IoU {threshold}": value for threshold, value in found.pop("R@1").items()}
        by_task, ious = found.pop("counts"), found.pop("per_sample")
        counts = {kind: sum(c[kind] for c in by_task.values()) for kind in ("scored", "unparsed", "missing")}
        counts = {"samples": len(truth)} | counts | {"clipped": 0}
        metrics, denominator = {"mIoU": found.pop("mIoU")} | recalls | found, "all samples of a metric's task"
        unread = {p["id"]: p.get("text", "") for p in predictions if not p["missing"] and not _is_parsed(p)}
        return Scores(metrics, "fraction", counts, {"mIoU": ious}, denominator, {"counts": by_task}, unread=unread)

    def explain(self, truth: list[dict], predictions: list[dict], name: str) -> Explanation:
        """The spans and the option that count; spans are read by the head, or by the reader of free text."""
        item = next((item for item in truth if item["id"] == name), None)
        need(item, f"--explain: the annotations have no question {name!r}")
        true = ", ".join(filter(None, (str(_truth(item)), item["task"] == "grounded_mc" and f"({_true_choice(item)})")))
        prediction = next((p for p in predictions if p["id"] == name), None)
        if prediction is None or prediction["missing"]:
            return Explanation(None, "nothing", "no answer in the file", true)
        choice = prediction["choice"] and f"({prediction['choice']})"
        read = ", ".join(filter(None, (str(_scored(prediction) or ""), choice)))
        rule = "as the file has it; an option is the last letter in brackets"
        return Explanation(prediction.get("text"), read or "nothing", rule, true)

    def keep_texts(self, truth: list[dict], predictions: list[dict], texts: Mapping[str, str]) -> None:
        for prediction in predictions:
            if prediction["id"] in texts:
                prediction["text"] = texts[prediction["id"]]


@contextlib.contextmanager
def _as_benchmark_error() -> Iterator[None]:
    """What the functions above say of bad input, as the commands expect it."""
    try:
        yield
    except ValueError as error:
        raise BenchmarkError(str(error)) from None


def _table(scores: dict) -> Table:
    table = Table("metric", Column("fraction", justify="right"), title="moving shapes", title_justify="left")
    flat = {key: value for key, value in scores.items() if not isinstance(value, dict)}
    flat |= {f"R@1, IoU {threshold}": value for threshold, value in scores["R@1"].items()}
    for key, value in flat.items():
        table.add_row(key, "-" if value is None else f"{value:.4f}")
    for task, counts in scores["counts"].items():
        table.add_row(f"{task} samples", ", ".join(f"{count} {name}" for name, count in counts.items()), style="dim")
    return table


def main(arguments: list[str] | None = None) -> int:
    """Score a file of answers; a user's error is one line and exit status 2."""
    parser = argparse.ArgumentParser(description="Score answers to the moving-shapes questions.")
    parser.add_argument("--annotations", type=a_path, required=True, help="annotation lines (.jsonl)")
    parser.add_argument("--predictions", type=a_path, required=True, help="output lines of videollm.infer (.jsonl)")
    parser.add_argument("--output", type=a_path, required=True, help="scores to write (.json)")
    args = parser.parse_args(arguments)

    def run() -> None:
        check_writable(args.output, "--output", [args.annotations, args.predictions])
        with _as_benchmark_error():
            score_answers(args.annotations, args.predictions, args.output)

    return ended(run)


def score_answers(annotations: Path, answers: Path, output: Path) -> None:
    """Read, score, write, print."""
    items = load(annotations)
    by_id = {item["id"]: item for item in items}
    predictions = []
    for where, answer in benchmark.answer_lines(answers, READ):
        need(answer.id in by_id, f"{where}: no annotation has the id {answer.id!r}")
        predictions.append(to_prediction(by_id[answer.id], answer))
    scores = score(items, predictions)
    benchmark.write_text(output, json.dumps(scores, indent=2) + "\n")
    Console().print(_table(scores))


TASK = MovingShapes()

if __name__ == "__main__":
    sys.exit(main())
