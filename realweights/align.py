"""The tower learns to say in vectors of words what a frame shows.

In: the package's weights of the network, the converted language model (of which only the token embeddings are read),
the sentence model that the metrics use, the things that training shows. Out: a tower folder: ``model.safetensors``
with the projection, the start of the connector in ``connector.safetensors``, the tokenizer that questions are read
with in ``question/``, and ``report.json``: how often a frame is nearest to the right name, among things of training
and among those that no training clip shows. Only ``project`` learns, by contrast among the names; the network stays as
ImageNet left it. Without it words and pictures share nothing, and a temporal head learns which events there are long
before it learns which one was asked for.

A word's vector is its embedding in the language model and its sentence vector, side by side: the first is what the
language model reads, and both together tell things apart that training has not shown better than either.

    python -m realweights.align --packages DIR --language DIR --output DIR --size 160 --seed 0
"""

import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, normalize
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from all_benchmark_eval.metrics.sentences import sentence_model
from realweights.clips import ACTIONS, OCCLUDED, SIZE, THING_SHARE, Event, paste
from realweights.connector import WordMatchConnector
from realweights.objects import CHOICE, DENSE, GROUNDING, Thing, read_photos, read_things
from realweights.tower import MEAN, STD, LiteTower, LiteTowerConfig
from videollm.common.command import Parser, ended, whole
from videollm.common.config import need
from videollm.common.files import write_text
from videollm.video.preprocess import Preprocess

BATCH = 64  # frames through the network
TEXTS = 1024  # words through the sentence model
EMPTY = 1 / 6  # of the frames show no thing
HELD_OUT = 0.1  # of the frames measure, the rest teach
TEMPERATURE = 20.0  # on cosines
DROPOUT = 0.5  # of features: without it what is learnt of trained things says less of others
SPREAD = (
    0.06  # of a frame's vector around the mean of word embeddings: about how far the mean of a name's tokens is off
)
QUESTION = "question"  # folder of the tokenizer that questions are read with
RIVALS = 2  # other things that a frame's name is measured against, as in a clip of three events


def embeddings(folder: Path) -> Tensor:
    """The language model's word embeddings. [V, D]."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return file.get_tensor("model.embed_tokens.weight")


def word_vectors(folder: Path, weight: Tensor, pieces: PreTrainedTokenizerBase) -> Tensor:
    """Unit vectors of all tokens of ``pieces``. [V, D + S].

    The first D: the mean of the embeddings ``weight`` of its text's tokens in the language model of ``folder``, the
    last S: the text's sentence vector; of each without the mean, one as long as the other. Tokens that are no text,
    and those that the wordings of questions consist of, have 0: they name nothing.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [piece.removeprefix("##") for piece in pieces.convert_ids_to_tokens(range(len(pieces)))]
    ids = [tokenizer(f" {text}", add_special_tokens=False)["input_ids"] for text in texts]
    read = torch.stack([weight[row].float().mean(0) for row in ids]) - weight.float().mean(0)
    starts = tqdm(range(0, len(texts), TEXTS), desc="sentence vectors of words", unit="batch")
    meant = torch.cat([torch.from_numpy(sentence_model().encode(texts[i : i + TEXTS])) for i in starts])
    vectors = torch.cat([normalize(read, dim=-1), normalize(meant - meant.mean(0), dim=-1)], -1) / 2**0.5
    asked = [pieces(wording.replace("{}", ""))["input_ids"] for wording in (*GROUNDING, *DENSE, *CHOICE)]
    vectors[sorted({*pieces.all_special_ids, *(token for row in asked for token in row)})] = 0
    return vectors


def name_vectors(words: Tensor, pieces: PreTrainedTokenizerBase, names: Sequence[Sequence[str]]) -> Tensor:
    """Unit vectors of what each thing is called, from its words'; who has fewer names repeats them. [T, K, D + S]."""
    most = max(map(len, names))
    ids = [pieces([one[k % len(one)] for k in range(most)], add_special_tokens=False)["input_ids"] for one in names]
    return torch.stack([torch.stack([normalize(words[row].mean(0), dim=-1) for row in one]) for one in ids])


def draw(rng: np.random.Generator, thing: Thing | None, photos: Sequence[np.ndarray]) -> np.ndarray:
    """One frame as a clip may show it, uint8 [SIZE, SIZE, 3]; without a thing if there is none."""
    photo = photos[rng.integers(len(photos))]
    top, left = (rng.random(2) * (np.array(photo.shape[:2]) - SIZE)).astype(int)
    view = photo[top : top + SIZE, left : left + SIZE].copy()
    if thing is not None:
        hidden = (0.0, 1.0, rng.uniform(0.3, 0.6)) if rng.random() < OCCLUDED / 3 else None
        action = list(ACTIONS)[rng.integers(len(ACTIONS))]
        size, center = SIZE * rng.uniform(*THING_SHARE), tuple(rng.random(2))
        paste(view, Event(thing, action, 0, 1, size, center, hidden), 0.9 * rng.random())
    return view


@torch.no_grad()
def features(tower: LiteTower, packages: Path, views: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pooled features [N, width] of ``views`` frames of every thing and of some without; which thing [N], or -1."""
    things, photos, rng = read_things(packages), read_photos(packages, 2 * SIZE), np.random.default_rng(seed)
    number = views * len(things)
    shown = np.r_[np.repeat(np.arange(len(things)), views), np.full(round(number * EMPTY), -1)]
    shown = rng.permutation(shown)
    preprocess = Preprocess(kind="plain", size=tower.config.image_size, mean=MEAN, std=STD)
    found = []
    for start in tqdm(range(0, len(shown), BATCH), desc="frames through the tower", unit="batch"):
        some = shown[start : start + BATCH]
        frames = np.stack([draw(rng, things[i] if i >= 0 else None, photos) for i in some])
        pixels = preprocess(torch.from_numpy(frames)).contiguous(memory_format=torch.channels_last)
        found.append(tower.pooled(pixels))
    return torch.cat(found), torch.from_numpy(shown)


def fit(project: nn.Linear, x: Tensor, labels: Tensor, names: Tensor, steps: int, seed: int) -> None:
    """Fit ``project`` so that a feature [N, F] lies nearest to one of its label's ``names`` [T, K, D].

    Label T is a frame without a thing, whose vector is learnt too.
    """
    rng = torch.Generator().manual_seed(seed)  # of batches and names; dropout follows torch's own
    things, number, width = names.shape
    nothing = nn.Parameter(0.02 * torch.randn(width, generator=rng))
    optimizer = torch.optim.AdamW([*project.parameters(), nothing], lr=2e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - 0.95 * step / steps)
    for _ in tqdm(range(steps), desc="aligning pictures with words", unit="step"):
        some = torch.randint(len(x), (256,), generator=rng)
        called = names[torch.arange(things), torch.randint(number, (things,), generator=rng)]
        known = torch.cat([called, normalize(nothing, dim=0)[None]])
        near = normalize(project(dropout(x[some], DROPOUT)), dim=-1) @ known.T
        loss = cross_entropy(TEMPERATURE * near, labels[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def accuracy(near: Tensor, labels: Tensor, rivals: Tensor, seed: int) -> float:
    """How often frames [N] of known things are nearer to their own name than to ``RIVALS`` others among ``rivals``."""
    drawn = rivals[torch.randint(len(rivals), (len(labels), 20, RIVALS), generator=torch.Generator().manual_seed(seed))]
    own = near.gather(1, labels[:, None])
    others = near.gather(1, drawn.flatten(1)).unflatten(1, (20, RIVALS))
    beaten = (own[..., None] > others) | (drawn == labels[:, None, None])
    return beaten.all(-1).float().mean().item()


def align(packages: Path, language: Path, output: Path, *, size: int, views: int, steps: int, seed: int) -> None:
    """Make the tower folder ``output``; its report is written last. Raises ConfigError where a file is missing."""
    weights = sorted((packages / "tower").rglob("*.pth"))
    need(weights, f"no .pth file in {packages / 'tower'}; run bash scripts/realweights.sh, which fetches it")
    state = {re.sub(r"(^|\.)_", r"\1", k): v for k, v in torch.load(weights[0], weights_only=True).items()}
    start, things = time.process_time(), read_things(packages)
    embedded, pieces = embeddings(language), sentence_model().tokenizer
    words = word_vectors(language, embedded, pieces)
    names = name_vectors(words, pieces, [thing.trained_names for thing in things])
    vectors = names[:, 0]
    torch.manual_seed(seed)
    config = LiteTowerConfig(image_size=size, hidden_size=vectors.shape[1])
    tower = LiteTower(config).eval().to(memory_format=torch.channels_last)
    lacks = tower.load_state_dict(state, strict=False).missing_keys
    ours = {"project.weight", "project.bias", "norm.weight", "norm.bias"}
    need(set(lacks) == ours, f"{weights[0]}: lacks {', '.join(lacks[:3])}; fetch it again")
    x, shown = features(tower, packages, views, seed)
    mean, spread = x.mean(0), x.std(0) + 1e-3
    x = (x - mean) / spread
    unseen = torch.tensor([thing.unseen for thing in things])
    measured = torch.rand(len(x), generator=torch.Generator().manual_seed(seed)) < HELD_OUT
    shows = torch.where(shown >= 0, unseen[shown.clamp(min=0)].int(), -1)  # 1: an unseen thing, 0: a seen one, -1: none
    seen = (~unseen).nonzero()[:, 0]
    place = torch.full((len(things) + 1,), -1)
    place[seen], place[-1] = torch.arange(len(seen)), len(seen)
    taught = ~measured & (shows != 1)
    fit(tower.project, x[taught], place[shown[taught]], names[seen], steps, seed)
    with torch.no_grad():
        near = normalize(tower.project(x), dim=-1) @ vectors.T
        kinds = {"seen": (measured & (shows == 0), seen), "unseen": (shows == 1, unseen.nonzero()[:, 0])}
        told = {kind: accuracy(near[m], shown[m], rivals, seed) for kind, (m, rivals) in kinds.items()}
        tower.project.weight /= spread  # of the features as they come
        tower.project.bias -= tower.project.weight @ mean
        tower.norm.weight.fill_(SPREAD)
        tower.norm.bias.zero_()[: embedded.shape[1]] = embedded.mean(0)
    tower.save_pretrained(output)
    pieces.save_pretrained(output / QUESTION)
    connector = WordMatchConnector({}, config.hidden_size, embedded.shape[1])
    connector.take(words, vectors[seen], tower.norm.bias)
    save_file(connector.state_dict(), output / "connector.safetensors")
    counts = {"things": len(things), "unseen_things": int(unseen.sum()), "frames": len(x)}
    report = {"accuracy": told, "rivals": RIVALS, **counts}
    report |= {"size": size, "views": views, "steps": steps, "seed": seed}
    report["cpu_s"] = round(time.process_time() - start, 1)
    write_text(output / "report.json", json.dumps(report, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    parser = Parser(prog="python -m realweights.align", description=__doc__.split("\n")[0])
    parser.add_argument("--packages", type=Path, required=True, help="folder made by realweights.packages")
    parser.add_argument("--language", type=Path, required=True, help="folder made by realweights.language")
    parser.add_argument("--output", type=Path, required=True, help="folder of the tower")
    parser.add_argument("--size", type=whole(32), default=160, help="pixels a side at which the tower sees a frame")
    parser.add_argument("--views", type=whole(1), default=16, help="frames of every thing")
    parser.add_argument("--steps", type=whole(1), default=600)
    parser.add_argument("--seed", type=whole(0), default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # the same numbers on every machine of a kind

    def run() -> None:
        made = {"size": args.size, "views": args.views, "steps": args.steps, "seed": args.seed}
        file = args.output / "report.json"
        if not file.is_file():
            align(args.packages, args.language, args.output, **made)
        report = json.loads(file.read_text(encoding="utf-8"))
        same = all(report[key] == value for key, value in made.items())
        need(same, f"{file}: describes another tower than {made}; use another folder")
        print(json.dumps(report))

    return ended(run)


if __name__ == "__main__":
    sys.exit(main())
