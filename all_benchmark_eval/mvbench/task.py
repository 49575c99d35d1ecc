"""MVBench: twenty tasks of multiple choice about short videos, 200 questions each (Li et al., CVPR 2024).

Ground truth: the data set's folder ``json`` with a file a task, ``[{"video", "question", "candidates", "answer"}]``.
Predictions in DisTime's form, a list, or in D2VLM's, a folder with a file a task::

    [{"task_type": "Action Sequence", "pred": "(B)", "gt": "(B) The table."}]
    action_sequence.json: [{"pred": "</evi>(B) right.", "A": "(B) right.", "task_type": "action_sequence"}]
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from all_benchmark_eval.benchmark import WITHOUT_BREAK, Layout, Scores
from all_benchmark_eval.forms import Content, Form, need, rows_with
from all_benchmark_eval.items import are_texts, read_rows, seconds
from all_benchmark_eval.metrics import choices
from all_benchmark_eval.metrics.choices import Mark, Question, Row, letter_of
from videollm.reading import Reading

WORDINGS = choices.LETTERED


@dataclass(frozen=True)
class Task:
    """``timed``: only what lies from ``start`` to ``end`` is asked about. ``frames``: videos are folders of frames."""

    title: str
    folder: str
    timed: bool = False
    frames: bool = False


FRAMES = {"fps": 3, "first": 1}  # how frame folders are stored: frames a second, number of the first file
# By the annotation file's name without .json, in the order of the official table.
TASKS = {
    "action_sequence": Task("Action Sequence", "star/Charades_v1_480", timed=True),
    "action_prediction": Task("Action Prediction", "star/Charades_v1_480", timed=True),
    "action_antonym": Task("Action Antonym", "ssv2_video"),
    "fine_grained_action": Task("Fine-grained Action", "Moments_in_Time_Raw/videos"),
    "unexpected_action": Task("Unexpected Action", "FunQA_test/test"),
    "object_existence": Task("Object Existence", "clevrer/video_validation"),
    "object_interaction": Task("Object Interaction", "star/Charades_v1_480", timed=True),
    "object_shuffle": Task("Object Shuffle", "perception/videos"),
    "moving_direction": Task("Moving Direction", "clevrer/video_validation"),
    "action_localization": Task("Action Localization", "sta/sta_video", timed=True),
    "scene_transition": Task("Scene Transition", "scene_qa/video"),
    "action_count": Task("Action Count", "perception/videos"),
    "moving_count": Task("Moving Count", "clevrer/video_validation"),
    "moving_attribute": Task("Moving Attribute", "clevrer/video_validation"),
    "state_change": Task("State Change", "perception/videos"),
    "fine_grained_pose": Task("Fine-grained Pose", "nturgbd"),
    "character_order": Task("Character Order", "perception/videos"),
    "egocentric_navigation": Task("Egocentric Navigation", "vlnqa"),
    "episodic_reasoning": Task("Episodic Reasoning", "tvqa/frames_fps3_hq", timed=True, frames=True),
    "counterfactual_inference": Task("Counterfactual Inference", "clevrer/video_validation"),
}


def _stem_of(name: str) -> str:
    """A task's file name from its title or its file name: "Fine-grained Pose" -> "fine_grained_pose"."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _stem(path: Path) -> str:
    return _stem_of(path.name.partition(".")[0])


def _answers(content: Content) -> Iterable[Row]:
    """Of one file or a folder of them. Rows without ``id`` count as the first ones of their task."""
    return (row for part in content.parts or (content,) for row in _rows(part, by_file=bool(content.parts)))


def _rows(content: Content, by_file: bool) -> Iterable[Row]:
    places: Counter[str] = Counter()  # rows of each task so far
    path = content.path
    for where, item in read_rows(content, ("pred",)):
        key = "gt" if "gt" in item else "A"
        need(key in item, f"{where}: no key 'gt' (DisTime's form) or 'A' (D2VLM's)")
        own = path.name.partition(".")[0]
        task = own if by_file else str(item.get("task_type") or own)
        choices.check_true(item[key], f"{where}: {key} {item[key]!r:.80} is not '(A) the option'")
        text = item["pred"] if isinstance(item["pred"], str) else None
        yield Row(str(item.get("id", f"{_stem_of(task)}/{places[task]}")), text, item[key], task)
        places[task] += 1


class MVBench(choices.ChoiceBenchmark):
    """Accuracy of each task and of all questions, percent."""

    name = "mvbench"
    title = "MVBench"
    layout = Layout(("json",))
    settings = WITHOUT_BREAK
    headline = ("Avg",)
    variants = ("distime", "d2vlm")
    forms = (
        Form("DisTime", '[{"task_type", "pred", "gt"}]', rows_with("pred", "gt"), _answers),
        Form("D2VLM", '<task>.json: [{"pred", "A", "task_type"}]', rows_with("pred", "A"), _answers),
    )
    wordings = WORDINGS

    def read_questions(self, path: Path) -> Iterable[Question]:
        """One task's file, the folder of them, or the folder above it. Ids: ``<file>/<place>``."""
        folder = path / "json" if (path / "json").is_dir() else path
        files = [folder] if folder.is_file() else [f for f in sorted(folder.glob("*.json*")) if _stem(f) in TASKS]
        need(files, f"{path}: no annotation file of MVBench (action_sequence.json, ...)")
        return (question for file in files for question in _questions(file))

    def prediction(self, question: Question, text: str) -> dict[str, Any]:
        """DisTime's form, with the question's id."""
        return {"id": question.id, "task_type": question.groups["task"], "pred": text, "gt": _shown(question)}

    def difference(self, row: Row, question: Question) -> str:
        """The letter decides."""
        remedy = "rows without 'id' must be the first ones of their task, in order"
        other = f"{row.true!r:.60} as right answer, not {_shown(question)!r:.60} as in the annotations; {remedy}"
        return "" if letter_of(row.true) == question.answer else other

    def right(self, variant: str) -> Callable[[str, str], bool]:
        """The letter rule of the variant's script; an empty answer is right."""
        return partial(choices.mvbench_right, variant=variant)

    def broken_down(self, marks: Sequence[Mark], published: bool, known: bool) -> Scores:
        """By task."""
        tasks = choices.tally(marks, lambda mark: mark.groups["task"])
        total = choices.tally(marks, lambda mark: "Total")["Total"]
        metrics = {task: choices.share(entry, 100) for task, entry in (tasks | {"Avg": total}).items()}
        by_task = {task: choices.per_sample(m for m in marks if m.groups["task"] == task) for task in tasks}
        printed = {name: None if value is None else round(value, 2) for name, value in metrics.items()}
        notes = [] if len(tasks) == len(TASKS) else [f"{len(tasks)} of the {len(TASKS)} tasks"]
        details = {"tasks": tasks, "Total": total} | ({"as_printed": printed} if published else {})
        per_sample = by_task | {"Avg": choices.per_sample(marks)}
        return Scores(metrics, "percent", {}, per_sample, details=details, notes=notes)

    def choice(self, row: Row, truth: Mapping[str, Question] | None) -> Reading[int | None]:
        """Without the annotations only the right option's words are known, not how many there are."""
        if truth:
            options = truth[row.id].options
            return choices.chosen(row.text, len(options), options)
        told, same = choices.chosen(row.text, 26), choices.chosen(row.text, 1, (row.true.partition(" ")[2],))
        return Reading(letter_of(row.true), same.rule) if told.value is None and same.value == 0 else told


def _shown(question: Question) -> str:
    return f"({question.right}) {question.options[question.answer]}"


def _questions(path: Path) -> Iterable[Question]:
    task = TASKS.get(_stem(path))
    need(task, f"{path}: not named after a task of MVBench (action_sequence.json, ...)")
    for place, (where, item) in enumerate(read_rows(path, ("video", "question", "candidates", "answer"))):
        options, answer = item["candidates"], item["answer"]
        need(are_texts(options) and all(options), f"{where}: candidates is not a list of texts")
        need(answer in options, f"{where}: the answer {answer!r:.60} is none of the candidates")
        record: dict[str, Any] = {"frames": FRAMES} if task.frames else {}
        if task.timed:
            record["bound"] = [seconds(item.get("start")), seconds(item.get("end"))]
            good = None not in record["bound"] and record["bound"][0] <= record["bound"][1]
            need(good, f"{where}: this task needs 'start' and 'end' in seconds, in order")
        name, video, text = f"{_stem(path)}/{place}", f"{task.folder}/{item['video']}", str(item["question"])
        groups = {"task": task.title}
        yield Question(name, video, text, tuple(options), options.index(answer), groups, record)


TASK = MVBench()
