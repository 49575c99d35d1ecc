"""ActivityNet Captions' own script, densevid_eval (its version of 2018): several references, nothing merged.

In: events in seconds, as the challenge's files have them. Out: per-video measures in the names of ``dense_scores``, and
paragraph scores in percent. Averages and files are the task's.
"""

from dataclasses import replace

from all_benchmark_eval.metrics import dense_measures, dense_scores
from all_benchmark_eval.metrics.dense import Floats
from all_benchmark_eval.metrics.dense_scores import DenseAnswers, DenseTruth, Words
from all_benchmark_eval.metrics.intervals import iou_epsilon
from all_benchmark_eval.metrics.paragraphs import paragraph_scores

MAX_EVENTS = 1000  # predicted ones of a video that the script looks at
# variant -> whether videos without a prediction are in the denominator
VARIANTS = {"densevid_eval": True, "densevid_eval_present": False}


def published(words: Words, truth: DenseTruth, answers: DenseAnswers, seed: int) -> dict[str, Floats]:
    """The script's measures, and SODA_c as its script has it: of the best reference, events by their starts."""
    answers = replace(
        answers,
        spans=[spans[:MAX_EVENTS] for spans in answers.spans],
        captions=[texts[:MAX_EVENTS] for texts in answers.captions],
    )
    answers, truth = dense_scores.plain_captions(answers), dense_scores.plain_captions(truth)
    predicted, *references = (events.by_start() for events in words.both(answers, truth))
    return dense_measures.published_measures(words, predicted, references, iou_epsilon, seed)


def paragraphs(words: Words, truth: DenseTruth, answers: DenseAnswers) -> dict[str, float]:
    """Each video's captions as one text against the paragraph of each reference that has the video."""
    if not words.tokens:
        return {}
    columns = zip(*(reference.captions for reference in truth.references), strict=True)
    return paragraph_scores(answers.captions, [list(filter(None, column)) for column in columns], words.meteor)
