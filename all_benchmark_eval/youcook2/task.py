"""YouCook2 dense captioning: the steps of a cooking video, each with a span and a sentence.

Ground truth: ``{"annotations": [{"image_id", "duration", "segments", "pure_cap"}]}`` (the captions joined by ". "), or
the data set's ``{"database": {video: {"subset", "duration", "annotations": [{"segment", "sentence"}]}}}``, of which
the validation videos count. Predictions ``{video file: [{"timestamp": [s, e], "caption": ".."}]}``, or the answers that
D2VLM writes, ``[{"video", "a": "<evi> .. </evi>1.0 - 2.0 seconds, .."}]``::

    {"xHr8X2Wpmno.mp4": [{"timestamp": [20.80, 70.28], "caption": "cut the stems of the basil leaves."}]}
"""

from dataclasses import replace
from itertools import compress

import numpy as np

from all_benchmark_eval import dense_forms
from all_benchmark_eval.benchmark import Layout, Options, Scores
from all_benchmark_eval.forms import Content, Form, need, rows_with
from all_benchmark_eval.items import Answers, Videos, answered, as_object
from all_benchmark_eval.metrics import dense_measures, dense_scores, paragraphs
from all_benchmark_eval.metrics.dense import THRESHOLDS, Floats, harmonic
from all_benchmark_eval.metrics.dense_scores import DenseAnswers, DenseTruth, Words, answer_events
from all_benchmark_eval.metrics.intervals import iou_epsilon
from all_benchmark_eval.metrics.moments import State, state_counts
from all_benchmark_eval.metrics.paragraphs import paragraph_scores
from all_benchmark_eval.metrics.parsing import published_steps_with_evidence, split_evidence
from videollm.reading import read_steps
from videollm.reading.styles import STYLES

WORDINGS = {
    "distime": "Identify and localize a series of steps or actions occurring in the video, providing start and end "
    "timestamps and related descriptions.",
    # the dish is the same for every video, spelling as published
    "d2vlm": "You are given a video about 'making fattoush'. Watch the video carefully and densly describe all the "
    "cooking steps. For each step, you need to determine the start and ends times and provide a concise description. "
    "The format of your response should be: '<start time> - <end time>, <description>'.",
    "plain": "Describe every cooking step of the video in order, each as: '<start time> - <end time>, <description>'.",
    **{name: style.events for name, style in STYLES.items()},
}
METRICS = (
    *("SODA_c", "CIDEr", "METEOR", "F1", "Precision", "Recall"),
    *(f"{name}@{t:g}" for name in ("Precision", "Recall") for t in THRESHOLDS),
    *("SODA_c_Precision", "SODA_c_Recall", "ROUGE_L", "BLEU_1", "BLEU_2", "BLEU_3", "BLEU_4", *paragraphs.METRICS),
)


def _d2vlm(content: Content, truth: DenseTruth) -> DenseAnswers:
    """D2VLM's answers. As published there is nothing in one without ``</evi>``, and the conversion stops at one without
    a time, which is unparsed here."""
    published, meant, videos = [], [], Videos(truth.names)
    for where, sample in content.rows:
        sample = as_object(sample, where, ("video", "a"))
        video, answer = sample["video"], sample["a"]
        need(isinstance(video, str) and isinstance(answer, str), f"{where}: video and a must be texts")
        try:
            spans, texts, _ = published_steps_with_evidence(answer) or ([], [], [])
        except ValueError:
            spans, texts = [], []
        published.append((where, video, list(zip(spans, texts, strict=True)), answer))
        length = truth.lengths[videos.find(video, where)]
        steps = zip(*read_steps(split_evidence(answer)[1], length), strict=True)
        meant.append((where, video, [(span, text) for span, text in steps if text], answer))
    answers, as_published = (dense_forms.answers_of(truth, found) for found in (meant, published))
    return replace(answers, published=as_published)


class YouCook2(dense_scores.DenseBenchmark):
    """SODA_c, CIDEr, METEOR and F1 of dense captions."""

    name = "youcook2"
    title = "YouCook2 dense captioning"
    layout = Layout(("val.caption_coco_format.json", "youcookii_annotations_trainval.json"))
    wordings = WORDINGS
    metrics = METRICS
    truths = dense_forms.TRUTHS
    forms = (*dense_forms.BY_VIDEO, Form("D2VLM answers", '[{"video", "a": text}]', rows_with("video", "a"), _d2vlm))

    def from_answers(self, truth: DenseTruth, answers: Answers, wording: str) -> dict:
        """The events of each answer; no entry for a video that was not answered."""
        return {
            name: [{"timestamp": span, "caption": text} for span, text in answer_events(answer, length)]
            for answer, name, length in answered(answers, truth.names, truth.lengths)
        }

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
        if options.protocol == "published":
            predictions = predictions.published or predictions
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


TASK = YouCook2()
