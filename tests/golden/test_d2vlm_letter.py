"""Annotations of D2VLM in any spelling: read to the letter they become the ids that the published code makes of them.

That code gives the prompt's text to the tokenizer as it stands, cut at ``<image>``, and counts ``<evi>``
from the end: n answer, n before them ground, those before stand in the question (2.2). So the expected ids come from
the folder's own prompts and tokenizer, with the blanks and places of the tokens varied.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from d2vlm.evidence import EVIDENCE, EVIDENCE_END
from d2vlm.names import FRAME
from tests.golden.d2vlm_model import golden_batch, infer_cases, preference_batch
from videollm.data.conversation import Role
from videollm.heads import FrameBatch


@pytest.fixture(scope="module")
def samples(folder):
    """(sample, frames) of every supervised annotation with one ``<image>``."""
    if not (folder / "sft_annotations.json").is_file():
        pytest.skip(f"sft_annotations.json is not in {folder}")
    frames, found = load_file(folder / "sft_frames.safetensors"), []
    for k, line in enumerate(json.loads((folder / "sft_annotations.json").read_text())):
        if f"frames_u8.{k}" in frames and line["prompt"].count("<image>") == 1:
            found.append(({**line, "video": str(k)}, frames))
    return found


def between(space: str):
    """Every token of the answer with ``space`` on both sides."""
    return lambda answer: answer.replace(EVIDENCE, space + EVIDENCE + space).replace(
        EVIDENCE_END, space + EVIDENCE_END + space
    )


def stage_spread(answer: str, space: str) -> str:
    """The tokens of the evidence stage with ``space`` behind each."""
    stage, end, words = answer.partition(EVIDENCE_END)
    return stage.replace(EVIDENCE, EVIDENCE + space) + end + words


def late_end(answer: str) -> str:
    """The end of the stage somewhere in the words."""
    return answer.replace(EVIDENCE_END, "") + f" so {EVIDENCE_END} it is"


SPELLINGS = {
    "as it is": lambda answer: answer,
    "blanks": between(" "),
    "two blanks": between("  "),
    "lines": between("\n"),
    "blank in front": lambda answer: "  " + answer,
    "no blank behind the stage": lambda answer: answer.replace(f"{EVIDENCE_END} ", EVIDENCE_END),
    "commas": lambda answer: answer.replace(EVIDENCE * 2, f"{EVIDENCE}, {EVIDENCE}"),
    "words in the stage": lambda answer: answer.replace(EVIDENCE_END, f" These. {EVIDENCE_END}"),
    "two ends": lambda answer: answer.replace(EVIDENCE_END, EVIDENCE_END * 2),
    "no end": lambda answer: answer.replace(EVIDENCE_END, ""),
    "late end": late_end,
    "other case": lambda answer: answer.replace(EVIDENCE_END, f"{EVIDENCE_END} <EVI> </Evi>"),
    "blanks behind": lambda answer: answer + " \n",
}


def published_ids(bundle, prompt: str, frames: int) -> list[int]:
    """Ids of a prompt's text: each piece tokenised on its own, the frames in place of ``<image>``."""
    placeholder = bundle.tokenizer.convert_tokens_to_ids(FRAME)
    front, behind = (bundle.tokenizer(piece, add_special_tokens=False).input_ids for piece in prompt.split("<image>"))
    return [*front, *[placeholder] * frames, *behind]


def respelled(line: dict, change) -> tuple[dict, str]:
    """The sample with another spelling of its answer, and its prompt."""
    human, gpt = line["conversations"]
    head, said, stop = line["prompt"].rpartition(gpt["value"])
    assert said, "the prompt does not hold the answer"
    answer = change(gpt["value"])
    return line | {"conversations": [human, gpt | {"value": answer}]}, head + answer + stop


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_answer_in_any_spelling_has_the_published_ids_and_roles(bundle, samples, spelling):
    compared, evidence = 0, bundle.tokenizer.convert_tokens_to_ids(EVIDENCE)
    for line, frames in samples:
        line, prompt = respelled(line, SPELLINGS[spelling])
        batch = golden_batch(bundle, [line], frames)
        ids = published_ids(bundle, prompt, len(frames[f"frames_u8.{line['video']}"]))
        assert batch.input_ids[0].tolist() == ids
        at = [place for place, token in enumerate(ids) if token == evidence]
        spans, asked = len(line.get("tgt") or []) // 2, len(line.get("src") or []) // 2
        used = at[len(at) - 2 * spans - asked :]
        assert batch.refs.index.tolist() == used
        assert batch.refs.role.tolist() == [Role.QUESTION] * asked + [Role.EVIDENCE] * spans + [Role.ANSWER] * spans
        times = [*(line.get("src") or []), *(line.get("tgt") or []) * 2]
        assert batch.refs.seconds.flatten().tolist() == pytest.approx(times)
        compared += spans
    assert compared, "no annotation of this folder has a span"


QUESTIONS = {
    "as it is": lambda text: text,
    "no newline": lambda text: text.replace("<image>\n", "<image>"),
    "two newlines": lambda text: text.replace("<image>\n", "<image>\n\n"),
    "blank": lambda text: text.replace("<image>\n", "<image> "),
    "behind": lambda text: text.replace("<image>", "").strip() + "\n<image>\n",
    "a mark without a span": lambda text: text.replace("<image>\n", f"<image>\n{EVIDENCE} {EVIDENCE_END}? "),
}


@pytest.mark.parametrize("spelling", QUESTIONS)
def test_a_question_in_any_spelling_has_the_published_ids(bundle, samples, spelling):
    for line, frames in samples:
        human, gpt = line["conversations"]
        asked = QUESTIONS[spelling](human["value"])
        prompt = line["prompt"].replace(human["value"], asked)
        line = line | {"conversations": [human | {"value": asked}, gpt]}
        batch = golden_batch(bundle, [line], frames)
        assert batch.input_ids[0].tolist() == published_ids(bundle, prompt, len(frames[f"frames_u8.{line['video']}"]))


def test_an_empty_answer_is_its_end_alone(bundle, samples):
    line, frames = samples[0]
    line, prompt = respelled(line, lambda answer: "")
    batch = golden_batch(bundle, [{key: value for key, value in line.items() if key != "tgt"}], frames)
    assert batch.input_ids[0].tolist() == published_ids(bundle, prompt, len(frames[f"frames_u8.{line['video']}"]))
    assert batch.label_ids.tolist() == [bundle.encoder().stop_id]


# ---- odd spans -------------------------------------------------------------------------------------------------------


def test_training_targets_of_spans_anywhere_are_the_published_formula(bundle, samples):
    """As published: alpha^-distance to ends rounded half to even, neither cut to the video nor ordered."""
    head, compared = bundle.model.head, 0
    for line, frames in samples:
        count, events = len(frames[f"frames_u8.{line['video']}"]), len(line.get("tgt") or []) // 2
        odd = [(count + 27.0, count + 40.0), (-9.0, -4.0), (count - 1.0, 0.5), (2.5, 2.5), (1e8, 2e8)]
        for span in odd if events else ():
            batch = golden_batch(bundle, [line | {"tgt": list(span) * events}], frames)
            rows = batch.refs.select(batch.refs.role != Role.QUESTION)
            found = head.targets(rows, FrameBatch(batch.times_s, batch.frame_mask, batch.duration_s), rounded=True)
            start, end = round(span[0]), round(span[1])
            gap = [0 if start <= t <= end else min(abs(t - start), abs(t - end)) for t in range(count)]
            wanted = torch.tensor([head.options.alpha**-g if g < 1000 else 0.0 for g in gap])
            torch.testing.assert_close(found, wanted.expand(2 * events, -1))
            compared += 1
    assert compared, "no annotation of this folder has a span"


@pytest.mark.parametrize("behind", [0.0, 27.0, 1e8])
def test_a_single_time_behind_the_end_is_the_last_frame(bundle, folder, behind):
    """As published: frame indices are clamped to the video; one number is that frame, of the first mark only."""
    compared = 0
    for info, arrays in infer_cases(folder):
        count, marks = len(arrays["frames_u8"]), info["query"].count(EVIDENCE)
        if not marks:
            continue
        line = {"video": "clip", "duration": float(count), "src": [count - 1 + behind]}
        line["conversations"] = [{"from": "human", "value": "<image>\n" + info["query"]}]
        batch = golden_batch(bundle, [line], {"frames_u8.clip": arrays["frames_u8"]}, asked=True)
        with torch.no_grad():
            tokens = bundle.model.frame_tokens(batch)
            frames = bundle.model.frame_batch(batch, tokens)
            embeds = bundle.model.embed_refs(bundle.model.embed(batch, tokens), batch.refs, frames)[0]
        word = bundle.model.language_model.get_input_embeddings()(torch.tensor(bundle.model.span_ids[0]))
        at = (batch.input_ids[0] == bundle.model.span_ids[0]).nonzero().flatten()
        torch.testing.assert_close(embeds[at[0]], word + tokens[count - 1, 0])
        torch.testing.assert_close(embeds[at[1:]], word.expand(marks - 1, -1))
        compared += 1
    assert compared, "no question of this folder has a mark"


def test_a_single_time_is_not_seen_in_training(bundle, samples):
    """docs/d2vlm.md, surprise 4."""
    compared = 0
    for line, frames in samples:
        if line.get("src") and len(line["src"]) == 2:
            batch = golden_batch(bundle, [line | {"src": line["src"][:1]}], frames)
            assert not (batch.refs.role == Role.QUESTION).any()
            assert batch.input_ids.equal(golden_batch(bundle, [line], frames).input_ids)
            compared += 1
    if not compared:
        pytest.skip("no annotation of this folder has one span in its question")


def test_the_default_mends_what_published_reads_to_the_letter(bundle, samples):
    """Blanks of an annotated stage are evened out unless ``raw_spans`` asks for the letter."""
    for line, frames in samples:
        ids = []
        for space in ("", " ", "\n"):
            spread, _ = respelled(line, lambda answer, space=space: stage_spread(answer, space))
            ids.append(golden_batch(bundle, [spread], frames, raw=False).input_ids.tolist())
        assert ids[0] == ids[1] == ids[2]


# ---- preferences -----------------------------------------------------------------------------------------------------

BEGINS = ("as it is", "two blanks", "no blank behind the stage", "words in the stage", "two ends", "other case")


@pytest.fixture(scope="module")
def pairs(folder):
    """(line, annotation and class of a pair) of every published pair."""
    if not (folder / "fpo_annotations.json").is_file():
        pytest.skip(f"fpo_annotations.json is not in {folder}")
    lines = json.loads((folder / "fpo_annotations.json").read_text())
    return [
        (line, {"annotation": k, "cls": name})
        for k, line in enumerate(lines)
        for name in line["conversations"]
        if name != "chosen"
    ]


@pytest.mark.parametrize("spelling", BEGINS)
def test_a_pair_in_any_spelling_predicts_the_published_tokens(bundle, folder, pairs, spelling):
    """Both answers tokenised alone, each with its end; ``qwen`` pairs without the first token, which is the chosen
    one's, and without the end."""
    change = SPELLINGS[spelling]
    for line, sample in pairs:
        batch = preference_batch(bundle, folder, [sample], lambda answer: change(answer).strip())
        said = [change(line["conversations"][name][1]["value"]).strip() for name in ("chosen", sample["cls"])]
        chosen, rejected = (bundle.tokenizer(text, add_special_tokens=False).input_ids for text in said)
        assert labels(batch) == wanted_labels(bundle, sample["cls"], chosen, rejected)


def test_text_only_answers_share_the_first_token_of_the_chosen_one(bundle, folder, pairs):
    texts = [(line, sample) for line, sample in pairs if sample["cls"].split("_")[2] == "qwen"]
    if not texts:
        pytest.skip("no text-only pair in this golden folder")
    for line, sample in texts:
        spoken = [line["conversations"][name][1]["value"] for name in ("chosen", sample["cls"])]
        other = dict(zip(spoken, (f"{EVIDENCE_END} yes.", "no, it is not."), strict=True))
        batch = preference_batch(bundle, folder, [sample], other.get)
        chosen, rejected = (bundle.tokenizer(text, add_special_tokens=False).input_ids for text in other.values())
        assert labels(batch) == wanted_labels(bundle, sample["cls"], chosen, rejected)
        behind = {batch.label_index[batch.pairs.label_sample == k][0].item() for k in (0, 1)}
        assert chosen[0] != rejected[0] and [batch.input_ids[0, place].item() for place in behind] == chosen[:1]


def labels(batch) -> list[list[int]]:
    """Labels of the chosen and of the rejected answer."""
    return [batch.label_ids[batch.pairs.label_sample == sample].tolist() for sample in (0, 1)]


def wanted_labels(bundle, name: str, chosen: list[int], rejected: list[int]) -> list[list[int]]:
    stop = bundle.encoder().stop_id
    return [chosen[1:], rejected[1:]] if name.split("_")[2] == "qwen" else [[*chosen, stop], [*rejected, stop]]
