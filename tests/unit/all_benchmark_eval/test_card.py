"""Cards: each says things that exist and asks as published, and the command puts ours beside the published numbers.

Prompts are held to the letter and to the number of placeholders. Their ids are not: no tokenizer of a released model is
here, neither in the reference files (theirs are tiny) nor in an installed package.
"""

import functools
import json
import re

import pytest
import torch

from all_benchmark_eval import card
from all_benchmark_eval.benchmark import Setting, get
from tests.benchmark_data import events
from tests.models import BACKBONES, make_bundle, write_clip
from videollm.checkpoint.released import LAYOUTS
from videollm.data import parse_record
from videollm.inference.explain import explain
from videollm.inference.options import read_options

KINDS = {  # card -> tiny backbone and head
    "distime_1b": ("internvl", "distime"), "distime_8b": ("internvl", "distime"), "d2vlm": ("etchat", "d2vlm"),
    "etchat_4b": ("etchat", "d2vlm"), "qwen2_5_vl_7b": ("qwen2_5_vl", "text"), "qwen3_vl_8b": ("qwen3_vl", "text"),
    "timelens_7b": ("qwen2_5_vl", "text"), "timelens_8b": ("qwen3_vl", "text"), "time_r1_7b": ("qwen2_5_vl", "text"),
}  # fmt: skip
# Copied by hand: of TimeLens' README R1@0.3 / 0.5 / 0.7 / mIoU on Charades-, ActivityNet- and QVHighlights-TimeLens
TIMELENS = {
    "qwen2_5_vl_7b": ("59.7/37.8/16.6/39.3", "44.1/31.0/16.1/31.4", "41.5/27.8/15.2/31.6"),
    "timelens_7b": ("70.5/55.6/28.4/48.8", "62.8/51.0/32.6/46.2", "74.1/62.7/43.1/56.0"),
    "qwen3_vl_8b": ("69.2/53.4/27.5/48.3", "62.1/51.2/34.4/46.8", "74.2/64.6/49.3/59.4"),
    "timelens_8b": ("76.6/63.0/35.2/55.2", "68.9/58.4/40.6/53.2", "80.2/71.6/55.5/65.5"),
}
SETS = ("charades_timelens", "activitynet_timelens", "qvhighlights_timelens")
PUBLISHED = {name: dict(zip(SETS, rows, strict=True)) for name, rows in TIMELENS.items()}
PUBLISHED |= {
    "time_r1_7b": {"tvgbench": "41.8/29.4/16.4", "charades": "78.1/60.8/35.3", "anet": "58.6/39.0/21.4"},
    "etchat_4b": {"charades": "65.7/45.9/20.0"},
}
SMALL = ("--device", "cpu", "--batch-size", "8", "generate.max_new_tokens=4")
LESS = ("preprocess.min_pixels=128", "preprocess.max_pixels=2048")  # for towers of 4 pixels a patch


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folder of a tiny model of each backbone and head, made once."""
    root = tmp_path_factory.mktemp("models")

    @functools.cache
    def made(backbone: str, head: str):
        make_bundle(backbone, head).save(root / backbone)
        return root / backbone

    return made


@pytest.fixture
def model(models):
    return models("internvl", "distime")


def test_every_card_has_its_numbers_and_names_what_is_there(repository):
    assert set(card.names()) == set(KINDS)
    for name in card.names():
        found = card.read_card(name)
        command = rf"(python -m (distime|d2vlm)\.|videollm )convert \S+ checkpoints/{name}$"
        assert re.search(command, found.model.convert)
        assert re.search(r"\d GB$", found.model.size) and found.model.licence and found.model.source
        owners = ("UserJoseph", "wenzhengzeng", "PolyU-ChenLab", "Qwen", "TencentARC", "Boshenxx")
        assert found.model.hub.split("/")[0] in owners
        rows = {of: "/".join(f"{v:.1f}" for v in row.published.values()) for of, row in found.benchmarks.items()}
        if name in PUBLISHED:
            assert rows == PUBLISHED[name]
            continue
        for benchmark, row in found.benchmarks.items():
            text = (repository / "all_benchmark_eval" / benchmark / "README.md").read_text()
            assert get(benchmark).name == benchmark and all(f"{value:g}" in text for value in row.published.values())


def test_of_every_benchmark_of_a_card_it_is_told_what_to_get_how_large_and_under_which_licence():
    named = {name for of in card.names() for name in card.read_card(of).benchmarks}
    assert set(card.downloads()) == named  # read_card has seen to it that none lacks
    sizes = {"charades": "16.3 GB", "mvbench": "17.3 GB", "longvideobench": "161.5 GB", "etbench": "149 GB"}
    for name, entry in card.downloads().items():
        assert re.search(r"^(about )?[\d.]+ GB|^unknown", entry.size) and entry.licence and entry.source
        assert re.search(rf"^hf download \S+ .*--repo-type dataset --local-dir DATA/(TimeLens-Bench|{name})", entry.get)
        assert entry.size.startswith(sizes.get(name, ""))


# ---- what is asked, to the letter ------------------------------------------------------------------------------------

TIMELENS_QUESTION = (
    "Please find the visual event described by the sentence 'she opens a door', determining its starting and ending "
    "times. The format should be: 'The event happens in <start time> - <end time> seconds'."
)
TIME_R1 = (
    'To accurately pinpoint the event "she opens a door." in the video, determine the precise time period of the '
    "event.\n\nOutput your thought process within the <think> </think> tags, including analysis with either specific "
    "timestamps (xx.xx) or time ranges (xx.xx to xx.xx) in <timestep> </timestep> tags.\n\nThen, provide the start and "
    'end times (in seconds, precise to two decimal places) in the format "start time to end time" within the <answer> '
    '</answer> tags. For example: "12.54 to 17.83".'
)
DISTIME = (
    "Give you a textual query: 'she opens a door.'. When does the described content occur in the video? Please return "
    "the timestamp in seconds."
)
D2VLM = (
    "You are given a video about indoor activities. Watch the video carefully and find a visual event described by the "
    "sentence: 'she opens a door'. The format of your response should be: 'The event happens in <start time> - <end "
    "time>'."
)
FRAMES = "You are given a video with multiple frames. The numbers before each video frame indicate its sampling "
ASKED = {
    "distime_1b": DISTIME, "distime_8b": DISTIME, "d2vlm": D2VLM, "etchat_4b": D2VLM,
    "qwen2_5_vl_7b": TIMELENS_QUESTION, "qwen3_vl_8b": TIMELENS_QUESTION, "timelens_8b": TIMELENS_QUESTION,
    "timelens_7b": f"{FRAMES}timestamp (in seconds). {TIMELENS_QUESTION}", "time_r1_7b": TIME_R1,
}  # fmt: skip
# 448 x 448 pixels for 10 s: 20 frames, two a group; a token is 28 x 28 or 32 x 32 pixels
QWEN2_5 = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>[2560 visual tokens]"
)
# of frames 0, 2, ..., 18, 21, ..., 39 of 4 a second
GROUPS = (0.2, 1.2, 2.2, 3.2, 4.2, 5.5, 6.5, 7.5, 8.5, 9.5)
QWEN3 = "".join(f"<{time} seconds><|vision_start|>[196 visual tokens]<|vision_end|>" for time in GROUPS)


def read_lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def question_of(name: str, tmp_path) -> dict:
    """The line of a question about one moment of Charades or TimeLens-Bench."""
    found = card.read_card(name)
    task = found.task("charades" if "charades" in found.benchmarks else "charades_timelens")
    truth = {"v": {"duration": 10, "spans": [[1, 2]], "queries": ["she opens a door."]}}
    if task.name == "charades":
        truth = {
            "database": {"v": {"duration": 10, "annotations": [{"label": "she opens a door.", "segment": [1, 2]}]}}
        }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    return task.questions(task.load(tmp_path / "truth.json"), found.wording)[0]


@pytest.mark.parametrize("name", KINDS)
def test_the_question_of_a_card_is_the_published_one(name, tmp_path):
    assert question_of(name, tmp_path)["conversations"][-1]["value"] == f"<video>\n{ASKED[name]}"


INTERNVL = (  # system prompt of the release: "You are InternVL ..."
    "<|im_start|>system\n你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。<|im_end|>\n"
    "<|im_start|>user\n" + "\n".join(["<FRAME_TIME_REF>: <img>[256 visual tokens]</img>"] * 16)  # no line break behind
)
PHI3 = "<|system|>\nYou are a helpful AI assistant.<|end|>\n<|user|>\n[10 visual tokens]\n"  # a token a frame
LAYOUT = {  # backbone -> what stands before the question, and behind it
    "internvl": (INTERNVL, "<|im_end|>\n<|im_start|>assistant\n"),
    "etchat": (PHI3, "<|end|>\n<|assistant|>\n"),
    "qwen2_5_vl": (f"{QWEN2_5}<|vision_end|>", "<|im_end|>\n<|im_start|>assistant\n"),
    "qwen3_vl": (f"<|im_start|>user\n{QWEN3}", "<|im_end|>\n<|im_start|>assistant\n"),
}
RELEASED = {  # of the towers: what decides on how many tokens a frame has
    "internvl": {"image_size": [448, 448]}, "etchat": {"image_size": 224}, "qwen2_5_vl": {"patch_size": 14},
    "qwen3_vl": {"patch_size": 16},
}  # fmt: skip
SQUARE = {"internvl": {"size": 448}, "etchat": {"kind": "plain", "size": 224}}


def as_released(name: str):
    """A tiny model with the patches, the template and the room of a card's, and how the card asks it.

    Returns the bundle, the options of infer, and what every line of a question has.
    """
    (kind, head), found = KINDS[name], card.read_card(name)
    preprocess = {"kind": kind} | SQUARE.get(kind, {})
    data = {"preprocess": preprocess, "max_length": 4_000 if kind == "etchat" else 30_000}
    template = LAYOUTS[kind].template if kind in LAYOUTS else "phi3"
    bundle = make_bundle(kind, head, vision=BACKBONES[kind]["vision"] | RELEASED[kind], template=template, data=data)
    setting = found.task("charades").settings.get(found.wording, Setting())
    sampling = [f"sampler.{key}={json.dumps(value)}" for key, value in setting.sampler.items()]
    return bundle, read_options([*sampling, *found.overrides], bundle.config, torch.device("cpu")), setting.record


@pytest.mark.parametrize("name", KINDS)
def test_a_prompt_of_a_card_has_the_released_layout_and_number_of_placeholders(name, tmp_path):
    bundle, options, record = as_released(name)
    write_clip(tmp_path / "v.mp4", 10, seed=0, rate=4, size=448)
    reader = bundle.reader(tmp_path, options.sampler, options.preprocess)
    line = dict(record) | question_of(name, tmp_path)
    asked = explain(bundle, parse_record(line, 1, "q.jsonl"), reader, options.generate)
    assert asked.split("\n\n", 1)[1].startswith(ASKED[name].join(LAYOUT[KINDS[name][0]]))


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("distime_1b", 1, 1000), ("d2vlm", 0, 512), ("timelens_8b", 0, 512), ("time_r1_7b", 0, 1024)],
)
def test_answers_are_greedy_and_as_long_as_the_published_ones(name, least, most):
    decoding = as_released(name)[1].generate
    assert (decoding.do_sample, decoding.min_new_tokens, decoding.max_new_tokens) == (False, least, most)


@pytest.mark.parametrize(
    ("name", "tokens"),  # of a group of 640 x 360, and where 768 frames have to share; 14,336 or 3,584 tokens a video
    [("qwen2_5_vl_7b", (13 * 23, 6 * 10)), ("qwen3_vl_8b", (11 * 20, 6 * 10)), ("time_r1_7b", (13 * 23, 8 * 15))],
)
def test_frames_have_the_pixels_of_the_published_run(name, tokens):
    preprocess = as_released(name)[1].preprocess
    for frames, count in zip((20, 768), tokens, strict=True):
        height, width = preprocess.frame_size(360, 640, frames)
        assert height * width // preprocess.factor**2 == count


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_a_tiny_model_goes_through_every_card_from_its_question_to_ours_beside_published(
    name, data, models, tmp_path, capsys
):
    found, model = card.read_card(name), models(*KINDS[name])
    first, row = next(iter(found.benchmarks.items()))
    less = LESS if "qwen" in KINDS[name][0] else ()
    arguments = [name, str(model), "--data", str(data), "--output", str(tmp_path), *SMALL, *less]
    assert card.main([*arguments, "--benchmarks", first]) == 0
    asked, answered = (read_lines(tmp_path / first / f"{kind}.jsonl") for kind in ("questions", "answers"))
    event = "she opens a door." if first == "tvgbench" else "she opens a door"  # its queries here have no period
    assert asked[0]["conversations"][-1]["value"] == f"<video>\n{ASKED[name].replace(event, events(0)[0][1])}"
    assert len(answered) == len(asked) and not any(line.get("error") for line in answered)
    scores = json.loads((tmp_path / first / "scores.json").read_text())
    metrics = scores["protocols"]["published"]["metrics"]
    assert scores["variant"] == row.variant and scores["protocols"]["published"]["counts"]["samples"] == len(asked)
    written = json.loads((tmp_path / "card.json").read_text())["rows"]
    assert [each["metric"] for each in written[first]] == list(row.published or get(first).headline or metrics)
    said = capsys.readouterr().out
    for each in written[first]:
        ours, value = metrics.get(each["metric"]), row.published.get(each["metric"])
        known = value is not None and ours is not None
        assert (each["ours"], each["published"]) == (ours, value)
        assert each["difference"] == (ours - value if known else None)
        cells = (f"{each['published']:.2f}", f"{ours:.2f}", f"{ours - value:+.2f}") if known else ("-", "-")
        assert re.search(rf" {each['metric']} .*" + ".*".join(map(re.escape, cells)), said)
    assert found.title in said and found.source[:20] in said and all(line[:40] in said for line in found.differs)


def test_every_metric_of_a_card_is_printed_by_its_benchmark(data, model, tmp_path, capsys):
    assert card.main(["distime_8b", str(model), "--data", str(data), "--output", str(tmp_path), *SMALL]) == 0
    rows = json.loads((tmp_path / "card.json").read_text())["rows"]
    missing = [(name, row["metric"]) for name, numbers in rows.items() for row in numbers if row["ours"] is None]
    assert list(rows) == list(card.read_card("distime_8b").benchmarks) and not missing
    said = capsys.readouterr().out
    assert "DisTime-8B (the paper (ICCV 2025))" in said and "81.05" in said and "0.6021" in said  # a fraction, whole


def test_a_benchmark_without_data_is_named_and_the_others_go_on(data, model, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/charades").symlink_to(data / "charades")
    chosen = ["--benchmarks", "anet,charades"]
    arguments = ["distime_1b", str(model), "--data", str(tmp_path / "data"), "--output", str(tmp_path / "out"), *SMALL]
    assert card.main([*arguments, *chosen]) == 1
    assert "error: anet: " in (said := capsys.readouterr()).err and "all_benchmark_eval/anet/README.md" in said.err
    assert list(json.loads((tmp_path / "out/card.json").read_text())["rows"]) == ["charades"]


def test_a_card_without_any_data_is_one_message_that_says_what_to_get(model, tmp_path, capsys):
    (tmp_path / "data/charades").mkdir(parents=True)
    (tmp_path / "data/charades/charades_sta_test.txt").write_text("v 0 1##it.")
    arguments = ["distime_1b", str(model), "--data", str(tmp_path / "data"), "--output", str(tmp_path / "out"), *SMALL]
    assert card.main(arguments) == 2
    said = capsys.readouterr()
    assert not said.out and not (tmp_path / "out/card.json").exists()
    lines = said.err.splitlines()
    assert len(lines) == 6 and all("(size: " in line and "; licence: " in line for line in lines)
    assert re.match(
        r"error: --data: charades: \S+/charades/videos: no such folder; get charades_sta_test\.txt ", lines[0]
    )
    assert lines[0].endswith("--local-dir DATA/charades (all_benchmark_eval/charades/README.md)")
    assert "no val_2.json" in lines[1] and "(size: 161.5 GB; licence: CC BY-NC-SA 4.0 (its card)): hf" in lines[5]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nothing"], "there is no card 'nothing'; there are d2vlm, distime_1b"),
        (["distime_1b", ".", "generate.seed"], "generate.seed"),
        (
            ["distime_1b", "none"],
            "none: no such checkpoint; get UserJoseph/DisTime-1B from the hub (size: about 2 GB; licence: unknown (",
        ),
        (["distime_1b", "generate.seed=1"], "checkpoints/distime_1b: no such checkpoint"),
        (["d2vlm"], "(size: about 10 GB; licence: unknown (its repository, nusnlp/d2vlm, is BSD-3-Clause)), then: hf "),
        (["distime_1b", ".", "--benchmarks", "videomme"], "--benchmarks: distime_1b has no videomme; it has charades"),
    ],
)
def test_what_cannot_begin_is_one_line_that_says_what_to_get(arguments, why, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert card.main([*arguments, "--data", str(data)]) == 2
    said = capsys.readouterr().err
    assert why in said and said.count("\n") == 1


def test_all_that_is_wrong_is_said_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert card.main(["timelens_7b", "none", "x=", "--data", "data", "--benchmarks", "charades_timelens,mvbench"]) == 2
    lines = capsys.readouterr().err.splitlines()
    wanted = (
        "none: no such checkpoint; get TencentARC/TimeLens-7B",
        "--benchmarks: timelens_7b has no mvbench",
        "x",
        "--data: ",
    )
    assert len(lines) == len(wanted) and all(text in line for text, line in zip(wanted, lines, strict=True))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("wording: french", "wording 'french' is not one of"),
        ("wordin: distime", "wordin: unknown key; did you mean"),
        ("benchmarks: {charades: {variant: mine, data: x}}", "charades: no variant 'mine'"),
        ("benchmarks: {nothing: {variant: mine, data: x}}", "unknown benchmark 'nothing'"),
        ("benchmarks: {tacos: {variant: videomind}}", "tacos: data.yaml does not say what to get of it; say it there"),
        ("benchmarks: {anet: {variant: a}, charades: {variant: b}}", "anet: no variant 'a'; default, time_r1, v"),
        ("benchmarks: {anet: {variant: a}, charades: {variant: b}}", "\nerror: mine.yaml: charades: no variant 'b'; d"),
    ],
)
def test_a_card_that_says_something_unknown_is_refused(change, why, tmp_path, capsys, monkeypatch):
    text = (card.CARDS / "distime_1b.yaml").read_text()
    key = change.partition(":")[0].replace("wordin", "wording").replace("wordingg", "wording")
    lines = text.partition("benchmarks:")[0] if key == "benchmarks" else text
    (tmp_path / "mine.yaml").write_text(re.sub(rf"^{key}:.*\n", "", lines, flags=re.MULTILINE) + f"{change}\n")
    monkeypatch.setattr(card, "CARDS", tmp_path)
    assert card.main(["mine", str(tmp_path), "--data", "data"]) == 2
    assert why in capsys.readouterr().err
