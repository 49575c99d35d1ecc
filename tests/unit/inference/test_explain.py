"""What ``--explain`` tells is what the model gets."""

import json
import re

import pytest

from tests.models import LENGTHS, NoiseReader, make_bundle, make_dataset, record, turns, write_clip
from videollm.ask import main as ask
from videollm.infer import main as infer
from videollm.inference.explain import explain
from videollm.model.generate import GenerateOptions

ROW = re.compile(r"^ *(\d+) +([\d.]+|-) +(\d+ x \d+) +(\d+) +(\d+)(?:  (\d+, \d+, \d+))?$", re.MULTILINE)


def told(bundle, name: str, tokens: int = 8) -> tuple[str, list[tuple[str, ...]]]:
    """The explanation of a line of ``tests.models``, and its rows."""
    reader = NoiseReader(any_size=bundle.model.patching is not None)
    text = explain(bundle, record(name), reader, GenerateOptions(max_new_tokens=tokens))
    return text, ROW.findall(text)


@pytest.mark.parametrize("backbone, head", [("internvl", "distime"), ("etchat", "d2vlm"), ("qwen3_vl", "text")])
def test_every_frame_has_its_time_place_and_tokens(backbone, head):
    bundle = make_bundle(backbone, head)
    (item,) = make_dataset(bundle, ["asked"], answers=False)
    (prompt,) = item.prompts
    text, rows = told(bundle, "asked")
    assert [float(row[1]) for row in rows] == pytest.approx(item.times_s.tolist(), abs=5e-4)
    assert sum(int(row[3]) for row in rows) == len(prompt.visual)
    assert int(rows[0][4]) == prompt.visual[0]
    assert f"{len(prompt)} tokens, {len(prompt.visual)} of them visual" in text
    assert "what happens in" in text and "a dog" not in text  # the question and not its answer
    if prompt.position is not None:
        for row in rows:
            assert row[5] == ", ".join(map(str, prompt.position[:, int(row[4])]))


def test_a_native_backbone_shows_each_size_and_the_text_that_tells_a_groups_time():
    bundle = make_bundle("qwen3_vl", "text")
    text, rows = told(bundle, "asked")
    patch = bundle.model.patching.patch
    (item,) = make_dataset(bundle, ["asked"], answers=False)
    assert [row[2] for row in rows] == [f"{c * patch} x {r * patch}" for r, c in item.grids]
    assert f"<{item.times_s[0]:.1f} seconds>" in text


def test_frames_that_the_context_has_no_room_for_are_told():
    bundle = make_bundle("internvl", "distime")
    whole = make_dataset(bundle, ["asked"], answers=False)[0].longest
    bundle.config.context_length = whole - 2 * bundle.encoder().tokens_per_frame + 8
    text, rows = told(bundle, "asked")
    assert len(rows) == LENGTHS["b.mp4"] - 2 and "2 more were chosen and left out to fit the context" in text


def test_images_text_and_what_cannot_be_read():
    bundle = make_bundle("internvl", "distime")
    text, rows = told(bundle, "image")
    assert [row[1] for row in rows] == ["-", "-"] and "0 s, images: 1" in text
    assert "nothing to see" in told(bundle, "text")[0]
    broken = record({"video": "broken.mp4", "conversations": turns("?")})
    assert "is not a video; fetch it again" in explain(bundle, broken, NoiseReader(), GenerateOptions(max_new_tokens=8))


def test_both_commands_print_it_before_they_answer(tmp_path, capsys):
    make_bundle("internvl", "distime").save(tmp_path / "model")
    write_clip(tmp_path / "a.mp4", 3, 1)
    (tmp_path / "q.json").write_text(json.dumps([{"video": "a.mp4", "conversations": turns(q)} for q in "ABC"]))
    given = ["--model", str(tmp_path / "model"), "--device", "cpu", "generate.max_new_tokens=2", "--explain"]
    assert ask([*given, "--video", str(tmp_path / "a.mp4"), "--question", "when is it?"]) == 0
    out = capsys.readouterr().out
    assert out.index("when is it?") < out.index("spans") and ROW.search(out)
    files = [
        "--annotations",
        str(tmp_path / "q.json"),
        "--videos",
        str(tmp_path),
        "--output",
        str(tmp_path / "o.jsonl"),
    ]
    assert infer([*given, "2", *files]) == 0
    assert capsys.readouterr().out.count("of them visual") == 2
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 3
