"""Towers, connectors, heads, objectives and rewards outside the core: found by name, imported only if they plug in."""

import sys

import pytest
import torch

from tests.models import SIZE, make_bundle
from videollm.checkpoint import CheckpointError, load
from videollm.common import registry as registries
from videollm.common.config import ConfigError
from videollm.common.registry import registered
from videollm.grpo.rewards import REWARDS
from videollm.heads import HEADS
from videollm.model.connectors import CONNECTORS
from videollm.model.objective import OBJECTIVES
from videollm.model.towers import TOWERS

PLACES = {
    "heads": (HEADS, "videollm.heads", "HEADS.register"),
    "towers": (TOWERS, "videollm.model.towers", "TOWERS.register"),
    "connectors": (CONNECTORS, "videollm.model.connectors", "CONNECTORS.register"),
    "objectives": (OBJECTIVES, "videollm.model.objective", "OBJECTIVES.register"),
    "rewards": (REWARDS, "videollm.grpo.rewards", "REWARDS.register"),
}
TOWER = """from types import SimpleNamespace
import torch
from torch import nn
from videollm.model.towers import TOWERS
SCALE = torch.ones(3)

@TOWERS.register()
class Mean(nn.Module):
    hidden_size = num_patches = 3
    def __init__(self, fields):
        super().__init__()
        self.config = SimpleNamespace(image_size=fields["size"], num_channels=3)
        self.scale = nn.Parameter(SCALE * fields["scale"])
    def forward(self, pixels):
        return (pixels.mean((2, 3)) * self.scale)[:, None].expand(-1, 3, -1)
"""


@pytest.fixture
def plug(tmp_path, monkeypatch):
    """Writes modules on the Python path; what they register and leave behind is gone afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    kept = {registry: dict(registry._items) for registry, *_ in PLACES.values()}

    def write(**files):
        for name, text in files.items():
            place = tmp_path / (name.replace("__", "/") + ".py")
            place.parent.mkdir(exist_ok=True)
            place.write_text(text, encoding="utf-8")
        forget()

    def forget():
        for registry, items in kept.items():
            registry._items.clear()
            registry._items.update(items)
        for name in [name for name in sys.modules if name.startswith("lab")]:
            del sys.modules[name]

    write.forget = forget
    yield write
    forget()


@pytest.mark.parametrize("kind", PLACES)
def test_a_part_is_found_by_its_module_by_its_name_there_and_by_what_is_declared(kind, plug, monkeypatch):
    registry, home, register = PLACES[kind]
    name = register.partition(".")[0]
    plug(
        lab=f"from {home} import {name}\n@{register}(name='lab')\ndef whole(): ...\n",
        labs__part=f"from {home} import {name}\n@{register}()\ndef Mine(): ...\n",
    )
    assert registered(registry, "lab", "key").__name__ == "whole"
    for _ in range(2):  # the second time it is there
        assert registered(registry, "labs.part.Mine", "key").__name__ == "Mine"
    plug()
    monkeypatch.setattr(registries, "declared", lambda group: {"Mine": "labs.part"} if kind in group else {})
    assert registered(registry, "Mine", "key").__module__ == "labs.part"


def test_a_module_that_is_no_plug_in_is_not_imported(plug, tmp_path):
    left = tmp_path / "left"
    plug(lab_script=f"# from videollm\nopen({str(left)!r}, 'w')\n", labs__part=f"open({str(left)!r}, 'w')\n")
    for name in ("lab_script", "lab_script.main", "labs.part", "labs.part.Mine"):
        with pytest.raises(ConfigError, match=r"does not import videollm, so it is no plug-in and is not imported"):
            registered(TOWERS, name, "model.vision.type")
    with pytest.raises(ConfigError, match=r"no tower 'json\.tool'"):
        registered(TOWERS, "json.tool", "model.vision.type")
    assert not left.exists()


def test_an_unknown_part_is_one_error_with_what_there_is_and_the_nearest(plug):
    plug(lab_a="from videollm.model.towers import TOWERS\nimport lab_missing\n")
    cases = {
        "efficientnet_light": r"no tower 'efficientnet_light'; did you mean efficientnet_lite\? known: conv, ",
        "no.such.module": r"no tower 'no\.such\.module'; known: .*efficientnet_lite.*PACKAGE\.MODULE\.NAME",
        "__main__": "no tower '__main__'",
        "lab_a": r"lab_a cannot be imported \(No module named 'lab_missing'\); install what it needs",
        "../lab": r"no tower '\.\./lab'",
    }
    for name, message in cases.items():
        with pytest.raises(ConfigError, match=rf"^model\.vision\.type: {message}") as error:
            registered(TOWERS, name, "model.vision.type")
        assert "\n" not in str(error.value)
    plug(lab_b=TOWER)
    with pytest.raises(ConfigError, match=r"did you mean lab_b\.Mean\?"):
        registered(TOWERS, "lab_b", "model.vision.type")
    with pytest.raises(ConfigError, match=r"no tower 'lab_b\.conv'"):
        registered(TOWERS, "lab_b.conv", "model.vision.type")


def test_a_checkpoint_brings_its_own_tower_and_a_plan_of_it_is_made_without_weights(plug, tmp_path):
    plug(lab_tower=TOWER)
    with torch.device("meta"):  # as a run's memory is planned
        registered(TOWERS, "lab_tower.Mean", "model.vision.type")
    vision = {"type": "lab_tower.Mean", "scale": 2.0, "size": SIZE}
    bundle = make_bundle("internvl", "text", vision=vision, connector={"type": "linear"})
    folder = tmp_path / "model"
    bundle.save(folder)
    plug.forget()
    assert load(folder).model.vision_tower.scale.tolist() == [2.0] * 3
    plug.forget()
    (tmp_path / "lab_tower.py").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: vision\.type: no tower 'lab_tower\.Mean'; known: "):
        load(folder)
