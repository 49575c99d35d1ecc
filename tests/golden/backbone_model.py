"""The golden models of current backbones as ours: tiny released checkpoints, their cases as batches of the collator.

Families and cases come from the folder's files; every setting is read from ``config.json`` and ``cases.json``.
"""

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tests.conftest import place
from videollm.batches.batch import Batch
from videollm.batches.dataset import Item
from videollm.batches.prompt import Prompt, Visual
from videollm.checkpoint import Bundle
from videollm.data.conversation import Turn, VisualMark
from videollm.heads import HEADS
from videollm.model.backbones import FAMILIES
from videollm.model.videollm import VideoLLM, VideoLLMConfig
from videollm.video.patching import even_starts

GOLDEN = place("GOLDEN_DIR")
ROOT = GOLDEN / "backbones"
PLACE = re.compile(
    r"<\|vision_start\|><\|(?:video|image)_pad\|><\|vision_end\|>|<video>|<IMG_CONTEXT>"
)  # of a visual in a case's text
STOP = "<|im_end|>"  # of our template; the golden tokenizers have other names
FEATURES, LOGITS = {"atol": 5e-5, "rtol": 0}, {"atol": 3e-4, "rtol": 0}
LOSS, NORMS = 1e-5, 1e-4  # relative


def named(folder: Path, known: str) -> list[str]:
    """The cases of a family that are there, and those ``known`` that are not (they will be skipped)."""
    return sorted({path.stem[-1] for path in folder.glob("case_*.safetensors")} | set(known.split()))


KNOWN = {"qwen2_5_vl", "qwen3_vl", "internvl3", "internvl3_5"}
FOUND = sorted(KNOWN | {file.parent.name for file in ROOT.glob("*/config.json")})
CASES = [(family, case) for family in FOUND for case in named(ROOT / family, "a b c d")]


def settings(family: str) -> dict:
    """``config.json`` of a family."""
    return json.loads((ROOT / family / "config.json").read_text("utf-8"))


def told(family: str, case: str) -> dict:
    """What ``cases.json`` says of a case."""
    return json.loads((ROOT / family / "cases.json").read_text("utf-8"))["cases"][case]


def arrays(family: str, case: str) -> dict[str, Tensor]:
    """The arrays of a case."""
    return load_file(ROOT / family / f"case_{case}.safetensors")


def described(family: str):
    """Our description of a golden family: the file of ``backbones/`` for its kind of model."""
    return FAMILIES[settings(family)["model_type"]]


def our_name(family: str, name: str) -> str:
    """A released tensor's name as ours."""
    names = described(family).NAMES
    start = next(start for start in names if name.startswith(start))
    return names[start] + name.removeprefix(start)


def golden_bundle(family: str, head: str = "text", attention: str = "eager", **vision) -> Bundle:
    """The golden model with the text head, or another one that starts fresh."""
    config, processor = settings(family), json.loads((ROOT / family / "cases.json").read_text("utf-8"))["processor"]
    parts = described(family).parts(config)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(ROOT / family / "tokenizer.json"))
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config["text_config"]["pad_token_id"])
    head_class = HEADS.get(head)
    tokens = [*head_class.span_tokens, *head_class.extra_tokens]
    tokenizer.add_special_tokens({"extra_special_tokens": [STOP, *tokens]}, replace_extra_special_tokens=False)
    made = VideoLLMConfig(
        text_config=dict(parts["language"]), vision=parts["vision"] | vision, connector=parts["connector"],
        head={"name": head}, template="bare", visual_tokens=parts["visual_tokens"] | {"after": ""},
        token_ids={name: tokenizer.convert_tokens_to_ids(name) for name in tokens},
        preprocess={"kind": "plain", "size": 1} | {k: processor[k] for k in ("size", "mean", "std") if k in processor},
        attn_implementation=attention,
    )  # fmt: skip
    model = VideoLLM(made)
    state = {our_name(family, name): tensor for name, tensor in load_file(ROOT / family / "model.safetensors").items()}
    found = model.load_state_dict(state, strict=False)
    assert not found.unexpected_keys and all(name.startswith("head.") for name in found.missing_keys)
    model.head.reset_parameters()
    return Bundle(model.eval(), tokenizer)


RULES = {"qwen2_5_vl": {"4.49": "_4_49", "4.52": ""}}  # of positions; what golden arrays by them are called
RULED = [(family, case, rule) for family, case in CASES for rule in RULES.get(family, {"": ""})]


def by_rule(family: str, name: str, rule: str) -> str:
    """The golden arrays of positions or logits that go by a rule; where rules agree, there is one."""
    ending = RULES.get(family, {"": ""})[rule]
    return name + ending.replace("_4_49", "_4_49_positions" if name == "logits" else "_4_49")


@cache
def text_bundle(family: str, rule: str = "") -> Bundle:
    """The golden model with the text head, loaded once; for tests that leave it as it is."""
    return golden_bundle(family, **({"positions": rule} if rule else {}))


def visuals_of(bundle: Bundle, family: str, case: str) -> list[tuple[Visual, Tensor]]:
    """The visuals of a case in the order of their places in its texts, each with its pixels as they travel."""
    data, info, patching = arrays(family, case), told(family, case), bundle.model.patching
    found, counts, tiles = [], {"video": 0, "image": 0}, data.get("pixel_values")
    for mark in PLACE.findall("".join(info["texts"])):
        kind = "video" if "video" in mark else "image"
        k = counts[kind]
        counts[kind] += 1
        if patching is None:  # square frames and tiles, as the golden processor makes them
            times_s = data[f"frame_times_s_{k}"].numpy() if kind == "video" else ()
            count = len(times_s) or info["images"][k]["tiles_with_thumbnail"]
            found.append((Visual(kind, count, times_s), tiles[:count]))
            tiles = tiles[count:]
            continue
        frames = data.get(f"resized_frames_{k}", data[f"frames_{k}"]) if kind == "video" else image(data, info, k)
        grid, pixels = patching.grid(*frames.shape[1:3]), patching.group(frames).flatten(0, 1)
        if kind == "image":
            found.append((Visual(kind, 1, grids=[grid]), pixels))
            continue
        times_s, starts_s = patching.times(data[f"frame_times_s_{k}"].numpy())
        if "second_per_grid_ts" in data:
            starts_s = even_starts(len(times_s), data["second_per_grid_ts"][k].item())
        found.append((Visual(kind, len(times_s), times_s, [grid] * len(times_s), starts_s), pixels))
    return found


def image(data: dict[str, Tensor], info: dict, k: int) -> Tensor:
    """Image ``k`` in the size that the processor gives it, by Pillow's bicubic."""
    from PIL import Image

    size = info["images"][k]["resized_width"], info["images"][k]["resized_height"]
    picture = Image.fromarray(data[f"image_{k}"].numpy())
    return torch.from_numpy(np.array(picture.resize(size, Image.Resampling.BICUBIC)))[None]


def golden_items(bundle: Bundle, family: str, case: str) -> list[Item]:
    """The rows of a case, tokenised by us."""
    encoder, visuals = bundle.encoder(), visuals_of(bundle, family, case)
    items = []
    for text in told(family, case)["texts"]:
        places = PLACE.findall(text)
        own, visuals = visuals[: len(places)], visuals[len(places) :]
        words = PLACE.split(text)
        parts = [part for i, word in enumerate(words) for part in (VisualMark(i - 1), word)][1:]
        seen = [visual for visual, _ in own]
        prompt = encoder.encode([Turn("user", tuple(parts))], [], seen, 1.0)
        times = [visual.times_s for visual in seen if visual.kind == "video"]
        items.append(
            Item(
                [prompt], [np.zeros((0, 2))], torch.cat([pixels for _, pixels in own]) if own else None,
                times_s=np.concatenate(times) if times else np.zeros(0), duration_s=1.0,
                tiles=[visual.count for visual in seen if not times], grids=[g for one in seen for g in one.grids],
                ids=["row"],
            )
        )  # fmt: skip
    return items


def golden_batch(bundle: Bundle, family: str, case: str, asked: bool = True) -> Batch:
    """The rows of a case; not ``asked`` with its labels."""
    items = golden_items(bundle, family, case)
    labels = arrays(family, case).get("labels")
    for item in items:
        if not asked:
            label(item.prompts[0], labels[0])
    return bundle.collator(asked=asked)(items)


def padded_in_front(batch: Batch, values: Tensor) -> Tensor:
    """[B, L, ...] of a batch as the golden arrays have it: rows end in the last column."""
    behind = values.shape[1] - 1 - batch.last
    return torch.stack([row.roll(shift, 0) for row, shift in zip(values, behind.tolist(), strict=True)])


def label(prompt: Prompt, labels: Tensor) -> None:
    """Supervise what the golden labels do."""
    prompt.supervised = (labels >= 0).tolist()
