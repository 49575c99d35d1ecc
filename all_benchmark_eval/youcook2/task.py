"""YouCook2 dense captioning: the steps of a cooking video, each with a span and a sentence.

Ground truth: ``{"annotations": [{"image_id", "duration", "segments", "pure_cap"}]}`` (the captions joined by ". "), or
the data set's ``{"database": {video: {"subset", "duration", "annotations": [{"segment", "sentence"}]}}}``, of which
the validation videos count. Predictions ``{video file: [{"timestamp": [s, e], "caption": ".."}]}``, or the answers that
D2VLM writes, ``[{"video", "a": "<evi> .. </evi>1.0 - 2.0 seconds, .."}]``::

    {"xHr8X2Wpmno.mp4": [{"timestamp": [20.80, 70.28], "caption": "cut the stems of the basil leaves."}]}
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from all_benchmark_eval.benchmark import WITHOUT_BREAK, Benchmark, BenchmarkError, Layout, Options, Scores, read_json
from all_benchmark_eval.metrics import captions
from all_benchmark_eval.metrics.dense import THRESHOLDS, Events, Floats, harmonic
from all_benchmark_eval.metrics.dense_scores import (
    DenseAnswers,
    DenseTruth,
    Words,
    answer_events,
    check_truth,
    clip_events,
    corrected_measures,
    mean_over_thresholds,
    published_measures,
)
from all_benchmark_eval.metrics.intervals import iou_epsilon
from all_benchmark_eval.metrics.moments import (
    State,
    as_object,
    moment_questions,
    read_span,
    seconds,
    state_counts,
    table,
)
from all_benchmark_eval.metrics.parsing import published_steps_with_evidence
from videollm.common.answers import AnswerLine

WORDINGS = {
    "distime": (
        "Identify and localize a series of steps or actions occurring in the video, providing start and end timestamps "
        "and related descriptions."
    ),
    # the dish is the same for every video, spelling as published
    "d2vlm": (
        "You are given a video about 'making fattoush'. Watch the video carefully and densly describe all the cooking "
        "steps. For each step, you need to determine the start and ends times and provide a concise description. The "
        "format of your response should be: '<start time> - <end time>, <description>'."
    ),
    "plain": "Describe every cooking step of the video in order, each as: '<start time> - <end time>, <description>'.",
}
METRICS = (
    *("SODA_c", "CIDEr", "METEOR", "F1", "Precision", "Recall"),
    *(f"{name}@{t:g}" for name in ("Precision", "Recall") for t in THRESHOLDS),
    *("Para_CIDEr", "Para_METEOR"),
)


class YouCook2(Benchmark):
    """SODA_c, CIDEr, METEOR and F1 of dense captions."""

    name = "youcook2"
    title = "YouCook2 dense captioning"
    layout = Layout(("val.caption_coco_format.json", "youcookii_annotations_trainval.json"))
    settings = WITHOUT_BREAK
    headline = ("SODA_c", "CIDEr", "METEOR", "F1")

    def load(self, path: Path) -> DenseTruth:
        """Either form of the annotations. A video's id is its file name."""
        data = as_object(read_json(path), f"{path}")
        if "database" in data:
            rows = _from_database(as_object(data["database"], f"{path}: database"), path)
        else:
            rows = _from_list(as_object(data, f"{path}", ("annotations",))["annotations"], path)
        names, durations, spans, texts = [], [], [], []
        for name, entry, video_spans, video_texts in rows:
            if not all(isinstance(text, str) for text in video_texts):
                raise BenchmarkError(f"{path}: {name!r}: a caption is not a text")
            duration = seconds(entry.get("duration"))
            names.append(name)
            durations.append(np.nan if duration is None else duration)
            spans.append(video_spans)
            texts.append(video_texts)
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise BenchmarkError(f"{path}: the video {twice!r} stands twice")
        return check_truth(DenseTruth(names, np.array(durations), spans, texts), path)

    def questions(self, truth: DenseTruth, wording: str) -> list[dict]:
        """One question a video."""
        videos = [name.removesuffix(".mp4") for name in truth.names]
        return moment_questions(truth.names, videos, [""] * len(videos), truth.durations, WORDINGS[wording])

    def from_answers(self, truth: DenseTruth, answers: Mapping[str, AnswerLine], wording: str) -> dict:
        """The events of each answer; no entry for a video that was not answered."""
        answered = {name: answers[name] for name in truth.names if name in answers and not answers[name].error}
        return {
            name: [{"timestamp": span, "caption": text} for span, text in answer_events(answer)]
            for name, answer in answered.items()
        }

    def read(self, path: Path, truth: DenseTruth) -> DenseAnswers:
        """Events by video. One without a usable span or caption is left out and counted in a note."""
        data = read_json(path)
        events = _from_d2vlm(data, path) if isinstance(data, list) else as_object(data, f"{path}")
        rows = {name: row for row, name in enumerate(truth.names)}
        answers, odd = DenseAnswers.none(len(truth)), 0
        for name, listed in events.items():
            where = f"{path}: {name!r}"
            if name not in rows:
                raise BenchmarkError(f"{where}: no video of the annotations has this name; are they of another split?")
            if not isinstance(listed, list):
                raise BenchmarkError(f"{where}: expected a list of events, got {type(listed).__name__}")
            found = [
                (list(span), event["caption"])
                for event in (as_object(event, where, ("timestamp", "caption")) for event in listed)
                if (span := read_span(event["timestamp"])) is not None and isinstance(event["caption"], str)
            ]
            odd += len(listed) - len(found)
            answers.put(rows[name], [span for span, _ in found], [text for _, text in found])
        answers.notes.extend([f"{odd} events without [start, end] and a text are left out"] * (odd > 0))
        return answers

    def score(self, truth: DenseTruth, predictions: DenseAnswers, options: Options) -> Scores:
        """Metrics in percent, means over all videos (one without a prediction counts 0).

        ``published``: the script of TimeChat, from Vid2Seq's, which DisTime and D2VLM ship. Spans are ordered; IoU has
        1e-8 added to its denominator, precision and recall want more than the threshold, caption pairs as much. F1 is
        the harmonic mean of a video's mean precision and recall. SODA_c takes the predicted captions in the order of
        their numbers as *text* (0, 1, 10, 11, 2, ...), against spans in order: with more than ten events the two do not
        belong together. Para_* pair the n-th predicted with the n-th true paragraph, so that they shift behind a
        missing video. ``corrected``: ``dense_scores.corrected_measures``; spans are cut to the video; a paragraph is
        paired with its own video's, a missing one scores 0.
        """
        words = Words(options)
        score = _corrected if options.protocol == "corrected" else _published
        measures, clipped = score(words, truth, predictions, options.seed)
        flat = mean_over_thresholds(measures)
        flat["F1"] = harmonic(flat["Precision"], flat["Recall"])
        means = {name: 100.0 * float(values.mean()) for name, values in flat.items()}
        means |= _paragraphs(words, truth, predictions, options.protocol)
        notes = words.notes + predictions.notes
        missing = int((predictions.state == State.MISSING).sum())
        if missing and options.protocol == "published":
            notes.append(f"{missing} videos are missing, so that Para_* pair paragraphs of different videos")
        events = float(np.mean([len(video) for video in predictions.spans]))
        return Scores(
            {name: means.get(name) for name in METRICS},
            "percent",
            state_counts(predictions.state, clipped),
            {name: table(truth.names, flat[name]) for name in METRICS if name in flat},
            details={"predicted events per video": events},
            notes=notes,
        )


def _published(words: Words, truth: DenseTruth, answers: DenseAnswers, seed: int) -> tuple[dict[str, Floats], int]:
    predicted, true = _events(words, truth, answers)
    listed = [sorted(range(size), key=str) for size in predicted.sizes]  # 0, 1, 10, 11, 2, ...
    heard = [predicted.captions[first + i] for first, row in zip(predicted.first, listed, strict=True) for i in row]
    iou = lambda a, b: iou_epsilon(np.sort(a, -1), np.sort(b, -1))  # noqa: E731
    return published_measures(words, predicted, true, iou, seed, heard), 0


def _corrected(words: Words, truth: DenseTruth, answers: DenseAnswers, seed: int) -> tuple[dict[str, Floats], int]:
    answers, clipped = clip_events(truth, answers)
    return corrected_measures(words, *_events(words, truth, answers)), clipped


def _events(words: Words, truth: DenseTruth, answers: DenseAnswers) -> tuple[Events, Events]:
    """(predicted, true) events with tokenized captions."""
    words.add([text for side in (answers.captions, truth.captions) for video in side for text in video])
    return words.events(answers.spans, answers.captions), words.events(truth.spans, truth.captions)


def _paragraphs(words: Words, truth: DenseTruth, answers: DenseAnswers, protocol: str) -> dict[str, float]:
    """CIDEr and METEOR of all captions of a video as one text, over all videos as one corpus. Letters only."""
    if not words.tokens:
        return {}
    predicted, true = map(_letters, answers.captions), map(_letters, truth.captions)
    if protocol == "corrected":
        pairs = list(zip(predicted, true, strict=True))
    else:
        there = [text for text, state in zip(predicted, answers.state, strict=True) if state != State.MISSING]
        pairs = list(zip(there, true, strict=False))
    scores = {"Para_CIDEr": 100.0 * float(captions.cider([pairs])[0])}
    if words.meteor:
        scores["Para_METEOR"] = 100.0 * float(captions.meteor([pairs])[0])
    return scores


def _letters(texts: Sequence[str]) -> str:
    """The words of texts, lower case, without anything that is not a letter a-z."""
    return " ".join(re.findall("[a-z]+", " ".join(texts).lower()))


def _from_list(annotations: Any, path: Path) -> list[tuple[str, Mapping, Any, list[str]]]:
    """(name, entry, spans, captions) of each video of the ``annotations`` list."""
    if not isinstance(annotations, list):
        raise BenchmarkError(f"{path}: annotations is not a list")
    rows = []
    for number, entry in enumerate(annotations):
        where = f"{path}: annotations[{number}]"
        entry = as_object(entry, where, ("image_id", "segments", "pure_cap"))
        if not isinstance(entry["image_id"], str) or not isinstance(entry["pure_cap"], str):
            raise BenchmarkError(f"{where}: image_id and pure_cap must be texts")
        rows.append((entry["image_id"], entry, entry["segments"], entry["pure_cap"].split(". ")))
    return rows


def _from_database(database: Mapping, path: Path) -> list[tuple[str, Mapping, Any, list[str]]]:
    """(name, entry, spans, captions) of each validation video of the data set's own file."""
    rows = []
    for video, entry in database.items():
        where = f"{path}: {video!r}"
        entry = as_object(entry, where, ("subset", "annotations"))
        if entry["subset"] != "validation":
            continue
        if not isinstance(entry["annotations"], list):
            raise BenchmarkError(f"{where}: annotations is not a list")
        events = [as_object(event, where, ("segment", "sentence")) for event in entry["annotations"]]
        rows.append((f"{video}.mp4", entry, [e["segment"] for e in events], [e["sentence"] for e in events]))
    return rows


def _from_d2vlm(samples: list, path: Path) -> dict[str, list[dict]]:
    """D2VLM's answers as events by video, converted as published: none without ``</evi>``.

    The published conversion stops at an answer without a time, which is unparsed here.
    """
    events: dict[str, list[dict]] = {}
    for number, sample in enumerate(samples):
        where = f"{path}: sample {number}"
        sample = as_object(sample, where, ("video", "a"))
        if not isinstance(sample["video"], str) or not isinstance(sample["a"], str):
            raise BenchmarkError(f"{where}: video and a must be texts")
        name = Path(sample["video"]).name
        if name in events:
            raise BenchmarkError(f"{where}: the video {name!r} stands twice")
        try:
            spans, texts, _ = published_steps_with_evidence(sample["a"]) or ([], [], [])
        except ValueError:
            spans, texts = [], []
        events[name] = [{"timestamp": s, "caption": text} for s, text in zip(spans, texts, strict=True)]
    return events


TASK = YouCook2()
