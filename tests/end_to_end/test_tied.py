"""One matrix or two for token embedding and output layer: training, saving, resuming, merging, converting keep them.

Each cell trains a tiny model, tied or untied, and follows the same weights through everything that is written of them.
The loss on one batch tells whether they are still the same. The rule is in ``videollm.model.tying.tied``.
"""

import json
import signal

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from distime import convert
from tests.models import BACKBONES, make_batch, make_bundle, read_log, write_config
from tests.ranks import kill_after, ran
from videollm.checkpoint import load
from videollm.checkpoint.__main__ import main as checkpoint_command
from videollm.model.tying import EMBEDDINGS, OUTPUT, tied
from videollm.training.trainer import VideoTrainer

pytestmark = pytest.mark.distributed

STEPS = 4
LORA = {"lora": {"r": 2, "dropout": 0.0}, "merge_lora": False}
BOTH = {"parts": {"embeddings": {"train": True}, "lm_head": {"train": True}}}
MODES = {"full": {}, "adapters": LORA, "adapters and embeddings": LORA | BOTH}
FAST = [(True, "full", None), (True, "adapters and embeddings", None)]
CELLS = [(tie, mode, stage) for tie in (True, False) for mode in MODES for stage in (None, 2, 3)]
IMG = {"token": "<IMG_CONTEXT>", "start": "<img>", "end": "</img>"}


def loss(bundle) -> float:
    """On a fixed batch, in evaluation mode."""
    training = bundle.model.training
    bundle.model.eval()
    with torch.no_grad():
        found = bundle.model(make_batch(bundle, ["two_spans", "turns"])).loss.item()
    bundle.model.train(training)
    return found


def make_base(folder, tie: bool, twice: bool):
    """A checkpoint to train from; ``twice``: a tied matrix under both names, as DeepSpeed runs once wrote it."""
    language = BACKBONES["internvl"]["language"] | {"tie_word_embeddings": tie}
    make_bundle("internvl", "distime", language=language, template="internvl2_5", visual_tokens=IMG).save(folder)
    if tie and twice:
        state = load_file(folder / "model.safetensors")
        save_file(state | {OUTPUT: state[EMBEDDINGS].clone()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def configure(folder, repository, base, mode: str, stage: int | None):
    """The config of a run of four steps from ``base``, with a checkpoint every second."""
    file = None if stage is None else str(repository / f"configs/deepspeed/zero{stage}.json")
    config = write_config(folder, "distime", steps=STEPS, save_every=2, deepspeed=file, **MODES[mode])
    values = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(values | {"model": {"checkpoint": str(base)}}))
    return config


def noting(config, then=None):
    """A hook: what the model in memory computes is noted by the name of each folder that it is written into."""

    def hook(rank: int) -> None:
        write = VideoTrainer._write_model

        def noted(self, folder):
            value = loss(self.bundle)  # on every rank: under ZeRO-3 they wait for each other
            if rank == 0:
                (config.parent / f"loss-{folder.name}").write_text(json.dumps(value))
            write(self, folder)

        VideoTrainer._write_model = noted
        if then is not None:
            then(rank)

    return hook


def started(config, ranks: int, *overrides, then=None, status=0):
    """Run, and check how the ranks ended."""
    ran(config, *overrides, ranks=ranks, hook=noting(config, then), status=status)


def check_stored(folder, tie: bool, expected: float, rel: float = 1e-6) -> float:
    """A folder holds one name or two, and loads as what was saved; gives the loss of the loaded model."""
    names = set(load_file(folder / "model.safetensors"))
    assert EMBEDDINGS in names and (OUTPUT in names) is not tie
    bundle = load(folder)
    model = bundle.model
    assert tied(bundle.config.text_config) is tie
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tie
    found = loss(bundle)
    assert found == pytest.approx(expected, rel=rel)
    return found


def check_adapters(folder, final, base, tie: bool, trains: bool, expected: float):
    """Stored beside their base, adapters hold one name of the trained matrix and compute the same."""
    assert checkpoint_command([str(final), str(folder), "--adapters", str(base)]) == 0
    names = set(load_file(folder / "adapters.safetensors"))
    assert (EMBEDDINGS in names, OUTPUT in names) == (trains, trains and not tie)
    again = load(folder)
    assert loss(again) == pytest.approx(expected, rel=1e-6) and tied(again.config.text_config) is tie


def check_converted(folder, source, tie: bool, expected: float):
    """The official layout has two matrices always; what comes back from it has two, and computes the same."""
    convert.convert(str(source), str(folder / "official"), back=True)
    state = load_file(folder / "official" / "model.safetensors")
    assert state["language_model.lm_head.weight"].equal(state["language_model.model.embed_tokens.weight"]) is tie
    convert.convert(str(folder / "official"), str(folder / "again"))
    check_stored(folder / "again", False, expected)
    if tie:  # as transformers itself would save the same model
        del state["language_model.lm_head.weight"]
        save_file(state, folder / "official" / "model.safetensors")
        where = folder / "official" / "config.json"
        fields = json.loads(where.read_text())
        fields["llm_config"]["tie_word_embeddings"] = True
        where.write_text(json.dumps(fields))
        convert.convert(str(folder / "official"), str(folder / "one"))
        check_stored(folder / "one", True, expected)


@pytest.mark.parametrize(
    "tie, mode, stage",
    [pytest.param(*cell, marks=() if cell in FAST else pytest.mark.slow) for cell in CELLS],
    ids=lambda value: {True: "tied", False: "untied", None: "plain"}.get(value, str(value)),
)
def test_tied_or_not_the_weights_stay_the_same(tmp_path, repository, tie, mode, stage):
    ranks, adapted = (1 if stage is None else 2), mode != "full"
    base = make_base(tmp_path / "base", tie, twice=stage is not None)
    whole, broken = (configure(tmp_path / name, repository, base, mode, stage) for name in ("whole", "broken"))
    started(whole, ranks)
    started(broken, ranks, then=kill_after(3), status=-signal.SIGKILL)
    started(broken, ranks, "train.resume=true")
    final = whole.parent / "run" / "final"
    assert read_log(broken.parent / "run") == read_log(whole.parent / "run")
    one, other = (load_file(c.parent / "run" / "final" / "model.safetensors") for c in (whole, broken))
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
    expected = json.loads((whole.parent / "loss-final").read_text())
    before = loss(load(base))
    assert abs(expected - before) > 1e-4, "nothing was learnt"
    middle = json.loads((whole.parent / "loss-checkpoint-2").read_text())
    check_stored(whole.parent / "run" / f"checkpoint-{STEPS}", tie, expected)
    check_stored(whole.parent / "run" / "checkpoint-2", tie, middle)
    check_stored(final, tie, expected)
    if adapted:
        check_adapters(tmp_path / "adapters", final, base, tie, "embeddings" in mode, expected)
        assert checkpoint_command([str(final), str(tmp_path / "merged")]) == 0
        final = tmp_path / "merged"
        expected = check_stored(final, tie, expected, rel=1e-5)  # W + BA is rounded once more
    check_converted(tmp_path, final, tie, expected)
