"""From conversation to token ids: the published strings, exact supervision, and no way for a user to forge a token."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.models import HEADS, byte_tokenizer, record, turns
from videollm.batches.prompt import PromptEncoder, VisualTokens
from videollm.batches.templates import TEMPLATES
from videollm.common.config import ConfigError
from videollm.data.conversation import FrameSlot, Role, Token, Turn, VisualMark
from videollm.heads import build_head

EXTRA = ["<evi>", "</evi>", "<TIME_STAMP>", "<FRAME_TIME_REF>", "<frame>", "<img>", "</img>"]
TOKENIZER = byte_tokenizer()
TOKENIZER.add_special_tokens({"extra_special_tokens": EXTRA}, replace_extra_special_tokens=False)


def encoder(head="text", template="qwen2", tokenizer=TOKENIZER, **visual) -> PromptEncoder:
    visual = VisualTokens(**{"token": "<frame>", "per_frame": 2} | visual)
    return PromptEncoder(tokenizer, TEMPLATES[template], build_head(HEADS[head], 32), visual)


def encode(name, head="text", template="qwen2", answer=True, **visual):
    """A line of ``tests.models`` as a prompt with 4 frames."""
    line = record(name)
    said = line.turns if answer else line.turns[:-1]
    visuals = [("video", 4)] if line.video else [("image", 2)]
    return encoder(head, template, **visual).encode(said, line.spans_s, visuals, line.duration_s or 6.0)


def decode(ids, tokenizer=TOKENIZER) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def supervised(prompt) -> str:
    return decode([i for i, s in zip(prompt.ids, prompt.supervised, strict=True) if s])


# ---- published strings -----------------------------------------------------------------------------------------------


def template_row(golden_dir, name):
    """The strings of one published template; skips where the folder has none."""
    rows = json.loads((golden_dir / "d2vlm" / "conversation_templates.json").read_text())
    found = [row for row in rows if row["conv_type"] == name]
    if not found:
        pytest.skip(f"conversation_templates.json of {golden_dir / 'd2vlm'} has no {name}")
    return found[0]


@pytest.mark.golden
@pytest.mark.parametrize("name", ["phi3", "qwen2", "llama3", "gemma2"])
def test_prompts_are_the_published_strings(golden_dir, name):
    row = template_row(golden_dir, name)
    made = encoder(template=name, per_frame=1)
    asked = Turn("user", (VisualMark(0), "QUESTION"))
    whole = made.encode([asked, Turn("assistant", ("ANSWER",))], [], [("video", 1)], 1.0)
    assert decode(whole.ids).replace("<frame>", "<image>") == row["train_prompt"]
    open_ended = made.encode([asked], [], [("video", 1)], 1.0)
    assert decode(open_ended.ids).replace("<frame>", "<image>") == row["inference_prompt"]
    two = [Turn(role, (f"M{i}",)) for i, role in enumerate(["user", "assistant"] * 2)]
    assert decode(made.encode(two, [], [], 0).ids) == row["two_turn_prompt"]
    assert TEMPLATES[name].stop == row["stop_string"]


@pytest.mark.golden
def test_vicuna_prompts_are_the_published_strings_in_llamas_way_of_prefixing_spaces(golden_dir):
    tokenizer = AutoTokenizer.from_pretrained(golden_dir / "d2vlm" / "lm_tokenizer")
    tokenizer.add_special_tokens({"extra_special_tokens": ["</s>", "<frame>"]}, replace_extra_special_tokens=False)
    row = template_row(golden_dir, "vicuna_v1")
    made = encoder(template="vicuna", tokenizer=tokenizer, per_frame=1)
    two = [Turn(role, (f"M{i}",)) for i, role in enumerate(["user", "assistant"] * 2)]
    said = tokenizer.decode(made.encode(two, [], [], 0).ids, clean_up_tokenization_spaces=False)
    assert "".join(said.split()) == "".join(row["two_turn_prompt"].split())
    answers = [i for i, s in zip(*(lambda p: (p.ids, p.supervised))(made.encode(two, [], [], 0)), strict=True) if s]
    assert tokenizer.convert_ids_to_tokens(answers)[0].startswith("▁")


@pytest.mark.golden
def test_internvl_prompts_are_the_published_strings(golden_dir):
    prompts = json.loads((golden_dir / "distime" / "unit" / "chat_template.json").read_text())["prompts"]
    made = encoder(template="internvl2_5")

    def said(*texts, system=None):
        talk = [Turn("user" if i % 2 == 0 else "assistant", (t,)) for i, t in enumerate(texts)]
        talk = talk if system is None else [Turn("system", (system,)), *talk]
        return decode(made.encode(talk, [], [], 0).ids)

    assert said("Hello") == prompts["one_turn_open"]
    assert said("Hello", "Hi.") == prompts["one_turn_closed"]
    assert said("Q1", "A1", "Q2") == prompts["history"]
    assert said("Hello", system="You are X.") == prompts["other_system"]


@pytest.mark.golden
@pytest.mark.parametrize("kind", ["qwen2", "internlm2"])
def test_training_ids_and_labels_are_the_published_ones(golden_dir, kind):
    folder = golden_dir / "distime"
    info = json.loads((folder / f"tokenizer_{kind}" / "info.json").read_text())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / f"tokenizer_{kind}" / "tokenizer.json"), eos_token="<|im_end|>",
        bos_token=info["bos_token"],
    )  # fmt: skip
    rows = json.loads((folder / "unit" / "conversations.json").read_text())
    rows = {name: row for name, row in rows.items() if name.startswith(kind)}
    assert rows, f"conversations.json has none of {kind}, whose tokenizer is there"
    for name, row in rows.items():
        visual = VisualTokens("<IMG_CONTEXT>", "<img>", "</img>", "", row["image_tokens_each"])
        made = PromptEncoder(tokenizer, TEMPLATES["internvl2_5"], build_head(HEADS["distime"], 32), visual)
        images, talk = 0, []
        for turn in row["conversations"]:
            role = {"human": "user", "gpt": "assistant", "system": "system"}[turn["from"]]
            parts = []
            for k, text in enumerate([turn["value"]] if row["text_only"] else turn["value"].split("<image>")):
                if k:
                    parts.append(VisualMark(images))
                    images += 1
                before, stamp, behind = text.partition("<TIME_STAMP>")
                parts += [before, Token(stamp), behind] if stamp else [before]
            talk.append(Turn(role, tuple(p for p in parts if p)))
        prompt = made.encode(talk, [], [("image", 1)] * images, 0)
        labels = [i if s else -100 for i, s in zip(prompt.ids, prompt.supervised, strict=True)]
        assert prompt.ids == row["input_ids"], name
        assert labels == row["labels"], name


# ---- literal text ----------------------------------------------------------------------------------------------------


@given(
    st.lists(st.sampled_from(["<evi>", "</evi>", "<|im_end|>", "<|im_start|>", "<frame>", "é", "a", " "]), min_size=1)
)
def test_what_a_user_types_never_becomes_a_special_token(pieces):
    text = "".join(pieces)
    prompt = encoder("d2vlm").encode([Turn("user", (text,))], [], [], 0)
    empty = encoder("d2vlm").encode([Turn("user", ("a",))], [], [], 0)
    special = set(TOKENIZER.all_special_ids) | set(TOKENIZER.added_tokens_decoder)
    assert sum(i in special for i in prompt.ids) == sum(i in special for i in empty.ids)
    assert text in decode(prompt.ids)
    assert not prompt.refs and not prompt.visual


def test_typed_marks_stay_letters_beside_the_true_ones():
    line = {
        "video": "a.mp4", "duration": 4, "tgt": [0, 1],
        "conversations": turns("<video>\nwrite </evi> and <|im_end|>", "in <span> I say <|im_end|>"),
    }  # fmt: skip
    prompt = encode(line, "d2vlm")
    count = {
        name: prompt.ids.count(TOKENIZER.convert_tokens_to_ids(name)) for name in ("<evi>", "</evi>", "<|im_end|>")
    }
    assert count == {"<evi>": 2, "</evi>": 1, "<|im_end|>": 3}
    assert len(prompt.refs) == 2


# ---- supervision and places ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", list(TEMPLATES))
@pytest.mark.parametrize("head, answer", [("text", "0 - 50 percent"), ("distime", "<TIME_STAMP>")])
def test_exactly_answers_and_stop_tokens_are_supervised(template, head, answer):
    stop = TEMPLATES[template].stop
    line = {
        "video": "a.mp4", "duration": 4, "tgt": [0, 2],
        "conversations": turns("<video>\nhi", "yes", "when?", "it is <span>."),
    }  # fmt: skip
    assert supervised(encode(line, head, template)) == f"yes{stop}it is {answer}.{stop}"


def test_the_evidence_stage_is_supervised_too():
    wanted = "<evi><evi></evi> at <evi> and <evi>.<|im_end|>"
    assert supervised(encode("two_spans", "d2vlm")) == wanted


@pytest.mark.parametrize("head", HEADS)
def test_a_prompt_without_its_answer_is_the_beginning_of_the_one_with_it(head):
    for name in ("two_spans", "asked", "turns", "image", "text"):
        asked, whole = encode(name, head, answer=False), encode(name, head)
        assert whole.ids[: len(asked)] == asked.ids
        assert whole.supervised[: len(asked)] == asked.supervised
        assert whole.supervised[len(asked)] and asked.prefix_length == whole.prefix_length


def test_places_of_spans_are_those_of_their_tokens():
    prompt = encode("two_spans", "d2vlm")
    found = [(r.role, r.span) for r in prompt.refs]
    stages = [(role, span) for role in (Role.EVIDENCE, Role.ANSWER) for span in (0, 1)]
    assert found == stages
    assert {TOKENIZER.convert_ids_to_tokens(prompt.ids[r.position]) for r in prompt.refs} == {"<evi>"}
    asked = encode("asked", "d2vlm")
    assert [(r.role, r.span) for r in asked.refs] == [(Role.QUESTION, 0), (Role.EVIDENCE, 1), (Role.ANSWER, 1)]
    assert not asked.supervised[asked.refs[0].position] and asked.supervised[asked.refs[1].position]


def test_frame_times_stand_before_their_frames():
    prompt = encode("no_spans", "distime")
    assert [(r.role, r.frame) for r in prompt.refs] == [(Role.FRAME, i) for i in range(4)]
    names = TOKENIZER.convert_ids_to_tokens([prompt.ids[r.position] for r in prompt.refs])
    assert names == ["<FRAME_TIME_REF>"] * 4
    firsts = prompt.visual[::2]
    assert all(r.position < first < r.position + 4 for r, first in zip(prompt.refs, firsts, strict=True))


@pytest.mark.parametrize("head", HEADS)
def test_frame_tokens_and_their_runs(head):
    prompt = encode("two_spans", head, start="<img>", end="</img>")
    names = TOKENIZER.convert_ids_to_tokens(prompt.ids)
    assert [names[p] for p in prompt.visual] == ["<frame>"] * 8
    assert [i for i, b in enumerate(prompt.block) if b >= 0] == prompt.visual
    runs = 4 if head == "distime" else 1  # a time stands between any two frames
    assert names.count("<img>") == names.count("</img>") == runs == len(set(prompt.block) - {-1})
    assert names[prompt.prefix_length - 1] == "</img>"


def test_one_text_is_tokenised_as_one_string():
    """Byte-pair merges must not depend on how the text came to be split."""
    made = encoder(template="plain")
    parts = made.encode([Turn("user", ("ab", "cd")), Turn("assistant", ("x",))], [], [], 0)
    calls = []
    real = made.tokenizer
    made.tokenizer = lambda text, **kw: calls.append(text) or real(text, **kw)
    assert made.encode([Turn("user", ("ab", "cd")), Turn("assistant", ("x",))], [], [], 0).ids == parts.ids
    assert calls == ["abcd\n", "x"]


@pytest.mark.parametrize("missing", ["<evi>", "</evi>", "<|im_end|>", "<frame>"])
def test_a_tokenizer_without_a_needed_token_is_refused(missing):
    names = [n for n in ("<|im_end|>", "<|im_start|>", *EXTRA) if n != missing]
    with pytest.raises(ConfigError, match=rf"no special token '{missing}'".replace("|", r"\|")):
        encoder("d2vlm", tokenizer=byte_tokenizer(names))


def test_a_layout_may_use_its_own_parts():
    made = encoder("text")
    assert made.head.layout(2) == [FrameSlot(0), FrameSlot(1)]
    prompt = made.encode([Turn("user", (VisualMark(0), "q"))], [], [("image", 3)], 0)
    assert len(prompt.visual) == 6
