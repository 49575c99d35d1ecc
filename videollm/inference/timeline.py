"""Pictures of spans on the timeline of a video, under its frames.

In: plain lists, dicts and uint8 arrays; times in seconds. Out: PNG files. It draws with matplotlib's Agg
canvas, without pyplot (no window, no global state), and knows nothing of models, configs or benchmarks.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from videollm.common.answers import split_spans

TRUTH = "#2f9e6e"
# Distinct in hue and in lightness, also for the colour-blind; green is kept for the truth.
PALETTE = ("#3b6fd4", "#e0803a", "#8a56c2", "#c9436b", "#2a9fb5", "#8c6d46")
INK, MUTED, RULE, PAPER = "#1f2430", "#6b7280", "#d9dde4", "#ffffff"
MAX_FRAMES = 12  # pictures in the row above a timeline
STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eceff3",
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
}

Spans = Sequence[Sequence[float]]  # [[start_s, end_s], ...]


def timeline(
    path: str | Path,
    frames: Sequence[np.ndarray] | None,
    frame_times_s: Sequence[float],
    duration_s: float,
    truth: Mapping[str, Spans],
    predictions: Mapping[str, Spans],
    title: str = "",
    texts: Mapping[str, str] | None = None,
) -> None:
    """Draw spans under the frames of a video, to a PNG.

    frames: uint8 [H, W, 3] arrays (or None), taken at ``frame_times_s``; as many as fit (at most 12), spread evenly
    over the video, are shown above their times. truth and predictions: {label: [[start_s, end_s], ...]}, one lane
    each, its spans numbered where there are several. texts: {label: an answer's text}, printed below with the same
    numbers. Raises ValueError for a duration that is not above 0, a frame without a time, and times that are not
    finite.
    """
    sample = {"frames": frames, "frame_times_s": frame_times_s, "duration_s": duration_s}
    sample |= {"truth": truth, "predictions": predictions, "title": title, "texts": texts or {}}
    timeline_grid(path, [sample], columns=1)


def timeline_grid(path: str | Path, samples: Sequence[Mapping], columns: int = 2) -> None:
    """Draw several timelines in one PNG; each sample is a dict of :func:`timeline`'s arguments, ``path`` apart."""
    if not samples:
        raise ValueError(f"{path}: no samples to draw")
    for sample in samples:
        _check_timeline(sample)
    columns = min(columns, len(samples))
    rows = [samples[i : i + columns] for i in range(0, len(samples), columns)]
    width = 9.0 if columns == 1 else 6.6 * columns
    heights = [max(_timeline_height(sample, width / columns) for sample in row) for row in rows]
    with rc_context(STYLE):
        figure = Figure(figsize=(width, sum(heights)), dpi=140)
        grid = figure.subfigures(len(rows), columns, height_ratios=heights, squeeze=False)
        for cells, row, height in zip(grid, rows, heights, strict=True):
            for cell, sample in zip(cells, row, strict=False):  # the last row may be short
                _draw_timeline(cell, (width / columns, height), sample)
        save(figure, path)


def _check_timeline(sample: Mapping) -> None:
    name = f"timeline {sample.get('title')!r}"
    duration = sample["duration_s"]
    if not 0 < duration < np.inf:
        raise ValueError(f"{name}: duration_s must be above 0, got {duration}")
    if sample["frames"] is not None and len(sample["frames"]) != len(sample["frame_times_s"]):
        raise ValueError(f"{name}: {len(sample['frames'])} frames but {len(sample['frame_times_s'])} times")
    for label, spans in (*sample["truth"].items(), *sample["predictions"].items()):
        array = np.asarray(spans, dtype=float).reshape(-1, 2)
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: the spans of {label!r} are not finite: {spans}")


_LANE, _FRAMES, _TITLE, _AXIS, _LINE = 0.3, 0.85, 0.36, 0.5, 0.19  # inches


def _timeline_height(sample: Mapping, width: float) -> float:
    lanes = max(1, len(sample["truth"]) + len(sample["predictions"]))
    has_frames = sample["frames"] is not None and len(sample["frames"]) > 0
    return _TITLE + has_frames * _FRAMES + lanes * _LANE + _AXIS + len(_said(sample, width)) * _LINE


def _said(sample: Mapping, width: float) -> list[str]:
    """The lines of the sample's texts in a cell ``width`` inches wide."""
    told = (f"{name}: {numbered(text)}" for name, text in sample.get("texts", {}).items())
    return [line for text in told for line in textwrap.wrap(text, int(12.5 * width))]


def numbered(text: str) -> str:
    """An answer's text with the numbers of its spans, as they stand on the bars."""
    pieces, spans = split_spans(text)
    marks = [f"({k}) {start:.1f} – {end:.1f} s" for k, (start, end) in enumerate(spans, start=1)]
    return "".join(piece + mark for piece, mark in zip(pieces, [*marks, ""], strict=True))


def _draw_timeline(cell: SubFigure, size: tuple[float, float], sample: Mapping) -> None:
    """One timeline in a cell of ``size`` (wide, high) inches; whatever the row's height, it hangs from the top."""
    (width, height), predictions = size, sample["predictions"]
    lanes = [(name, spans, TRUTH) for name, spans in sample["truth"].items()]
    lanes += [(n, s, c) for c, (n, s) in zip(colors(len(predictions)), predictions.items(), strict=True)]
    longest = max((len(name) for name, _, _ in lanes), default=0)
    left = min(0.3 + 0.085 * min(longest, 28), 0.35 * width) / width
    inner = 1 - left - 0.25 / width
    top = 1 - _TITLE / height
    title = plain(_short(sample.get("title", ""), int(inner * width * 11.5)))
    cell.text(left, 1 - 0.12 / height, title, weight="bold", va="top")
    if sample["frames"] is not None and len(sample["frames"]):
        top -= _FRAMES / height
        _draw_frames(cell, (left, top, inner, _FRAMES / height), size, sample)
    tall = max(1, len(lanes)) * _LANE / height
    axes = cell.add_axes((left, top - tall, inner, tall))
    axes.set(xlim=(0, sample["duration_s"]), ylim=(max(1, len(lanes)) - 0.5, -0.5))
    for lane, (_, spans, color) in enumerate(lanes):
        _draw_bars(axes, lane, np.asarray(spans, dtype=float).reshape(-1, 2), color, inner * width)
    axes.set_yticks(range(len(lanes)), [plain(_short(name, 28)) for name, _, _ in lanes])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 3, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} s")
    for k, line in enumerate(_said(sample, width), start=1):
        below = top - tall - (_AXIS - 0.16 + k * _LINE) / height
        cell.text(0.15 / width, below, plain(line), size=9, color=INK, va="bottom")


def _draw_bars(axes: Axes, lane: int, spans: np.ndarray, color: str, width: float) -> None:
    """The spans [N, 2] of one lane, ``width`` inches wide; times are written where they fit."""
    duration_s = axes.get_xlim()[1]
    seconds_an_inch = duration_s / width
    axes.barh(lane, duration_s, height=0.56, color="#f3f5f8", zorder=0.5)
    label = {"va": "center_baseline", "size": 8, "zorder": 3}
    if not len(spans):
        axes.text(0.1 * seconds_an_inch, lane, "no span", ha="left", color=MUTED, style="italic", **label)
        return
    lengths = np.maximum(spans[:, 1] - spans[:, 0], 0.02 * seconds_an_inch)
    edge = {"edgecolor": PAPER, "linewidth": 1.0}  # parts spans that touch
    order = spans[:, 0].argsort(kind="stable")
    left = spans[order, 0]
    axes.barh(np.full(len(spans), lane), lengths[order], left=left, height=0.56, color=color, zorder=2, **edge)
    room, gap = 0.8 * seconds_an_inch, 0.06 * seconds_an_inch
    for place, k in enumerate(order):
        number, (start, end), length = k + 1, spans[k], lengths[k]
        if place + 1 < len(order):  # the next bar may cover the end of this one
            length = min(length, max(spans[order[place + 1], 0] - start, 0.02 * seconds_an_inch))
        text = f"{start:.1f} – {end:.1f}"
        if len(spans) > 1:
            text = f"({number}) {text}" if length > 1.25 * room else f"{number}"
        if length > (room if len(spans) == 1 else 0.12 * seconds_an_inch):
            axes.text(start + length / 2, lane, text, ha="center", color="white", weight="bold", **label)
        elif end + room < duration_s:
            axes.text(start + length + gap, lane, text, ha="left", color=color, weight="bold", **label)
        else:
            axes.text(start - gap, lane, text, ha="right", color=color, weight="bold", **label)


def _draw_frames(
    cell: SubFigure, box: tuple[float, float, float, float], size: tuple[float, float], sample: Mapping
) -> None:
    """Frames side by side in ``box`` (fractions of a cell of ``size`` inches), each near its time on the axis below."""
    (left, bottom, wide, tall), (width, height), frames = box, size, sample["frames"]
    aspect = frames[0].shape[1] / frames[0].shape[0]
    row = tall * height - 0.1  # inches
    count = int(np.clip(round(wide * width / (aspect * row)), 1, min(len(frames), MAX_FRAMES)))
    slots = (np.arange(count) + 0.5) / count  # of the duration
    times_s = np.asarray(sample["frame_times_s"], dtype=float)
    nearest = np.abs(times_s - slots[:, None] * sample["duration_s"]).argmin(1)
    frame_tall = min(row, wide * width / count / aspect * 0.97)
    frame_wide = frame_tall * aspect / width
    for slot, frame in dict(zip(slots.tolist(), nearest.tolist(), strict=True)).items():
        corner = left + wide * slot - frame_wide / 2, bottom + 0.08 / height
        axes = cell.add_axes((*corner, frame_wide, frame_tall / height))
        axes.imshow(frames[frame], aspect="auto")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)


def colors(count: int) -> list[str]:
    """A colour for each of ``count`` things; they repeat where there are more than the palette has."""
    return [PALETTE[i % len(PALETTE)] for i in range(count)]


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def plain(text: str) -> str:
    """Text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")


def save(figure: Figure, path: str | Path) -> None:
    """Write a PNG, and the folder it is in."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))
