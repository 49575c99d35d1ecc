"""E.T. Bench: 12 tasks on long videos, from moment retrieval to grounded questions (Liu et al., NeurIPS 2024).

A line of the annotations; a prediction is the same line with the answer as ``a`` (a .json list, .jsonl, or a folder)::

    {"version": 1.0, "idx": 0, "task": "tvg", "source": "qvhighlights", "video": "qvhighlights/x.mp4",
     "duration": 150.0, "tgt": [10.0, 20.0], "q": "...", "a": "<evi> 9.0 - 19.0 </evi>It happens in 10.0 - 20.0."}
    {"task": "rar", ..., "src": [31.0], "p": 2, "o": ["..", "..", "..", ".."], "a": "Best Option: (C)"}
    {"task": "dvc", ..., "tgt": [[5, 15], [18, 30]], "g": ["pour oil", "add onion"], "a": "5 - 15 seconds, pour oil."}
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from all_benchmark_eval.benchmark import Benchmark, Explanation, Layout, Options, Scores, worded
from all_benchmark_eval.etbench import corrected, scoring
from all_benchmark_eval.etbench.samples import REFERRING, Sample, read_samples
from all_benchmark_eval.forms import Content, Form, need, rows_with
from all_benchmark_eval.items import Answers, Asked, answered, question_line
from videollm.common.answers import AnswerLine, split_spans

# How a record of a task is asked, by wording: the question is the annotation's ``q``.
GENERATE = {"d2vlm": dict.fromkeys(REFERRING, {"repetition_penalty": 1.2}), "distime": {}, "plain": {}}


@dataclass(frozen=True)
class Predictions:
    """Answered samples, and those of the annotations that no file answers."""

    samples: Sequence[Sample]
    missing: Sequence[Sample] = ()


def _annotations(content: Content) -> list[Sample]:
    """A sample's id: task/source/idx."""
    return read_samples(content, answers=False)


def _answered(content: Content, truth: Sequence[Sample] | None) -> Predictions:
    """Answered lines; held against the annotations where they are given."""
    samples, path = read_samples(content, answers=True), content.path
    if truth is None:
        return Predictions(samples)
    known = {sample.id: sample for sample in truth}
    for sample in samples:
        remedy = "are they of another version?"
        need(sample.id in known, f"{path}: the annotations have no sample {sample.id}; {remedy}")
        true = known[sample.id]
        same = (sample.video, sample.spans, sample.choice) == (true.video, true.spans, true.choice)
        need(same, f"{path}: {sample.id} has another video, tgt or p than in the annotations")
    answered = {sample.id for sample in samples}
    return Predictions(samples, [sample for sample in truth if sample.id not in answered])


class ETBench(Benchmark):
    """Accuracy, F1, recall and caption scores of twelve tasks; fractions."""

    name = "etbench"
    title = "E.T. Bench"
    layout = Layout(("etbench_vid_v1.0.json", "etbench_txt_v1.0.json"))
    headline = ("Acc_ref", "F1_gnd", "F1_cap", "Sim_cap", "Rec_com")
    variants = ("etchat", "etchat_strict", "d2vlm", "d2vlm_looser")
    own_truth = True
    truths = (Form("E.T. Bench", '[{"task", "source", "idx", "video", ...}]', rows_with("task", "idx"), _annotations),)
    forms = (Form("E.T. Bench", '[{"task", "source", "idx", ..., "a": text}]', rows_with("task", "idx"), _answered),)

    def questions(self, truth: Sequence[Sample], wording: str) -> list[dict]:
        """The annotation's ``q`` with the times of ``src``. ``generate``: decoding options for this record alone."""
        generate = worded(GENERATE, wording)
        lines = []
        for sample in truth:
            question, source = sample.row.get("q"), sample.row.get("src")
            asked = isinstance(question, str) and question.strip()
            need(asked, f"{sample.id}: no question 'q' in the annotations")
            more = {"task": sample.task, "source": sample.source, "duration": sample.duration}
            more |= {"src": None if source in (None, []) else _flat(source), "generate": generate.get(sample.task)}
            text = question.replace("<vid>", "<span>")  # E.T. Chat's mark for a time
            lines.append(question_line(sample.id, sample.video, text, **more))
        return lines

    def asked(self, truth: Sequence[Sample]) -> Iterable[Asked]:
        """The annotations' ``q``."""
        return (Asked(s.id, s.video, str(s.row.get("q", "")), s.duration) for s in truth)

    def from_answers(self, truth: Sequence[Sample], answers: Answers, wording: str) -> list[dict]:
        """The lines with answers as ``a``: times as "a - b", evidence before ``</evi>`` with the d2vlm wording."""
        worded(GENERATE, wording)
        evidence, ids = wording == "d2vlm", [sample.id for sample in truth]
        return [s.row | {"a": official_text(answer, evidence)} for answer, _, s in answered(answers, ids, truth)]

    def score(self, truth: Sequence[Sample] | None, predictions: Predictions, options: Options) -> Scores:
        """``published``: by the script that the variant names (``grounding``, ``referring``, ``dense``); the numbers as
        it rounds them are among the details.

        ``corrected``, the same for every variant: the differences in ten tasks stand in ``corrected``. In dvc and slc a
        step keeps its own caption (``videollm.reading``), spans are cut to the video, an IoU that is the threshold on
        paper counts; CIDEr takes document frequencies from all true captions of the run, as in YouCook2 (published:
        from a video's own pairs, so that one perfect caption scores 0); a video that comes twice counts twice, an
        unparsed or missing sample scores 0 in every number, and a step that matches nothing has similarity 0 instead
        of its likeness to random letters.
        """
        return scoring.score(predictions.samples, predictions.missing, options)

    def explain(self, truth: Sequence[Sample] | None, predictions: Predictions, name: str) -> Explanation:
        """What is read of the answer of sample ``task/source/idx``."""
        sample = next((s for s in (*predictions.samples, *predictions.missing) if s.id == name), None)
        need(sample, f"--explain: there is no sample {name!r}; an id is task/source/idx")
        return corrected.explain(sample)


def official_text(answer: AnswerLine, evidence: bool) -> str:
    """An answer's text as the published systems write it: "<evi> 1.0 - 4.0 </evi>... 3.0 - 4.0 ..."."""
    (text, *pieces), spans = split_spans(answer.text)
    if len(answer.spans) == len(spans):
        spans = answer.spans  # the same, not rounded
    text += "".join(f"{start} - {end}{piece}" for (start, end), piece in zip(spans, pieces, strict=True))
    if not evidence:
        return text
    told = ", ".join(f"{start} - {end}" for start, end in answer.evidence_spans)
    return f"<evi> {told} </evi>{text}"


def _flat(source: object) -> list:
    """``src`` as one list of numbers; it may be one number, [start, end] or a list of those."""
    if not isinstance(source, list):
        return [source]
    return [number for part in source for number in (part if isinstance(part, list) else [part])]


TASK = ETBench()
