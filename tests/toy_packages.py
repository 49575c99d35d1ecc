"""Stand-ins for what realweights fetches: drawn pictures with names, a random network and a tiny language model.

Laid out as ``realweights.packages`` and ``realweights.language`` lay out the real ones, so every later stage runs on
them as it is, without a network.
"""

import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from quickstart.tower import build_word_tokenizer
from realweights import objects
from realweights.tower import LiteTower, LiteTowerConfig

COLORS = ("red", "green", "blue", "yellow", "white", "black", "pink", "orange")
SHAPES = ("ball", "box", "ring", "kite", "star", "drum", "cup")


def lay_out(folder: Path) -> Path:
    """Pictures, photographs and the network's weights, by seed."""
    pictures = folder / "emoji/img/google/64"
    pictures.mkdir(parents=True)
    entries = []
    for i, (color, shape) in enumerate((c, s) for c in COLORS for s in SHAPES):
        image = Image.new("RGBA", (64, 64))
        ImageDraw.Draw(image).regular_polygon((32, 32, 26), 3 + SHAPES.index(shape), fill=color)
        image.save(pictures / f"{i:x}.png")
        kind = {"category": "Objects", "subcategory": "tool"}
        entries.append(
            {"name": f"{color} {shape}".upper(), "short_names": [f"{shape}_{color}"], "image": f"{i:x}.png"} | kind
        )
    (folder / "emoji/emoji.json").write_text(json.dumps(entries))
    (folder / "photos").mkdir()
    for i in range(2):
        noise = np.random.default_rng(i).integers(0, 255, (8, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((400, 300)).save(folder / f"photos/{i}.png")
    (folder / "tower").mkdir()
    torch.manual_seed(0)
    state = LiteTower(LiteTowerConfig(image_size=32)).state_dict()
    theirs = {re.sub(r"(^|\.)(?=conv|bn|blocks|expand|depth|project_)", r"\1_", k): v for k, v in state.items()}
    kept = {k: v for k, v in theirs.items() if not k.startswith(("look", "project", "norm"))}
    torch.save(kept | {"_fc.weight": torch.zeros(1)}, folder / "tower/lite.pth")
    return folder


def vocabulary() -> list[str]:
    """All that toy clips are asked and said."""
    kinds = ("GROUNDING", "ANSWERS", "DENSE", "CHOICE")
    asked = [text for name, texts in vars(objects).items() if name.startswith(kinds) for text in texts]
    return [*asked, *COLORS, *SHAPES, *objects.ACTIONS.values(), "user assistant (a) (b) (c) (d)"]


def language(folder: Path) -> Path:
    """A random Llama as wide as the real one, with 8 layers, and a tokenizer with a token a word."""
    tokenizer = build_word_tokenizer(vocabulary())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=576, intermediate_size=64, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "complete").touch()
    return folder


def sentences() -> SimpleNamespace:
    """A sentence model with a token a word, and a random vector for each text, as long as the real one's."""
    words = sorted(set(re.findall(r"\w+|[^\w\s]", " ".join(vocabulary()).lower())))
    known = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(WordLevel(known, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), BertPreTokenizer()

    def encode(texts: Sequence[str]) -> np.ndarray:
        drawn = [np.random.default_rng(zlib.crc32(text.encode())).standard_normal(384) for text in texts]
        return np.stack(drawn).astype(np.float32)

    special = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    return SimpleNamespace(tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special), encode=encode)
