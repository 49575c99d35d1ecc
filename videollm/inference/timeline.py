"""Pictures of what came out: timelines of spans, loss curves, score tables, and one HTML file that holds them.

In: plain lists, dicts and uint8 arrays; times in seconds. Out: PNG or HTML files. It draws with matplotlib's Agg
canvas, without pyplot (no window, no global state), and knows nothing of models, configs or benchmarks.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

TRUTH = "#2f9e6e"
# Distinct in hue and in lightness, also for the colour-blind; green is kept for the truth.
PALETTE = ("#3b6fd4", "#e0803a", "#8a56c2", "#c9436b", "#2a9fb5", "#8c6d46")
INK, MUTED, RULE, PAPER = "#1f2430", "#6b7280", "#d9dde4", "#ffffff"
MAX_FRAMES = 12  # pictures in the row above a timeline
_STYLE = {
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
) -> None:
    """Draw spans under the frames of a video, to a PNG.

    frames: uint8 [H, W, 3] arrays (or None), taken at ``frame_times_s``; as many as fit (at most 12), spread evenly
    over the video, are shown above their times. truth and predictions: {label: [[start_s, end_s], ...]}, one lane
    each. Raises ValueError for a duration that is not above 0, a frame without a time, and times that are not finite.
    """
    sample = {"frames": frames, "frame_times_s": frame_times_s, "duration_s": duration_s}
    timeline_grid(path, [sample | {"truth": truth, "predictions": predictions, "title": title}], columns=1)


def timeline_grid(path: str | Path, samples: Sequence[Mapping], columns: int = 2) -> None:
    """Draw several timelines in one PNG; each sample is a dict of :func:`timeline`'s arguments, ``path`` apart."""
    if not samples:
        raise ValueError(f"{path}: no samples to draw")
    for sample in samples:
        _check_timeline(sample)
    columns = min(columns, len(samples))
    rows = [samples[i : i + columns] for i in range(0, len(samples), columns)]
    heights = [max(_timeline_height(sample) for sample in row) for row in rows]
    width = 9.0 if columns == 1 else 6.6 * columns
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, sum(heights)), dpi=140)
        grid = figure.subfigures(len(rows), columns, height_ratios=heights, squeeze=False)
        for cells, row, height in zip(grid, rows, heights, strict=True):
            for cell, sample in zip(cells, row, strict=False):  # the last row may be short
                _draw_timeline(cell, width / columns, height, **sample)
        _save(figure, path)


def loss_curves(path: str | Path, runs: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Draw a small panel for each loss term, with a line a run, to a PNG.

    runs: {name: [{"step": 10, "loss": 2.3, ...}, ...]}. A term may be absent from some entries and runs; values that
    are not finite leave a gap. Raises ValueError if there is no term at all.
    """
    terms = list(dict.fromkeys(key for log in runs.values() for entry in log for key in entry if key != "step"))
    if not terms:
        raise ValueError(f"{path}: no values to draw: the runs {list(runs)} log no term beside 'step'")
    columns = min(3, len(terms))
    rows = -(-len(terms) // columns)
    with rc_context(_STYLE):
        figure = Figure(figsize=(max(4.0 * columns, 5.5), 2.7 * rows + 0.5), dpi=140, layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flat
        for panel, term in zip(panels, terms, strict=False):
            for color, (name, log) in zip(_colors(len(runs)), runs.items(), strict=True):
                points = [(entry["step"], entry[term]) for entry in log if term in entry]
                if points:
                    _draw_curve(panel, np.array(points, dtype=float), name, color)
            panel.set_title(term)
            panel.set_xlabel("step")
            panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for panel in list(figure.axes)[len(terms) :]:
            panel.remove()
        handles = {
            line.get_label(): line for panel in figure.axes for line in panel.get_lines() if line.get_label()[0] != "_"
        }
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=4)
        _save(figure, path)


def score_table(path: str | Path, rows: Sequence[Sequence], columns: Sequence[str]) -> None:
    """Draw a table to a PNG: the first column names the row, the others are aligned to the right.

    Raises ValueError for a row with another number of cells than ``columns``.
    """
    cells = [_row(row, columns) for row in rows]
    texts = [list(columns), *cells]
    widths = np.array([max(len(text[i]) for text in texts) + 3.0 for i in range(len(columns))])
    with rc_context(_STYLE):
        figure = Figure(figsize=(0.085 * widths.sum() + 0.4, 0.32 * len(texts) + 0.2), dpi=140)
        axes = figure.add_axes((0.02, 0.02, 0.96, 0.96))
        axes.set(xlim=(0, widths.sum()), ylim=(len(texts), 0))
        axes.axis("off")
        right = np.cumsum(widths)
        for i, text in enumerate(texts):
            axes.axhline(i + 1, color=INK if i == 0 else RULE, linewidth=1.0 if i == 0 else 0.6)
            for j, cell in enumerate(text):
                bold = "bold" if i == 0 else "normal"
                x, align = (1.0, "left") if j == 0 else (right[j] - 1.0, "right")
                color = MUTED if i == 0 else INK
                axes.text(x, i + 0.52, _plain(cell), ha=align, va="center", weight=bold, color=color)
        _save(figure, path)


def report_html(path: str | Path, title: str, sections: Sequence[Mapping]) -> None:
    """Write one HTML file that needs no other file.

    A section is a dict with any of: ``heading``, ``text`` (blank lines part paragraphs), ``columns`` with ``rows``
    (a table), ``image`` (path of a PNG, embedded), ``caption``, ``code``. Text is escaped. Raises ValueError for an
    unknown key and for an image that is not there.
    """
    body = "\n".join(_section(section) for section in sections)
    page = _PAGE.format(title=html.escape(title), body=body, style=_CSS)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(page, encoding="utf-8")


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


_LANE, _FRAMES, _TITLE, _AXIS = 0.3, 0.85, 0.36, 0.5  # inches


def _timeline_height(sample: Mapping) -> float:
    lanes = max(1, len(sample["truth"]) + len(sample["predictions"]))
    has_frames = sample["frames"] is not None and len(sample["frames"]) > 0
    return _TITLE + has_frames * _FRAMES + lanes * _LANE + _AXIS


def _draw_timeline(
    cell: SubFigure,
    width: float,
    height: float,
    frames: Sequence[np.ndarray] | None,
    frame_times_s: Sequence[float],
    duration_s: float,
    truth: Mapping[str, Spans],
    predictions: Mapping[str, Spans],
    title: str = "",
) -> None:
    """One timeline in a cell of ``width`` x ``height`` inches; whatever the row's height, it hangs from the top."""
    lanes = [(name, spans, TRUTH) for name, spans in truth.items()]
    lanes += [(n, s, c) for c, (n, s) in zip(_colors(len(predictions)), predictions.items(), strict=True)]
    longest = max((len(name) for name, _, _ in lanes), default=0)
    left = min(0.3 + 0.085 * min(longest, 28), 0.35 * width) / width
    inner = 1 - left - 0.25 / width
    top = 1 - _TITLE / height
    cell.text(left, 1 - 0.12 / height, _plain(_short(title, int(inner * width * 11.5))), weight="bold", va="top")
    if frames is not None and len(frames):
        top -= _FRAMES / height
        box = (left, top, inner, _FRAMES / height)
        _draw_frames(cell, box, (width, height), frames, frame_times_s, duration_s)
    tall = max(1, len(lanes)) * _LANE / height
    axes = cell.add_axes((left, top - tall, inner, tall))
    axes.set(xlim=(0, duration_s), ylim=(max(1, len(lanes)) - 0.5, -0.5))
    for lane, (_, spans, color) in enumerate(lanes):
        _draw_bars(axes, lane, np.asarray(spans, dtype=float).reshape(-1, 2), color, inner * width)
    axes.set_yticks(range(len(lanes)), [_plain(_short(name, 28)) for name, _, _ in lanes])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 3, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} s")


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
    axes.barh(np.full(len(spans), lane), lengths, left=spans[:, 0], height=0.56, color=color, zorder=2)
    room, gap = 0.8 * seconds_an_inch, 0.06 * seconds_an_inch
    for (start, end), length in zip(spans, lengths, strict=True):
        text = f"{start:.1f} – {end:.1f}"
        if length > room:
            axes.text(start + length / 2, lane, text, ha="center", color="white", weight="bold", **label)
        elif len(spans) == 1 and end + room < duration_s:
            axes.text(start + length + gap, lane, text, ha="left", color=color, weight="bold", **label)
        elif len(spans) == 1:
            axes.text(start - gap, lane, text, ha="right", color=color, weight="bold", **label)


def _draw_frames(
    cell: SubFigure,
    box: tuple[float, float, float, float],
    size: tuple[float, float],
    frames: Sequence[np.ndarray],
    times_s: Sequence[float],
    duration_s: float,
) -> None:
    """Frames side by side in ``box`` (fractions of a cell of ``size`` inches), each near its time on the axis below."""
    (left, bottom, wide, tall), (width, height) = box, size
    aspect = frames[0].shape[1] / frames[0].shape[0]
    row = tall * height - 0.1  # inches
    count = int(np.clip(round(wide * width / (aspect * row)), 1, min(len(frames), MAX_FRAMES)))
    slots = (np.arange(count) + 0.5) / count  # of the duration
    nearest = np.abs(np.asarray(times_s, dtype=float) - slots[:, None] * duration_s).argmin(1)
    frame_tall = min(row, wide * width / count / aspect * 0.97)
    frame_wide = frame_tall * aspect / width
    for slot, frame in dict(zip(slots.tolist(), nearest.tolist(), strict=True)).items():
        axes = cell.add_axes(
            (left + wide * slot - frame_wide / 2, bottom + 0.08 / height, frame_wide, frame_tall / height)
        )
        axes.imshow(frames[frame], aspect="auto")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)


def _draw_curve(panel: Axes, points: np.ndarray, name: str, color: str) -> None:
    """One run's values [N, 2] (step, value): thin as logged, bold as a running mean when there are many."""
    steps, values = points.T
    window = len(values) // 40
    if window < 2:
        panel.plot(steps, values, color=color, linewidth=1.8, label=name)
        return
    panel.plot(steps, values, color=color, linewidth=0.7, alpha=0.3)
    finite = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])  # [N + 1]
    count = np.concatenate([[0], np.cumsum(finite)])
    place = np.arange(len(values))
    reach = np.minimum(window, np.minimum(place, place[::-1]))  # narrower at the ends, where a mean would bend the line
    low, high = place - reach, place + reach + 1
    amount = count[high] - count[low]
    smooth = np.divide(total[high] - total[low], amount, out=np.full(len(values), np.nan), where=amount > 0)
    panel.plot(steps, smooth, color=color, linewidth=1.8, label=name)


def _colors(count: int) -> list[str]:
    return [PALETTE[i % len(PALETTE)] for i in range(count)]


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _plain(text: str) -> str:
    """Text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")


def _row(row: Sequence, columns: Sequence[str]) -> list[str]:
    """The cells of a row as text: floats with three decimals, None as a dash."""
    if len(row) != len(columns):
        raise ValueError(
            f"table row {list(row)!r} has {len(row)} cells, the columns {list(columns)!r} are {len(columns)}"
        )
    return ["–" if v is None else f"{v:.3f}" if isinstance(v, float | np.floating) else str(v) for v in row]


def _save(figure: Figure, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))


def _section(section: Mapping) -> str:
    unknown = set(section) - {"heading", "text", "columns", "rows", "image", "caption", "code"}
    if unknown:
        raise ValueError(f"report section {section.get('heading')!r}: unknown key {', '.join(sorted(unknown))}")
    parts = []
    if "heading" in section:
        parts.append(f"<h2>{html.escape(section['heading'])}</h2>")
    parts += [f"<p>{html.escape(p)}</p>" for p in section.get("text", "").split("\n\n") if p.strip()]
    if "rows" in section:
        parts.append(_html_table(section["rows"], section["columns"]))
    if "image" in section:
        image = Path(section["image"])
        if not image.is_file():
            raise ValueError(f"report section {section.get('heading')!r}: there is no image {image}")
        data = base64.b64encode(image.read_bytes()).decode()
        alt = html.escape(section.get("caption", section.get("heading", "")))
        parts.append(f'<figure><img alt="{alt}" src="data:image/png;base64,{data}"></figure>')
    if "caption" in section:
        parts.append(f'<p class="caption">{html.escape(section["caption"])}</p>')
    if "code" in section:
        parts.append(f"<pre><code>{html.escape(section['code'])}</code></pre>")
    return "<section>\n" + "\n".join(parts) + "\n</section>"


def _html_table(rows: Sequence[Sequence], columns: Sequence[str]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _row(row, columns)) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""

_CSS = """
:root { color-scheme: light dark; --ink: #1f2430; --muted: #6b7280; --rule: #d9dde4;
  --paper: #ffffff; --soft: #f5f7fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --muted: #9aa3b2; --rule: #363c48; --paper: #15181e; --soft: #1e232c; }
}
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1.5rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--rule); }
p { margin: .5rem 0; max-width: 44rem; }
.caption { color: var(--muted); font-size: .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem; text-align: right; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { color: var(--muted); font-weight: 600; font-size: .85rem; }
figure { margin: 1rem 0; }
img { display: block; max-width: 100%; background: #ffffff; border-radius: 8px; border: 1px solid var(--rule); }
pre { background: var(--soft); padding: .8rem 1rem; border-radius: 8px; overflow-x: auto; font-size: .85rem; }
"""
