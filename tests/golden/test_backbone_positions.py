"""Positions of the released models: every golden layout that our prompts can have, and time by each of the rules."""

import json
from itertools import groupby

import numpy as np
import pytest

from tests.golden.backbone_model import ROOT, settings
from videollm.video.patching import Patching, Run, even_starts

QWENS = [family for family in ("qwen2_5_vl", "qwen3_vl") if (ROOT / family / "layouts.json").is_file()]


def layouts(family):
    """(patching, {name: prompt}, {name: what the release does})."""
    found = json.loads((ROOT / family / "layouts.json").read_text("utf-8"))
    for name in found["positions"].keys() - found["prompts"].keys():  # a prompt again, with other seconds a group
        prompt, _, seconds = name.partition("_second_per_grid_")
        seconds = [float(seconds)] * len(found["prompts"][prompt]["video"])
        found["prompts"][name] = {**found["prompts"][prompt], "second_per_grid_ts": seconds}
    time = {"per_second": found["tokens_per_second"], "rule": "4.52"} if family == "qwen2_5_vl" else {}
    return Patching(4, found["spatial_merge_size"], **time), found["prompts"], found["positions"]


def runs_of(family, prompt, merge):
    """The runs of visual tokens of a prompt as we would make them; None where it is none of our layouts."""
    config, runs = settings(family), []
    grids = {
        config["image_token_id"]: [list(grid) for grid in prompt.get("image", [])],
        config["video_token_id"]: [list(grid) for grid in prompt.get("video", [])],
    }
    seconds = list(prompt.get("second_per_grid_ts", []))
    ids, place = prompt["ids"], 0
    for token, same in groupby(ids):
        count = len(list(same))
        if token in grids:
            pair = ids[place - 1 : place] == [config["vision_start_token_id"]]
            if not pair or ids[place + count : place + count + 1] != [config["vision_end_token_id"]]:
                return None
            whole, *_ = grids[token] or [None]
            if whole is None:
                return None
            t, rows, columns = whole
            groups = count * merge**2 // (rows * columns)
            if groups == t:
                grids[token].pop(0)
            elif groups == 1:
                whole[0] -= 1  # a group of a video, between its own pair of tokens
            else:
                return None
            step = seconds.pop(0) if seconds and token == config["video_token_id"] and groups == t else 1.0
            runs.append(Run(place, (rows, columns), even_starts(groups, step)))
        place += count
    return runs if not any(grids.values()) and config["vision_start_token_id"] not in ids[-1:] else None


@pytest.mark.parametrize("family", QWENS)
def test_backbone_layouts_have_the_released_positions_or_are_refused(family):
    patching, prompts, golden = layouts(family)
    ours, refused = [], []
    for name, prompt in prompts.items():
        runs = runs_of(family, prompt, patching.merge)
        if runs is None:
            continue
        if family == "qwen3_vl" and any(len(run.starts_s) > 1 for run in runs):
            with pytest.raises(ValueError, match="no time"):
                patching.positions(len(prompt["ids"]), runs)
            refused.append(name)
            continue
        if "position_ids" not in golden[name]:  # the release fails, we give a group the place of an image
            continue
        found = patching.positions(len(prompt["ids"]), runs)
        assert found.tolist() == golden[name]["position_ids"], name
        assert found.max() + 1 - len(prompt["ids"]) == golden[name]["rope_delta"], name
        ours.append(name)
    assert len(ours) >= 3 and bool(refused) == (family == "qwen3_vl")


@pytest.mark.parametrize("family", [family for family in QWENS if (ROOT / family / "time_steps.json").is_file()])
def test_backbone_time_steps_by_both_released_rules(family):
    rows = json.loads((ROOT / family / "time_steps.json").read_text("utf-8"))
    assert rows
    for row in rows:
        starts = even_starts(row["groups"], row["second_per_grid"])
        for rule, ending in (("4.49", "_4_49"), ("4.52", "")):
            patching = Patching(4, 2, per_second=row["tokens_per_second"], rule=rule, even=True)
            assert patching.units(starts).tolist() == row[f"time_steps{ending}"], (rule, row)
            places = patching.positions(row["groups"] + 1, [Run(0, (2, 2), starts)])
            assert places[0, -1] == row[f"text_after_starts_at{ending}"], (rule, row)


@pytest.mark.parametrize("family", [family for family in QWENS if (ROOT / family / "time_steps.json").is_file()])
def test_backbone_time_steps_of_uneven_frames_are_the_released_ones_where_published(family):
    """The release counts even steps, whenever the frames between the first and the last are shown."""
    draw, differ = np.random.default_rng(0), 0
    for row in json.loads((ROOT / family / "time_steps.json").read_text("utf-8")):
        step, count = row["second_per_grid"] / 2, 2 * row["groups"]
        shown = np.arange(count) * step
        shown[1:-1] += draw.uniform(-0.4, 0.4, max(0, count - 2)) * step
        ours, even = (Patching(4, per_second=row["tokens_per_second"], even=even) for even in (False, True))
        assert even.units(even.times(shown)[1]).tolist() == row["time_steps_4_49"], row
        differ += ours.units(ours.times(shown)[1]).tolist() != row["time_steps_4_49"]
    assert differ


def test_times_as_shown_are_the_released_steps_where_frames_are_evenly_shown():
    times = np.arange(16) / 2
    shown, even = (Patching(4, per_second=4, even=even) for even in (False, True))
    assert shown.units(shown.times(times)[1]).tolist() == even.units(even.times(times)[1]).tolist()
