"""Lengths are counted once: a second start reads them, anything else than the same data is counted anew and says so."""

import json

import pytest

from tests.models import LINES, NoiseReader, make_bundle, write_lines
from videollm.batches import kept_lengths
from videollm.batches.dataset import VideoDataset
from videollm.batches.kept_lengths import KeptLengths
from videollm.batches.lengths import item_sizes, too_long
from videollm.data import load_records
from videollm.video.sampling import Sampler

LIMIT = 245
BAD = tuple(f'{{"of": "KEY", "lengths": {x}}}' for x in ("null", '[[1, "x"]]', "[[99, 700]]", "[[0]]", "[[0, -1]]"))


@pytest.fixture
def records(tmp_path):
    """Of a file; some are too long for ``LIMIT`` tokens, some are not."""
    lines = [{"id": name, "duration": 4, **line} for name, line in LINES.items() if "image" not in line]
    return load_records(write_lines(tmp_path / "train.jsonl", lines))


@pytest.fixture
def counts(monkeypatch):
    """How often lengths were really counted."""
    found = []
    for name in ("too_long", "item_sizes"):
        real = getattr(kept_lengths, name)

        def counted(*args, name=name, real=real, **named):
            found.append(name)
            return real(*args, **named)

        monkeypatch.setattr(kept_lengths, name, counted)
    return found


def encoder(head="text", **changes):
    return make_bundle("internvl", head, **changes).encoder()


def dataset_of(records, max_length=1024, num_frames=3):
    reader = NoiseReader()
    reader.sampler, reader.max_tiles = Sampler(rule="segments", num_frames=num_frames), 1
    return VideoDataset(records, reader, encoder(), max_length=max_length)


def test_a_second_start_reads_what_the_first_has_counted(records, counts, tmp_path, caplog):
    wanted = too_long(records, encoder(), LIMIT)
    assert 0 < len(wanted) < len(records)
    for _ in range(2):
        assert KeptLengths(tmp_path / "run/lengths", True).too_long(records, encoder(), LIMIT, False) == wanted
    assert counts == ["too_long"] and not caplog.records


def test_sizes_of_items_are_kept_too(records, counts, tmp_path):
    wanted, kept = item_sizes(dataset_of(records), "x"), KeptLengths(tmp_path / "lengths", True)
    for _ in range(2):
        assert kept.item_sizes(dataset_of(records), "x").tolist() == wanted.tolist()
    assert counts == ["item_sizes"]
    other = kept.item_sizes(dataset_of(records, num_frames=2), "x")
    assert other.tolist() == item_sizes(dataset_of(records, num_frames=2), "x").tolist() != wanted.tolist()


@pytest.mark.parametrize("what", ["file", "records", "limit", "rejected", "head", "template", "tokens"])
def test_anything_that_decides_on_lengths_has_them_counted_anew(records, counts, tmp_path, caplog, what):
    kept = KeptLengths(tmp_path / "lengths", True)
    kept.too_long(records, encoder(), LIMIT, False)
    new, own, limit = records, encoder(), LIMIT
    if what == "file":
        (tmp_path / "train.jsonl").write_text(
            (tmp_path / "train.jsonl").read_text().replace("dog", "very " * 30 + "dog")
        )
        new = load_records(str(tmp_path / "train.jsonl"))
    elif what == "records":
        new = records[1:]
    elif what == "limit":
        limit = LIMIT + 20
    elif what == "head":
        own = encoder("distime")
    elif what == "template":
        own = encoder(template="plain")
    elif what == "tokens":
        own.tokenizer.add_tokens(["when"])
    wanted = too_long(new, own, limit, rejected=what == "rejected")
    assert kept.too_long(new, own, limit, what == "rejected") == wanted
    assert counts == ["too_long"] * 2
    (said,) = caplog.messages
    assert "too_long.json: of other records" in said and "counted anew" in said


@pytest.mark.parametrize("damage", ["", "{", "[]", *BAD])
def test_a_damaged_file_is_counted_anew_and_written_whole(records, counts, tmp_path, caplog, damage):
    kept = KeptLengths(tmp_path / "lengths", True)
    wanted = kept.too_long(records, encoder(), LIMIT, False)
    file = tmp_path / "lengths/too_long.json"
    whole = file.read_text()
    file.write_text(damage.replace("KEY", json.loads(whole)["of"]))
    assert kept.too_long(records, encoder(), LIMIT, False) == wanted
    assert len(caplog.messages) == 1 and file.read_text() == whole and len(counts) == 2


def test_other_ranks_and_a_folder_that_cannot_be_written_count_and_go_on(records, tmp_path, caplog):
    wanted = too_long(records, encoder(), LIMIT)
    assert KeptLengths(tmp_path / "lengths", False).too_long(records, encoder(), LIMIT, False) == wanted
    assert not (tmp_path / "lengths").exists() and not caplog.messages
    (tmp_path / "lengths").write_text("")
    assert KeptLengths(tmp_path / "lengths", True).too_long(records, encoder(), LIMIT, False) == wanted
    assert "counted" in caplog.messages[-1]
