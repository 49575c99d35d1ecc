"""Tiny models of every backbone and head, and small data for them: what the tests of the core build on.

Everything is made here from seeds: a byte-level tokenizer without merges, networks of a few layers, frames of noise,
and mp4 files for the tests that go through the commands. Nothing is downloaded, nothing is kept after the run.
"""

import functools
import json
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from videollm.batches.dataset import VideoDataset
from videollm.batches.reader import Seen
from videollm.checkpoint import Bundle
from videollm.common.config import build
from videollm.data import Record, parse_record
from videollm.model.videollm import VideoLLM
from videollm.training.assemble import assemble
from videollm.training.optimizer import set_trainable
from videollm.training.settings import Settings
from videollm.video.decode import VideoError

SIZE = 28  # pixels a side
SPECIAL = (
    "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "</s>",
)  # fmt: skip
_INTERNVL = {
    "type": "internvl", "image_size": [SIZE, SIZE], "patch_size": [14, 14], "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 64, "attention_bias": True,
}  # fmt: skip
_EVA = {
    "type": "instructblip", "image_size": SIZE, "patch_size": 14, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
_QFORMER = {
    "type": "qformer", "num_query_tokens": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "vocab_size": 300, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
_QWEN3 = {
    "type": "qwen3_vl", "patch_size": 4, "hidden_size": 32, "depth": 3, "num_heads": 4, "intermediate_size": 64,
    "num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1, 2],
}  # fmt: skip
_QWEN2_5 = {
    "type": "qwen2_5_vl", "patch_size": 4, "hidden_size": 32, "depth": 2, "num_heads": 4, "intermediate_size": 64,
    "window_size": 16, "fullatt_block_indexes": [1], "tokens_per_second": 2, "out_hidden_size": 32,
}  # fmt: skip
_SMOL = {
    "type": "smolvlm", "image_size": SIZE, "patch_size": 7, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
_CONV = {"type": "conv", "image_size": SIZE, "channels": 3}
_IMG = {"token": "<IMG_CONTEXT>", "start": "<img>", "end": "</img>"}
_PADS = {"token": "<|video_pad|>", "image": "<|image_pad|>", "start": "<|vision_start|>", "end": "<|vision_end|>"}


def _language(kind: str, **fields) -> dict:
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    # A wider initialisation than usual: attention must not be flat, or a wrong mask would go unnoticed.
    ids = {"pad_token_id": 0} | ({} if "vl" in kind else {"bos_token_id": 0, "eos_token_id": 0})
    return {"model_type": kind, "num_key_value_heads": 2, "initializer_range": 0.15, **sizes, **ids, **fields}


def _mrope(*sections: int) -> dict:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}


BACKBONES = {
    "internvl": {
        "vision": _INTERNVL, "connector": {"type": "mlp"}, "language": _language("qwen2"), "template": "internvl2_5",
        "visual_tokens": _IMG,
    },
    "etchat": {
        "vision": _EVA, "connector": _QFORMER, "language": _language("phi3"), "template": "phi3",
        "bidirectional_frames": True,
    },
    "llama": {"vision": _INTERNVL, "connector": {"type": "mlp"}, "language": _language("llama"), "template": "llama3"},
    "gemma2": {
        "vision": _INTERNVL, "connector": {"type": "mlp"}, "language": _language("gemma2", head_dim=8),
        "template": "gemma2", "bidirectional_frames": True,
    },
    "internvl3_5": {
        "vision": _INTERNVL, "connector": {"type": "mlp"}, "language": _language("qwen3", head_dim=8),
        "template": "internvl2_5", "visual_tokens": {**_IMG, "before": "Frame{number}: ", "between": "\n"},
    },
    "smolvlm": {
        "vision": _SMOL, "connector": {"type": "smolvlm"}, "language": _language("llama"), "template": "llama3",
    },
    "qwen3_vl": {
        "vision": _QWEN3, "connector": {"type": "qwen3_vl"}, "template": "qwen2",
        "language": _language("qwen3_vl_text", head_dim=8, rope_parameters=_mrope(2, 1, 1)),
        "visual_tokens": {**_PADS, "before": "<{time:.1f} seconds>", "after": ""},
    },
    "qwen2_5_vl": {
        "vision": _QWEN2_5, "connector": {"type": "qwen2_5_vl"}, "template": "qwen2",
        "language": _language("qwen2_5_vl_text", rope_parameters=_mrope(2, 1, 1)),
        "visual_tokens": {**_PADS, "after": ""},
    },
}  # fmt: skip
HEADS = {
    "d2vlm": {"name": "d2vlm", "inject_layer": 2},
    "distime": {"name": "distime", "reg_max": 8},
    "text": {"name": "text"},
}
NATIVE = ("qwen3_vl", "qwen2_5_vl")  # of frames of any size
# Of every backbone all heads, but for some of those that differ from another in one part alone.
SAME = (("qwen2_5_vl", "text"), ("internvl3_5", "distime"), ("internvl3_5", "text"), ("smolvlm", "distime"))
PAIRS = [(backbone, head) for backbone in BACKBONES for head in HEADS if (backbone, head) not in SAME]
LENGTHS = {"a.mp4": 4, "b.mp4": 6, "c.mp4": 5}  # frames, one a second
SHAPES = {"a.mp4": (16, 24), "b.mp4": (8, 16), "c.mp4": (16, 16)}  # height and width, where a tower takes any


# ---- tokenizer and models --------------------------------------------------------------------------------------------


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    """A folder that lives as long as the process."""
    return tempfile.TemporaryDirectory(prefix="videollm_tests_")


def byte_tokenizer(special=SPECIAL) -> PreTrainedTokenizerFast:
    """One token a byte, plus special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({"<|endoftext|>": 0} | {c: i + 1 for i, c in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<|endoftext|>", eos_token="<|endoftext|>")
    tokenizer.add_special_tokens({"extra_special_tokens": list(special)})
    return tokenizer


@functools.cache
def tokenizer_folder() -> str:
    """Where ``byte_tokenizer`` is saved, written once."""
    folder = Path(_scratch().name) / "tokenizer"
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def model_settings(backbone: str, head_name: str, **changes) -> dict:
    """The ``model`` mapping of a config."""
    parts = {**BACKBONES[backbone], "head": HEADS[head_name], "tokenizer": tokenizer_folder()}
    if parts["connector"]["type"] == "qformer":
        parts["question_tokenizer"] = tokenizer_folder()
    return parts | changes


def preprocess_of(backbone: str) -> dict:
    """How frames are made for a backbone: of any size in multiples of 8 pixels, small ones, or square."""
    if backbone not in NATIVE:
        return {"kind": "plain", "size": SIZE}
    limits = {"min_pixels": 128, "max_pixels": 2048, "image_min_pixels": 64, "image_max_pixels": 1024}
    return {"kind": backbone, "factor": 8, "budget": "frame", **limits}


def settings(backbone: str, head_name: str, train: dict | None = None, data: dict | None = None, **model) -> Settings:
    """The settings of a tiny run, from dicts."""
    data = {"preprocess": preprocess_of(backbone), "max_length": 1024} | (data or {})
    return build(Settings, {"model": model_settings(backbone, head_name, **model), "data": data, "train": train or {}})


def make_bundle(backbone: str, head_name: str, train: dict | None = None, **options) -> Bundle:
    """A tiny model with seeded random weights, in evaluation mode, the tower frozen."""
    given = settings(backbone, head_name, {"seed": 1} | (train or {}), **options)
    bundle = assemble(given)
    set_trainable(bundle.model, given.train)
    return bundle


# ---- records and batches ---------------------------------------------------------------------------------------------


def turns(*texts: str) -> list[dict]:
    """Alternating turns of an annotation."""
    return [{"from": "gpt" if i % 2 else "human", "value": text} for i, text in enumerate(texts)]


LINES = {
    "two_spans": {
        "video": "a.mp4", "duration": 4, "tgt": [0, 2, 1, 3],
        "conversations": turns("<video>\nwhen is it?", "at <span> and <span>."),
    },
    "asked": {
        "video": "b.mp4", "duration": 6, "src": [1, 2], "tgt": [2, 4.5],
        "conversations": turns("<video>\nwhat happens in <span>?", "a dog <evi> runs."),
    },
    "turns": {
        "video": "c.mp4", "duration": 5, "tgt": [1, 3, 0, 5],
        "conversations": turns("<video>\nwhen?", "<span>", "and then?", "in <span>, too"),
    },
    "no_spans": {"video": "b.mp4", "conversations": turns("<video>\nwhat is it?", "a dog")},
    "image": {"image": "x.png", "conversations": turns("<image>\nwhat?", "a cat")},
    "text": {"conversations": turns("hi", "hello there")},
}  # fmt: skip


def record(name: str | dict) -> Record:
    """One of ``LINES``, or an annotation line of one's own, as a record."""
    line = LINES[name] if isinstance(name, str) else name
    ident = name if isinstance(name, str) else "own"
    return parse_record({"id": ident, **line}, 1, "lines.jsonl")


class NoiseReader:
    """Frames of seeded noise, one a second, in place of files; ``broken.mp4`` cannot be read.

    With ``any_size`` as bytes, of each video and image in a size of its own.
    """

    stored = None

    fixed = True

    def __init__(self, any_size: bool = False):
        self.any_size = any_size

    def video(self, name, rng, view=None, limits=()):
        if name not in LENGTHS:
            raise VideoError(f"{name}: is not a video; fetch it again")
        count = LENGTHS[name]
        if self.any_size:
            return Seen(noise(count, *SHAPES[name]), None, np.arange(count) * 1.0, float(count))
        pixels = torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(count))
        return Seen(pixels, None, np.arange(count) * 1.0, float(count))

    def shape(self, name, view=None):
        return SHAPES.get(name) if self.any_size else None

    def images(self, names):
        if self.any_size:
            return [noise(1, 8 * (1 + i), 16) for i in range(len(names))], [1] * len(names)
        generator = torch.Generator().manual_seed(9)
        return torch.randn(2 * len(names), 3, SIZE, SIZE, generator=generator), [2] * len(names)


def noise(count: int, height: int, width: int) -> torch.Tensor:
    """Frames [count, height, width, 3] of seeded bytes."""
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


def make_dataset(bundle: Bundle, names, **options) -> VideoDataset:
    """``LINES`` by name (or own lines) as a dataset of noise."""
    options = {"max_length": 1024} | options
    reader = NoiseReader(any_size=bundle.model.patching is not None)
    return VideoDataset([record(n) for n in names], reader, bundle.encoder(), **options)


def make_batch(bundle: Bundle, names, *, asked: bool = False, pack: bool = False, average: str = "tokens", **options):
    """A batch as the model takes it: for training, or (``asked``) to generate the last answer."""
    dataset = make_dataset(bundle, names, answers=not asked, pack=pack, **options)
    collate = bundle.collator(asked=asked, pack=pack, average=average)
    return collate([dataset[i] for i in range(len(dataset))])


def gradients(model: VideoLLM) -> dict[str, torch.Tensor]:
    """The gradient of every trainable parameter (None where there is none), and a clean slate."""
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad(set_to_none=True)
    return grads


# ---- files for the commands ------------------------------------------------------------------------------------------


def write_clip(path: Path, seconds: int, seed: int, rate: int = 4, size: int = 32) -> None:
    """An mp4 of flat noise pictures."""
    noise = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for i in range(seconds * rate):
            picture = noise.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(size // 4, 0).repeat(size // 4, 1)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = i, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@functools.cache
def clips() -> Path:
    """A folder with four mp4 files (4, 5, 6 and 7 s) and one that is no video, written once."""
    folder = Path(_scratch().name) / "videos"
    folder.mkdir()
    for i in range(4):
        write_clip(folder / f"clip{i}.mp4", 4 + i, seed=i)
    (folder / "broken.mp4").write_bytes(b"this is no video")
    return folder


def clip_lines(count: int = 4) -> list[dict]:
    """One question with one span for each clip."""
    return [
        {
            "id": f"q{i}", "video": f"clip{i % 4}.mp4", "duration": 4 + i % 4, "tgt": [i % 3, 3 + i % 2],
            "conversations": turns("<video>\nwhen is it?", "It is in <span>."),
        }
        for i in range(count)
    ]  # fmt: skip


def write_lines(path: Path, lines: list) -> str:
    """An annotation file; a line that is a string is written as it is."""
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), encoding="utf-8")
    return str(path)


def write_config(folder: Path, head: str, *, backbone: str = "internvl", lines=None, model=None, **train) -> Path:
    """A YAML config of a tiny run on the clips, and its annotation file, in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    annotations = write_lines(folder / "train.jsonl", clip_lines() if lines is None else lines)
    config = {
        "model": model_settings(backbone, head) | (model or {}),
        "data": {
            "train": [annotations], "validation": [annotations], "videos": str(clips()), "max_length": 1024,
            "preprocess": preprocess_of(backbone), "sampler": {"rule": "segments", "num_frames": 4},
        },
        "train": {"output": str(folder / "run"), "steps": 3, "lr": 1e-3, "log_every": 1, "report_to": [], **train},
        "generate": {"max_new_tokens": 8},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def read_log(folder: Path, key: str = "loss") -> list[dict]:
    """The entries of ``log.jsonl`` that hold ``key``."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if key in entry]
