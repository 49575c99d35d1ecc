"""The numbers of QVHighlights from arrays: DisTime's moment retrieval, and moment_detr's with highlight detection.

In: a ``Submission``; out: ``Scores`` in percent, as the script of either system prints them or, ``corrected``, as they
are meant. Files are not known here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from all_benchmark_eval.benchmark import Scores
from all_benchmark_eval.items import need
from all_benchmark_eval.metrics.moments import SLACK, State, order_and_clip, state_counts, table
from all_benchmark_eval.qvhighlights.files import NO_WINDOW, Submission
from all_benchmark_eval.qvhighlights.highlights import LEVELS, highlight_scores
from all_benchmark_eval.qvhighlights.retrieval import THRESHOLDS, average_precision, best_iou

KEPT = 10  # windows a query that moment_detr looks at
LENGTHS = {"short": (0, 10), "middle": (10, 30), "long": (30, 150)}  # of true windows: above .. up to, seconds
LOOSE = (0.3, 0.35, 0.4, 0.45)  # R@1 that papers and later scripts quote beside THRESHOLDS
ALSO = LOOSE[0]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ranked:
    """What is scored of N queries: the first window [N, 2] (NaN: none), and all of them in rank order."""

    ids: list[str]
    first: Floats
    windows: list[Floats]
    true: list[Floats]
    slack: float  # below a threshold that is a hit still

    def scores(self) -> tuple[Floats, Floats, dict[float, float], dict[float, float], float]:
        """IoU of the first window [N], AP [N, T]; recall and precision in percent by threshold, mean precision."""
        iou = np.nan_to_num(best_iou(self.first, self.true))
        ap = average_precision(self.windows, self.true, np.array(THRESHOLDS) - self.slack)
        recalls = {t: 100 * float(np.mean(iou >= t - self.slack)) for t in (*LOOSE, *THRESHOLDS)}
        precisions = dict(zip(THRESHOLDS, (100 * ap.mean(0)).tolist(), strict=True))
        return iou, ap, recalls, precisions, float(np.mean(list(precisions.values())))

    def of_length(self, low: float, high: float) -> "Ranked":
        """Only true windows of this length, and the queries that have one; predictions stay."""
        true = [w[(w[:, 1] - w[:, 0] > low) & (w[:, 1] - w[:, 0] <= high)] for w in self.true]
        rows = [i for i, windows in enumerate(true) if len(windows)]
        ids, windows = [self.ids[i] for i in rows], [self.windows[i] for i in rows]
        return Ranked(ids, self.first[rows], windows, [true[i] for i in rows], self.slack)


def distime(given: Submission, *, corrected: bool) -> Scores:
    """DisTime's script: windows in the given order, no scores; the queries in the file only."""
    told = given.windows is not None
    need(told, "the predictions hold saliency but no windows: score them with --variant moment_detr")
    rows = _rows(given, corrected)
    ranked, clipped = _corrected(given) if corrected else (_as_given(given, rows, kept=None), 0)
    iou, ap, recalls, precisions, average = ranked.scores()
    tidy = float if corrected else _round
    r1, mean_ap = ({t: tidy(value) for t, value in values.items()} for values in (recalls, precisions))
    metrics = {f"R1@{t}": r1[t] for t in (ALSO, 0.5, 0.7)}
    metrics |= {"R1 avg": float(np.mean([r1[t] for t in THRESHOLDS]))}
    metrics |= {f"mAP@{t}": mean_ap[t] for t in (0.5, 0.75)} | {"mAP avg": tidy(average)}
    metrics |= {"mIoU": 100 * float(iou.mean())}
    per_sample = {f"R1@{t}": table(ranked.ids, iou >= t - ranked.slack) for t in (ALSO, 0.5, 0.7)}
    hits = iou[:, None] >= np.array(THRESHOLDS) - ranked.slack  # [N, T]
    per_sample |= {"R1 avg": table(ranked.ids, hits.mean(-1))} | _ap_table(ranked.ids, ap, "mAP")
    per_sample |= {"mIoU": table(ranked.ids, iou)}
    invalid = [not len(w) or -1 in w[0, :2] for w in (given.windows[i] for i in rows)]
    details = {
        "R1": _named(r1),
        "mAP": _named(mean_ap) | {"average": tidy(average)},
        "exact": {"R1": _named(recalls), "mAP": _named(precisions), "mAP average": average},
        "hits": _named(dict(zip(THRESHOLDS, hits.sum(0).tolist(), strict=True))),
        "invalid_predictions": float(np.mean(invalid)),
        "total": len(rows),
    }
    denominator = "" if corrected else "the queries in the prediction file"
    return Scores(metrics, "percent", state_counts(given.state, clipped), per_sample, denominator, details)


def moment_detr(given: Submission, *, corrected: bool) -> Scores:
    """moment_detr's script: windows by score, by length of the true windows as well, and highlights.

    mIoU of the first window and R1 below 0.5 are what the scripts made of it print as well (CG-DETR's, say).

    Published: over the queries in the file, as TimeChat runs it; moment_detr's own stops if one is missing.
    """
    scores = Scores({}, "percent", state_counts(given.state))
    unparsed = scores.counts["unparsed"]
    if not corrected:
        scores.denominator = "the queries in the prediction file"
        scores.notes += [f"{unparsed} unparsed ones score 0; the published script stops at the first"] * (unparsed > 0)
    tidy = float if corrected else _round
    if given.windows is not None:
        _add_retrieval(scores, given, corrected, tidy)
    else:
        scores.notes.append("no windows in the file: moment retrieval is not scored")
    if given.saliency is not None:
        _add_highlights(scores, given, corrected, tidy)
    else:
        scores.notes.append("no saliency in the file: highlight detection is not scored")
    return scores


def _add_retrieval(scores: Scores, given: Submission, corrected: bool, tidy) -> None:
    ranked, clipped = _corrected(given) if corrected else (_as_given(given, _rows(given, False), kept=KEPT), 0)
    scores.counts["clipped"] = clipped
    for name in ("full", *LENGTHS):
        part = ranked if name == "full" else ranked.of_length(*LENGTHS[name])
        if not part.ids:
            scores.metrics |= {f"MR-{name}-{key}": None for key in (f"R1@{ALSO}", "mAP", "mIoU")}
            scores.notes.append(f"no true window is {name}")
            continue
        iou, ap, exact, precisions, average = part.scores()
        recalls, average, miou = {t: tidy(v) for t, v in exact.items()}, tidy(average), tidy(100 * float(iou.mean()))
        precisions = {t: tidy(value) for t, value in precisions.items()}
        scores.details[name] = {"MR-mAP": _named(precisions) | {"average": average}, "MR-R1": _named(recalls)}
        scores.details[name]["MR-mIoU"] = miou
        shown = (ALSO, 0.5, 0.7) if name == "full" else (ALSO,)
        scores.metrics |= {f"MR-{name}-R1@{t}": recalls[t] for t in shown} | {f"MR-{name}-mAP": average}
        if name == "full":
            scores.metrics |= {f"MR-full-mAP@{t}": precisions[t] for t in (0.5, 0.75)}
            hits = {f"MR-full-R1@{t}": table(part.ids, iou >= t - part.slack) for t in shown}
            scores.per_sample |= hits | _ap_table(part.ids, ap, "MR-full-mAP") | {"MR-full-mIoU": table(part.ids, iou)}
        scores.metrics[f"MR-{name}-mIoU"] = miou


def _add_highlights(scores: Scores, given: Submission, corrected: bool, tidy) -> None:
    remedy = "give the data set's own file (highlight_val_release.jsonl) by --annotations"
    need(given.truth.saliency is not None, f"the ground truth has no saliency_scores: {remedy}")
    rows = _rows(given, corrected)
    ids, predicted, true = ([xs[i] for i in rows] for xs in (given.truth.qids, given.saliency, given.truth.saliency))
    hit, ap = highlight_scores(predicted, true, published=not corrected)  # [N, levels]
    for level, name in enumerate(LEVELS):
        values = {"HL-mAP": ap[:, level], "HL-Hit1": hit[:, level]}
        scores.details[f"HL-min-{name}"] = {key: tidy(100 * float(v.mean())) for key, v in values.items()}
        for key, value in values.items():
            full = f"HL-min-{name}-{key.removeprefix('HL-')}"
            scores.metrics[full] = scores.details[f"HL-min-{name}"][key]
            scores.per_sample[full] = table(ids, value)
    absent = sum(given.saliency[i] is None for i in _rows(given, False))
    if absent:
        scores.notes.append(f"{absent} queries have no usable saliency scores: 0 for highlight detection")


def _rows(given: Submission, corrected: bool) -> NDArray[np.int64]:
    """The queries that count: all of them, or as published those in the file."""
    return np.arange(len(given.state)) if corrected else np.flatnonzero(given.state != State.MISSING)


def _as_given(given: Submission, rows: Sequence[int], kept: int | None) -> Ranked:
    """As published: the first of the file for recall; for AP its first ``kept`` windows, by score (stable)."""
    windows = [given.windows[i] for i in rows]
    by_score = [w[:kept, :2][np.argsort(-w[:kept, 2], kind="stable")] for w in windows]
    true = [given.truth.windows[i] for i in rows]
    return Ranked([given.truth.qids[i] for i in rows], _firsts(windows), by_score, true, slack=0.0)


def _corrected(given: Submission) -> tuple[Ranked, int]:
    """Real windows only, ordered, cut to the video, by falling score -> and how many queries had one cut."""
    windows, clipped = [], 0
    for found, true, duration in zip(given.windows, given.truth.windows, given.truth.durations, strict=True):
        found = found[(found[:, :2] != NO_WINDOW).any(-1)]
        found = found[np.argsort(-found[:, 2], kind="stable")]
        spans, cut = order_and_clip(found[:, :2], np.full(len(found), max(duration, true.max())))
        windows.append(spans)
        clipped += bool(cut.any())
    return Ranked(given.truth.qids, _firsts(windows), windows, given.truth.windows, slack=SLACK), clipped


def _firsts(windows: Sequence[Floats]) -> Floats:
    return np.array([w[0, :2] if len(w) else (np.nan, np.nan) for w in windows]).reshape(-1, 2)


def _ap_table(ids: Sequence[str], ap: Floats, name: str) -> dict[str, dict[str, float]]:
    """Per-sample AP at 0.5, 0.75 and over all thresholds, under the names of the metrics."""
    columns = {f"{name}@{t}": ap[:, THRESHOLDS.index(t)] for t in (0.5, 0.75)}
    average = f"{name} avg" if name == "mAP" else name
    return {key: table(ids, column) for key, column in columns.items()} | {average: table(ids, ap.mean(-1))}


def _named(values: dict[float, float]) -> dict[str, float]:
    return {f"{t:g}": value for t, value in values.items()}


def _round(value: float) -> float:
    return float(f"{value:.2f}")


VARIANTS = {"distime": distime, "moment_detr": moment_detr}
