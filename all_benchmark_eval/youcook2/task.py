"""YouCook2 dense captioning: the steps of a cooking video, each with a span and a sentence.

Ground truth: ``{"annotations": [{"image_id", "duration", "segments", "pure_cap"}]}`` (the captions joined by ". "), or
the data set's ``{"database": {video: {"subset", "duration", "annotations": [{"segment", "sentence"}]}}}``, of which
the validation videos count. Predictions ``{video file: [{"timestamp": [s, e], "caption": ".."}]}``, or the answers that
D2VLM writes, ``[{"video", "a": "<evi> .. </evi>1.0 - 2.0 seconds, .."}]``::

    {"xHr8X2Wpmno.mp4": [{"timestamp": [20.80, 70.28], "caption": "cut the stems of the basil leaves."}]}
"""

from collections.abc import Iterator, Mapping
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from all_benchmark_eval.benchmark import Layout, Options, Scores, read_json
from all_benchmark_eval.items import Answers, answered, as_object, need, read_object, read_span, seconds
from all_benchmark_eval.metrics import dense_measures, dense_scores, paragraphs
from all_benchmark_eval.metrics.dense import THRESHOLDS, Floats, harmonic
from all_benchmark_eval.metrics.dense_scores import DenseAnswers, DenseTruth, Words, answer_events
from all_benchmark_eval.metrics.intervals import iou_epsilon
from all_benchmark_eval.metrics.moments import State, state_counts
from all_benchmark_eval.metrics.paragraphs import paragraph_scores
from all_benchmark_eval.metrics.parsing import published_steps_with_evidence

WORDINGS = {
    "distime": "Identify and localize a series of steps or actions occurring in the video, providing start and end "
    "timestamps and related descriptions.",
    # the dish is the same for every video, spelling as published
    "d2vlm": "You are given a video about 'making fattoush'. Watch the video carefully and densly describe all the "
    "cooking steps. For each step, you need to determine the start and ends times and provide a concise description. "
    "The format of your response should be: '<start time> - <end time>, <description>'.",
    "plain": "Describe every cooking step of the video in order, each as: '<start time> - <end time>, <description>'.",
}
METRICS = (
    *("SODA_c", "CIDEr", "METEOR", "F1", "Precision", "Recall"),
    *(f"{name}@{t:g}" for name in ("Precision", "Recall") for t in THRESHOLDS),
    *("SODA_c_Precision", "SODA_c_Recall", "ROUGE_L", "BLEU_1", "BLEU_2", "BLEU_3", "BLEU_4", *paragraphs.METRICS),
)


class YouCook2(dense_scores.DenseBenchmark):
    """SODA_c, CIDEr, METEOR and F1 of dense captions."""

    name = "youcook2"
    title = "YouCook2 dense captioning"
    layout = Layout(("val.caption_coco_format.json", "youcookii_annotations_trainval.json"))
    wordings = WORDINGS
    metrics = METRICS

    def load(self, path: Path) -> DenseTruth:
        """Either form of the annotations. A video's id is its file name."""
        data = read_object(path)
        if "database" in data:
            return DenseTruth.of(_from_database(as_object(data["database"], f"{path}: database"), path), path)
        return DenseTruth.of(_from_list(as_object(data, f"{path}", ("annotations",))["annotations"], path), path)

    def from_answers(self, truth: DenseTruth, answers: Answers, wording: str) -> dict:
        """The events of each answer; no entry for a video that was not answered."""
        return {
            name: [{"timestamp": span, "caption": text} for span, text in answer_events(answer)]
            for answer, name in answered(answers, truth.names)
        }

    def read(self, path: Path, truth: DenseTruth) -> DenseAnswers:
        """Events by video. One without a usable span or caption is left out and counted in a note."""
        data = read_json(path)
        events = _from_d2vlm(data, path) if isinstance(data, list) else as_object(data, f"{path}")
        answers, odd = DenseAnswers.none(len(truth)), 0
        for name, listed in events.items():
            where = f"{path}: {name!r}"
            known = name in truth.rows
            need(known, f"{where}: no video of the annotations has this name; are they of another split?")
            need(isinstance(listed, list), f"{where}: expected a list of events, got {type(listed).__name__}")
            found = [
                (list(span), event["caption"])
                for event in (as_object(event, where, ("timestamp", "caption")) for event in listed)
                if (span := read_span(event["timestamp"])) is not None and isinstance(event["caption"], str)
            ]
            odd += len(listed) - len(found)
            answers.put(truth.rows[name], [span for span, _ in found], [text for _, text in found])
        answers.notes.extend([f"{odd} events without [start, end] and a text are left out"] * (odd > 0))
        return answers

    def score(self, truth: DenseTruth, predictions: DenseAnswers, options: Options) -> Scores:
        """Metrics in percent, means over all videos (one without a prediction counts 0).

        ``published``: the script of TimeChat, from Vid2Seq's, which DisTime and D2VLM ship. Spans are ordered; IoU has
        1e-8 added to its denominator, precision and recall want more than the threshold, caption pairs as much. F1 is
        the harmonic mean of a video's mean precision and recall. SODA_c takes the predicted captions in the order of
        their numbers as *text* (0, 1, 10, 11, 2, ...), against spans in order: with more than ten events the two do not
        belong together. Para_* pair the n-th predicted with the n-th true paragraph, so that they shift behind a
        missing video. The script prints no BLEU and no ROUGE_L; they are computed as its CIDEr is. ``corrected``:
        ``dense_measures.corrected_measures``; spans are cut to the video; a paragraph is paired with its own video's, a
        missing one scores 0; BLEU, meant for a corpus, is of paragraphs only.
        """
        words = Words(options)
        score = _corrected if options.protocol == "corrected" else _published
        measures, clipped = score(words, truth, predictions, options.seed)
        flat = dense_measures.mean_over_thresholds(measures)
        flat["F1"] = harmonic(flat["Precision"], flat["Recall"])
        means = {name: 100.0 * float(values.mean()) for name, values in flat.items()}
        means |= _paragraphs(words, truth, predictions, options.protocol)
        notes = words.notes + predictions.notes + truth.no_length()
        missing = int((predictions.state == State.MISSING).sum())
        if missing and options.protocol == "published":
            notes.append(f"{missing} videos are missing, so that Para_* pair paragraphs of different videos")
        events = float(np.mean([len(video) for video in predictions.spans]))
        scores = self.scores(truth.names, means, flat, state_counts(predictions.state, clipped), notes)
        scores.details = {"predicted events per video": events}
        scores.unread = predictions.unread(truth.names)
        return scores


def _published(words: Words, truth: DenseTruth, answers: DenseAnswers, seed: int) -> tuple[dict[str, Floats], int]:
    predicted, true = words.both(answers, truth)
    listed = [sorted(range(size), key=str) for size in predicted.sizes]  # 0, 1, 10, 11, 2, ...
    heard = [predicted.captions[first + i] for first, row in zip(predicted.first, listed, strict=True) for i in row]
    iou = lambda a, b: iou_epsilon(np.sort(a, -1), np.sort(b, -1))  # noqa: E731
    return dense_measures.published_measures(words, predicted, [true], iou, seed, heard), 0


def _corrected(words: Words, truth: DenseTruth, answers: DenseAnswers, seed: int) -> tuple[dict[str, Floats], int]:
    answers, clipped = dense_scores.clip_events(truth, answers)
    predicted, *references = words.both(answers, truth)
    return dense_measures.corrected_measures(words, predicted, references), clipped


def _paragraphs(words: Words, truth: DenseTruth, answers: DenseAnswers, protocol: str) -> dict[str, float]:
    """Of all captions of a video as one text; published, the n-th answered video with the n-th true one."""
    said, true = answers.captions, [[video] for video in truth.captions]
    if protocol == "published":
        said = list(compress(said, answers.state != State.MISSING))
        true = true[: len(said)]
    return paragraph_scores(said, true, words.meteor)


def _from_list(annotations: Any, path: Path) -> Iterator[tuple[str, float | None, Any, list[str]]]:
    """(name, duration, spans, captions) of each video of the ``annotations`` list."""
    need(isinstance(annotations, list), f"{path}: annotations is not a list")
    for number, entry in enumerate(annotations):
        where = f"{path}: annotations[{number}]"
        entry = as_object(entry, where, ("image_id", "segments", "pure_cap"))
        name, text = entry["image_id"], entry["pure_cap"]
        need(isinstance(name, str) and isinstance(text, str), f"{where}: image_id and pure_cap must be texts")
        yield name, seconds(entry.get("duration")), entry["segments"], text.split(". ")


def _from_database(database: Mapping, path: Path) -> Iterator[tuple[str, float | None, Any, list[str]]]:
    """(name, duration, spans, captions) of each validation video of the data set's own file."""
    for video, entry in database.items():
        where = f"{path}: {video!r}"
        entry = as_object(entry, where, ("subset", "annotations"))
        if entry["subset"] == "validation":
            need(isinstance(entry["annotations"], list), f"{where}: annotations is not a list")
            events = [as_object(event, where, ("segment", "sentence")) for event in entry["annotations"]]
            spans, texts = [e["segment"] for e in events], [e["sentence"] for e in events]
            yield f"{video}.mp4", seconds(entry.get("duration")), spans, texts


def _from_d2vlm(samples: list, path: Path) -> dict[str, list[dict]]:
    """D2VLM's answers as events by video, converted as published: none without ``</evi>``.

    The published conversion stops at an answer without a time, which is unparsed here.
    """
    events: dict[str, list[dict]] = {}
    for number, sample in enumerate(samples):
        where = f"{path}: sample {number}"
        sample = as_object(sample, where, ("video", "a"))
        video, answer = sample["video"], sample["a"]
        need(isinstance(video, str) and isinstance(answer, str), f"{where}: video and a must be texts")
        name = Path(video).name
        need(name not in events, f"{where}: the video {name!r} stands twice")
        try:
            spans, texts, _ = published_steps_with_evidence(answer) or ([], [], [])
        except ValueError:
            spans, texts = [], []
        events[name] = [{"timestamp": s, "caption": text} for s, text in zip(spans, texts, strict=True)]
    return events


TASK = YouCook2()
