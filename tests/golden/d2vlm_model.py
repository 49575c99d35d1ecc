"""The golden model of D2VLM as one of ours: config and weights go through the converter's own rename functions.

``golden_bundle(folder)`` is what every whole-model test starts from; ``folder`` is ``golden_dir / "d2vlm"``. Settings,
shapes and case names come from the folder's files.
"""

import copy
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

from d2vlm.evidence import EVIDENCE, EVIDENCE_END
from d2vlm.names import FRAME, our_config, ours
from tests.conftest import place
from videollm.batches.batch import Batch
from videollm.batches.dataset import VideoDataset
from videollm.batches.reader import Seen
from videollm.checkpoint import Bundle
from videollm.common.config import build
from videollm.data import parse_record
from videollm.model.videollm import VideoLLM
from videollm.video.preprocess import Preprocess


def read_config(folder: Path) -> dict:
    """The golden ``config.json``."""
    return json.loads((folder / "config.json").read_text())


def tokenizers(folder: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
    """The language model's tokenizer, with our placeholder of a frame, and the Q-Former's."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "lm_tokenizer")
    tokenizer.add_special_tokens({"extra_special_tokens": [FRAME]}, replace_extra_special_tokens=False)
    question = BertTokenizer.from_pretrained(folder / "bert_tokenizer", truncation_side="left")
    question.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer, question


def parts(folder: Path) -> tuple[dict, dict]:
    """Fields of the tower and of the connector that no shape tells; the golden model has no dropout."""
    config = read_config(folder)
    vision = {"num_attention_heads": config["vision"]["heads"], "layer_norm_eps": config["vision"]["ln_eps"]}
    qformer = config["qformer"]
    connector = {
        "num_attention_heads": qformer["heads"],
        "layer_norm_eps": qformer["ln_eps"],
        "cross_attention_frequency": qformer["cross_attention_freq"],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return vision, connector


def golden_bundle(folder: Path, state: dict[str, Tensor] | None = None, **head) -> Bundle:
    """The golden model in evaluation mode, with official weights ``state`` (by default the folder's own).

    ``head`` is laid over the head's options; those that the published numbers need are on.
    """
    golden, state = read_config(folder), state or load_file(folder / "model.safetensors")
    tokenizer, question = tokenizers(folder)
    token_ids = {EVIDENCE: golden["evidence_token_id"], EVIDENCE_END: golden["evidence_end_token_id"]}
    config = our_config(golden["llm"], {n: tuple(t.shape) for n, t in state.items()}, token_ids, *parts(folder))
    config.head |= {"inject_layer": golden["hidden_add_index"], "compatibility": "published", **head}
    config._attn_implementation = "eager"
    model = VideoLLM(config)
    model.load_state_dict(dict(ours(state)), strict=True)
    model.vision_tower.requires_grad_(False)
    return Bundle(model.eval(), tokenizer, question)


class GoldenReader:
    """Stored frames in place of files: ``frames_u8.<key>`` of a golden file, one a second."""

    stored, fixed = None, True

    def __init__(self, bundle: Bundle, frames: dict[str, Tensor]):
        self.preprocess, self.frames = build(Preprocess, bundle.config.preprocess, "preprocess"), frames

    def video(self, name: str, rng, view=None, limits=()):
        """As ``VisualReader.video``; ``name`` is the key."""
        frames = self.frames[f"frames_u8.{name}"]
        return Seen(self.preprocess(frames), None, np.arange(len(frames)) * 1.0, float(len(frames)))


def golden_batch(
    bundle: Bundle, lines: list[dict], frames: dict[str, Tensor], *, asked: bool = False, raw: bool = True
) -> Batch:
    """Annotation ``lines`` as a batch, their spans as published (``raw``); ``video`` is a key of ``frames``."""
    records = [parse_record({**line, "id": str(k)}, 1, "golden.jsonl", raw_spans=raw) for k, line in enumerate(lines)]
    dataset = VideoDataset(records, GoldenReader(bundle, frames), bundle.encoder(), max_length=4096, answers=not asked)
    batch = bundle.collator(asked=asked)([dataset[k] for k in range(len(records))])
    assert not batch.bad, batch.bad
    return batch


def names(prefix: str, documented: Iterable[str]) -> list[str]:
    """Cases of the golden folder: those that its README documents, and whatever else begins with ``prefix``.

    A documented case that the folder lacks is skipped by ``case_files``.
    """
    found = {path.stem for path in (place("GOLDEN_DIR") / "d2vlm").glob(f"{prefix}*.safetensors")}
    return sorted(found | set(documented))


def case_files(folder: Path, name: str) -> tuple[dict, dict[str, Tensor]]:
    """(json, arrays) of one case; skips the test where the folder lacks it."""
    for end in ("json", "safetensors"):
        if not (folder / f"{name}.{end}").is_file():
            pytest.skip(f"{name}.{end} is not in this golden folder")
    return json.loads((folder / f"{name}.json").read_text()), load_file(folder / f"{name}.safetensors")


def infer_case(folder: Path, name: str) -> tuple[dict, dict[str, Tensor]]:
    """The entry in ``infer.json`` and the arrays of ``infer_K``; skips the test where the folder lacks them."""
    for file in ("infer.json", f"{name}.safetensors"):
        if not (folder / file).is_file():
            pytest.skip(f"{file} is not in this golden folder")
    entries, k = json.loads((folder / "infer.json").read_text()), int(name.removeprefix("infer_"))
    assert k < len(entries), f"{folder / 'infer.json'} has {len(entries)} entries, and none for {name}.safetensors"
    return entries[k], load_file(folder / f"{name}.safetensors")


def infer_cases(folder: Path) -> list[tuple[dict, dict[str, Tensor]]]:
    """Every answer whose arrays the folder has; skips the test where it has none."""
    found = [name for name in INFER_CASES if (folder / f"{name}.safetensors").is_file()]
    if not found:
        pytest.skip(f"no infer_K.safetensors is in {folder}")
    return [infer_case(folder, name) for name in found]


SFT_CASES = names("sft_single_", [f"sft_single_{k}" for k in range(5)])
SFT_CASES += names("sft_batch_", ["sft_batch_012", "sft_batch_50"])
FPO_CASES = [
    name
    for name in names("fpo_", ["fpo_pair", "fpo_mixed", *(f"fpo_single_{k}" for k in range(5))])
    if name != "fpo_frames"
]
INFER_CASES = names("infer_", [f"infer_{k}" for k in range(5)])


def padded_rows(arrays: dict[str, Tensor]) -> list[int]:
    """Rows that the published code pads in the middle (README, ``sft_batch_50``): their numbers are a fault of it."""
    return [row for row, mask in enumerate(arrays["attention_mask_part1"]) if not mask.all()]


def sft_batch(bundle: Bundle, folder: Path, samples: list[int]) -> dict:
    """Samples of the golden annotations as a batch."""
    lines = json.loads((folder / "sft_annotations.json").read_text())
    return golden_batch(
        bundle, [{**lines[k], "video": str(k)} for k in samples], load_file(folder / "sft_frames.safetensors")
    )


def preference_batch(bundle: Bundle, folder: Path, samples: list[dict], respell=lambda answer: answer) -> Batch:
    """Preference samples (``annotation``, ``cls``), each with that one rejected answer as the published code packed it.

    ``respell`` changes the text of every answer.
    """
    lines, records = json.loads((folder / "fpo_annotations.json").read_text()), []
    for k, sample in enumerate(samples):
        line = copy.deepcopy(lines[sample["annotation"]])
        for talk in line["conversations"].values():
            talk[1]["value"] = respell(talk[1]["value"])
        record = parse_record({**line, "id": str(k)}, 1, "golden.json", raw_spans=True)
        classes = [name for name in line["conversations"] if name != "chosen"]
        records.append(replace(record, rejected=(record.rejected[classes.index(sample["cls"])],)))
    reader = GoldenReader(bundle, load_file(folder / "fpo_frames.safetensors"))
    dataset = VideoDataset(records, reader, bundle.encoder(), max_length=4096, rejected="one")
    batch = bundle.collator(rank=True)([dataset[k] for k in range(len(dataset))])
    assert not batch.bad, batch.bad
    return batch
