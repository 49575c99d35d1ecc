"""ActivityNet Captions, dense captioning: the events of a video, each with a span and a sentence.

Ground truth ``{video: {"duration", "timestamps": [[s, e], ..], "sentences": [..]}}`` (val_2: 4885 videos); predictions
are JSON lines, or a list of the same objects; ``answer`` is itself JSON, times are whole numbers; or the challenge's
form, or TimeChat's (``dense_forms.py``)::

    {"video_id": "v_uqiMw7tQ1Cc", "task": "captioning",
     "answer": "[{\\"event\\": \\"a man stands.\\", \\"timestamps\\": \\"1 - 23\\"}]"}
    {"version": "VERSION 1.3", "results": {"v_uqiMw7tQ1Cc": [{"sentence": "a man stands.", "timestamp": [0.8, 23.1]}]}}
"""

import difflib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from all_benchmark_eval import dense_forms
from all_benchmark_eval.anet_dvc import densevid
from all_benchmark_eval.anet_dvc.files import LOGS
from all_benchmark_eval.benchmark import Layout, Options, Scores
from all_benchmark_eval.forms import need
from all_benchmark_eval.items import Answers, answered
from all_benchmark_eval.metrics import dense_measures, dense_scores
from all_benchmark_eval.metrics.dense import THRESHOLDS, harmonic
from all_benchmark_eval.metrics.dense_scores import DenseAnswers, DenseTruth, Words, answer_events
from all_benchmark_eval.metrics.intervals import iou_epsilon
from all_benchmark_eval.metrics.moments import State, state_counts
from all_benchmark_eval.metrics.paragraphs import METRICS as PARAGRAPH_METRICS
from videollm.reading import measured_spans
from videollm.reading.styles import STYLES

WORDINGS = {
    "distime": "Localize a series of activity events in the video, output the start and end timestamp for each event, "
    "and describe each event with sentences.",
    # D2VLM published none: its wording for YouCook2, without the word on what the video shows
    "d2vlm": "You are given a video. Watch the video carefully and densly describe all the events. For each event, you "
    "need to determine the start and ends times and provide a concise description. The format of your response should "
    "be: '<start time> - <end time>, <description>'.",
    "plain": "Describe every event of the video in order, each as: '<start time> - <end time>, <description>'.",
    **{name: style.events for name, style in STYLES.items()},
}
ROUNDED_S = 0.05 + 1e-9  # a head's times stand in its text with one decimal
SAME_SENTENCE = 0.98  # difflib's ratio above which neighbouring events are one, if they touch
METRICS = (
    *("SODA_c", "METEOR", "CIDEr", "ROUGE_L", "BLEU_1", "BLEU_2", "BLEU_3", "BLEU_4", "F1", "Precision", "Recall"),
    *(f"{name}@{t:g}" for name in ("F1", "Precision", "Recall") for t in THRESHOLDS),
    *("SODA_c_Precision", "SODA_c_Recall", *PARAGRAPH_METRICS),
)


class ActivityNetDense(dense_scores.DenseBenchmark):
    """SODA_c, METEOR, CIDEr and F1 of dense captions.

    ``seconds`` takes the times in the file as seconds, which they are in DisTime's published files and in what we
    write. ``percent`` takes them as hundredths of the video, 0 to 99: what the published script does with the same
    files, and so where the published numbers come from, which are too low. Under ``corrected`` the times of a text that
    tells their units ("5 s", "20 %", "0:05") are what it says. ``densevid_eval`` is the data set's own script
    (``densevid.py``), in seconds, over all videos of all references; ``densevid_eval_present`` the same over the videos
    in the predictions.
    """

    name = "anet_dvc"
    title = "ActivityNet Captions dense captioning"
    layout = Layout(("val_2.json",), folder="anet")
    wordings = WORDINGS
    metrics = METRICS
    variants = ("seconds", "percent", *densevid.VARIANTS)
    truths, forms = dense_forms.TRUTHS, (*dense_forms.BY_VIDEO, LOGS)

    def from_answers(self, truth: DenseTruth, answers: Answers, wording: str) -> dict:
        """The challenge's form, which keeps fractions of seconds; no entry for a video that was not answered."""
        results = {
            name: [{"sentence": text, "timestamp": span} for span, text in answer_events(answer, length)]
            for answer, name, length in answered(answers, truth.names, truth.lengths)
        }
        return {"version": "VERSION 1.3", "results": results}

    def joined(self, truths: Sequence[DenseTruth]) -> DenseTruth:
        """Several references, as ``densevid_eval`` takes them (val_1 and val_2)."""
        return DenseTruth.joined(truths)

    def score(self, truth: DenseTruth, predictions: DenseAnswers, options: Options) -> Scores:
        """Metrics in percent. F1@t is the harmonic mean of the mean precision and recall, F1 the mean of the four.

        ``published``: the script of VTimeLLM, which DisTime ships; times are rounded to whole ones, as in its files.
        Only videos in the predictions count. Neighbouring events with the same sentence (difflib ratio above 0.98) that
        touch within one unit are one event; what is not ASCII becomes a blank; reversed spans are not ordered; IoU has
        1e-8 added to its denominator, precision and recall want more than the threshold, caption pairs as much.
        ``corrected``: all videos count, one without a prediction 0; events stay as they are, spans are ordered and cut
        to the video; the rest is in ``dense_measures.corrected_measures``. BLEU, meant for a corpus, is left out, but
        for paragraphs.

        The ``densevid_eval`` variants pair a prediction with the events of every reference that it overlaps enough, or
        with random letters; precision, recall and SODA_c are those of a video's best reference; paragraphs are of all
        videos as one corpus. ``corrected``: the same with what is said above.
        """
        own = options.variant in densevid.VARIANTS
        alone = f"{options.variant} takes one reference; score several with --variant densevid_eval"
        need(own or not truth.others, f"--annotations: {alone}")
        words, published = Words(options), options.protocol == "published"
        if published and not own:
            predictions = predictions.published or predictions
        counts, unread = state_counts(predictions.state), predictions.unread(truth.names)
        denominator, notes = "all videos of the references" if own else "", [*predictions.notes, *truth.no_length()]
        if not densevid.VARIANTS.get(options.variant, not published):
            there = predictions.state != State.MISSING
            truth, predictions = truth.select(there), predictions.select(there)
            denominator = "videos in the predictions"
        if not len(truth):
            notes.append("no video to score")
            return Scores(dict.fromkeys(METRICS), "percent", counts, notes=notes, unread=unread)
        if not published:
            predictions = _in_seconds(truth, predictions) if options.variant == "percent" else predictions
            predictions, counts["clipped"] = dense_scores.clip_events(truth, predictions)
            predicted, *references = words.both(predictions, truth)
            measures = dense_measures.corrected_measures(words, predicted, references)
            notes.append("BLEU is a corpus score: not part of the corrected protocol, but of paragraphs")
        elif own:
            measures = densevid.published(words, truth, predictions, options.seed)
        else:
            measures = _published(words, truth, predictions, options)
            notes += _units(truth, predictions) if options.variant == "percent" else []
        flat = dense_measures.mean_over_thresholds(measures)
        means = {name: 100.0 * float(values.mean()) for name, values in flat.items()}
        means |= densevid.paragraphs(words, truth, predictions) if own else {}
        for t in THRESHOLDS:
            means[f"F1@{t:g}"] = float(harmonic(means[f"Precision@{t:g}"], means[f"Recall@{t:g}"]))
        means["F1"] = float(np.mean([means[f"F1@{t:g}"] for t in THRESHOLDS]))
        scores = self.scores(truth.names, means, flat, counts, words.notes + notes)
        scores.denominator, scores.unread = denominator, unread
        return scores


def _in_seconds(truth: DenseTruth, answers: DenseAnswers) -> DenseAnswers:
    """Hundredths of the video as seconds; a time of which the answer's text tells the unit is left as it is."""
    spans = []
    for row, (video, length) in enumerate(zip(answers.spans, truth.durations.tolist(), strict=True)):
        measured = measured_spans(answers.told.get(row, ""), truth.lengths[row])
        is_measured = [any(max(np.abs(np.subtract(span, m))) <= ROUNDED_S for m in measured) for span in video]
        scaled = [[start * length / 100, (end + 1) * length / 100] for start, end in video]
        spans.append([span if own else other for own, span, other in zip(is_measured, video, scaled, strict=True)])
    return replace(answers, spans=spans)


def _units(truth: DenseTruth, answers: DenseAnswers) -> list[str]:
    """A note on texts that the published script does not take at their word."""
    told = sum(bool(measured_spans(text, truth.lengths[row])) for row, text in answers.told.items())
    return [f"{told} texts tell the units of their times, taken for hundredths all the same"] * (told > 0)


def _published(words: Words, truth: DenseTruth, answers: DenseAnswers, options: Options) -> dict:
    whole = [[[float(round(time)) for time in span] for span in video] for video in answers.spans]
    answers = replace(answers, spans=whole)
    merged = [_merge(*video) for video in zip(answers.spans, answers.captions, strict=True)]
    answers = replace(answers, spans=[spans for spans, _ in merged], captions=[texts for _, texts in merged])
    answers = _in_seconds(truth, replace(answers, told={})) if options.variant == "percent" else answers
    sides = dense_scores.plain_captions(answers), dense_scores.plain_captions(truth)
    predicted, *references = (events.by_start() for events in words.both(*sides))
    return dense_measures.published_measures(words, predicted, references, iou_epsilon, options.seed)


def _merge(spans: list[list[float]], texts: list[str]) -> tuple[list[list[float]], list[str]]:
    """Events of which a neighbour goes on with the same sentence as one event, with its first sentence."""
    kept_spans: list[list[float]] = []
    kept_texts: list[str] = []
    for span, text in zip(spans, texts, strict=True):
        touches = bool(kept_spans) and -1 <= span[0] - kept_spans[-1][1] <= 1
        if touches and _same(kept_texts[-1], text):
            kept_spans[-1] = [kept_spans[-1][0], span[1]]
        else:
            kept_spans.append(span)
            kept_texts.append(text)
    return kept_spans, kept_texts


def _same(first: str, second: str) -> bool:
    """Whether difflib's ratio says so; its cheap upper bounds come first, as it takes minutes for very long texts."""
    matcher = difflib.SequenceMatcher(None, first, second)
    bounds = (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)
    return first == second or all(ratio() > SAME_SENTENCE for ratio in bounds)


TASK = ActivityNetDense()
