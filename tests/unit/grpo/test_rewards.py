"""What answers earn: overlap with the true spans, words, form and choice; what is no reward is said in a line."""

import math

import pytest

from tests.models import record, turns
from videollm.common.answers import AnswerLine
from videollm.common.config import ConfigError
from videollm.grpo import reward
from videollm.grpo.rewards import REWARDS, RewardError, Rewards, has

LENGTH_S = 20.0
ONE = {"video": "a.mp4", "tgt": [2, 6], "conversations": turns("<video>\nwhen does a dog run?", "it runs at <span> .")}
TWO = {
    "video": "a.mp4", "tgt": [0, 4, 10, 14],
    "conversations": turns("<video>\ntell all.", "<span> a dog runs . <span> a cat sleeps ."),
}  # fmt: skip
CHOICE = {
    "video": "a.mp4", "tgt": [2, 6],
    "conversations": turns("<video>\nwhat is it? (a) a dog (b) a cat (c) a cow", "a cat (b) <span> ."),
}  # fmt: skip
PLAIN = {"video": "a.mp4", "conversations": turns("<video>\nwhat is it?", "a dog")}


def answer(text, *spans, reason="stop"):
    return AnswerLine(id="q", text=text, spans=[list(s) for s in spans], finish_reason=reason, duration=LENGTH_S)


def earned(name, line, given):
    return Rewards.named({name: 1.0}, "rewards").of(given, record(line), LENGTH_S)[name]


@pytest.mark.parametrize(
    "name, line, spans, wanted",
    [
        ("tiou", ONE, [(2, 6)], 1.0),
        ("tiou", ONE, [(4, 8)], 1 / 3),
        ("tiou", ONE, [(4, 8), (2, 6)], 1 / 3),  # the first counts
        ("tiou", TWO, [(10, 14)], 1.0),  # with the true one that it matches best
        ("tiou", ONE, [], 0.0),
        ("edges", ONE, [(4, 8)], 1 / 3 * 0.9 * 0.9),  # 2 of 20 s at each end
        ("edges", ONE, [(2, 6)], 1.0),
        ("edges", ONE, [], 0.0),
        ("f1", ONE, [(4, 8)], 1 / 3),
        ("f1", ONE, [(2, 6), (10, 12)], 2 / 3),
        ("f1", TWO, [(10, 14), (0, 4)], 1.0),
        ("f1", TWO, [(0, 2)], 2 * 0.5 / 3),
        ("f1", TWO, [], 0.0),
    ],
)
def test_spans_earn_their_overlap(name, line, spans, wanted):
    assert earned(name, line, answer("", *spans)) == pytest.approx(wanted)


def test_what_is_meant_earns_where_other_words_say_it():
    meaning, spans = "all_benchmark_eval.metrics.rewards:meaning", [(0, 4), (10, 14)]
    same = earned(meaning, TWO, answer("[0 s - 4 s] a dog runs . [10 s - 14 s] a cat sleeps .", *spans))
    other_words = earned(
        meaning, TWO, answer("[0 s - 4 s] one puppy sprints . [10 s - 14 s] this kitten naps .", *spans)
    )
    something_else = earned(meaning, TWO, answer("[0 s - 4 s] a red car . [10 s - 14 s] an old tree .", *spans))
    assert same == pytest.approx(1, abs=1e-5) and same > other_words > something_else + 0.2
    late = answer("[0 s - 2 s] a dog runs . [10 s - 14 s] a cat sleeps .", (0, 2), (10, 14))
    assert earned(meaning, TWO, late) == pytest.approx(0.75, abs=1e-5)  # tIoU 0.5 and 1
    assert not has(record(PLAIN), Rewards.named({meaning: 1.0}, "").terms[meaning][1].needs)


def test_times_in_words_count_where_the_head_gives_none():
    assert earned("tiou", ONE, answer("it runs from 4 to 8 seconds.")) == pytest.approx(1 / 3)
    evidence = AnswerLine(id="q", text="so.", spans=[], evidence_spans=[[2.0, 6.0]])
    assert earned("tiou", ONE, evidence) == 1.0


@pytest.mark.parametrize(
    "line, text, spans, wanted",
    [
        (TWO, "[0.0 s - 4.0 s] a dog runs . [10.0 s - 14.0 s] a cat sleeps .", [(0, 4), (10, 14)], 1.0),
        (TWO, "[0.0 s - 4.0 s] a cat sleeps . [10.0 s - 14.0 s] a dog runs .", [(0, 4), (10, 14)], 1 / 3),
        (TWO, "[0.0 s - 4.0 s] a dog runs .", [(0, 4)], 2 / 3),
        (TWO, "[0.0 s - 2.0 s] a dog runs . [10.0 s - 14.0 s] a bird .", [(0, 2), (10, 14)], (0.5 + 0.4) / 2),
        (ONE, "it runs at [4.0 s - 8.0 s] .", [(4, 8)], 1 / 3),
        (TWO, "no time at all", [(0, 4)], 0.0),
        (TWO, "nothing", [], 0.0),
    ],
)
def test_a_caption_earns_its_words_times_its_overlap(line, text, spans, wanted):
    assert earned("captions", line, answer(text, *spans)) == pytest.approx(wanted)


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("a cat (b) [2.0 s - 6.0 s] .", 1.0),
        ("a dog (a) [2.0 s - 6.0 s] .", 0.0),
        ("The answer is B.", 1.0),
        ("I do not know.", 0.0),
        ("a cat", 1.0),
    ],
)
def test_a_choice_is_right_or_not(text, wanted):
    assert earned("choice", CHOICE, answer(text)) == wanted


def test_form_is_an_end_and_as_many_spans_as_are_asked_for():
    assert earned("format", TWO, answer("", (0, 1), (2, 3))) == 1
    assert earned("format", TWO, answer("", (0, 1))) == earned("format", ONE, answer("", (0, 1), reason="length")) == 0
    assert earned("format", PLAIN, answer("a dog")) == 1


def test_how_an_answer_ended_is_not_guessed():
    with pytest.raises(
        RewardError, match=r"rewards\.format: .*has no finish_reason, give an output of videollm\.infer"
    ):
        earned("format", PLAIN, answer("a dog", reason=""))


def test_a_reward_speaks_of_records_that_have_what_it_needs():
    both = Rewards.named({"tiou": 2.0, "choice": 0.5}, "rewards")
    found = both.of(answer("a cat (b)", (2, 6)), record(CHOICE), LENGTH_S)
    assert found == {"tiou": 1.0, "choice": 1.0} and both.total(found) == 2.5
    assert both.of(answer("", (2, 6)), record(ONE), LENGTH_S) == {"tiou": 1.0}
    assert both.lacking(record(PLAIN)) == "choice and no spans" and both.lacking(record(ONE)) is None
    assert Rewards.named({"format": 1.0}, "rewards").lacking(record(PLAIN)) is None
    assert has(record(ONE), "spans") and not has(record(ONE), "choice")


def own(answer, record, duration_s):
    """A reward of a user's own."""
    if answer.text in ("raises", "exits"):
        raise ValueError("one line\nand another") if answer.text == "raises" else SystemExit("enough")
    odd = {"nan": math.nan, "big": math.inf, "fails": None}
    return "0.5" if answer.text == "text" else odd.get(answer.text, len(answer.text)) / duration_s


def two(answer, record):
    """None, as the length is not taken."""


def test_a_reward_of_ones_own_is_found_by_its_name():
    name = f"{__name__}:own"
    assert earned(name, ONE, answer("12345")) == 0.25 and earned(name, PLAIN, answer("")) == 0
    reward("mine")(own)
    assert earned("mine", ONE, answer("1234567890")) == 0.5 and "mine" in REWARDS


@pytest.mark.parametrize(
    "text, message",
    [
        ("nan", r"rewards\..*:own: lines\.jsonl:1, answer 'nan': gives nan; a reward must be a finite number"),
        ("big", r"gives inf"),
        ("text", r"gives '0\.5'; a reward must be a finite number"),
        ("raises", r"answer 'raises': ValueError: one line and another; mend the reward"),
        ("exits", r"answer 'exits': SystemExit: enough; mend the reward"),
        ("fails", r"rewards\..*:own: lines\.jsonl:1, answer 'fails': TypeError: .*; mend the reward"),
    ],
)
def test_what_is_no_number_is_told_with_record_and_answer(text, message):
    with pytest.raises(RewardError, match=message) as caught:
        earned(f"{__name__}:own", ONE, answer(text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, message",
    [
        ("iou", r"rewards\.iou: no reward 'iou'; did you mean tiou\? known: captions, choice, edges, .*tiou"),
        ("no_such_module:f", r"rewards: no function 'no_such_module:f'.*package\.module:function"),
        ("json:nothing", r"rewards: no function"),
        ("math:pi", r"rewards: 'math:pi' is no function but 3\.14"),
        (f"{__name__}:two", r"rewards\..*:two: it must take three: an answer, a record, and seconds"),
    ],
)
def test_an_unknown_reward_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        Rewards.named({name: 1.0}, "rewards")


@pytest.mark.parametrize(
    "weights, message",
    [
        ({}, r"rewards: {} names none with a weight; give one"),
        ({"f1": 0.0, "tiou": 0.0}, r"rewards: .* names none with a weight; give one"),
        ({"f1": math.nan}, r"rewards\.f1: nan, but a weight must be finite"),
        ({"f1": 1.0, "tiou": math.inf}, r"rewards\.tiou: inf, but a weight must be finite"),
    ],
)
def test_weights_that_say_nothing_are_refused(weights, message):
    with pytest.raises(ConfigError, match=message):
        Rewards.named(weights, "rewards")


def test_a_reward_without_a_weight_speaks_of_no_record():
    """It is logged, but nothing is learnt from it."""
    rewards = Rewards.named({"f1": 1.0, "format": 0.0}, "rewards")
    assert rewards.lacking(record(PLAIN)) == "spans" and rewards.lacking(record(ONE)) is None
    assert rewards.of(answer("a dog"), record(PLAIN), LENGTH_S) == {"format": 1.0}


def test_a_need_that_is_none_is_refused_where_the_reward_is_registered():
    with pytest.raises(ConfigError, match=r"needs of the reward mine: 'span' is unknown; did you mean spans\?"):
        reward("mine", needs="span")


def test_edges_ask_for_the_length_of_the_video():
    with pytest.raises(RewardError, match=r"rewards\.edges: lines\.jsonl:1, .*length is not known, give its record"):
        Rewards.named({"edges": 1.0}, "rewards").of(answer("", (2, 6)), record(ONE), 0.0)
