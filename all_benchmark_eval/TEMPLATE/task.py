"""TEMPLATE: one paragraph on what the benchmark asks, of what videos, and how many (paper, year).

Show an item of the ground truth and of a prediction file here, as they are published. This one is a toy that works:
when does something happen? ::

    [{"id": "q1", "video": "kitchen.mp4", "duration": 62.5, "query": "she waxes the ski", "span": [11.4, 31.6]}]
    {"q1": [10.0, 30.0]}
"""

from all_benchmark_eval.benchmark import Layout, Scores
from all_benchmark_eval.forms import Content, Form, entries, need
from all_benchmark_eval.items import Answers, answered, duration_of, read_rows
from all_benchmark_eval.metrics.intervals import iou_union
from all_benchmark_eval.metrics.moments import Located, MomentBenchmark, Moments, grounding


def _annotations(content: Content) -> Moments:
    """Check everything that a broken download, another split or a hand-made file could get wrong."""
    queries = []
    for where, row in read_rows(content, ("id", "video", "duration", "query", "span")):
        video = str(row["video"]).removesuffix(".mp4")
        queries.append((str(row["id"]), video, str(row["query"]), row["span"], duration_of(row, where)))
    return Moments.of(queries, content.path)


def _predictions(content: Content, truth: Moments) -> Located:
    """Whatever the file holds must not end in a traceback."""
    located = Located.nowhere(len(truth))
    for name, span in content.object.items():
        need(name in truth.rows, f"{content.path}: {name!r}: no question has this id; is it another split?")
        located.put(truth.rows[name], span)
    return located


def _script(truth: Moments, located: Located) -> Scores:
    """What the official script does, quirks included: this toy's counts parsed answers only. What the metric means
    (``corrected``, all questions count) is the same for all benchmarks of moments."""
    scores = grounding(truth, located, iou_union(located.spans, truth.spans), keep=located.parsed)
    scores.denominator = "the parsed answers"
    return scores


class Template(MomentBenchmark):
    """What is measured, in one line."""

    name = "TEMPLATE"  # the folder's name
    title = "Template"  # for tables
    layout = Layout(("template_test.json",))  # <data root>/TEMPLATE/template_test.json and <data root>/TEMPLATE/videos
    # each form of its files: a name, what it looks like, how it is told from others, how it is read
    truths = (Form("template", '[{"id", "video", "query", "span", ...}]', lambda content: True, _annotations),)
    forms = (Form("template", "{id: [start, end]}", entries(lambda key, value: isinstance(value, list)), _predictions),)
    # settings: frames and line break by wording, where they are not those of ``MomentBenchmark``
    scripts = {"default": _script}  # published ones by variant, the first is the default (``metrics/rules.py``)
    # headline: the few metrics that stand for many
    # own_truth = True: where predictions carry their ground truth
    wordings = {  # a published system's own words where it has been evaluated here, else ones like them
        "distime": "Give you a textual query: '{query}'. When does the described content occur in the video?",
        "d2vlm": "Find the visual event described by the sentence: '{sentence}'. The format of your response should "
        "be: 'The event happens in <start time> - <end time>'.",
        "plain": "When does this happen in the video: '{query}'?",
    }

    def from_answers(self, truth: Moments, answers: Answers, wording: str) -> dict:
        """No entry for a question that was not answered; [-1, -1] says that the answer holds no time."""
        found = answered(answers, truth.ids)
        return {name: (answer.scored_spans or [[-1, -1]])[0] for answer, name in found}


TASK = Template()
