"""Records become items: frames thinned before text, videos named where they cannot be read, draws by seed and epoch."""

import re

import pytest
from torch.utils.data import DataLoader

from tests.models import (
    HEADS,
    LENGTHS,
    NoiseReader,
    clip_lines,
    clips,
    make_batch,
    make_bundle,
    make_dataset,
    record,
    turns,
)  # fmt: skip
from videollm.batches.dataset import VideoDataset, pack_by_video
from videollm.batches.reader import Seen, VisualReader
from videollm.data import parse_record
from videollm.video.sampling import Sampler

LONG = {"video": "b.mp4", "duration": 6, "tgt": [1, 5], "conversations": turns("<video>\nwhen is it?", "in <span>")}


@pytest.fixture(scope="module", params=list(HEADS))
def bundle(request):
    return make_bundle("internvl", request.param)


def test_a_span_behind_the_decoded_end_is_a_bad_item_and_as_published_one_like_any_other(bundle):
    """Published code clamps where it needs to; its loss targets see the times as annotated."""
    behind = {"video": "a.mp4", "tgt": [40, 50], "conversations": turns("<video>\nwhen?", "in <span>")}
    assert "span [40, 50] lies outside a.mp4, which has 4 s" in make_dataset(bundle, [behind])[0].bad
    records = [parse_record(behind, 1, "lines.jsonl", raw_spans=True)]
    item = VideoDataset(records, NoiseReader(), bundle.encoder(), max_length=4096)[0]
    assert item.bad is None and item.spans_s[0].tolist() == [[40, 50]]


@pytest.mark.parametrize("fewer", [1, 2, 4])
def test_a_long_conversation_loses_frames_uniformly_and_no_text(bundle, fewer):
    whole = make_dataset(bundle, [LONG])[0]
    count = LENGTHS["b.mp4"]
    lines = [{"video": v, "conversations": turns("<video>\nq", "a")} for v in ("a.mp4", "b.mp4")]
    four, six = (len(make_dataset(bundle, [line])[0].prompts[0]) for line in lines)
    per_frame = (six - four) // 2
    item = make_dataset(bundle, [LONG], max_length=len(whole.prompts[0]) - fewer * per_frame)[0]
    kept = item.times_s.tolist()
    assert item.thinned == fewer and len(kept) == count - fewer == len(item.pixels)
    assert kept[0] == 0 and (len(kept) == 1 or kept[-1] == count - 1)
    assert len(item.prompts[0].visual) * count == len(whole.prompts[0].visual) * (count - fewer)
    for frame, time in enumerate(kept):
        assert (item.pixels[frame] == whole.pixels[int(time)]).all()

    def text(prompt):
        return [i for p, i in enumerate(prompt.ids) if p >= prompt.prefix_length]

    assert text(item.prompts[0]) == text(whole.prompts[0])
    assert len(item.prompts[0]) == len(whole.prompts[0]) - fewer * per_frame


def test_one_token_over_costs_one_frame(bundle):
    whole = make_dataset(bundle, [LONG])[0]
    item = make_dataset(bundle, [LONG], max_length=len(whole.prompts[0]) - 1)[0]
    assert item.thinned == 1 and item.longest <= len(whole.prompts[0]) - 1
    assert make_dataset(bundle, [LONG], max_length=len(whole.prompts[0]))[0].thinned == 0


def test_text_that_cannot_fit_is_a_bad_item_with_its_line(bundle):
    for name, limit in ((LONG, 60), ("text", 20)):
        item = make_dataset(bundle, [name], max_length=limit)[0]
        assert re.search(rf"lines\.jsonl:1.*data\.max_length={limit}", item.bad) and not item.prompts


def test_the_last_frame_is_never_dropped(bundle):
    """A video without any frame would be asked about blindly."""

    class OneFrame(NoiseReader):
        def video(self, name, rng, view=None, limits=()):
            seen = super().video(name, rng)
            return Seen(seen.pixels[:1], None, seen.times_s[:1], seen.duration_s)

    whole = VideoDataset([record(LONG)], OneFrame(), bundle.encoder(), max_length=1024)[0]
    over = VideoDataset([record(LONG)], OneFrame(), bundle.encoder(), max_length=len(whole.prompts[0]) - 1)
    assert "fewest frames" in over[0].bad


def test_a_video_that_cannot_be_read_gives_an_empty_item_that_names_it(bundle):
    item = make_dataset(bundle, [{"id": "b1", "video": "broken.mp4", "conversations": turns("<video>\nq", "a")}])[0]
    assert item.ids == ["b1"] and "broken.mp4" in item.bad and not item.prompts


def test_spans_end_where_the_video_does(bundle):
    """The annotated duration may be longer than the file."""
    item = make_dataset(bundle, [{**LONG, "duration": 60, "tgt": [4, 50]}])[0]
    assert item.spans_s[0].tolist() == [[4.0, 6.0]]


def test_the_last_answer_is_left_out_for_generation(bundle):
    asked = make_dataset(bundle, ["turns"], answers=False)[0].prompts[0]
    whole = make_dataset(bundle, ["turns"])[0].prompts[0]
    assert whole.ids[: len(asked)] == asked.ids and len(asked) < len(whole)
    assert any(asked.supervised) is any(whole.supervised[: len(asked)])


def test_questions_of_one_video_are_packed_in_order_and_in_limits():
    names = ["a.mp4", "b.mp4", "a.mp4", None, "a.mp4", None]
    records = [
        record({"id": str(i), **({"video": n} if n else {}), "conversations": turns("q", "a")})
        for i, n in enumerate(names)
    ]
    assert pack_by_video(records, 2) == [[0, 2], [4], [1], [3], [5]]
    assert pack_by_video(records, 16) == [[0, 2, 4], [1], [3], [5]]


@pytest.mark.parametrize("backbone", ["internvl", "gemma2"])
def test_questions_are_packed_where_the_same_words_stand_before_their_video(backbone):
    """What is not the same has a row of its own, and no batch fails over it."""
    said = {
        "q0": ("<video>\nq", "a"), "q1": ("look: <video>\nq", "a"), "q2": ("<video>\nq", "a"),
        "q3": ("look: <video>\nwhen?", "a"), "q4": ("after <span> of <video>\nq", "a"),
        "q5": ("after <span> of <video>\nq", "a"),
    }  # fmt: skip
    spans = {"q4": {"src": [0, 1]}, "q5": {"src": [2, 3]}}
    lines = [{"id": k, "video": "b.mp4", "conversations": turns(*v), **spans.get(k, {})} for k, v in said.items()]
    records = [record(line) for line in lines]
    assert pack_by_video(records, 16) == [[0, 2], [1, 3], [4], [5]]
    assert make_batch(make_bundle(backbone, "distime"), lines, pack=True).num_samples == len(lines)


def test_a_packed_item_reads_its_video_once(bundle):
    reader, calls = NoiseReader(), []
    read = reader.video
    reader.video = lambda name, *how: calls.append(name) or read(name, *how)
    lines = [record({**LONG, "id": f"q{i}"}) for i in range(3)]
    dataset = VideoDataset(lines, reader, bundle.encoder(), max_length=1024, pack=True)
    assert len(dataset) == 1 and len(dataset[0].prompts) == 3 and calls == ["b.mp4"]
    assert dataset[0].ids == ["q0", "q1", "q2"]


def test_a_batch_decodes_each_video_once_and_keeps_its_order(monkeypatch):
    bundle = make_bundle("internvl", "text")
    reader = bundle.reader(clips(), Sampler(rule="segments", num_frames=3))
    calls, decode = [], VisualReader.decode
    monkeypatch.setattr(VisualReader, "decode", lambda self, name, *a: calls.append(name) or decode(self, name, *a))
    dataset = VideoDataset([record(line) for line in clip_lines(8)], reader, bundle.encoder(), max_length=1024)
    (items,) = DataLoader(dataset, sampler=[0, 1, 4, 5, 0], batch_size=5, collate_fn=list)
    assert [item.ids for item in items] == [["q0"], ["q1"], ["q4"], ["q5"], ["q0"]]
    assert sorted(calls) == ["clip0.mp4", "clip1.mp4"]
    assert items[0].pixels is items[2].pixels and items[1].pixels is items[3].pixels


def test_frames_are_drawn_by_seed_epoch_and_index_only():
    bundle = make_bundle("internvl", "text")
    reader = bundle.reader(clips(), Sampler(rule="segments", num_frames=3, pick="random"))
    lines = [record(line) for line in clip_lines(2)]

    def draw(epoch, seed=1):
        dataset = VideoDataset(lines, reader, bundle.encoder(), max_length=1024, seed=seed)
        dataset.set_epoch(epoch)
        return [dataset[i].times_s.tolist() for i in range(2)]

    assert draw(0) == draw(0) and draw(3) == draw(3)
    assert draw(0) != draw(1) and draw(0) != draw(0, seed=2)


def test_images_become_tiles_without_times(bundle):
    item = make_dataset(bundle, ["image"])[0]
    assert item.tiles == [2] and len(item.times_s) == 0 and len(item.pixels) == 2


def test_an_image_file_is_read_and_tiled(tmp_path):
    from PIL import Image

    bundle = make_bundle("internvl", "text")
    Image.new("RGB", (80, 40), (200, 10, 10)).save(tmp_path / "x.png")
    pixels, tiles = bundle.reader(tmp_path, max_tiles=2).images(["x.png"])
    assert tiles == [3] and pixels.shape == (3, 28, 28, 3)  # two tiles and the thumbnail
    pixels, tiles = bundle.reader(tmp_path).images(["x.png", "x.png"])
    assert tiles == [1, 1] and (pixels[0] == pixels[1]).all()
