"""The tower learns to say in vectors of words what a frame shows.

In: the package's weights of the network, the converted language model (of which only the token embeddings are read),
the sentence model that the metrics use, the things that training shows. Out: a tower folder: ``model.safetensors``
with the projection, the start of the connector in ``connector.safetensors``, the tokenizer that questions are read
with in ``question/``, and ``report.json``: how often a frame is nearest to the right name, among things of training
and among those that it was not taught. Only ``look`` and ``project`` learn, by contrast among the names; the network
stays as ImageNet left it. Without it words and pictures share nothing, and a temporal head learns which events there
are long before it learns which one was asked for.

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
from quickstart.clips import LETTERS
from realweights.clips import ACTIONS, OCCLUDED, SIZE, THING_SHARE, Event, paste
from realweights.connector import WordMatchConnector
from realweights.language import check_converted
from realweights.objects import CHOICE, DENSE, GROUNDING, Thing, read_photos, read_things
from realweights.tower import MEAN, STD, LiteTower, LiteTowerConfig, pool
from videollm.common.command import Parser, ended, whole
from videollm.common.config import need
from videollm.common.files import write_text
from videollm.video.preprocess import Preprocess

BATCH = 64  # frames through the network
TEXTS = 1024  # words through the sentence model, or frames that are summed up, at a time
EMPTY = 1 / 6  # of the frames show no thing
HELD_OUT = 0.1  # of the frames measure, the rest teach
TEMPERATURE = 20.0  # on cosines
DROPOUT = 0.7  # of features: without it what is learnt of trained things says less of others
SPREAD = (
    0.06  # of a frame's vector around the mean of word embeddings: about how far the mean of a name's tokens is off
)
QUESTION = "question"  # folder of the tokenizer that questions are read with
SORTS = TAUGHT, UNSEEN = "taught", "unseen"  # of things
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
    asked = [pieces(told.replace("{}", ""))["input_ids"] for told in (*GROUNDING, *DENSE, *CHOICE, *LETTERS)]
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
def look_at(tower: LiteTower, packages: Path, views: int, seed: int) -> tuple[Tensor, Tensor]:
    """The network on ``views`` frames of every thing and some without, float16 [N, P, F]; which thing [N], or -1."""
    things, photos, rng = read_things(packages), read_photos(packages, 2 * SIZE), np.random.default_rng(seed)
    number = views * len(things)
    shown = np.r_[np.repeat(np.arange(len(things)), views), np.full(round(number * EMPTY), -1)]
    shown = rng.permutation(shown)
    preprocess = Preprocess(kind="plain", size=tower.config.image_size, mean=MEAN, std=STD)
    found = None
    for start in tqdm(range(0, len(shown), BATCH), desc="frames through the tower", unit="batch"):
        some = shown[start : start + BATCH]
        frames = np.stack([draw(rng, things[i] if i >= 0 else None, photos) for i in some])
        places = tower.places(preprocess(torch.from_numpy(frames)).contiguous(memory_format=torch.channels_last))
        if found is None:
            found = places.new_empty(len(shown), *places.shape[1:], dtype=torch.float16)
        found[start : start + BATCH] = places
    return found, torch.from_numpy(shown)


def fit(tower: LiteTower, x: Tensor, labels: Tensor, names: Tensor, steps: int, seed: int) -> None:
    """Fit ``look`` and ``project`` so that a frame [N, P, F] lies nearest to one of its label's ``names`` [T, K, D].

    Label T is a frame without a thing, whose vector is learnt too; label -1 is not learnt from.
    """
    rng = torch.Generator().manual_seed(seed)  # of batches and names; dropout follows torch's own
    things, number, width = names.shape
    pooled = torch.cat([part.mean(1, dtype=torch.float32) for part in x.split(TEXTS)])  # a part at a time: it widens
    mean, spread, rows = pooled.mean(0), pooled.std(0) + 1e-3, (labels >= 0).nonzero()[:, 0]
    nn.init.zeros_(tower.look.weight)  # at first everywhere
    nothing = nn.Parameter(0.02 * torch.randn(width, generator=rng))
    learnt = [*tower.look.parameters(), *tower.project.parameters(), nothing]
    optimizer = torch.optim.AdamW(learnt, lr=2e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - 0.95 * step / steps)
    for _ in tqdm(range(steps), desc="aligning pictures with words", unit="step"):
        some = rows[torch.randint(len(rows), (256,), generator=rng)]
        called = names[torch.arange(things), torch.randint(number, (things,), generator=rng)]
        known = torch.cat([called, normalize(nothing, dim=0)[None]])
        places = (x[some].float() - mean) / spread
        frames = dropout(pool(places, tower.look(places)), DROPOUT)
        near = normalize(tower.project(frames), dim=-1) @ known.T
        loss = cross_entropy(TEMPERATURE * near, labels[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():  # of places as they come
        tower.look.weight /= spread
        tower.project.weight /= spread
        tower.project.bias -= tower.project.weight @ mean


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
    check_converted(language)
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
    ours = {"look.weight", "project.weight", "project.bias", "norm.weight", "norm.bias"}
    need(set(lacks) == ours, f"{weights[0]}: lacks {', '.join(lacks[:3])}; fetch it again")
    x, shown = look_at(tower, packages, views, seed)
    measured = torch.rand(len(x), generator=torch.Generator().manual_seed(seed)) < HELD_OUT
    sorts = [UNSEEN if thing.unseen else TAUGHT for thing in things]
    rivals = {sort: torch.tensor([i for i, own in enumerate(sorts) if own == sort]) for sort in SORTS}
    shows = [sorts[i] if i >= 0 else "" for i in shown.tolist()]
    of = {sort: torch.tensor([own == sort for own in shows]) for sort in SORTS}
    taught = rivals[TAUGHT]
    place = torch.full((len(things) + 1,), -1)
    place[taught], place[-1] = torch.arange(len(taught)), len(taught)
    fit(tower, x, place[shown].masked_fill(measured, -1), names[taught], steps, seed)
    with torch.no_grad():
        parts = x.split(TEXTS)
        near = torch.cat([normalize(tower.project(pool(p.float(), tower.look(p.float()))), dim=-1) for p in parts])
        near = near @ vectors.T
        of[TAUGHT] &= measured
        told = {sort: accuracy(near[of[sort]], shown[of[sort]], rivals[sort], seed) for sort in SORTS}
        tower.norm.weight.fill_(SPREAD)
        tower.norm.bias.zero_()[: embedded.shape[1]] = embedded.mean(0)
    tower.save_pretrained(output)
    pieces.save_pretrained(output / QUESTION)
    connector = WordMatchConnector({}, config.hidden_size, embedded.shape[1])
    connector.take(words, vectors[taught], tower.norm.bias)
    save_file(connector.state_dict(), output / "connector.safetensors")
    counts = {"things": {sort: len(rivals[sort]) for sort in SORTS}, "frames": len(x)}
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
