"""Questions are drawn by how hard a model finds them, by seed and id alone."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tests.models import record, turns, write_lines
from videollm import difficulty
from videollm.common.config import ConfigError, build
from videollm.data import load_records
from videollm.grpo.difficulty import DifficultyOptions, Redrawn, RedrawOptions, read_answers, scored, subset, tenths
from videollm.grpo.rewards import Rewards
from videollm.model.objective import build_objective

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


@pytest.mark.parametrize("other", [{"video": "b.mp4"}, {"question": "who?"}], ids=str)
def test_answers_to_other_questions_of_the_same_ids_are_refused(tmp_path, other):
    def of(**given):
        return scored([named(0)], read_answers([write_lines(tmp_path / "a.jsonl", [answer(0, 10, **given)])]), TIOU)

    right = {"video": "a.mp4", "question": "when?"}
    assert of(**right) == {0: 1.0}
    with pytest.raises(ConfigError, match=r"--answers: the one to 'q0' is about another video .* lines\.jsonl:1; give"):
        of(**right | other)


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


def test_a_draw_of_nothing_is_refused(hundred):
    with pytest.raises(ConfigError, match="quantiles, mean, spread: of the questions that have answers none"):
        subset(*hundred, options(quantiles=[0.901, 0.902]))


def test_the_draw_follows_from_seed_and_id(hundred):
    records, scores = hundred
    first = [records[k].id for k in subset(records, scores, options(count=20))]
    turned = records[::-1]
    again = [turned[k].id for k in subset(turned, dict(enumerate(list(scores.values())[::-1])), options(count=20))]
    assert set(first) == set(again)
    assert set(first) != {records[k].id for k in subset(records, scores, options(count=20, seed=1))}


# ---- within a run ----------------------------------------------------------------------------------------------------


def redrawn(records, seen=None, seed=0, **options):
    """The order of a run over ``records`` that has ``seen`` what is given."""
    order = Redrawn(RedrawOptions(**options), SimpleNamespace(records=records, epoch=0), seed)
    order.known["seen"] |= seen or {}
    return order


def epochs(order, number):
    """What is asked in so many epochs."""
    drawn = []
    for epoch in range(number):
        order.dataset.epoch = epoch
        drawn.append(list(order))
    return drawn


def test_each_epoch_draws_a_share_of_the_questions_anew(hundred):
    records, _ = hundred
    drawn = epochs(redrawn(records, share=0.3), 50)
    assert all(len(one) == len(set(one)) == 30 for one in drawn) and len({tuple(one) for one in drawn}) == 50
    asked = np.bincount(np.concatenate(drawn), minlength=100)
    assert asked.min() >= 5 and asked.max() <= 27, "15 times each, in the mean"


def test_questions_whose_answers_all_earned_the_same_are_drawn_less(hundred):
    """By hand: with weights 1 and 0.25 and a tenth drawn, 4 of the one kind come to 1 of the other, a little less."""
    records, _ = hundred
    seen = {record.id: (0.5, k < 50) for k, record in enumerate(records)}
    drawn = np.concatenate(epochs(redrawn(records, seen, share=0.1, flat=0.25), 200))
    assert (drawn >= 50).sum() / (drawn < 50).sum() == pytest.approx(3.85, abs=0.35)


def test_questions_around_the_wanted_reward_are_drawn_and_those_not_asked_yet(hundred):
    records, scores = hundred
    seen = {records[k].id: (scores[k], False) for k in range(90)}
    drawn = np.concatenate(epochs(redrawn(records, seen, share=0.2, mean=0.2, spread=0.05), 50))
    assert set(range(90, 100)) <= set(drawn) and (drawn >= 90).sum() == pytest.approx(10 * 50, rel=0.3)
    assert drawn[drawn < 90].mean() == pytest.approx(19, abs=2) and drawn[drawn < 90].max() < 45


def test_an_epoch_follows_from_what_was_seen_before_it_from_seed_and_ids(hundred):
    records, _ = hundred
    order = redrawn(records, {records[0].id: (0.5, True)}, seed=3, share=0.5)
    (first,) = epochs(order, 1)
    order.known["seen"] |= {record.id: (0.1, True) for record in records[:60]}
    assert list(order) == first, "of the same epoch, as when a run goes on in it"
    order.dataset.epoch, turned = 1, redrawn(records[::-1], order.known["seen"], seed=3, share=0.5)
    turned.dataset.epoch = 1
    assert {records[k].id for k in order} == {records[99 - k].id for k in turned}
    assert set(first) != set(order) != set(redrawn(records, seed=4, share=0.5))


def test_what_was_asked_is_noted_with_its_newest_answers(hundred):
    order = redrawn(hundred[0])
    order.note([("q1", 0.3, True), ("q2", 0.1, False)])
    order.note([("q1", 0.7, False)])
    assert order.known["seen"] == {"q1": (0.7, False), "q2": (0.1, False)}


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
    assert "4 drawn, of 10 answered, of 10 questions" in capsys.readouterr().out
    assert json.loads(out.read_text().splitlines()[0])["tgt"] == [0.0, 10.0]
    for given in (annotations, answers):
        assert difficulty.main([*words[:-1], given]) == 2
        assert f"--output: {given} is read, too" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given, message",
    [
        ({"count": 0}, "count: 0"),
        ({"spread": 0}, "spread: 0"),
        ({"spread": float("inf")}, "spread: inf, but it must be above 0 and finite"),
        ({"mean": float("nan")}, "mean: nan, but it must be finite"),
        ({"quantiles": [0.5, 0.2]}, r"quantiles: \[0\.5, 0\.2\]"),
        ({"mean_iou": 1}, "mean_iou: unknown key"),
    ],
)
def test_wrong_options_are_told_by_their_key(given, message):
    with pytest.raises(ConfigError, match=message):
        options(**given)


WRONG = [
    {"share": 0}, {"share": 1.0}, {"flat": 0}, {"flat": 2}, {"spread": 0}, {"mean": float("inf")},
]  # fmt: skip


@pytest.mark.parametrize("given", WRONG, ids=str)
def test_wrong_options_of_a_run_are_told_by_their_key(given):
    with pytest.raises(
        ConfigError, match=rf"train\.objective\.redraw\.{next(iter(given))}: {next(iter(given.values()))}"
    ):
        build_objective({"name": "grpo", "redraw": given})


def test_an_answer_line_that_is_none_is_named(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [answer(0, 1), {"id": "q1"}])
    with pytest.raises(ConfigError, match=r"a\.jsonl:2: no text, spans"):
        read_answers([path])
    with pytest.raises(ConfigError, match=r"--answers: .*nothing\.jsonl"):
        read_answers([tmp_path / "nothing.jsonl"])
