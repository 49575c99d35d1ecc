"""The small parts that a CPU can train: a word-level tokenizer, a vision tower and its preparation.

The tower is *prepared* by supervised attribute classification on the training clips (it sees their colour, shape and
motion labels): without it nothing was learnt in the time that a quickstart has. ``attributes.safetensors`` holds the
classifier's direction of every attribute word, from which the language model's word embeddings start (CLIP-like). The
tower is a small convolutional one or, with ``--config``, that of the config, which takes groups of frames, together
with its connector.

    python -m quickstart.tower --data DIR --output DIR --tokenizer DIR --seed 0
"""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from quickstart.clips import COLORS, MOTIONS, SHAPES
from videollm.common.command import Parser, a_path, ended, whole
from videollm.common.config import need, read_yaml
from videollm.common.files import an_object, json_lines
from videollm.model import backbones  # noqa: F401 - registers towers
from videollm.model.connectors import build_connector
from videollm.model.towers import build_tower
from videollm.video.preprocess import Preprocess
from videollm.video.read import read_video
from videollm.video.sampling import Sampler

FRAMES = 32  # sampled frames of a clip, as in configs/tiny
WINDOW = 4  # consecutive sampled frames of a training window
CLIPS = 32  # windows in a batch
CENTER_CLIPS = 200  # whose frames give the mean feature
TOUCHING = 0.75  # share of windows drawn around an event
ATTRIBUTES = {"color": tuple(COLORS), "shape": SHAPES, "motion": tuple(MOTIONS)}
ALWAYS = "0 1 2 3 4 5 6 7 8 9 - . percent seconds : \n"  # what heads write beside the data set's own words
PREPROCESS = Preprocess(kind="plain", size=64, frame_difference=True)  # as in configs/tiny


# ---- tokenizer -----------------------------------------------------------------------------------------------------


def build_word_tokenizer(texts: Iterable[str], special_tokens: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer with one token a word, digit, punctuation mark and newline of ``texts``.

    A blank belongs to what follows it, so decoding gives the text back; every piece is known with and without it.
    """
    blank = "\u2581"
    pattern = rf"{blank}?[A-Za-z]+|{blank}?[0-9]|\n|{blank}?[^{blank}\sA-Za-z0-9]|{blank}"
    splitter = pre_tokenizers.Split(Regex(pattern), "isolated")
    normalizer = normalizers.Replace(" ", blank)
    found = {p for t in (*texts, ALWAYS) for p, _ in splitter.pre_tokenize_str(normalizer.normalize_str(t))}
    words = sorted({p.lstrip(blank) for p in found} - {""})
    pieces = ["<pad>", "<unk>", blank, *words, *(blank + w for w in words if w != "\n")]
    tokenizer = Tokenizer(models.WordLevel({p: i for i, p in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.Sequence([decoders.Replace(blank, " "), decoders.Fuse()])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    wrapped.add_special_tokens({"extra_special_tokens": ["<|im_start|>", *special_tokens]})
    return wrapped


# ---- preparation ---------------------------------------------------------------------------------------------------


def read_records(folder: Path, split: str) -> list[dict]:
    """The records of one split. Raises ValueError, naming file and line, unless they tell their clips' events."""
    file = folder / f"{split}.jsonl"
    remedy = "make the data with python -m quickstart.clips"
    need(file.is_file(), f"no {file}; {remedy}")

    def told(record: object) -> dict:
        need("events" in an_object(record), f"no key 'events'; {remedy}")
        return record

    records = [record for _, record in json_lines(file, parse=told)]
    need(records, f"{file} is empty; {remedy}, with clips in {split}")
    return records


class Clips:
    """Frames of clips, decoded once, and the attributes of their one event at every frame (-1: none, -2: several)."""

    def __init__(self, folder: Path, split: str, count: int):
        items = list({record["video"]: record for record in read_records(folder, split)}.values())[:count]
        sampler = Sampler(rule="segments", num_frames=FRAMES)
        self.frames = torch.empty(len(items), FRAMES, 64, 64, 3, dtype=torch.uint8)
        self.labels = torch.full((len(items), FRAMES, len(ATTRIBUTES)), -1)
        for i, item in enumerate(tqdm(items, desc=f"reading {split} clips", unit="clip")):
            frames = read_video(folder / "videos" / item["video"], sampler)
            self.frames[i] = frames.pixels
            self.labels[i] = self._labels(item["events"], frames.times_s)

    def _labels(self, events: list[dict], times_s: np.ndarray) -> Tensor:
        """[F, 3] indices into ``ATTRIBUTES``."""
        active = np.stack([(times_s >= e["span"][0]) & (times_s < e["span"][1]) for e in events])  # [E, F]
        kinds = np.array([[values.index(e[name]) for name, values in ATTRIBUTES.items()] for e in events])
        labels = kinds[active.argmax(0)]
        labels[active.sum(0) == 0] = -1
        labels[active.sum(0) > 1] = -2
        return torch.as_tensor(labels)

    def batch(self, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Windows of consecutive frames, most of them around an event. [CLIPS * WINDOW, 6, 64, 64], [.., 3]."""
        clip = torch.randint(len(self.frames), (CLIPS,), generator=rng)
        start = torch.randint(FRAMES - WINDOW + 1, (CLIPS,), generator=rng)
        busy = self.labels[clip, :, 0] >= 0  # [CLIPS, F]
        chosen = torch.rand(busy.shape, generator=rng).masked_fill(~busy, -1).argmax(1)  # a frame of an event
        around = (chosen - torch.randint(WINDOW, (CLIPS,), generator=rng)).clamp(0, FRAMES - WINDOW)
        touching = (torch.rand(CLIPS, generator=rng) < TOUCHING) & busy.any(1)
        start = torch.where(touching, around, start)
        # One frame more in front, for the difference of the first; the clip's first frame differs from nothing.
        frame = (start[:, None] + torch.arange(-1, WINDOW)).clamp(min=0)  # [CLIPS, WINDOW + 1]
        pixels = PREPROCESS(self.frames[clip[:, None], frame].flatten(0, 1)).unflatten(0, frame.shape)
        return pixels[:, 1:].flatten(0, 1), self.labels[clip[:, None], frame[:, 1:]].flatten(0, 1)


class Classifier(nn.Module):
    """Three linear readings of a frame's feature; each has one more class, "nothing here".

    Without that class, a shape's or motion's direction says anything about empty frames, and its word matches them.
    """

    def __init__(self, width: int):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, len(values) + 1, bias=False) for values in ATTRIBUTES.values())

    def targets(self, labels: Tensor) -> list[Tensor]:
        """Class indices by head, -100 where several events overlap. labels [N, 3]."""
        sizes = map(len, ATTRIBUTES.values())
        filled = [torch.where(t == -1, size, t) for t, size in zip(labels.unbind(1), sizes, strict=True)]
        return [torch.where(t < 0, -100, t) for t in filled]

    def vectors(self) -> dict[str, Tensor]:
        """Word -> direction [Dv]; what the words of one attribute share is taken out."""
        found = {}
        for head, (name, values) in zip(self.heads, ATTRIBUTES.items(), strict=True):
            rows = head.weight.detach()[: len(values)]
            words = [MOTIONS[v].split()[-1] for v in values] if name == "motion" else values
            found |= {w: r.contiguous() for w, r in zip(words, rows - rows.mean(0), strict=True)}
        return found


def features_of(tower: nn.Module, connector: nn.Module | None, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What the classifier reads of frames [N, 6, 64, 64] with labels [N, 3]: features [N, Dv] and the labels.

    Of a tower that takes groups of frames, of each group: the mean of what its connector makes of it, [N / 2, D]; a
    group whose frames do not show the same is labelled as one of several events.
    """
    if connector is None:
        return tower(pixels.contiguous(memory_format=torch.channels_last))[:, 0], labels
    frames, patching = pixels[:, :3].movedim(1, -1), tower.patching
    grids = np.tile(patching.grid(*frames.shape[1:3]), (len(frames) // patching.temporal, 1))
    tokens = connector(tower(patching.group(frames).flatten(0, 1), grids)).sum(1)  # what any layer gets of them
    first, last = labels.unflatten(0, (-1, patching.temporal))[:, [0, -1]].unbind(1)
    return tokens.unflatten(0, (len(grids), -1)).mean(1), torch.where(first == last, first, -2)


def prepare_tower(
    data: Path, output: Path, *, steps: int = 800, seed: int = 0, clips: int = 700, native: dict | None = None
) -> dict:
    """Train a tower to tell what a frame shows, save it, and report its accuracy on validation clips.

    Reads the first ``clips`` training clips (12 ms of decoding each; 1000 were hardly more accurate than 700). Writes
    the tower, ``attributes.safetensors`` (word -> [hidden_size]), ``feature_mean.safetensors`` and ``report.json`` to
    ``output``; with ``native``, the ``model`` of a config, that tower, and its connector as ``connector.safetensors``.
    Raises ValueError for data without clips or without ``events``, and for ``steps`` below 1.
    """
    need(steps >= 1, f"steps must be >= 1, not {steps}")
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    rng, start = torch.Generator().manual_seed(seed), time.process_time()
    train, val = Clips(data, "train", clips), Clips(data, "val", 100)
    tower, lr, connector = build_tower(native["vision"] if native else {"type": "conv"}), 4e-3, None
    if native:
        width, lr = native["language"]["hidden_size"], 2e-3
        connector = build_connector(tower.connects | native["connector"], tower.hidden_size, width)
    else:
        tower.to(memory_format=torch.channels_last)  # a quarter less time on CPUs
    classifier = Classifier(width if native else tower.hidden_size)
    parameters = [p for part in (tower, connector, classifier) if part is not None for p in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / 20, 1 - 0.9 * s / steps))
    tower.train()
    bar = tqdm(range(steps), desc="preparing the vision tower", unit="step")
    for _ in bar:
        pixels, labels = train.batch(rng)
        features, labels = features_of(tower, connector, pixels, labels)
        pairs = zip(classifier.heads, classifier.targets(labels), strict=True)
        loss = sum(cross_entropy(head(features), target) for head, target in pairs)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    tower.eval()
    with torch.no_grad():
        few = zip(train.frames[:CENTER_CLIPS], train.labels, strict=False)
        shown = torch.cat([features_of(tower, connector, PREPROCESS(frames), labels)[0] for frames, labels in few])
    right = accuracy(tower, connector, classifier, val)
    report = {"accuracy": right, "steps": steps, "seed": seed, "clips": len(train.frames)}
    report["cpu_s"] = round(time.process_time() - start, 1)
    tower.save_pretrained(output)
    if connector is not None:
        save_file(connector.state_dict(), output / "connector.safetensors")
    save_file(classifier.vectors(), output / "attributes.safetensors")
    save_file({"mean": shown.mean(0)}, output / "feature_mean.safetensors")
    (output / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


@torch.no_grad()
def accuracy(tower: nn.Module, connector: nn.Module | None, classifier: Classifier, clips: Clips) -> dict[str, float]:
    """Share of frames, or groups of them, that each reading gets right."""
    right, asked = torch.zeros(2, len(ATTRIBUTES))
    for frames, labels in zip(clips.frames, clips.labels, strict=True):
        features, labels = features_of(tower, connector, PREPROCESS(frames), labels)
        for k, (head, target) in enumerate(zip(classifier.heads, classifier.targets(labels), strict=True)):
            right[k] += (head(features).argmax(1) == target)[target >= 0].sum()
            asked[k] += (target >= 0).sum()
    return dict(zip(ATTRIBUTES, (right / asked.clamp(min=1)).tolist(), strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Make the tokenizer and the tower."""
    parser = Parser(prog="quickstart.tower", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=a_path, required=True, help="folder made by quickstart.clips")
    parser.add_argument("--output", type=a_path, required=True, help="folder of the tower")
    parser.add_argument("--tokenizer", type=a_path, required=True, help="folder of the tokenizer")
    parser.add_argument(
        "--config", type=a_path, help="of a run, whose tower it is to be (default: a convolutional one)"
    )
    parser.add_argument("--steps", type=whole(1), default=800)
    parser.add_argument("--seed", type=whole(0), default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # the same numbers on every machine of a kind; layers this small gain little from more

    def run() -> None:
        records = read_records(args.data, "train")
        turns = {turn["value"] for record in records for turn in record["conversations"]}
        texts = {text.replace("<video>", "").replace("<span>", "") for text in turns}
        build_word_tokenizer(texts).save_pretrained(args.tokenizer)
        native = read_yaml(args.config).get("model", {}) if args.config else None
        parts = native is None or {"vision", "connector", "language"} <= native.keys()
        need(parts, f"{args.config}: no model.vision, connector and language; give a config that is made of parts")
        print(json.dumps(prepare_tower(args.data, args.output, steps=args.steps, seed=args.seed, native=native)))

    return ended(run)


if __name__ == "__main__":
    sys.exit(main())
