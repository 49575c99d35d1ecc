"""HiREST, moment retrieval: the part of an instructional video that a query is about (Zala et al., CVPR 2023).

Ground truth: the data set's own file; only videos that are ``relevant`` and have a ``clip`` are asked. Predictions: its
own, or those of every benchmark of moments (``moment_retrieval/task.py``)::

    {"Make french toast": {"ab12.mp4": {"relevant": true, "clip": true, "bounds": [5, 70], "v_duration": 90.0, ...}}}
    {"Make french toast": {"ab12.mp4": {"bounds": [4, 71]}}}
"""

from collections.abc import Callable

from all_benchmark_eval import moment_forms
from all_benchmark_eval.benchmark import Layout
from all_benchmark_eval.forms import Content, Form, entries, need
from all_benchmark_eval.items import as_object, duration_of
from all_benchmark_eval.metrics.moments import Located, Moments
from all_benchmark_eval.moment_retrieval.task import VideoMindMoments


def _queries(content: Content) -> list[moment_forms.Query]:
    """Ids are ``<video>/<query>``; a video keeps its name."""
    found = []
    for query, videos in content.object.items():
        for video, entry in as_object(videos, f"{content.path}: {query!r:.100}").items():
            where = f"{content.path}: {query!r:.100}: {video!r:.100}"
            entry = as_object(entry, where, ("relevant", "clip"))
            if entry["relevant"] and entry["clip"]:
                entry = as_object(entry, where, ("bounds", "v_duration"))
                length = duration_of({"duration": entry["v_duration"]}, where)
                found.append((f"{video}/{query}", video.removesuffix(".mp4"), query, entry["bounds"], length))
    return found


def _bounds(content: Content, truth: Moments) -> Located:
    """A moment may be told of videos that are not asked about: the script looks at those that are."""
    located, rows = Located.nowhere(len(truth)), set(truth.rows)
    for query, videos in content.object.items():
        where = f"{content.path}: {query!r:.100}"
        entries_of = {f"{video}/{query}": entry for video, entry in as_object(videos, where).items()}
        for name in entries_of.keys() & rows:
            located.put(truth.rows[name], as_object(entries_of[name], f"{where}: {name!r:.100}", ("bounds",))["bounds"])
    need(located.state.any(), f"{content.path}: no query of the annotations with its video in it; another split?")
    return located


def _has(*keys: str) -> Callable[[str, object], bool]:
    """Whether the first video of a query has these keys."""

    def has(query: str, videos: object) -> bool:
        first = next(iter(videos.values()), None) if isinstance(videos, dict) else None
        return isinstance(first, dict) and {*keys} <= first.keys()

    return has


_FORM = Form(
    "HiREST", '{query: {video: {"relevant", "clip", "bounds", "v_duration"}}}', entries(_has("relevant", "clip")),
    _queries,
)  # fmt: skip


class HiREST(VideoMindMoments):
    """R1 and, where spans are ranked, R5 at IoU 0.3, 0.5, 0.7; mIoU."""

    name = "hirest"
    title = "HiREST moment retrieval"
    layout = Layout(("all_data_val.json",))
    truths = (moment_forms.of_moments(_FORM, moment_forms.tidy),)
    forms = (
        Form("HiREST", '{query: {video: {"bounds": [s, e]}}}', entries(_has("bounds")), _bounds),
        *VideoMindMoments.forms,
    )


TASK = HiREST()
