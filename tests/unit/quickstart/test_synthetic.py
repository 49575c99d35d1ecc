"""The moving-shapes data set: its fixed distribution, its repeatability, and that files show what annotations say."""

import hashlib
import json
from itertools import pairwise

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quickstart import clips
from quickstart.clips import EVENT_KINDS, SEEN_KINDS, UNSEEN_KINDS, Clip, Event, Kind, make_clip, phrase, render
from videollm.common.config import ConfigError

COUNTS = {"train": 6, "val": 1, "test": 2, "unseen": 3}


def clip_of(seed: int, unseen: bool = False) -> Clip:
    return make_clip(np.random.default_rng(seed), unseen)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    clips.write_dataset(folder, COUNTS, seed=3, progress=False)
    return folder


@pytest.fixture(scope="module")
def records(dataset) -> dict[str, list[dict]]:
    return {s: [json.loads(x) for x in (dataset / f"{s}.jsonl").read_text().splitlines()] for s in COUNTS}


def digest(folder) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@given(st.integers(0, 2**32), st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_clip_obeys_the_published_distribution(seed, unseen):
    clip = clip_of(seed, unseen)
    kinds = [event.kind for event in clip.events]
    assert 20 <= clip.duration <= 60 and 1 <= len(kinds) <= 3
    assert len(set(kinds)) == len(kinds), "a question must have one answer"
    assert any(kind in UNSEEN_KINDS for kind in kinds) == unseen
    for event in clip.events:
        assert 0 <= event.start < event.end <= clip.num_frames
        assert 0.12 <= (event.end - event.start) / clip.num_frames <= 0.45
    assert all(a.start < b.start and a.end < b.end for a, b in pairwise(clip.events)), "an event hides in another"
    assert sum(a.end > b.start for a, b in pairwise(clip.events)) <= 1


def test_the_frequencies_of_overlaps_lengths_and_hard_distractors_do_not_drift():
    clips = [clip_of(seed) for seed in range(3000)]
    several = [clip for clip in clips if len(clip.events) > 1]
    overlapping = np.mean([any(a.end > b.start for a, b in pairwise(c.events)) for c in several])
    lengths = [(event.end - event.start) / c.num_frames for c in clips for event in c.events]
    twins = [c for c in several if len(c.events) == 2]
    near = np.mean([sum(x == y for x, y in zip(*(e.kind for e in c.events), strict=True)) == 2 for c in twins])
    assert overlapping == pytest.approx(0.15, abs=0.025)
    assert np.mean(lengths) == pytest.approx(0.224, abs=0.005)
    assert np.mean([len(clip.events) for clip in clips]) == pytest.approx(7 / 3, abs=0.05)
    # Half on purpose, and of the random half those that chance gives: 5 to 8 of the 41 other kinds.
    assert near == pytest.approx(0.5 + 0.5 * 6.5 / 41, abs=0.04)


def test_every_attribute_is_seen_in_training_although_six_kinds_are_not():
    assert len(EVENT_KINDS) == 48 and len(set(UNSEEN_KINDS)) == 6 and len(SEEN_KINDS) == 42
    for values in zip(*EVENT_KINDS, strict=True):
        assert all(sum(value in kind for kind in SEEN_KINDS) >= 9 for value in values)


def still_clip(*events: Event) -> Clip:
    return Clip(num_frames=32, events=events, background=90, clutter=((5, 5, 20, 20, 140),), noise_seed=1)


def shown(kind: Kind, shade: float = 1.0) -> np.ndarray:
    """Where the coloured shape is in eight frames of one cycle, bool [8, 64, 64]."""
    event = Event(kind, start=10, end=18, radius=10, center=(30.0, 34.0), cycle=8.001, shade=shade)
    video = render(still_clip(event)).astype(int)
    saturation = video.max(-1) - video.min(-1)  # [T, 64, 64]
    assert saturation[:10].max() == saturation[18:].max() == 0, "grey before and after the event"
    return saturation[10:18] > 40


@pytest.mark.parametrize("kind", EVENT_KINDS, ids=phrase)
def test_the_picture_shows_the_shape_and_how_it_moves(kind):
    mask = shown(kind)
    areas = mask.sum((1, 2))
    ys, xs = (np.array([np.nonzero(m)[axis].mean() for m in mask]) for axis in (0, 1))
    expected = {"left": (-1, 0, 0), "right": (1, 0, 0), "up": (0, -1, 0), "growing": (0, 0, 1)}[kind.motion]
    step = [np.diff(xs), np.diff(ys), np.diff(np.sqrt(areas))]
    still = (0.7, 0.7, 0.6)  # pixels a frame; a triangle's centroid moves a little while it grows
    for change, sign, bound in zip(step, expected, still, strict=True):
        assert (np.sign(change) == sign).all() if sign else np.abs(change).max() < bound
    boxes = [np.ptp(np.nonzero(m)[0]) * np.ptp(np.nonzero(m)[1]) for m in mask]
    filled = areas[-1] / boxes[-1]
    low, high = {"circle": (0.75, 0.92), "square": (1.0, 1.3), "triangle": (0.45, 0.68)}[kind.shape]
    assert low < filled < high


def test_two_shapes_show_their_own_colours_while_they_overlap_in_time():
    first = Event(Kind("red", "square", "growing"), 0, 20, 10, (24.0, 24.0), 100.0, 1.0)
    second = Event(Kind("blue", "circle", "right"), 10, 30, 9, (32.0, 50.0), 40.0, 1.0)
    video = render(still_clip(first, second)).astype(int)
    red, blue = ((video[..., a] - video[..., b] > 60).any((1, 2)) for a, b in ((0, 2), (2, 0)))
    assert red.nonzero()[0].tolist() == list(range(20)) and blue.nonzero()[0].tolist() == list(range(10, 30))


def test_successive_samples_of_32_show_the_motion():
    """Between two samples a shape moves 2 to 10 px: enough to see, and less than its own width."""
    for seed in range(200):
        clip = clip_of(seed)
        gap = clip.num_frames / 32
        for event in clip.events:
            travel = 11 if event.kind.motion == "growing" else 64 - 2 * event.radius
            assert (1 if event.kind.motion == "growing" else 3.5) < travel * gap / event.cycle < 8


def test_the_same_settings_give_the_same_bytes_over_one_process_or_two(dataset, tmp_path):
    clips.write_dataset(tmp_path, COUNTS, seed=3, workers=2, progress=False)
    assert digest(tmp_path) == digest(dataset)


def test_a_clip_depends_on_the_seed_but_not_on_the_number_of_clips(dataset, tmp_path):
    clips.write_dataset(tmp_path / "few", {"test": 1}, seed=3, progress=False)
    clips.write_dataset(tmp_path / "other", {"test": 1}, seed=4, progress=False)
    whole, few, other = (
        digest(folder)["videos/test/00000.mp4"] for folder in (dataset, tmp_path / "few", tmp_path / "other")
    )
    assert whole == few != other


def test_a_file_decodes_to_what_was_rendered(dataset):
    clip = make_clip(np.random.default_rng([3, clips.SPLITS.index("train"), 0]))
    with av.open(str(dataset / "videos/train/00000.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate, stream.pix_fmt) == ("h264", 4, "yuv420p")
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    assert decoded.shape == (clip.num_frames, 64, 64, 3)
    assert np.abs(decoded.astype(int) - render(clip)).mean() < 3


def test_every_split_asks_what_it_should(records):
    ids = [record["id"] for lines in records.values() for record in lines]
    assert len(set(ids)) == len(ids)
    for split, lines in records.items():
        for number in range(COUNTS[split]):
            mine = [r for r in lines if r["video"] == f"{split}/{number:05d}.mp4"]
            tasks = [r["task"] for r in mine]
            asked = [e for e in mine[0]["events"] if split != "unseen" or kind_of(e) in UNSEEN_KINDS]
            assert tasks.count("grounding") == len(asked) >= 1
            assert tasks.count("dense_caption") == (split != "train" or number % 2 == 0)
            assert tasks.count("grounded_mc") == 1


def kind_of(event: dict) -> Kind:
    return Kind(event["color"], event["shape"], event["motion"])


def test_every_answer_is_true_and_has_a_mark_for_every_span(records):
    for record in (r for lines in records.values() for r in lines):
        question, answer = (turn["value"] for turn in record["conversations"])
        said = {phrase(kind_of(event)): event["span"] for event in record["events"]}
        spans = [record["tgt"][i : i + 2] for i in range(0, len(record["tgt"]), 2)]
        assert question.startswith("<video>\n") and answer.count("<span>") == len(spans)
        assert all(0 <= s < e <= record["duration"] for s, e in spans)
        match record["task"]:
            case "grounding":
                name = question.removeprefix("<video>\nwhen does this happen : ")
                assert spans == [said[name]]
            case "dense_caption":
                assert answer == " ".join(f"<span> {name} ." for name in said)
                assert spans == list(said.values()) == sorted(said.values())
            case "grounded_mc":
                parts = question.split("(")[1:]  # "a) red circle moving left "
                options = {part[0]: part[3:].strip() for part in parts}
                name, letter = answer.removesuffix(" <span> .").split(" (")
                assert "".join(options) == "abcd" and options[letter[0]] == name
                assert [text for text in options.values() if text in said] == [name]
                assert spans == [said[name]]


def test_training_never_names_an_unseen_kind(records):
    text = json.dumps(records["train"] + records["val"] + records["test"])
    assert not any(phrase(kind) in text for kind in UNSEEN_KINDS)


def test_the_vocabulary_is_small_and_lower_case(records):
    text = " ".join(t["value"] for lines in records.values() for r in lines for t in r["conversations"])
    assert text == text.lower() and len(set(text.split())) < 80


def test_a_finished_data_set_is_left_alone_and_an_unfinished_one_is_made_again(dataset, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*.mp4")}
    manifest = clips.write_dataset(dataset, COUNTS, seed=3, progress=False)
    assert manifest == json.loads((dataset / "manifest.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*.mp4")} == before
    (tmp_path / "videos/test").mkdir(parents=True)
    (tmp_path / "videos/test/00000.mp4").write_bytes(b"cut off")
    clips.write_dataset(tmp_path, {"test": 1}, seed=3, progress=False)
    assert digest(tmp_path)["videos/test/00000.mp4"] == digest(dataset)["videos/test/00000.mp4"]


def test_other_settings_in_the_same_folder_are_refused_by_name(dataset, capsys):
    with pytest.raises(ConfigError, match="manifest.json: describes other settings"):
        clips.write_dataset(dataset, COUNTS, seed=5, progress=False)
    assert clips.main(["--output", str(dataset), "--seed", "5"]) == 2
    assert "use another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"counts": {"trian": 1}}, r"unknown splits \['trian'\]"),
        ({"counts": {"test": -1}}, "must be >= 0"),
        ({"counts": {}, "seed": -1}, "must be >= 0"),
        ({"counts": {}, "workers": 0}, "must be >= 0 and workers 0 >= 1"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        clips.write_dataset(tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_the_command_line_writes_what_it_says(tmp_path, capsys):
    counts = ["--train=1", "--val=0", "--test=0", "--unseen=1"]
    clips.main(["--output", str(tmp_path), *counts, "--seed", "3"])
    assert "2 clips" in capsys.readouterr().out
    assert len(list(tmp_path.rglob("*.mp4"))) == 2
