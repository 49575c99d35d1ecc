"""Annotations and predictions of the grounding benchmarks in a few lines, for their tests."""

from pathlib import Path

from all_benchmark_eval.benchmark import get
from tests.form_files import write

GROUNDING = ("charades", "anet", "qvhighlights", "nextgqa")

TRUTH = {
    "charades": {
        "database": {
            "AAA": {"duration": 30.0, "annotations": [{"label": "a door.", "segment": [10, 20]}]},
            "BBB": {
                "duration": 40.0,
                "annotations": [{"label": "a cat.", "segment": [0, 5]}, {"label": "a dog.", "segment": [30, 40.5]}],
            },
        }
    },
    "anet": {"v_A": {"duration": 50, "timestamps": [[0, 10], [20, 40]], "sentences": ["One.", " Two."]}},
    "qvhighlights": [
        {
            "qid": "QVHighlight_7",
            "video": "x",
            "query": "q7",
            "duration": 150,
            "relevant_windows": [[10, 20], [30, 50]],
        },
        {"qid": "QVHighlight_8", "video": "y", "query": "q8", "duration": 150, "relevant_windows": [[100, 150]]},
    ],
    "nextgqa": {"111": {"duration": 30, "location": {"0": [[5, 10], [20, 25]], "2": [[0, 30]]}}},
}
PERFECT = {
    "charades": {
        "AAA": {"a door.": {"start": 10, "end": 20}},
        "BBB": {"a cat.": {"start": 0, "end": 5}, "a dog.": {"start": 30, "end": 40.5}},
    },
    "anet": {"results": {"v_A-0": {"timestamp": [[0, 10]]}, "v_A-1": {"timestamp": [[20, 40]]}}},
    "qvhighlights": [
        {"qid": 7, "pred_relevant_windows": [[10, 20, 0.9], [30, 50, 0.8]]},
        {"qid": 8, "pred_relevant_windows": [[100, 150, 0.9]]},
    ],
    "nextgqa": [
        {"qid": "TN_111_0", "prediction": "3", "timestamp": [5, 10], "target": 3},
        {"qid": "CW_111_2", "prediction": "1", "timestamp": [0, 30], "target": 1},
    ],
}
COUNT = {"charades": 3, "anet": 2, "qvhighlights": 2, "nextgqa": 2}


def truth_of(name: str, folder: Path):
    return get(name).load(write(folder / "truth.json", TRUTH[name]))
