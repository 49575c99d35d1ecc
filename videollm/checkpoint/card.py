"""The model card of a checkpoint folder: a README.md as the hub reads it, made of what the folder and its run tell.

In: a folder, the licence, scores as ``all_benchmark_eval.score`` writes them, the folder of the run that made it. Out:
text. Knows no benchmark.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from videollm.checkpoint.load import read_config
from videollm.checkpoint.tensors import TensorSource
from videollm.common.config import read_yaml
from videollm.common.files import json_lines

ABSOLUTE = re.compile(r"(?<![\w./:])/(?:[^\s/'\"\],]+/)+([^\s/'\"\],]+/[^\s/'\"\],]+)")
CARD = """---
{front}---

# {name}

A checkpoint of videollm: a `{head}` head on a `{language}` language model and a `{vision}` tower; {size:,} numbers in
{dtype}.

{notes}```python
from videollm import load

answer = load("{name}").ask("clip.mp4", "...")
print(answer.text, answer.spans)
```

## Scores

{scores}
## Training

{training}
## How it is asked

{asked}"""


def model_card(
    name: str, folder: Path, licence: str, scores: Sequence[Mapping[str, Any]], run: Path | None, notes: str = ""
) -> str:
    """The card of ``folder``, which others call ``name``.

    ``run``: the folder of its training, with config.yaml and starts.jsonl, if there is one. ``notes`` stand first.

    Raises:
        CheckpointError: the folder holds no checkpoint of ours.
    """
    config = read_config(folder)
    tags = ["video", "temporal-grounding", config.head["name"]]
    front = {"license": licence, "library_name": "videollm", "pipeline_tag": "video-text-to-text", "tags": tags}
    asked = {"generate": config.generate, "sampler": config.sampler, "preprocess": config.preprocess}
    return CARD.format(
        front=yaml.safe_dump(front, sort_keys=False), name=name, head=config.head["name"],
        language=config.text_config.model_type, vision=config.vision["type"], dtype=str(config.dtype)[6:],
        size=sum(tensor.numel() for tensor in TensorSource(folder).outlines().values()),
        notes=f"{notes}\n\n" if notes else "", scores="\n".join(score_rows(scores)),
        training="\n".join(training_rows(run)), asked="\n".join(as_yaml(asked)),
    )  # fmt: skip


def score_rows(scores: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A table of each score file: metrics down, protocols across, then what was counted."""
    if not scores:
        yield from ("None were given.", "")
    for found in scores:
        protocols = found["protocols"]
        yield from (f"{found['title']}, variant {found['variant']}, answered by free generation:", "")
        yield "| metric | " + " | ".join(f"{name}, {entry['unit']}" for name, entry in protocols.items()) + " |"
        yield "|---|" + "---|" * len(protocols)
        for metric in dict.fromkeys(metric for entry in protocols.values() for metric in entry["metrics"]):
            values = (entry["metrics"].get(metric) for entry in protocols.values())
            yield f"| {metric} | " + " | ".join("" if v is None else f"{v:.4g}" for v in values) + " |"
        for name, entry in protocols.items():
            yield from ("", f"{name}: {', '.join(f'{value} {count}' for count, value in entry['counts'].items())}.")
        yield from ("", f"Scored by commit {found['commit']}.", "")


def training_rows(run: Path | None) -> Iterator[str]:
    """The data sets, the starts of the run and its config."""
    if run is None:
        yield from ("Nothing is told of it.", "")
        return
    config = read_yaml(run / "config.yaml")
    for what in ("train", "validation"):
        yield from (f"- data.{what}: {one}" for one in config["data"][what] or ["none"])
    yield f"- seed: {config['train']['seed']}"
    for _, start in json_lines(run / "starts.jsonl"):
        words = start["command"].partition(" -m ")[2] or start["command"]
        changed = ", with changes that are not committed" if start["changed"] else ""
        yield f"- from step {start['step']}, commit {start['commit']}{changed}: `python -m {words}`"
    yield from ("", *as_yaml(config))


def as_yaml(values: Mapping[str, Any]) -> Iterator[str]:
    """Values as a block of YAML, without those that are not set."""
    yield from ("```yaml", yaml.safe_dump(given(values), sort_keys=False).strip(), "```", "")


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is set: neither null nor empty."""
    found = {key: given(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    return {key: value for key, value in found.items() if value is not None and value not in ({}, [])}


def without_places(card: str) -> str:
    """``card`` with absolute paths cut to their last two names: they tell of one machine."""
    return ABSOLUTE.sub(r".../\1", card)
