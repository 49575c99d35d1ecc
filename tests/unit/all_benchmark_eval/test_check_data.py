"""The command ``check``: what of the benchmarks' data is there, missing or unreadable."""

import json

import av

from all_benchmark_eval import check
from all_benchmark_eval.benchmark import get, names
from tests.benchmark_data import CLIPS, copy


def test_complete_data_of_every_benchmark_is_found(data, tmp_path, capsys):
    assert check.main([str(data), "--output", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found) == set(names())
    assert all(check.complete(entry) and entry["questions"] for entry in found.values())
    assert found["mvbench"]["videos"]["named"] == 3  # one of them a folder of frames
    assert found["anet"]["path"] == found["anet_dvc"]["path"]
    assert "longvideobench" in capsys.readouterr().out


def test_missing_and_unreadable_videos_are_counted_and_named(data, tmp_path, capsys):
    part = copy(data, tmp_path / "data", "anet", "mvbench")
    (part / "anet/videos/v_0.mp4").write_bytes(b"no video")
    (part / "mvbench/videos/scene_qa/video/t.mp4").unlink()
    (part / "mvbench/videos/tvqa/frames_fps3_hq/show_1/00002.jpg").unlink()
    output = tmp_path / "found.json"
    assert check.main([str(part), "--benchmarks", "anet,mvbench", "--output", str(output)]) == 1
    found = {name: entry["videos"] for name, entry in json.loads(output.read_text()).items()}
    assert found["anet"]["present"] == CLIPS - 1 and list(found["anet"]["unreadable"]) == ["v_0.mp4"]
    assert found["mvbench"]["missing"] == ["scene_qa/video/t.mp4"]
    assert "no frame 2" in found["mvbench"]["unreadable"]["tvqa/frames_fps3_hq/show_1"]
    assert "t.mp4" in capsys.readouterr().out


def test_truncated_videos_are_there_and_counted_as_damaged(data, tmp_path, capsys):
    part = copy(data, tmp_path / "data", "anet")
    video = part / "anet/videos/v_0.mp4"
    whole = tmp_path / "whole.mp4"
    with av.open(str(video)) as read, av.open(str(whole), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    video.write_bytes(whole.read_bytes()[: whole.stat().st_size * 4 // 5])
    output = tmp_path / "found.json"
    assert check.main([str(part), "--benchmarks", "anet", "--output", str(output)]) == 1
    found = json.loads(output.read_text())["anet"]["videos"]
    assert found["present"] == CLIPS and "truncated" in found["damaged"]["v_0.mp4"] and not found["unreadable"]
    assert "truncated" in capsys.readouterr().out


def test_annotations_that_are_not_there_or_not_readable_are_told_apart(data, tmp_path, capsys):
    part = copy(data, tmp_path / "data", "charades", "nextgqa", "videomme")
    (part / "charades/charades_sta_test.txt").unlink()
    (part / "nextgqa/test.csv").unlink()  # enough to score, not to ask
    (part / "videomme/videomme.json").write_text("{")
    output = tmp_path / "found.json"
    assert check.main([str(part), "--benchmarks", "charades,nextgqa,videomme", "--output", str(output)]) == 1
    found = json.loads(output.read_text())
    assert [entry["annotations"] for entry in found.values()] == ["missing", "unreadable", "unreadable"]
    printed = capsys.readouterr().out
    assert "charades/README.md" in printed and "test.csv" in printed and "not JSON" in printed


def test_a_gzipped_annotation_file_is_found(data, tmp_path):
    import gzip

    part = copy(data, tmp_path / "data", "anet")
    plain = part / "anet/val_2.json"
    (part / "anet/val_2.json.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert check.main([str(part), "--benchmarks", "anet"]) == 0


def test_wrong_arguments_are_one_line(tmp_path, capsys):
    assert check.main([str(tmp_path / "absent")]) == 2 and check.main([str(tmp_path), "--benchmarks", "x"]) == 2
    said = capsys.readouterr().err
    assert "not a folder" in said and "unknown benchmark 'x'" in said


def test_the_documentation_has_the_layout_of_every_benchmark(repository):
    text = (repository / "docs/evaluation.md").read_text(encoding="utf-8")
    for name in names():
        layout = get(name).layout
        assert f"`{layout.videos}`" in text and f"`{layout.folder or name}/`" in text
        assert all(f"`{annotations}`" in text for annotations in layout.annotations)
