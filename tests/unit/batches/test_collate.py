"""One batch of tensors: everything stands where it says, whatever is mixed, padded or packed."""

from dataclasses import replace
from operator import attrgetter

import pytest
import torch

from tests.models import HEADS, LENGTHS, LINES, make_batch, make_bundle, make_dataset, record, turns
from videollm.data.conversation import Role

ALL = list(LINES)
SAME_VIDEO = [
    {"id": "q1", "video": "a.mp4", "tgt": [0, 2], "conversations": turns("<video>\nwhen?", "<span>")},
    {"id": "q2", "video": "a.mp4", "conversations": turns("<video>\nwhat is it, now?", "a dog runs")},
    {"id": "q3", "video": "a.mp4", "tgt": [1, 2, 3, 4], "conversations": turns("<video>\nboth?", "<span>, <span>")},
]


@pytest.fixture(scope="module", params=list(HEADS))
def bundle(request):
    return make_bundle("etchat" if request.param == "distime" else "internvl", request.param)


def prompts(bundle, names):
    dataset = make_dataset(bundle, names)
    return [dataset[i].prompts[0] for i in range(len(names))]


def test_every_row_reads_as_its_prompt(bundle):
    batch = make_batch(bundle, ALL)
    for b, prompt in enumerate(prompts(bundle, ALL)):
        real = batch.segment_ids[b] >= 0
        assert batch.input_ids[b][real].tolist() == prompt.ids
        assert batch.position_ids[b][real].tolist() == list(range(len(prompt)))
    assert (batch.input_ids[batch.segment_ids < 0] == bundle.tokenizer.pad_token_id).all()


def test_labels_are_predicted_from_the_place_before_them(bundle):
    batch = make_batch(bundle, ALL)
    ids, positions = batch.input_ids.flatten(), batch.position_ids.flatten()
    length = batch.input_ids.shape[1]
    k = 0
    for b, prompt in enumerate(prompts(bundle, ALL)):
        where = [i for i, s in enumerate(prompt.supervised) if s]
        count = len(where)
        index = batch.label_index[k : k + count]
        assert (index // length == b).all()
        assert batch.label_ids[k : k + count].tolist() == [prompt.ids[i] for i in where]
        assert positions[index].tolist() == [i - 1 for i in where]
        assert ids[index].tolist() == [prompt.ids[i - 1] for i in where]
        k += count
    assert k == len(batch.label_ids)


def test_span_places_queries_and_seconds(bundle):
    batch = make_batch(bundle, ALL)
    ids, positions = batch.input_ids.flatten(), batch.position_ids.flatten()
    length = batch.input_ids.shape[1]
    spans = batch.refs.role != Role.FRAME
    tokens = bundle.tokenizer.convert_ids_to_tokens(ids[batch.refs.index[spans]].tolist())
    assert set(tokens) <= set(bundle.model.head.span_tokens)
    assert (positions[batch.refs.query_index] == positions[batch.refs.index] - 1).all()
    assert (batch.refs.owner == batch.refs.index // length).all()
    assert (batch.refs.owner == batch.refs.query_index // length).all()
    wanted = [s for name in ALL for s in record(name).spans_s]
    if bundle.model.head.span_tokens:
        assert set(map(tuple, batch.refs.seconds[spans].tolist())) == {tuple(map(float, s)) for s in wanted}
    frames = batch.refs.role == Role.FRAME
    times = batch.times_s[batch.refs.owner[frames], batch.refs.frame[frames]]
    assert torch.equal(batch.refs.seconds[frames], times[:, None].expand(-1, 2))


def test_frames_of_videos_of_different_length_and_tiles_keep_their_places(bundle):
    batch = make_batch(bundle, ALL)
    token = bundle.config.visual_tokens["token"]
    wanted = (batch.input_ids.flatten() == bundle.tokenizer.convert_tokens_to_ids(token)).nonzero().flatten()
    assert torch.equal(batch.visual_index, wanted)
    counts = [LENGTHS.get(record(n).video, 0) for n in ALL]
    assert batch.frame_mask.sum(1).tolist() == counts
    assert batch.pixel_values.shape[0] == sum(counts) + 2 == len(batch.frame_row)
    image = batch.frame_row == ALL.index("image")
    assert (batch.frame_col[image] == -1).all() and image.sum() == 2
    assert batch.duration_s.tolist() == [float(c) for c in counts]


def test_prefixes_end_in_the_same_column_where_they_are_split_off():
    bundle = make_bundle("internvl", "d2vlm")
    batch = make_batch(bundle, ALL)
    cut = batch.prefix_columns
    assert (batch.visual_index % batch.input_ids.shape[1] < cut).all()
    assert (batch.segment_ids[:, :cut] <= 0).all() and (batch.segment_ids[:, cut:] != 0).all()
    rows = ALL.index("text")
    assert (batch.segment_ids[rows, :cut] == -1).all()


def test_only_right_padded_causal_rows_go_without_a_mask():
    bundle = make_bundle("internvl", "distime")
    batch = make_batch(bundle, ALL)
    assert (batch.plain_causal, batch.needs_mask) == (True, False)
    assert (batch.segment_ids < 0).any()  # some rows are padded, and their positions go on
    assert (batch.position_ids.diff(dim=1) == 1).all()
    assert not make_batch(bundle, ALL, asked=True).needs_mask and make_batch(bundle, SAME_VIDEO, pack=True).needs_mask
    dataset, seen = make_dataset(bundle, ALL), int(batch.input_ids[0, 3])
    assert bundle.collator(unseen_id=seen)([dataset[i] for i in range(len(dataset))]).needs_mask
    assert make_batch(make_bundle("internvl", "d2vlm"), ALL).needs_mask


def test_a_prefix_column_stands_for_the_visuals_that_a_batch_has_not():
    """All ranks make the same passes, as ZeRO-3 demands; the empty column changes no number."""
    bundle = make_bundle("internvl", "d2vlm")
    batch, plain = (make_batch(bundle, ["text"]) for _ in range(2))
    assert batch.prefix_columns == 1 and batch.segment_ids[0, 0] == -1
    rest = {name: getattr(plain, name)[:, 1:] for name in ("input_ids", "position_ids", "segment_ids", "block_ids")}
    plain = replace(plain, **rest, prefix_columns=0, label_index=plain.label_index - 1)
    with torch.no_grad():
        losses = [bundle.model(b).loss for b in (batch, plain)]
    torch.testing.assert_close(*losses)


def test_packed_conversations_see_the_video_and_themselves_only():
    bundle = make_bundle("internvl", "distime")
    batch = make_batch(bundle, SAME_VIDEO, pack=True)
    assert batch.input_ids.shape[0] == 1 and batch.num_samples == 3
    length = batch.input_ids.shape[1]
    seen = bundle.model.attention_mask(batch, slice(0, length), torch.float32)[0, 0] == 0  # [L, L]
    segment = batch.segment_ids[0]
    for s in (1, 2, 3):
        mine, others = (segment == s).nonzero().flatten(), ((segment > 0) & (segment != s)).nonzero().flatten()
        assert not seen[mine][:, others].any()
        assert seen[mine][:, segment == 0].all()
        assert torch.equal(seen[mine][:, mine], torch.ones(len(mine), len(mine), dtype=torch.bool).tril())
    assert not seen[segment == 0][:, segment > 0].any()


def test_packed_conversations_keep_their_own_positions_and_labels():
    bundle = make_bundle("internvl", "d2vlm")
    packed, apart = make_batch(bundle, SAME_VIDEO, pack=True), make_batch(bundle, SAME_VIDEO)
    for key in ("label_ids", "refs.role", "refs.span", "refs.seconds", "refs.sample"):
        assert torch.equal(*map(attrgetter(key), (packed, apart))), key
    for key in ("label_index", "refs.index", "refs.query_index"):
        position = [b.position_ids.flatten()[attrgetter(key)(b)] for b in (packed, apart)]
        assert torch.equal(*position), key


def test_the_first_word_of_each_packed_answer_is_predicted_from_its_own_question():
    bundle = make_bundle("internvl", "text")
    batch = make_batch(bundle, SAME_VIDEO, pack=True)
    segment = batch.segment_ids.flatten()
    label_segment = segment[batch.label_index]
    assert label_segment.tolist() == sorted(label_segment.tolist()) and set(label_segment.tolist()) == {1, 2, 3}


def test_frames_see_each_other_where_the_model_says_so():
    for backbone, both in (("etchat", True), ("internvl", False)):
        bundle = make_bundle(backbone, "text")
        batch = make_batch(bundle, ["two_spans", "text"])
        length = batch.input_ids.shape[1]
        seen = bundle.model.attention_mask(batch, slice(0, length), torch.float32)[:, 0] == 0
        places = batch.visual_index
        block = seen[0][places][:, places]
        assert bool(block.all()) is both and bool(block.tril().sum() == len(places) * (len(places) + 1) // 2)
        padded = batch.segment_ids < 0
        assert not (seen & padded[:, None] & ~torch.eye(length, dtype=torch.bool)).any()


def test_weights_average_over_tokens_or_over_samples():
    bundle = make_bundle("internvl", "text")
    tokens, samples = (make_batch(bundle, ALL, average=a).label_weight for a in ("tokens", "samples"))
    assert (tokens == 1).all()
    assert samples.sum().item() == pytest.approx(len(ALL))


def test_questions_stand_in_the_first_columns_of_their_rows(bundle):
    batch = make_batch(bundle, ALL, asked=True)
    assert batch.prefix_columns == 0
    dataset = make_dataset(bundle, ALL, answers=False)
    for b in range(len(ALL)):
        real = batch.segment_ids[b] >= 0
        assert batch.input_ids[b][real].tolist() == dataset[b].prompts[0].ids
        assert real.tolist() == sorted(real.tolist(), reverse=True) and batch.last[b] == real.sum() - 1


def test_an_unseen_id_hides_its_places_and_nothing_else(bundle):
    dataset = make_dataset(bundle, ALL)
    items = [dataset[i] for i in range(len(ALL))]
    word = items[0].prompts[0].ids[-3]
    plain, hidden = bundle.collator()(items), bundle.collator(unseen_id=word)(items)
    assert hidden.segment_ids[hidden.input_ids == word].unique().tolist() == [-1]
    rest = plain.input_ids != word
    assert hidden.segment_ids[rest].equal(plain.segment_ids[rest])
    same = ("input_ids", "position_ids", "label_ids", "label_index", "refs.index", "visual_index")
    assert all(attrgetter(name)(hidden).equal(attrgetter(name)(plain)) for name in same)


def test_unreadable_items_are_named_and_leave_a_usable_batch(bundle):
    broken = {"id": "b1", "video": "broken.mp4", "conversations": turns("<video>\nwhen?", "now")}
    dataset = make_dataset(bundle, [broken, "two_spans"])
    mixed = bundle.collator()([dataset[0], dataset[1]])
    assert len(mixed.bad) == 1 and "b1" in mixed.bad[0] and "broken.mp4" in mixed.bad[0]
    assert mixed.ids == ["two_spans"] and mixed.num_samples == 1
    alone = bundle.collator()([dataset[0]])
    assert alone.ids == [] and alone.num_samples == 0 and len(alone.label_ids) == 0
    assert alone.input_ids.shape[0] == 1


def test_stored_features_stand_beside_pixels_in_one_batch(bundle):
    dataset = make_dataset(bundle, ["image", "two_spans", "text", "asked"])
    items = [dataset[i] for i in range(4)]
    collate, model = bundle.collator(), bundle.model
    with torch.no_grad():
        alone = model.frame_tokens(collate(items))
        for i in (1, 3):
            items[i].features, items[i].pixels = model.vision_tower(items[i].pixels), None
        batch = collate(items)
        assert len(batch.features) == 10 and len(batch.pixel_values) == 2
        torch.testing.assert_close(model.frame_tokens(batch), alone)


def test_a_video_of_several_samples_is_in_the_batch_and_in_the_tower_once(bundle, monkeypatch):
    dataset = make_dataset(bundle, [*SAME_VIDEO, "asked"])
    items = [dataset[i] for i in range(4)]
    collate, model, calls = bundle.collator(), bundle.model, []
    apart = collate(items)
    assert apart.frame_source is None
    for item in items[:3]:
        item.pixels = items[0].pixels
    shared = collate([items[0], items[3], *items[1:3]])
    assert len(shared.pixel_values) == len(apart.pixel_values) - 2 * len(items[0].pixels)
    monkeypatch.setattr(
        model, "encode_frames", lambda p, _, encode=model.encode_frames: calls.append(len(p)) or encode(p)
    )
    with torch.no_grad():
        together, alone = model.frame_tokens(shared), model.frame_tokens(apart)
    a, b = len(items[0].pixels), len(items[3].pixels)
    order = [*range(a), *range(3 * a, 3 * a + b), *range(a, 3 * a)]
    torch.testing.assert_close(together, alone[order])
    assert calls == [a + b, 3 * a + b]


def test_shared_features_stand_beside_shared_pixels(bundle):
    dataset = make_dataset(bundle, [*SAME_VIDEO[:2], "asked", {**LINES["asked"], "id": "again"}])
    items = [dataset[i] for i in (2, 0, 3, 1)]
    collate, model = bundle.collator(), bundle.model
    with torch.no_grad():
        alone = model.frame_tokens(collate(items))
        features = model.vision_tower(items[0].pixels)
        for item in (items[0], items[2]):
            item.features, item.pixels = features, None
        items[1].pixels = items[3].pixels
        batch = collate(items)
        assert len(batch.features) == 6 and len(batch.pixel_values) == 4
        torch.testing.assert_close(model.frame_tokens(batch), alone)
