"""Lines of captioning as DisTime and VTimeLLM write them: a list of events as JSON within the text of an answer.

In: a ``Content``. Out: ``DenseAnswers`` as the text means it, beside what the published scripts read in it. What a time
in a text means is ``videollm.reading``'s; metrics are not known here.
"""

import re
from dataclasses import replace
from typing import Any

from all_benchmark_eval import dense_forms
from all_benchmark_eval.dense_forms import Event
from all_benchmark_eval.forms import Content, Form, need, rows_with
from all_benchmark_eval.items import Videos, as_object, seconds
from all_benchmark_eval.metrics.dense_scores import DenseAnswers, DenseTruth
from videollm.common.files import read_json
from videollm.reading import read_spans, read_steps

TASK = "captioning"  # the lines that count, where lines name their task
_LIST = re.compile(r"\[.*\]")
_PARTS = re.compile(r'"from \d\d to \d\d"')


def _of_script(answer: str) -> list[Event]:
    """What the published scripts read in an answer: events up to the first that is not as it should be.

    DisTime's wants a list with times "1 - 23", VTimeLLM's takes the last list in a line of text, with "from 00 to 29".
    """
    events: list[Event] = []
    try:
        for event in _listed(answer):
            start, end = _whole(event["timestamps"])
            if seconds(start) is None or seconds(end) is None or not isinstance(event["event"], str):
                return events
            events.append(([float(start), float(end)], event["event"]))
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    return events


def _whole(times: str) -> tuple[int, int]:
    if times.startswith("from "):
        return int(times[5:7]), int(times[-2:])
    start, end = map(int, times.split(" - "))
    return start, end


def _meant(answer: str, duration_s: float | None) -> list[Event]:
    """What an answer about a video so long says: the events of its list with a time and a text, else its steps."""
    try:
        listed = _listed(answer)
    except (ValueError, TypeError):
        return [(span, text) for span, text in zip(*read_steps(answer, duration_s), strict=True) if text]
    found = []
    for event in listed if isinstance(listed, list) else []:
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            spans = read_spans(str(event.get("timestamps")), duration_s)
            found += [(span, event["event"]) for span in spans[:1]]
    return found


def _listed(answer: str) -> Any:
    """The JSON of an answer, or of the brackets in its text. Raises ValueError where there is none."""
    try:
        return read_json(answer)
    except ValueError:
        found = _LIST.search(answer)
        if not found:
            raise
        return read_json(found.group())


def _read_lines(content: Content, truth: DenseTruth) -> DenseAnswers:
    """Lines of captioning; the last of a video counts, as in the published scripts. Other tasks' lines are passed."""
    published, meant, parts, videos = [], [], False, Videos(truth.names)
    for where, line in content.rows:
        line = as_object(line, where, ("video_id", "answer"))
        if line.get("task", TASK) != TASK:
            continue
        text = line["answer"] if isinstance(line["answer"], str) else ""
        parts |= bool(_PARTS.search(text))
        published.append((where, line["video_id"], _of_script(text), text))
        length = truth.lengths[videos.find(line["video_id"], where)]
        meant.append((where, line["video_id"], _meant(text, length), text))
    need(meant, f"{content.path}: no line of the task {TASK!r}")
    again = "lines are for a video that has one already; the last one counts"
    answers = dense_forms.answers_of(truth, meant, again)
    if parts:
        answers.notes.append(
            "times as 'from 00 to 29' are hundredths of the video in VTimeLLM's logs: --variant percent"
        )
    return replace(answers, published=dense_forms.answers_of(truth, published, again))


LOGS = Form(
    "DisTime, VTimeLLM logs", '{"video_id", "task": "captioning", "answer": text with a list}',
    rows_with("video_id", "answer"), _read_lines,
)  # fmt: skip
