"""Questions enter rows as they become free, and each is answered as if it were asked alone."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import LogitsProcessorList

from tests.models import LENGTHS, NoiseReader, make_batch, make_bundle, make_dataset, record, turns
from tests.unit.model.test_generate import likely_spans
from videollm.checkpoint import Bundle
from videollm.inference import rows as seating
from videollm.inference.answer import Speed, answer_records
from videollm.model import generate
from videollm.model.generate import GenerateOptions, Rows
from videollm.model.videollm import VideoLLM

WORDS = ("when?", "what is it that happens there?", "who is it, and why?", "where is that?")
EVERY = [
    ("internvl", "d2vlm"),
    ("internvl", "text"),
    ("etchat", "d2vlm"),
    ("gemma2", "distime"),
]  # heads, kinds of masks
LONG = GenerateOptions(max_new_tokens=12)
SAMPLED = replace(LONG, do_sample=True, temperature=1.5, seed=3, repetition_penalty=1.3, min_new_tokens=2)


def line(ident: str, video: str | None, *said: str, **keys) -> dict:
    mark = "<video>\n" if video else ""
    given = {"video": f"{video}.mp4"} if video else {}
    return {"id": ident, **given, "conversations": turns(mark + said[0], *said[1:]), **keys}


def lines(count: int = 3) -> list[dict]:
    """Questions about videos of unequal length, one behind an answered one, and some about no video."""
    found = []
    for k, text in enumerate(WORDS[:count]):
        found += [
            line(f"a{k}", "a", text),
            line(f"b{k}", "b", f"in <span>: {text}", src=[1, 2]),
            line(f"t{k}", None, text),
        ]
    found.append(line("b", "b", "when?", "<span>", "and then?", tgt=[1, 3], duration=6))
    return found


def records(count: int = 3) -> list:
    return [record(one) for one in lines(count)]


@pytest.fixture
def seen(monkeypatch):
    """{question: [its logits, step by step]} of whatever is asked; empty it between two runs."""
    found, processors, begin = {}, VideoLLM.processors, Rows.begin

    class Seen:
        def __init__(self, state):
            self.state = state

        def __call__(self, _ids, scores):
            for row, name in self.state.names.items():
                if not self.state.done[row]:
                    found.setdefault(name, []).append(scores[row].clone())
            return scores

    def recording(model, options, state):
        state.names = {}
        return LogitsProcessorList([Seen(state), *processors(model, options, state)])

    def named(rows, batch, frames, states, start, where, *rest):
        rows.state.names |= dict(zip(where, batch.ids, strict=True))
        begin(rows, batch, frames, states, start, where, *rest)

    monkeypatch.setattr(VideoLLM, "processors", recording)
    monkeypatch.setattr(Rows, "begin", named)
    return found


@pytest.fixture
def looking(monkeypatch):
    """Sets how many steps there are between two looks."""

    class Looking(Rows):
        def __init__(self, *given):
            super().__init__(*given)
            self.look = Looking.every

    def every(steps):
        Looking.every = steps
        monkeypatch.setattr(seating, "Rows", Looking)

    return every


def ended_by_a_word(bundle, options, monkeypatch) -> None:
    """Make a token the stop token that ends the answers at unequal places."""
    batch = make_batch(bundle, lines(), asked=True)
    ids = bundle.model.generate_ids(batch, 0, -1, options)[0].tolist()
    places = {token: {row.index(token) if token in row else len(row) for row in ids} for row in ids for token in row}
    stop = max((token for token in places if token not in bundle.model.span_ids), key=lambda token: len(places[token]))
    assert len(places[stop]) > 2
    monkeypatch.setattr(Bundle, "stop_id", stop)


def answers(bundle, asked, options, size, seen) -> tuple[dict, dict]:
    """{id: line} and {id: logits [T, V]}."""
    seen.clear()
    found = {one.id: one for one in answer_records(bundle, asked, NoiseReader(), options, batch_size=size)}
    return found, {name: torch.stack(rows) for name, rows in seen.items()}


@pytest.mark.parametrize("options", [LONG, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("pair", EVERY, ids="-".join)
def test_answers_in_rows_are_those_of_questions_asked_alone(pair, options, seen, looking, monkeypatch):
    """Whoever sits beside them, however many rows there are and however often the host looks."""
    bundle = likely_spans(make_bundle(*pair))
    ended_by_a_word(bundle, options, monkeypatch)
    alone, logits = {}, {}
    for one in records():
        for mine, more in zip((alone, logits), answers(bundle, [one], options, 1, seen), strict=True):
            mine.update(more)
    assert len({len(rows) for rows in logits.values()}) > 2, "answers of unequal length"
    for size, look in ((3, 1), (8, 3)):
        looking(look)
        together, found = answers(bundle, records(), options, size, seen)
        assert together.keys() == alone.keys() == found.keys()
        for name, mine in logits.items():
            torch.testing.assert_close(found[name], mine, rtol=1e-5, atol=1e-5)
            one, other = together[name], alone[name]
            assert (one.raw_text, one.finish_reason) == (other.raw_text, other.finish_reason)
            for field in ("spans", "evidence_spans", "scores"):
                pairs = zip(getattr(one, field), getattr(other, field), strict=True)
                assert all(a == pytest.approx(b, abs=2e-3) for a, b in pairs)


def passes(bundle) -> list[tuple[int, int]]:
    """(rows, tokens a row) of every pass of the language model from now on."""
    found = []
    bundle.model.decoder.register_forward_pre_hook(
        lambda _m, _a, given: found.append(tuple(given["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    return found


def test_a_row_that_is_free_is_taken_by_the_next_question(monkeypatch):
    """Ten answers of unequal length in three rows take fewer steps than the longest of every three."""
    bundle = likely_spans(make_bundle("internvl", "distime"))
    ended_by_a_word(bundle, LONG, monkeypatch)
    asked, seen_passes = records(), passes(bundle)  # in one unit
    made = list(answer_records(bundle, asked, NoiseReader(), LONG, batch_size=3))
    steps = [rows for rows, tokens in seen_passes if tokens == 1]
    assert set(steps) == {3}
    counts = {}
    for one in asked:
        seen_passes.clear()
        assert len(list(answer_records(bundle, [one], NoiseReader(), LONG))) == 1
        counts[one.id] = 1 + sum(tokens == 1 for _, tokens in seen_passes)
    order = [counts[one.id] for one in asked]
    assert len(steps) < sum(max(order[k : k + 3]) - 1 for k in range(0, len(order), 3))
    assert len(steps) >= (sum(order) - len(order)) / 3
    ends = [counts[one.id] for one in made[:3]]
    assert ends == sorted(ends), "who has ended is told at once"


@pytest.mark.parametrize("pair", [("internvl", "d2vlm"), ("etchat", "d2vlm")], ids="-".join)
def test_a_further_question_on_a_video_runs_its_own_tokens_only(pair):
    """Unless the connector reads the question; in whatever row the video's frames are."""
    bundle = make_bundle(*pair)
    alone = passes(bundle)
    whole, asked = {}, [record(line(f"{name}{k}", name, text)) for name in "ab" for k, text in enumerate(WORDS)]
    for one in asked:
        alone.clear()
        list(answer_records(bundle, [one], NoiseReader(), GenerateOptions(max_new_tokens=1)))
        (whole[one.id],) = (tokens for _, tokens in alone)
    for size in (1, 3, 8):
        alone.clear()
        list(answer_records(bundle, asked, NoiseReader(), GenerateOptions(max_new_tokens=1), batch_size=size))
        tokens = sum(rows * length for rows, length in alone)
        if pair[0] == "etchat":
            assert tokens >= sum(whole.values())
            assert same_question_tokens(bundle, asked[0], alone) < 2 * whole[asked[0].id]
            continue
        frames = bundle.model.connector.tokens_per_frame(bundle.model.vision_tower.num_patches)
        saved = sum(3 * frames * LENGTHS[f"{name}.mp4"] for name in "ab")
        assert tokens < sum(whole.values()) - 0.5 * saved if size == 8 else tokens <= sum(whole.values()) - saved


def same_question_tokens(bundle, one, seen_passes) -> int:
    """Tokens that run where a question is asked three times, as for several answers to it."""
    seen_passes.clear()
    thrice = [replace(one, id=f"{one.id} {k}") for k in range(3)]
    made = answer_records(bundle, thrice, NoiseReader(), GenerateOptions(max_new_tokens=1), batch_size=2)
    assert len({answered.raw_text for answered in made}) == 1
    return sum(rows * length for rows, length in seen_passes)


@pytest.mark.parametrize("change", ["times", "frames", "words", "spans"])
def test_only_what_is_the_same_is_shared(change):
    bundle = make_bundle("internvl", "distime")
    items = [make_dataset(bundle, [line(str(k), "b", text)], answers=False)[0] for k, text in enumerate(WORDS[:2])]
    features = torch.zeros(6, 4, 32)
    one, other = (replace(item, pixels=None, features=features) for item in items)
    assert seating.common_start(one, other, False) == one.prompts[0].prefix_length > one.prompts[0].visual[-1]
    assert not seating.common_start(replace(one, features=None), replace(other, features=None), False)
    if change == "times":
        other = replace(other, times_s=other.times_s + 1)
    elif change == "frames":
        other = replace(other, features=features.clone())
    elif change == "words":
        other.prompts = [replace(other.prompts[0], ids=[one.prompts[0].ids[0] + 1, *other.prompts[0].ids[1:]])]
    else:
        answered = line("2", "b", "when?", "<span>", "and now?", tgt=[1, 2], duration=6)
        behind = make_dataset(bundle, [answered], answers=False)[0]
        first = replace(behind.prompts[0], prefix_length=len(behind.prompts[0]) - 1)
        one = other = replace(behind, prompts=[first], pixels=None, features=features)
    assert not seating.common_start(one, other, False)


def test_positions_of_several_kinds_are_carried_on(monkeypatch):
    """Some language models place a token by three numbers, [3, B, L]; the loop hands on what the prompt ends with."""
    bundle = make_bundle("internvl", "distime")
    asked, given = records(), []
    wanted = {one.id: one.raw_text for one in answer_records(bundle, asked, NoiseReader(), LONG, batch_size=3)}
    collate, forward = Bundle.collator, bundle.model.decoder.forward

    def threefold(self, **options):
        made = collate(self, **options)
        return lambda items: replace(batch := made(items), position_ids=batch.position_ids.expand(3, -1, -1) + 0)

    def first_of_three(**keys):
        given.append(keys["position_ids"].shape)
        return forward(**keys | {"position_ids": keys["position_ids"][0]})

    monkeypatch.setattr(Bundle, "collator", threefold)
    monkeypatch.setattr(bundle.model.decoder, "forward", first_of_three)
    found = {one.id: one.raw_text for one in answer_records(bundle, asked, NoiseReader(), LONG, batch_size=3)}
    assert found == wanted and {len(shape) for shape in given} == {3} and (3, 3, 1) in given


def test_length_and_seed_are_each_question_s_own(monkeypatch):
    """Questions that differ in them only share rows; each is answered as with its options alone."""
    bundle, options = make_bundle("internvl", "text"), replace(LONG, do_sample=True)
    own = [{"max_new_tokens": 3}, {"seed": 5}, {}, {"max_new_tokens": 9, "min_new_tokens": 9}, {"seed": 5}]
    asked = [record(line(f"q{k}", "a", "when?", generate=given)) for k, given in enumerate(own)]
    seen_passes = passes(bundle)
    together = {one.id: one.raw_text for one in answer_records(bundle, asked, NoiseReader(), options, batch_size=5)}
    assert {rows for rows, tokens in seen_passes if tokens == 1} == {5}
    for one, given in zip(asked, own, strict=True):
        plain = replace(one, asking=replace(one.asking, generate={}))
        (alone,) = answer_records(bundle, [plain], NoiseReader(), replace(options, **given))
        assert together[one.id] == alone.raw_text
    assert len(set(together.values())) == len(own)


def test_a_question_ends_when_it_is_cancelled_or_out_of_time_and_the_next_one_enters():
    bundle = make_bundle("internvl", "text")
    dataset = make_dataset(bundle, [line(f"q{k}", "a", text) for k, text in enumerate(WORDS)], answers=False)
    asked = [
        seating.Question(question, dataset[k], LONG, until=0.0 if k == 1 else float("inf"))
        for k, question in enumerate(dataset.records)
    ]
    answered = {}
    for question, answer, reason in seating.Seating(bundle, LONG, 2).run(iter(asked)):
        answered[question.record.id] = (answer.tokens, reason)
        if question is asked[1]:
            asked[2].cancel()  # which has just entered, or waits
    assert answered == {"q0": (12, "length"), "q1": (1, "time"), "q2": (1, "time"), "q3": (12, "length")}


def test_a_time_limit_counts_from_when_a_question_enters_its_row(monkeypatch):
    """A second a token here; the questions share rows, each with its own limit, and the last one waits for a row."""
    bundle, clock, decide = make_bundle("internvl", "text"), [0.0], Rows.decide

    def slow(rows):
        clock[0] += 1
        decide(rows)

    monkeypatch.setattr(Rows, "decide", slow)
    monkeypatch.setattr(seating, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    own = [{"time_limit_s": 3}, {}, {"time_limit_s": 0.5}, {"time_limit_s": 20}, {"time_limit_s": 5}]
    asked = [record(line(f"q{k}", "a", "when?", generate=given)) for k, given in enumerate(own)]
    speed = Speed()
    found = {}
    for one in answer_records(bundle, asked, NoiseReader(), LONG, batch_size=2, speed=speed):
        found[one.id] = (speed.tokens - sum(tokens for tokens, _ in found.values()), one.finish_reason)
    assert found == {
        "q0": (3, "time"), "q1": (12, "length"), "q2": (1, "time"), "q3": (12, "length"), "q4": (5, "time"),
    }  # fmt: skip


def test_attention_without_masks_of_ours_sees_the_same(monkeypatch):
    """As flash attention does, which is told what is seen and gets nothing behind the last token; sdpa stands in."""
    bundle = likely_spans(make_bundle("internvl", "distime"))
    ended_by_a_word(bundle, LONG, monkeypatch)
    wanted = {one.id: one for one in answer_records(bundle, records(), NoiseReader(), LONG, batch_size=3)}
    monkeypatch.setattr(generate, "FLASH", "sdpa")
    monkeypatch.setattr(Rows, "follow", None)  # which needs a mask
    found = {one.id: one for one in answer_records(bundle, records(), NoiseReader(), LONG, batch_size=3)}
    assert {name: one.raw_text for name, one in found.items()} == {name: one.raw_text for name, one in wanted.items()}
