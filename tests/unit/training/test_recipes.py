"""The recipes for released backbones at their real sizes, without weights: what trains, how large videos are.

The models are those of tests/golden/test_backbone_sizes.py; no memory is needed.
"""

import re
from pathlib import Path

import pytest
import torch

from benchmarks.real_sizes import SYSTEMS
from tests.golden.test_backbone_sizes import SIZES
from videollm.checkpoint.released import LAYOUTS
from videollm.common.config import build, override, read_yaml, to_dict
from videollm.heads import head_class
from videollm.model.lora import add_lora
from videollm.model.objective import build_objective
from videollm.model.videollm import VideoLLM, VideoLLMConfig
from videollm.training.optimizer import part_of, set_trainable
from videollm.training.settings import Settings
from videollm.video.preprocess import Preprocess

ROOT = Path(__file__).resolve().parents[3]
FAMILIES = {"qwen3_vl": "Qwen3-VL-4B", "qwen2_5_vl": "Qwen2.5-VL-3B", "internvl3_5": "InternVL3.5-4B"}
RECIPES = [f"configs/{family}/{head}_lora.yaml" for family in FAMILIES for head in ("text", "d2vlm", "distime")]


def text_of(path):
    return (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", RECIPES)
def test_a_recipe_opens_with_download_launch_and_memory(path):
    comment = "".join(re.match(r"(#.*\n)+", text_of(path))[0])
    settings = build(Settings, read_yaml(ROOT / path))
    assert f"scripts/train.sh {path}" in comment and "Download" in comment and "Frames and pixels:" in comment
    head = settings.model.head["name"]
    (source, target, asked) = re.search(r"videollm convert (\S+) (\S+)(?: --head (\w+))?\n", comment).groups()
    assert target == settings.model.checkpoint and (asked or "text") == head and "/" in source
    assert len(re.findall(r"#   \d+B: \d+\.\d on 1 GPU, \d+\.\d on 8 GPUs", comment)) == 2


@pytest.mark.parametrize("path", RECIPES)
def test_a_recipe_trains_adapters_merger_and_head_of_its_model(path):
    settings, family = build(Settings, read_yaml(ROOT / path)), path.split("/")[1]
    fields = SIZES[FAMILIES[family]][0]
    config = LAYOUTS[fields["model_type"]]().our_config({"config.json": dict(fields)}, path)
    config.head = dict(settings.model.head)
    cls = head_class(config.head["name"])
    config.token_ids = {name: i for i, name in enumerate((*cls.span_tokens, *cls.extra_tokens))}
    with torch.device("meta"):
        model = VideoLLM(config)
        add_lora(model.language_model, to_dict(settings.train.lora))
    set_trainable(model, settings.train)
    trained = {part_of(key) for key, parameter in model.named_parameters() if parameter.requires_grad}
    new = {"embeddings", "head"} | (set() if config.text_config.tie_word_embeddings else {"lm_head"})
    assert trained == {"lora", "connector"} | (new if config.head["name"] != "text" else set())
    adapted = {found[1] for key, _ in model.named_parameters() if (found := re.search(r"\.(\w+)\.lora_A\.", key))}
    assert set(settings.train.lora.targets) == adapted


@pytest.mark.parametrize("path", [path for path in RECIPES if "internvl" not in path])
def test_a_recipes_longest_video_keeps_to_the_tokens_that_are_said(path):
    settings = build(Settings, read_yaml(ROOT / path))
    preprocess, frames = build(Preprocess, to_dict(settings.data.preprocess), ""), settings.data.sampler.max_frames
    for height, width in ((720, 1280), (1080, 1920), (240, 320), (640, 360)):
        rows, columns = (side // preprocess.factor for side in preprocess.frame_size(height, width, frames))
        assert 2000 < rows * columns * frames / 2 <= 4096
    assert "which is 4096 visual tokens" in text_of(path)


@pytest.mark.parametrize("path", RECIPES)
def test_what_a_recipe_offers_beside_its_own_values_is_accepted(path):
    offers = re.findall(r"((?:(?:model|train)\.\S+=\S+ ?)+)$", text_of(path).partition("\nmodel:")[0], re.MULTILINE)
    assert len(offers) == 3  # another size, full training, the tower too
    for offer in offers:
        settings = build(Settings, override(read_yaml(ROOT / path), offer.split()))
        assert settings.train.deepspeed is None or (ROOT / settings.train.deepspeed).is_file()
    assert build(Settings, override(read_yaml(ROOT / path), offers[1].split())).train.lora is None


# ---- reinforcement learning ------------------------------------------------------------------------------------------

GRPO = {  # recipe: sizes of its model, and what trains of it
    "configs/qwen3_vl/grpo_text.yaml": ("Qwen3-VL-4B", {"connector", "language_model", "embeddings"}),
    "configs/qwen3_vl/grpo_d2vlm.yaml": ("Qwen3-VL-4B", {"head"}),
    "configs/distime/grpo.yaml": ("DisTime 1B", {"lora", "head"}),
    "configs/d2vlm/grpo.yaml": ("D2VLM 3.8B", {"head"}),
}


def on_meta(settings, size, path):
    """The recipe's model at its real size."""
    if size in SIZES:
        fields = SIZES[size][0]
        config = LAYOUTS[fields["model_type"]]().our_config({"config.json": dict(fields)}, path)
        cls = head_class(settings.model.head["name"])
        config.token_ids = {name: i for i, name in enumerate((*cls.span_tokens, *cls.extra_tokens))}
    else:
        config = VideoLLMConfig(**SYSTEMS[size].sizes)
    config.head = dict(settings.model.head)
    with torch.device("meta"):
        model = VideoLLM(config)
        if settings.train.lora is not None:
            add_lora(model.language_model, to_dict(settings.train.lora))
    set_trainable(model, settings.train)
    return model


@pytest.mark.parametrize("path", GRPO)
def test_a_grpo_recipe_opens_with_its_data_launch_and_memory(path):
    comment, settings = "".join(re.match(r"(#.*\n)+", text_of(path))[0]), build(Settings, read_yaml(ROOT / path))
    assert f"GPUS=8 bash scripts/train.sh {path}\n" in comment
    made = re.findall(r"--output (\S+)", comment)
    assert f"videollm data import timelens timelens-100k.jsonl --output {made[0]}\n" in comment
    assert f"--model {settings.model.checkpoint} --annotations {made[0]}" in comment
    assert made[2] == settings.data.train[0] and f"--answers {made[1]}" in comment and "count=2500 mean=0.05" in comment
    assert re.search(r"#   [\d.]+B: \d+\.\d on 1 GPU, \d+\.\d on 8 GPUs", comment)


@pytest.mark.parametrize("path", GRPO)
def test_a_grpo_recipe_trains_what_it_says_of_a_model_that_draws(path):
    settings, (size, trained) = build(Settings, read_yaml(ROOT / path)), GRPO[path]
    model = on_meta(settings, size, path)
    found = {part_of(key) for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert found == trained and model.head.draws
    objective = build_objective(settings.train.objective)
    published = (
        objective.options.answers,
        objective.options.temperature,
        objective.options.kl,
        objective.options.scale,
    )
    assert published == (8, 1.0, 0.0, False)
    assert (settings.train.global_batch, settings.train.steps, settings.train.schedule) == (64, 100, "constant")


def test_timelens_numbers_are_those_of_its_last_stage():
    settings = build(Settings, read_yaml(ROOT / "configs/qwen3_vl/grpo_text.yaml"))
    assert settings.train.lr == 1e-6 and settings.train.objective["rewards"] == {"tiou": 1.0}
