"""Questions are drawn by how hard a model finds them, by seed and id alone."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.models import record, turns, write_lines
from videollm import difficulty
from videollm.common.config import ConfigError, build
from videollm.data import load_records
from videollm.grpo.difficulty import DifficultyOptions, read_answers, scored, subset, tenths
from videollm.grpo.rewards import Rewards

TIOU = Rewards.named({"tiou": 1.0}, "rewards")


def line(number):
    talk = turns("<video>\nwhen?", "<span>")
    return {"id": f"q{number}", "video": "a.mp4", "duration": 100, "tgt": [0, 10], "conversations": talk}


def answer(number, end, **more):
    """Of a tIoU of ``end`` / 10."""
    return {"id": f"q{number}", "text": "x", "spans": [[0.0, float(end)]], "duration": 100.0, **more}


def named(number):
    """The record of a line, which has its own id."""
    return replace(record(line(number)), id=f"q{number}")


def options(**given):
    return build(DifficultyOptions, given)


@pytest.fixture
def hundred():
    """A hundred questions whose scores go from 0.01 to 1."""
    return [named(k) for k in range(100)], {k: (k + 1) / 100 for k in range(100)}


def test_a_question_scores_the_mean_of_its_answers(tmp_path):
    plain = {"video": "a.mp4", "conversations": turns("<video>\nwhat?", "a dog")}
    records = [*map(named, range(3)), record(plain)]
    files = [
        write_lines(tmp_path / "a.jsonl", [answer(0, 10), answer(2, 5), {"id": "own", "text": "a cat", "spans": []}]),
        write_lines(tmp_path / "b.jsonl", [answer(0, 5), answer(2, 5, error="unreadable")]),
    ]
    assert scored(records, read_answers(files), TIOU) == pytest.approx({0: 0.75, 2: 0.5})
    with pytest.raises(ConfigError, match="--answers: none is to a question"):
        scored(records[1:2], read_answers(files), TIOU)


def test_scores_around_the_wanted_one_are_drawn(hundred):
    records, scores = hundred
    drawn = subset(records, scores, options(count=30, mean=0.2, spread=0.1))
    assert len(drawn) == len(set(drawn)) == 30 and drawn == sorted(drawn)
    assert np.mean([scores[i] for i in drawn]) == pytest.approx(0.22, abs=0.06)
    assert max(scores[i] for i in drawn) < 0.6
    assert len(subset(records, scores, options(count=500))) == 100


def test_quantiles_cut_off_both_ends(hundred):
    records, scores = hundred
    drawn = subset(records, scores, options(quantiles=[0.1, 0.5]))
    assert [min(drawn), max(drawn)] == [10, 49] and len(drawn) == 40


def test_the_draw_follows_from_seed_and_id(hundred):
    records, scores = hundred
    first = [records[k].id for k in subset(records, scores, options(count=20))]
    turned = records[::-1]
    again = [turned[k].id for k in subset(turned, dict(enumerate(list(scores.values())[::-1])), options(count=20))]
    assert set(first) == set(again)
    assert set(first) != {records[k].id for k in subset(records, scores, options(count=20, seed=1))}


def test_tenths_count_what_is_outside_at_the_ends():
    assert tenths([-1, 0, 0.05, 0.55, 1, 3]) == [3, 0, 0, 0, 0, 1, 0, 0, 0, 2]


def test_the_command_writes_annotations_that_are_read_again(tmp_path, capsys):
    annotations = write_lines(tmp_path / "train.jsonl", [line(k) for k in range(10)])
    answers = write_lines(tmp_path / "own.jsonl", [answer(k, k + 1) for k in range(10)])
    out = tmp_path / "hard.jsonl"
    words = ["--annotations", annotations, "--answers", answers, "--output", str(out)]
    assert difficulty.main([*words, "quantiles=[0, 0.5]", "count=4"]) == 0
    kept = load_records([out])
    whole = {r.id: r for r in load_records([annotations])}
    assert len(kept) == 4 and all(r.turns == whole[r.id].turns and int(r.id[1:]) < 5 for r in kept)
    assert "4 of 10 answered" in capsys.readouterr().out
    assert json.loads(out.read_text().splitlines()[0])["tgt"] == [0.0, 10.0]


@pytest.mark.parametrize(
    "given, message",
    [
        ({"count": 0}, "count: 0"),
        ({"spread": 0}, "spread: 0"),
        ({"quantiles": [0.5, 0.2]}, r"quantiles: \[0\.5, 0\.2\]"),
        ({"mean_iou": 1}, "mean_iou: unknown key"),
    ],
)
def test_wrong_options_are_told_by_their_key(given, message):
    with pytest.raises(ConfigError, match=message):
        options(**given)


def test_an_answer_line_that_is_none_is_named(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [answer(0, 1), {"id": "q1"}])
    with pytest.raises(ConfigError, match=r"a\.jsonl:2: no text, spans"):
        read_answers([path])
    with pytest.raises(ConfigError, match=r"--answers: .*nothing\.jsonl"):
        read_answers([tmp_path / "nothing.jsonl"])
