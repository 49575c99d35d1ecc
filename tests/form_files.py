"""Every form of file that people have, by hand: three moments, two videos with captions, two questions of Video-MME.

Answers to the moments are right, half right and missing; captions are all right; one choice of two is right.
"""

import json
from pathlib import Path

from all_benchmark_eval.score import score_file


def changed(data, path, value):
    """JSON data with the value at a place (numbers of items on the way down) replaced."""
    if not path or not isinstance(data, dict | list) or not data:
        return value
    keys = list(data) if isinstance(data, dict) else range(len(data))
    key, copy = keys[path[0] % len(keys)], data.copy()
    copy[key] = changed(data[key], path[1:], value)
    return copy


# ---- one truth, in whatever form; answers that are right, half right and missing -------------------------------------

QUERIES = [("AAA", "a door.", [10, 20]), ("BBB", "a cat.", [0, 5]), ("BBB", "a dog.", [30, 40])]
GIVEN = [("AAA", "a door.", [10, 20]), ("BBB", "a cat.", [0, 2.5])]  # IoU 1 and 0.5; the third is missing
LENGTH = {"AAA": 30.0, "BBB": 40.0}


def lines(*rows: dict) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def keyed(answer) -> dict:
    true = {(v, q): s for v, q, s in QUERIES}
    return {f"{v}.mp4>>>{q}>>>{list(map(float, true[v, q]))}": answer(s) for v, q, s in GIVEN}


def window_rows(**more) -> list[dict]:
    return [{"vid": v, "query": q, "pred_relevant_windows": [[0, 1, 0.1], [*s, 0.9]]} | more for v, q, s in GIVEN]


NO_CLIP = {"relevant": True, "clip": False, "bounds": [], "v_duration": 1}
SENTENCES = {"AAA": {"a door.": {"start": 10, "end": 20}}, "BBB": {"a cat.": {"start": 0, "end": 2.5}}}
TEXTS = [f"From {s[0]} to {s[1]} seconds." for _, _, s in GIVEN]
MOMENTS = {  # of charades, anet and moment_retrieval alike
    "moment_detr lines": lines(*window_rows(qid="x")),
    "VideoMind lines": lines(
        *({"video_path": f"data/videos_3fps/{v}.mp4", "query": q.strip("."), "duration": 9, "span": [[1, 2]],
           "pred": [s, [0, 1]], "conf": [0.1, 0.9]} for v, q, s in GIVEN)
    ),
    "video>>>query>>>[s, e]": keyed(lambda s: f"It happens from {s[0]} to {s[1]} seconds."),
    "lmms-eval samples": lines(
        *({"doc_id": i, "doc": {"video": f"{v}.mp4", "caption": q}, "target": [0, 1], "filtered_resps": [text]}
          for i, ((v, q, _), text) in enumerate(zip(GIVEN, TEXTS, strict=True)))
    ),
    "texts": lines(*({"video": v, "question": q, "text": text} for (v, q, _), text in zip(GIVEN, TEXTS, strict=True))),
}  # fmt: skip
FILES = {  # benchmark -> form -> predictions
    "charades": MOMENTS | {
        "DisTime": SENTENCES,
        "D2VLM converted, TimeChat": {"0": {"timestamp": [10, 20], "vid": "AAA.mp4"}, "1": [0, 2.5]},
        "D2VLM answers": [
            {"idx": i, "video": f"{v}.mp4", "a": f"</evi>{s[0]} - {s[1]}"} for i, (v, _, s) in enumerate(GIVEN)
        ],
    },
    "anet": MOMENTS | {
        "DisTime": {"results": {"AAA-0": {"timestamp": [[10, 20]]}, "BBB-0": {"timestamp": [[0, 2.5]]}}},
    },
    "moment_retrieval": MOMENTS,
    "qvhighlights": {
        "DisTime": [{"qid": f"QVHighlight_{i}", "prediction": str([s])} for i, (_, _, s) in enumerate(GIVEN)],
        "moment_detr, TimeChat": lines(*(row | {"qid": i} for i, row in enumerate(window_rows()))),
        "video>>>query>>>[s, e]": keyed(lambda s: {"timestamps": [s], "answers": "..."}),
        "texts": lines(*({"qid": i, "response": text} for i, text in enumerate(TEXTS))),
        "lmms-eval samples": MOMENTS["lmms-eval samples"],
    },
}  # fmt: skip
ANET = {v: {"duration": LENGTH[v], "timestamps": [], "sentences": []} for v in LENGTH}
for v, q, s in QUERIES:
    ANET[v]["timestamps"].append(s)
    ANET[v]["sentences"].append(q)
ROWS = [{"vid": v, "query": q, "duration": LENGTH[v]} for v, q, _ in QUERIES]
WINDOWS = lines(*(r | {"qid": i, "relevant_windows": [QUERIES[i][2]]} for i, r in enumerate(ROWS)))
TRUTHS = {  # benchmark -> form -> annotations
    "charades": {
        "Charades-STA text": "".join(f"{v} {s[0]} {s[1]}##{q}\n" for v, q, s in QUERIES),
        "UMT": {
            "database": {
                v: {"duration": n, "annotations": [{"label": q, "segment": s} for w, q, s in QUERIES if w == v]}
                for v, n in LENGTH.items()
            }
        },
        "TimeChat": {
            "annotations": [
                {"image_id": f"{v}.mp4", "caption": q, "timestamp": s, "id": i} for i, (v, q, s) in enumerate(QUERIES)
            ]
        },
    },
    "anet": {"ActivityNet Captions": ANET},
    "qvhighlights": {"moment_detr lines": WINDOWS},
    "moment_retrieval": {},
}
SHARED = {
    "moment_detr lines": WINDOWS,
    "VideoMind lines": [
        {"video_path": f"data/{v}.mp4", "query": q, "duration": LENGTH[v], "span": [s]} for v, q, s in QUERIES
    ],
    "TimeLens": {
        v: {"duration": a["duration"], "spans": [[s] for s in a["timestamps"]], "queries": a["sentences"]}
        for v, a in ANET.items()
    },
}
OWN_TRUTHS = {  # of benchmarks of moments that have one form of annotations
    "charades_timelens": ("TimeLens", SHARED["TimeLens"]),
    "tvgbench": ("Time-R1", [
        {"path": f"x/{v}.mp4", "question": q, "answer": f"{s[0]}.0-{s[1]}", "duration": LENGTH[v], "qsemtype": "Pose"}
        for v, q, s in QUERIES
    ]),
    "hirest": ("HiREST", {
        q: {f"{v}.mp4": {"relevant": True, "clip": True, "bounds": s, "v_duration": LENGTH[v]}, "CCC.mp4": NO_CLIP}
        for v, q, s in QUERIES
    }),
    "activitynet_rtl": ("LITA", [
        {"vid": v, "question": q, "answer": f"It is <{s[0]}> to <{s[1]}.0>.", "duration": LENGTH[v]}
        for v, q, s in QUERIES
    ]),
    "extremewhenbench": ("ExtremeWhenBench", lines(*(
        {"qid": i, "video_id": v, "source_corpus": "MLVU", "question": q, "correct_interval": s,
         "video_duration_s": LENGTH[v], "category": "action"} for i, (v, q, s) in enumerate(QUERIES)
    ))),
}  # fmt: skip
TRUTHS |= {name: dict([own]) for name, own in OWN_TRUTHS.items()} | {"tacos": SHARED, "ego4d_nlq": SHARED}
FILES |= dict.fromkeys((*OWN_TRUTHS, "tacos", "ego4d_nlq"), MOMENTS)
FILES["hirest"] = MOMENTS | {"HiREST": {q: {f"{v}.mp4": {"bounds": s}} for v, q, s in GIVEN}}
FILES["tvgbench"] = MOMENTS | {
    "Time-R1 lines": lines(
        *({"qid": f"x_{i}", "pred": s, "target": QUERIES[i][2], "output_text": f"<answer>{s[0]} to {s[1]}</answer>"}
          for i, (_, _, s) in enumerate(GIVEN))
    )
}  # fmt: skip
TRUTHS["charades"] |= SHARED
TRUTHS["moment_retrieval"] |= SHARED


def write(path: Path, data) -> Path:
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def scored(name: str, truth, predictions, folder: Path, **options) -> dict:
    given, true = write(folder / "given.json", predictions), write(folder / "truth.json", truth)
    return score_file(name, given, [true], folder / "scores.json", skip_meteor=True, **options)["protocols"]


MOMENT_CASES = [(name, next(iter(TRUTHS[name])), form) for name, forms in FILES.items() for form in forms]
MOMENT_CASES += [(name, truth, next(iter(FILES[name]))) for name, truths in TRUTHS.items() for truth in truths]


# ---- dense captions --------------------------------------------------------------------------------------------------

EVENTS = {"v_a": [([0.4, 10.6], "cut the onion."), ([20.5, 30.5], "add oil.")], "v_b": [([5.5, 15.25], "stir.")]}
CAPTIONS = {
    v: {"duration": 50.0, "timestamps": [s for s, _ in e], "sentences": [t for _, t in e]} for v, e in EVENTS.items()
}
COCO = {
    "annotations": [
        {"image_id": f"{v}.mp4", "duration": 50.0, "segments": [s for s, _ in e],
         "pure_cap": ". ".join(t[:-1] for _, t in e)}
        for v, e in EVENTS.items()
    ]
}  # fmt: skip
DATABASE = {
    "database": {
        v: {"subset": "validation", "duration": 50.0, "annotations": [{"segment": s, "sentence": t} for s, t in e]}
        for v, e in EVENTS.items()
    }
}
DENSE_TRUTHS = {"ActivityNet Captions, PDVC": CAPTIONS, "TimeChat, Vid2Seq": COCO, "YouCook2": DATABASE}
TOLD = {v: " ".join(f"{s[0]} - {s[1]} seconds, {t}" for s, t in e) for v, e in EVENTS.items()}
DENSE = {
    "ActivityNet challenge": {
        "version": "VERSION 1.0",
        "results": {v: [{"sentence": t, "timestamp": s} for s, t in e] for v, e in EVENTS.items()},
    },
    "TimeChat, TRACE": {f"{v}.mp4": [{"timestamp": s, "caption": t} for s, t in e] for v, e in EVENTS.items()},
    "texts": {v: text for v, text in TOLD.items()},
    "lmms-eval samples": lines(
        *({"doc_id": i, "doc": {"video_id": v}, "target": "", "resps": [[TOLD[v]]]} for i, v in enumerate(TOLD))
    ),
}
LOGS = lines(
    *({"video_id": v, "task": "captioning", "answer": "Here it is: " + json.dumps(
        [{"event": t, "timestamps": f"{s[0]} - {s[1]}"} for s, t in e])} for v, e in EVENTS.items()),
    {"video_id": "v_a", "task": "grounding", "answer": "It happens from 17 to 34."},
)  # fmt: skip
DENSE_CASES = [(n, t, f, p) for n in ("anet_dvc", "youcook2") for t in DENSE_TRUTHS for f, p in DENSE.items()]
DENSE_CASES += [("anet_dvc", "TimeChat, Vid2Seq", "DisTime, VTimeLLM logs", LOGS)]
DENSE_CASES += [
    ("youcook2", "YouCook2", "D2VLM answers", [{"video": f"x/{v}.MP4", "a": f"</evi>{t}"} for v, t in TOLD.items()])
]


# ---- Video-MME -------------------------------------------------------------------------------------------------------

VIDEO = {"video_id": "001", "duration": "short", "domain": "Knowledge", "sub_category": "Law"}
ASKED = {"question_id": "001-1", "task_type": "OCR", "question": "Who?", "options": ["A. he", "B. she"], "answer": "B"}
OTHER = ASKED | {"question_id": "001-2", "question": "Where?", "answer": "A"}
MME = {
    "D2VLM": [VIDEO | ASKED | {"a": "B. she"}, VIDEO | OTHER | {"a": "B"}],
    "Video-MME official": [VIDEO | {"questions": [ASKED | {"response": "B"}, OTHER | {"response": "(B)"}]}],
    "texts": {"001-1": "B", "001-2": "The answer is B."},
    "lmms-eval samples": lines(
        *({"doc_id": i, "doc": VIDEO | q, "target": "x", "filtered_resps": ["B"]} for i, q in enumerate((ASKED, OTHER)))
    ),
}


# ---- the other benchmarks --------------------------------------------------------------------------------------------

MV = [{"video": "v.mp4", "question": f"who {i}?", "candidates": ["he", "she"], "answer": "she"} for i in range(2)]
LONG = [
    {"id": f"x_{i}", "correct_choice": 1, "duration_group": 15, "question_category": "S2E", "question": f"who {i}?"}
    | {"candidates": ["he", "she"], "video_path": "x.mp4"}
    for i in range(2)
]
ET = [
    {"task": "tvg", "source": "a", "idx": i, "video": f"a/{i}.mp4", "duration": 60, "tgt": [10, 20], "q": "when?"}
    for i in range(2)
]
SHAPES = {
    "id": "g", "video": "g.mp4", "duration": 20, "task": "grounding", "source": "moving_shapes", "tgt": [5, 10],
    "events": [], "conversations": [{"from": "human", "value": "<video>\nwhen?"}, {"from": "gpt", "value": "<span>"}],
}  # fmt: skip
REX = [
    {"vid": v, "question": q, "options": ["he", "she"], "ans": "A", "span": s, "duration": LENGTH[v]}
    for v, q, s in QUERIES
]
CLUES = [
    {"qid": i, "video_uid": v, "question": q, "choices": ["he", "she"], "right_answer": "A", "clue_intervals": [s]}
    for i, (v, q, s) in enumerate(QUERIES)
]
FOUND = [{"vid": v, "question": q, "pred": [s], "conf": [1], "response": "A"} for v, q, s in GIVEN]
GSUB = {"111": {"duration": 30, "location": {"0": [[5, 10]], "2": [[0, 30]]}}}
OWN = {  # benchmark -> annotations' name, annotations, predictions in its own form
    "mvbench": ("object_shuffle.json", MV, [{"task_type": "Object Shuffle", "pred": "(B)", "gt": "(B) she"}] * 2),
    "longvideobench": ("lvb_val.json", LONG, [{"id": f"x_{i}", "pred": "B", "gt": "B. she"} for i in range(2)]),
    "rextime": ("rextime_val.json", REX, FOUND),
    "cgbench": ("cgbench_mini.json", CLUES, FOUND),
    "etbench": ("t.json", ET, [row | {"a": "10 - 20"} for row in ET]),
    "nextgqa": (
        "gsub_test.json", GSUB,
        [{"qid": f"TN_111_{i}", "prediction": "3", "timestamp": [5, 10], "target": 3} for i in (0, 2)],
    ),
    "moving_shapes": (
        "test.jsonl", [SHAPES],
        [{"id": "g", "task": "grounding", "spans": [[5, 10]], "evidence_spans": [], "phrases": [], "choice": None,
          "missing": False}],
    ),
}  # fmt: skip
