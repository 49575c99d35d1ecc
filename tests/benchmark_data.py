"""Small data of every benchmark: moving-shapes clips under the official names, with ground truth in the official forms.

``write_all(root)`` lays out a data root as ``evaluate`` and ``check`` expect it. Every benchmark asks about real events
of the clips, so a right answer scores full marks.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from quickstart import clips

CLIPS = 2
OPTIONS = ["a cat sleeps", "a dog runs", "nothing", "rain falls", "a bird sings"]


def clip(index: int) -> clips.Clip:
    """A clip of at least two events, always the same for an index."""
    seed = 100 * index
    while len((made := clips.make_clip(np.random.default_rng(seed))).events) < 2:
        seed += 1
    return made


def events(index: int) -> list[tuple[list[float], str]]:
    """(span, phrase) of each event of a clip, in order."""
    return [(event.span, clips.phrase(event.kind)) for event in clip(index).events]


def duration(index: int) -> float:
    return clip(index).duration


def write_all(root: Path) -> Path:
    """The data of all benchmarks below ``root``."""
    films = root / "films"
    films.mkdir(parents=True)
    for index in range(CLIPS):
        clips.write_video(films / f"{index}.mp4", clips.render(clip(index)))
    for writer in WRITERS:
        writer(root, lambda index, path: _link(films / f"{index}.mp4", path))
    return root


Place = Callable[[int, Path], None]  # puts clip ``index`` at a path


def _link(source: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.hardlink_to(source)


def _json(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def _lines(path: Path, rows: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def charades(root: Path, place: Place) -> None:
    folder = root / "charades"
    queries = [(i, span, phrase) for i in range(CLIPS) for span, phrase in events(i)]
    _lines(folder / "charades_sta_test.txt", [f"V{i} {s} {e}##{phrase}." for i, (s, e), phrase in queries])
    _lines(folder / "Charades_v1_test.csv", ["id,length", *(f"V{i},{duration(i)}" for i in range(CLIPS))])
    for i in range(CLIPS):
        place(i, folder / f"videos/V{i}.mp4")


def anet(root: Path, place: Place) -> None:
    """Both of its benchmarks."""
    truth = {}
    for i in range(CLIPS):
        spans, phrases = map(list, zip(*events(i), strict=True))
        truth[f"v_{i}"] = {"duration": duration(i), "timestamps": spans, "sentences": [f"{p}." for p in phrases]}
        place(i, root / f"anet/videos/v_{i}.mp4")
    _json(root / "anet/val_2.json", truth)


def qvhighlights(root: Path, place: Place) -> None:
    rows = []
    for i in range(CLIPS):
        span, phrase = events(i)[0]
        clips = list(range(int(span[0] // 2), int(span[1] // 2)))
        row = {"qid": i, "query": phrase, "vid": f"q_{i}", "duration": duration(i), "relevant_windows": [span]}
        rows.append(json.dumps(row | {"relevant_clip_ids": clips, "saliency_scores": [[2, 3, 4]] * len(clips)}))
        place(i, root / f"qvhighlights/videos/q_{i}.mp4")
    _lines(root / "qvhighlights/highlight_val_release.jsonl", rows)


def timelens(root: Path, place: Place) -> None:
    """All three data sets."""
    for name in ("charades", "activitynet", "qvhighlights"):
        truth = {}
        for i in range(CLIPS):
            spans, phrases = map(list, zip(*events(i), strict=True))
            truth[f"t_{i}"] = {"duration": duration(i), "spans": spans, "queries": [f"{p}." for p in phrases]}
            place(i, root / f"TimeLens-Bench/videos/{name}/t_{i}.mp4")
        _json(root / f"TimeLens-Bench/{name}-timelens.json", truth)


def moments(root: Path, place: Place) -> None:
    """The benchmarks of one moment a query."""
    rows = [(i, f"m{i}", *events(i)[0], duration(i)) for i in range(CLIPS)]
    lines = [
        {"qid": i, "vid": vid, "query": phrase, "duration": length, "relevant_windows": [span]}
        for i, vid, span, phrase, length in rows
    ]
    for file in ("moment_retrieval/test", "tacos/test", "ego4d_nlq/nlq_val"):
        _lines(root / f"{file}.jsonl", list(map(json.dumps, lines)))
    clips = {
        phrase: {f"{vid}.mp4": {"relevant": True, "clip": True, "bounds": span, "v_duration": length}}
        for _, vid, span, phrase, length in rows
    }
    _json(root / "hirest/all_data_val.json", clips)
    rtl = [
        {"vid": vid, "question": phrase, "answer": f"<{span[0]}> <{span[1]}>", "duration": length}
        for _, vid, span, phrase, length in rows
    ]
    _json(root / "activitynet_rtl/annot_val_1_q229.json", rtl)
    tvg = [
        {"path": f"./x/{vid}.mp4", "question": phrase, "answer": f"{span[0]}-{span[1]}", "duration": length}
        | {"qsemtype": "Pose"}
        for _, vid, span, phrase, length in rows
    ]
    _json(root / "tvgbench/tvgbench.json", tvg)
    extreme = [
        {"qid": str(i), "video_id": vid, "source_corpus": "MLVU", "question": phrase, "correct_interval": span}
        | {"video_duration_s": length, "category": "action"}
        for i, vid, span, phrase, length in rows
    ]
    _lines(root / "extremewhenbench/extreme-when-bench.jsonl", list(map(json.dumps, extreme)))
    for i, vid, *_ in rows:
        place(i, root / f"tacos/videos/{vid}-cam-002.mp4")
        place(i, root / f"activitynet_rtl/videos/v_{vid}.mp4")
        place(i, root / f"extremewhenbench/videos/MLVU/{vid}.mp4")
        for name in ("moment_retrieval", "ego4d_nlq", "hirest", "tvgbench"):
            place(i, root / f"{name}/videos/{vid}.mp4")


def grounded(root: Path, place: Place) -> None:
    """ReXTime and CG-Bench."""
    rex, cg = [], []
    for i in range(CLIPS):
        span, phrase = events(i)[0]
        rex.append({"vid": f"r{i}", "question": phrase, "options": OPTIONS[:4], "ans": "B", "span": span})
        cg.append({"qid": i, "video_uid": f"c{i}", "question": phrase, "choices": OPTIONS, "right_answer": "B"})
        cg[-1]["clue_intervals"] = [span]
        place(i, root / f"rextime/videos/qvhighlights/r{i}.mp4")
        place(i, root / f"cgbench/videos/c{i}.mp4")
    _json(root / "rextime/rextime_val.json", rex)
    _json(root / "cgbench/cgbench_mini.json", cg)


def youcook2(root: Path, place: Place) -> None:
    rows = []
    for i in range(CLIPS):
        spans, phrases = map(list, zip(*events(i), strict=True))
        row = {"image_id": f"y{i}.mp4", "duration": duration(i), "segments": spans}
        rows.append(row | {"pure_cap": ". ".join(phrases)})
        place(i, root / f"youcook2/videos/y{i}.mp4")
    _json(root / "youcook2/val.caption_coco_format.json", {"annotations": rows})


def nextgqa(root: Path, place: Place) -> None:
    folder = root / "nextgqa"
    moments, paths = {}, {}
    table = ["video_id,frame_count,question,answer,qid,type,a0,a1,a2,a3,a4"]
    for i in range(CLIPS):
        span, phrase = events(i)[0]
        moments[f"{i}0"] = {"duration": duration(i), "location": {"3": [span]}, "fps": 12}
        paths[f"{i}0"] = f"11/{i}0"
        table.append(f"{i}0,300,when is it {phrase},{OPTIONS[1]},3,TN,{','.join(OPTIONS)}")
        place(i, folder / f"videos/11/{i}0.mp4")
    _json(folder / "gsub_test.json", moments)
    _json(folder / "map_vid_vidorID.json", paths)
    _lines(folder / "test.csv", table)


def etbench(root: Path, place: Place) -> None:
    folder = root / "etbench"
    (span, phrase), (other, second) = events(0)[:2]
    head = {"version": 1.0, "source": "shapes", "video": "shapes/0.mp4", "duration": duration(0)}
    options = {"o": OPTIONS[:4], "p": 1}
    question = "You are given a video. "
    rows = [
        {"task": "tvg", "tgt": span, "q": f"{question}When does this happen: {phrase}?"},
        {"task": "rar", "src": other, "q": f"{question}What happens around <vid>? (A) .. (D) ..", **options},
        {"task": "gvq", "tgt": span, "q": f"{question}What happens, and when?", **options},
        {"task": "dvc", "tgt": [span, other], "g": [phrase, second], "q": f"{question}Describe the events."},
    ]
    _json(folder / "etbench_vid_v1.0.json", [head | {"idx": k} | row for k, row in enumerate(rows)])
    place(0, folder / "videos/shapes/0.mp4")


def mvbench(root: Path, place: Place) -> None:
    """Three tasks: about a stretch of a video, about a whole one, and about a folder of frames."""
    folder = root / "mvbench"
    item = {"question": "what happens?", "candidates": OPTIONS[:4], "answer": OPTIONS[1]}
    bound = {"start": 2.0, "end": 9.0}
    _json(folder / "json/action_sequence.json", [item | {"video": "s.mp4"} | bound])
    _json(folder / "json/scene_transition.json", [item | {"video": "t.mp4"}])
    _json(folder / "json/episodic_reasoning.json", [item | {"video": "show_1"} | bound])
    place(0, folder / "videos/star/Charades_v1_480/s.mp4")
    place(1, folder / "videos/scene_qa/video/t.mp4")
    frames = folder / "videos/tvqa/frames_fps3_hq/show_1"
    frames.mkdir(parents=True)
    for number in range(1, 31):
        Image.new("RGB", (48, 32), (8 * number, 0, 0)).save(frames / f"{number:05d}.jpg")


def videomme(root: Path, place: Place) -> None:
    letters = [f"{letter}. {option}" for letter, option in zip("ABCD", OPTIONS, strict=False)]
    groups = {"duration": "short", "domain": "Knowledge", "sub_category": "Law", "task_type": "OCR Problems"}
    rows = [
        {"video_id": f"00{i}", "videoID": f"m{i}", "question_id": f"00{i}-1", "question": "what happens?", **groups}
        | {"options": letters, "answer": "B"}
        for i in range(CLIPS)
    ]
    _json(root / "videomme/videomme.json", rows)
    for i in range(CLIPS):
        place(i, root / f"videomme/videos/m{i}.mp4")


def longvideobench(root: Path, place: Place) -> None:
    rows = [
        {"id": f"l{i}_0", "video_path": f"l{i}.mp4", "question": "what happens?", "candidates": OPTIONS}
        | {"correct_choice": 1, "duration_group": 60, "question_category": "S2E", "duration": duration(i)}
        for i in range(CLIPS)
    ]
    _json(root / "longvideobench/lvb_val.json", rows)
    for i in range(CLIPS):
        place(i, root / f"longvideobench/videos/l{i}.mp4")


def moving_shapes(root: Path, place: Place) -> None:
    rows = [
        json.dumps(line) for i in range(CLIPS) for line in clips.annotate(clip(i), "test", i, np.random.default_rng(i))
    ]
    _lines(root / "moving_shapes/test.jsonl", rows)
    for i in range(CLIPS):
        place(i, root / f"moving_shapes/videos/test/{i:05d}.mp4")


WRITERS = (
    charades, anet, qvhighlights, youcook2, nextgqa, etbench, mvbench, videomme, longvideobench, moving_shapes,
    timelens, moments, grounded,
)  # fmt: skip


def copy(root: Path, target: Path, *folders: str) -> Path:
    """Part of a data root, as a new one that a test may damage."""
    for folder in folders:
        shutil.copytree(root / folder, target / folder)
    return target
