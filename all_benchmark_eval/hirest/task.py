"""HiREST, moment retrieval: the part of an instructional video that a query is about (Zala et al., CVPR 2023).

Ground truth: the data set's own file; only videos that are ``relevant`` and have a ``clip`` are asked. Predictions are
those of every benchmark of moments (``moment_retrieval/task.py``)::

    {"Make french toast": {"ab12.mp4": {"relevant": true, "clip": true, "bounds": [5, 70], "v_duration": 90.0, ...}}}
"""

from all_benchmark_eval import moment_forms
from all_benchmark_eval.benchmark import Layout
from all_benchmark_eval.forms import Content, Form, entries
from all_benchmark_eval.items import as_object, duration_of
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


def _has_clips(query: str, videos: object) -> bool:
    first = next(iter(videos.values()), None) if isinstance(videos, dict) else None
    return isinstance(first, dict) and {"relevant", "clip"} <= first.keys()


_FORM = Form("HiREST", '{query: {video: {"relevant", "clip", "bounds", "v_duration"}}}', entries(_has_clips), _queries)


class HiREST(VideoMindMoments):
    """R1 and, where spans are ranked, R5 at IoU 0.3, 0.5, 0.7; mIoU."""

    name = "hirest"
    title = "HiREST moment retrieval"
    layout = Layout(("all_data_val.json",))
    truths = (moment_forms.of_moments(_FORM, moment_forms.tidy),)


TASK = HiREST()
