"""Records of a few events, and what one factor makes of them, for the tests of rejected answers."""

import random

from d2vlm.preference import PreferenceOptions, _scene
from d2vlm.preferences.factors import FACTORS, Library, Severity
from videollm.data import parse_record

DENSE = "<span>, cut the red onion. <span>, fry the egg. <span>, close the fridge."
TIMES = [1, 4, 6, 10, 12, 20]


def record(answer, tgt=(), question="What happens?", task="dense", video="a.mp4", line=1, **keys):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    keys = {"video": video, "duration": 40, "task": task, "tgt": list(tgt), "conversations": turns} | keys
    return parse_record(keys, line, "set.jsonl")


OTHER_VIDEO = record("<span>, wax the ski. <span>, brush the ski.", [0, 5, 8, 9], video="b.mp4", line=2)


def made(name, *records, seed=0, **severity):
    """The wording that one factor makes of the first record, or None."""
    options = PreferenceOptions(severity=Severity(**severity))
    scene = _scene(records[0], Library.of([*records, OTHER_VIDEO]), options)
    return FACTORS[name](scene, random.Random(seed))
