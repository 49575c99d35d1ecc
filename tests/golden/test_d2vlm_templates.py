"""Chat templates of D2VLM: the strings around question and answer are the published ones, byte for byte."""

import json

import pytest

from videollm.batches.templates import TEMPLATES


def test_d2vlm_prompts_open_and_close_as_published(golden_dir):
    path = golden_dir / "d2vlm" / "conversation_templates.json"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in this golden folder")
    for case in json.loads(path.read_text()):
        template = TEMPLATES[case["conv_type"].removesuffix("_v1")]
        system = "".join((template.system[0], template.system_message, template.system[1])) if template.system else ""
        asked = system + template.user[0] + "<image>\nQUESTION" + template.user[1] + template.assistant
        assert asked == case["inference_prompt"], template.name
        blank = " " if template.name == "vicuna" else ""  # this one only, and the published collator cannot use it
        assert asked + blank + "ANSWER" + template.stop == case["train_prompt"], template.name
        assert template.stop == case["stop_string"], template.name
