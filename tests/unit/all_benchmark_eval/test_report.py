"""The page of many runs: its numbers are those of the score files, and each picture and table is there."""

import html
import json
import re

import numpy as np
import pytest

from all_benchmark_eval import report
from all_benchmark_eval.metrics.moments import Moments
from all_benchmark_eval.score import score_file
from tests.form_files import ASKED, OTHER, VIDEO, write
from tests.models import write_lines
from videollm.common.answers import AnswerLine

SPANS = [[0, 2], [0, 4], [10, 20], [50, 90]]
TRUTH = {f"v{i}": {"duration": 100, "spans": [span], "queries": [f"q{i}"]} for i, span in enumerate(SPANS)}
KEYS = [f"v{i}>>>q{i}>>>{span}" for i, span in enumerate(SPANS)]


def scored(folder, name, ious):
    """A run whose spans have these IoUs; None: text without a time."""
    spans = [[s, s + (e - s) * iou] if iou is not None else None for (s, e), iou in zip(SPANS, ious, strict=True)]
    answers = [{"timestamps": [span]} if span else {"answers": "<b>never</b>"} for span in spans]
    given = write(folder / f"{name}.json", dict(zip(KEYS, answers, strict=True)))
    output = folder / name / "charades_timelens/scores.json"
    output.parent.mkdir(parents=True)
    score_file("charades_timelens", given, [write(folder / "truth.json", TRUTH)], output)
    return folder / name


def page(folder, *runs):
    assert report.main([*map(str, runs), "--output", str(folder / "page"), "--resamples", "50"]) == 0
    return (folder / "page/index.html").read_text(encoding="utf-8")


def rows(text, heading):
    """The table below a heading, cell by cell."""
    table = text.partition(f"<h2>{heading}</h2>")[2].partition("</table>")[0]
    lines = re.findall(r"<tr>(.*?)</tr>", table)
    return [[html.unescape(cell) for cell in re.findall(r"<t[dh]>(.*?)</t[dh]>", line)] for line in lines]


def test_a_page_of_two_runs_by_hand(tmp_path, capsys):
    text = page(tmp_path, scored(tmp_path, "one", [0.5, 0.5, 1, None]), scored(tmp_path, "two", [1, 0.5, 1, 0.8]))
    table = rows(text, "Scores, corrected")
    assert table[0] == ["benchmark", "metric", "one", "two"]
    cells = {row[1]: [cell.split(" [")[0] for cell in row[2:]] for row in table[1:]}
    assert cells == {"R1@0.3": ["75.00", "100.00"], "R1@0.5": ["75.00", "100.00"], "R1@0.7": ["25.00", "75.00"]} | {
        "mIoU": ["50.00", "82.50"]
    }
    assert all(re.fullmatch(r"[\d.]+ \[[\d.]+, [\d.]+\]", cell) for row in table[1:] for cell in row[2:])
    differences = {(row[2], row[3]): row[4] for row in rows(text, "Paired differences")[1:]}
    assert differences["corrected", "mIoU"] == "+32.50" and differences["published", "R1@0.7"] == "+50.00"
    unread = rows(text, "Answers that were not read")
    assert unread[1] == ["Charades-TimeLens", "one", "4", "1", "0", "v3-0: '<b>never</b>'"]
    assert unread[2][2:] == ["4", "0", "0", ""] and "<b>never" not in text
    assert "mean IoU by length and place of the true span" in text and text.count("data:image/png;base64") == 1
    assert (tmp_path / "page/charades_timelens.png").is_file()


def test_benchmarks_without_an_iou_are_in_the_tables_only(tmp_path):
    rows_ = [VIDEO | ASKED | {"a": "B"}, VIDEO | OTHER | {"a": "I cannot say"}]
    path = tmp_path / "mme.json"
    score_file("videomme", write(tmp_path / "p.json", rows_), [], path)
    text = page(tmp_path, path)
    assert "data:image" not in text and "Paired differences" not in text
    assert [cell.split(" [")[0] for cell in rows(text, "Scores, corrected")[1]] == [
        "Video-MME",
        "accuracy",
        "50.00",
    ]  # its headline only
    assert {row[1] for row in rows(text, "Scores, corrected")[1:]} <= {"accuracy", "short", "medium", "long"}


def test_errors_are_means_over_quarters_of_the_samples():
    count = 8
    truth = Moments(
        [str(i) for i in range(count)], ["v"] * count, ["q"] * count,
        np.array([[i, 2.0 * i + 1] for i in range(count)]), np.full(count, 100.0),
    )  # fmt: skip
    ious = {"run": {str(i): i / 10 for i in range(count)}}
    panels = report._errors(truth, ious)
    assert list(panels) == ["true span (s)", "its place in the video", "video (s)"]
    labels, values = panels["true span (s)"]["run"]
    assert len(labels) == 4 and values == pytest.approx([0.05, 0.25, 0.45, 0.65])
    assert panels["video (s)"]["run"] == (["100"], [pytest.approx(0.35)])


def test_annotations_that_are_gone_are_said(tmp_path):
    run = scored(tmp_path, "one", [1, 1, 1, 1])
    (tmp_path / "truth.json").unlink()
    assert "Errors are not broken down: the annotations" in page(tmp_path, run)


@pytest.mark.parametrize(
    ("paths", "why"),
    [
        (["nothing"], "nothing: no such file"),
        (["empty"], "no <benchmark>/scores.json in this folder"),
        (["one", "other/one"], "another run is called 'one' as well"),
        (["truth.json"], "give what videollm score wrote to its --output"),
    ],
)
def test_what_is_no_run_is_one_line_and_status_2(paths, why, tmp_path, capsys):
    scored(tmp_path, "one", [1, 1, 1, 1])
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    scored(tmp_path / "other", "one", [1, 1, 1, 1])
    given = [str(tmp_path / path) for path in paths]
    assert report.main([*given, "--output", str(tmp_path / "page")]) == 2
    said = capsys.readouterr().err
    assert why in said and said.count("\n") == 1


def test_all_that_is_wrong_is_said_at_once(tmp_path, capsys):
    run = scored(tmp_path, "one", [1, 1, 1, 1])
    (tmp_path / "empty").mkdir()
    (run / "more").mkdir()
    write(run / "more/scores.json", {"benchmark": "x"})
    paths = [str(tmp_path / name) for name in ("one", "empty", "nothing")]
    assert report.main([*paths, "--output", "/proc/page", "--data", str(tmp_path / "none")]) == 2
    lines = capsys.readouterr().err.splitlines()
    wanted = ("one/more/scores.json: no score file", "empty: no <bench", "nothing: no such file", "--output", "--data")
    assert len(lines) == len(wanted) and all(text in line for text, line in zip(wanted, lines, strict=True))


def test_with_the_data_all_answers_are_in_pages_and_the_worst_are_linked(tmp_path):
    runs = [scored(tmp_path, "one", [0.5, 0.25, 1, None]), scored(tmp_path, "two", [1, 0.5, 1, 0.8])]
    ids, quiet = [f"v{i}-0" for i in range(4)], page(tmp_path, *runs)
    assert not (tmp_path / "page/answers").exists() and "<h2>Answers, " not in quiet
    for run, share in zip(runs, (0.5, 1.0), strict=True):
        folder = run / "charades_timelens"
        asked = [{"from": "human", "value": "<video>\nwhen?"}]
        questions = [{"id": name, "video": f"{name[:2]}.mp4", "conversations": asked} for name in ids]
        spans = [[s, s + (e - s) * share] for s, e in SPANS]
        answers = [AnswerLine(id=name, text="", spans=[span]).to_json() for name, span in zip(ids, spans, strict=True)]
        for name, lines in (("questions", questions), ("answers", answers)):
            write_lines(folder / f"{name}.jsonl", lines)
    (root := tmp_path / "data").mkdir()
    words = [*map(str, runs), "--output", str(tmp_path / "page"), "--resamples", "50", "--data", str(root)]
    assert report.main(words) == 0
    text = (tmp_path / "page/index.html").read_text(encoding="utf-8")
    links = re.findall(r'<a href="([^"]+)">([^<]+)</a>', text.partition("<h2>Answers, Charades-TimeLens</h2>")[2])
    address = "answers/charades_timelens/index.html"
    assert links[0] == (address, "all of one and two")
    assert links[1:3] == [
        (f"{address}#id=v3-0", "v3-0: IoU 0.00 of one"),
        (f"{address}#id=v1-0", "v1-0: IoU 0.25 of one"),
    ]
    script = (tmp_path / "page/answers/charades_timelens/answers.js").read_text()
    data = json.loads(script.partition("VIEW = ")[2].rstrip(";\n"))
    assert [row["truth"] for row in data["rows"]] == [[span] for span in SPANS]
    assert [[answer["iou"] for answer in row["answers"]] for row in data["rows"]] == [[0.5, 1.0]] * 4
    assert data["videos"][0]["url"] == (root / "TimeLens-Bench/videos/charades/v0.mp4").as_uri()
