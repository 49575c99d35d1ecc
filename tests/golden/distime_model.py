"""The golden models of DisTime as ours: official folders are written from golden files and go through the converter.

``golden_bundle`` is what every whole-model test starts from, ``golden_batch`` the collator's batch of golden samples.
Names of models and cases come from the folder's files; names that a folder lacks are skipped by name.
"""

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from distime.convert import convert
from distime.time_head import FRAME_TIME, STAMP
from tests.conftest import place
from videollm.batches.dataset import Item, VideoDataset
from videollm.batches.prompt import PromptEncoder
from videollm.batches.reader import Seen
from videollm.checkpoint import Bundle, load
from videollm.data import parse_record
from videollm.data.conversation import Token, Turn, VisualMark

ROOT = place("GOLDEN_DIR") / "distime"
PUBLISHED = {"compatibility": "published", "gaussians_bf16": False, "expectation_bf16": False}  # made in fp32
MAX_LENGTH = 8192
HIDDEN, LOGITS = {"atol": 9e-5, "rtol": 0}, {"atol": 2e-4, "rtol": 0}  # 10 times what its README found
UNIT = 2**-8  # rounding to bf16 moves a value by at most this part of it: 8 bits of mantissa
ROUNDED = 20  # tensors that a layer rounds one after the other: some 12 results, some 8 weights


def names(below: str, known: str) -> list[str]:
    """Cases to run: the .json files of a golden folder, and those ``known`` that it lacks (they will be skipped)."""
    return sorted({path.stem for path in (ROOT / below).glob("*.json")} | set(known.split()))


LLMS = sorted({path.parent.name for path in ROOT.glob("*/config.json")} | {"qwen2", "internlm2"})
SAMPLES = names("data", "moment dense video_notime multiturn image text")
KNOWN = "moment dense dense_forced moment_history moment_bf16gauss"
GENERATED = sorted(set().union(*(names(f"generate/{llm}", KNOWN) for llm in LLMS)))


def existing(path: Path) -> Path:
    """``path``, or skip the test by its name."""
    if not path.exists():
        pytest.skip(f"{path} is not in this golden folder")
    return path


def read(path: Path) -> dict:
    """A JSON file of the golden folder."""
    return json.loads(existing(path.with_name(f"{path.name}.json")).read_text())


def arrays(path: Path) -> dict[str, Tensor]:
    """A safetensors file of the golden folder."""
    return load_file(existing(path.with_name(f"{path.name}.safetensors")))


def golden_tokenizer(folder: Path, llm: str) -> PreTrainedTokenizerFast:
    """The golden tokenizer with the roles that its info.json names."""
    info = read(folder / f"tokenizer_{llm}" / "info")
    roles = {name: info[name] for name in ("pad_token", "bos_token", "eos_token") if info[name]}
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / f"tokenizer_{llm}" / "tokenizer.json"), **roles)


def write_official(folder: Path, llm: str, target: Path, state: dict[str, Tensor] | None = None, **changes) -> Path:
    """An official checkpoint folder with the golden config (and ``changes``), tokenizer and weights (or ``state``)."""
    target.mkdir(parents=True)
    config = {"model_type": "internvl_chat", **read(folder / llm / "config"), **changes}
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(state or arrays(folder / llm / "model"), target / "model.safetensors")
    golden_tokenizer(folder, llm).save_pretrained(target)
    return target


def golden_bundle(folder: Path, llm: str, scratch: Path, state=None, dtype=None, head=None, **changes) -> Bundle:
    """The golden model as one of ours, with the published compatibility; ``head`` options are laid over that."""
    source = write_official(folder, llm, scratch / "official", state, **changes)
    convert(str(source), str(scratch / "ours"))
    return load(scratch / "ours", dtype=dtype, head=PUBLISHED | (head or {}))


class GoldenReader:
    """Stored pixels in place of files."""

    stored, fixed = None, True

    def __init__(self, pixels: Tensor, info: dict):
        self.pixels, self.info = pixels, info

    def video(self, name, rng, view=None, limits=()):
        """As ``VisualReader.video``."""
        times_s = np.asarray(self.info["frame_times_doubled"][::2])
        return Seen(self.pixels, None, times_s, float(self.info["duration"]))

    def images(self, files):
        """As ``VisualReader.images``."""
        return self.pixels, [len(self.pixels)]


def golden_item(bundle: Bundle, folder: Path, sample: str) -> Item:
    """A golden training sample, through annotation, wording and tokenizer; spans as they are annotated."""
    info = read(folder / "data" / sample)
    pixels = torch.from_numpy(np.load(existing(folder / "data" / f"{sample}.npz"))["pixel_values"])
    record = parse_record({"id": sample, **info["annotation"]}, 1, f"{sample}.json", raw_spans=True)
    item = VideoDataset([record], GoldenReader(pixels, info), bundle.encoder(), max_length=MAX_LENGTH)[0]
    assert item.bad is None, item.bad
    return item


def golden_batch(bundle: Bundle, folder: Path, samples: list[str]) -> dict:
    """Golden training samples as a batch; places with token id 0 are unseen, as published."""
    collator = bundle.collator(average="samples", unseen_id=0)
    return collator([golden_item(bundle, folder, sample) for sample in samples])


def golden_question(bundle: Bundle, folder: Path, *cases: dict) -> dict:
    """The prompts of generation cases as a batch; frames stand where a case has its frame block."""
    encoder = bundle.encoder()
    encoder.visual = replace(encoder.visual, after="")  # most published prompts have no newline here
    items = [question_item(encoder, folder, case) for case in cases]
    return bundle.collator(asked=True)(items)


def question_item(encoder: PromptEncoder, folder: Path, case: dict) -> Item:
    """One generation case; its history stands in the template."""
    video = read(folder / "generate" / f"video_{case['video']}")
    pixels = torch.from_numpy(np.load(existing(folder / "generate" / f"video_{case['video']}.npz"))["pixel_values"])
    times, history = np.asarray(video["frame_times"]), case["history"] or []
    history = ast.literal_eval(history) if isinstance(history, str) else history
    said = [text for pair in history for text in pair] + [case["question"]]
    block = "\n".join([f"{FRAME_TIME}: <image>"] * len(times))
    assert said[0].startswith(block)
    said[0] = said[0].removeprefix(block)
    turns = [Turn("assistant" if i % 2 else "user", spoken(text)) for i, text in enumerate(said)]
    turns[0] = Turn("user", (VisualMark(0), *turns[0].parts))
    prompt = encoder.encode(turns, [], [("video", len(times))], case["duration"])
    return Item([prompt], [np.zeros((0, 2))], pixels, None, times, case["duration"], ids=["case"])


def spoken(text: str) -> tuple[str | Token, ...]:
    """Text of a prompt; a stamp in it is a plain token, as published."""
    return tuple(Token(STAMP) if part == STAMP else part for part in re.split(f"({STAMP})", text) if part)


# ---- a whole model in bf16 -------------------------------------------------------------------------------------------


def bf16_limit(folder: Path, llm: str) -> float:
    """How far from fp32 the logits of a model in bf16 may lie, as a part of their length (L2).

    Roundings point anywhere, so n of them in a row add up to about sqrt(n) of one; a typical one is 0.4 units. What
    a model enlarges on its way is not known here: twice sqrt(n) whole units leave it a factor of 5. Which token is
    greatest, and any single number, is left to the processor's kernels: they add in other orders.
    """
    config = read(folder / llm / "config")
    layers = config["llm_config"]["num_hidden_layers"] + config["vision_config"]["num_hidden_layers"]
    return 2 * UNIT * (ROUNDED * layers) ** 0.5


def assert_times_near(found: list[tuple[Tensor, Tensor]], logits: Sequence[Tensor], bins: Tensor, limit: float) -> None:
    """Times found in bf16, each as (time logits [2, K], bins [2]), near those published.

    The logits lie within ``limit`` of the fp32 ``logits``, the bins within what follows from it of the bf16 ``bins``.
    """
    for (ours, raw), theirs, published in zip(found, logits, bins, strict=True):
        assert (ours - theirs).norm() <= limit * theirs.norm()
        places, p = torch.arange(theirs.shape[-1]), theirs.softmax(-1)
        # The probabilities are rounded, and then their expectation, which therefore lies on bf16's grid.
        torch.testing.assert_close(raw, (ours.softmax(-1) * places).sum(-1), atol=0, rtol=2 * UNIT)
        assert raw.equal(raw.bfloat16().float())
        # An expectation moves by the sum of p (k - mean) times what moves logit k. The published one was rounded up
        # to four times: as here, and on its way to seconds.
        lever = (p * (places - (p * places).sum(-1, keepdim=True))).square().sum(-1).sqrt()
        allowed = limit * theirs.square().mean(-1).sqrt() * lever + 4 * UNIT * published
        assert ((raw - published).abs() <= allowed).all(), (raw, published, allowed)
