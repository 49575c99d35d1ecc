"""A record that cannot fit is known before any video is opened, and no other is taken for one."""

import pytest

from tests.models import LINES, PAIRS, make_bundle, make_dataset, record, turns
from videollm.batches.lengths import conversation, encoded, too_long

WORSE = {"rejected": [{"factor": "f", "value": "b" * 300}, {"factor": "f", "value": "c"}]}
ODD = {
    "video": "a.mp4",
    "duration": 4,
    "tgt": [0, 1],
    "conversations": turns("<video>\n" + "when? \u20ac \U0001f600" * 3, "<span>"),
}


@pytest.mark.parametrize(("backbone", "head"), PAIRS)
def test_without_tokenising_no_length_is_taken_for_less_than_it_is(backbone, head):
    encoder = make_bundle(backbone, head).encoder()
    for line in (*LINES.values(), ODD):
        one = record(line)
        assert encoder.at_most(*conversation(one)) >= len(encoded(encoder, one))


@pytest.mark.parametrize("head", ["d2vlm", "text"])
@pytest.mark.parametrize("pack", [False, True])
def test_just_the_records_that_no_item_can_hold_are_too_long(head, pack):
    bundle = make_bundle("internvl", head)
    lines = [line for line in LINES.values() if "image" not in line]  # tiles are known once an image is read
    records, encoder = list(map(record, lines)), bundle.encoder()
    for limit in (40, 60, 80, 100, 150, 1024):
        found = too_long(records, encoder, limit)
        items = make_dataset(bundle, lines, max_length=limit)
        assert found.keys() == {k for k in range(len(lines)) if items[k].bad}, limit
        assert all(f": {tokens} tokens with the fewest frames" in items[k].bad for k, tokens in found.items())
        kept = [line for k, line in enumerate(lines) if k not in found]
        packed = make_dataset(bundle, kept, max_length=limit, pack=pack)
        assert not any(packed[k].bad for k in range(len(packed)))


def test_a_rejected_answer_counts_where_it_is_trained_on():
    bundle = make_bundle("internvl", "text")
    pair = LINES["no_spans"] | WORSE
    records = [record("text"), record(pair)]
    assert too_long(records, bundle.encoder(), 250) == {}
    found = too_long(records, bundle.encoder(), 250, rejected=True)
    assert found == {1: len(encoded(bundle.encoder(), records[1].answered_by(records[1].rejected[0])))}
    assert str(found[1]) in make_dataset(bundle, [pair], max_length=250, rejected="all")[0].bad
