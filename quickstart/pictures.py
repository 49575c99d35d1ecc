"""Loss curves, score tables, and one HTML file that holds them.

In: plain lists, dicts and paths of PNG files. Out: PNG or HTML files. It draws with matplotlib's Agg canvas, without
pyplot (no window, no global state), and knows nothing of models, configs or benchmarks.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from videollm.common.config import need
from videollm.inference.timeline import INK, MUTED, RULE, STYLE, colors, plain, save


def loss_curves(path: str | Path, runs: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Draw a small panel for each loss term, with a line a run, to a PNG.

    runs: {name: [{"step": 10, "loss": 2.3, ...}, ...]}. A term may be absent from some entries and runs; values that
    are not finite leave a gap. Raises ValueError if there is no term at all.
    """
    terms = list(dict.fromkeys(key for log in runs.values() for entry in log for key in entry if key != "step"))
    need(terms, f"{path}: no values to draw: the runs {list(runs)} log no term beside 'step'", ValueError)
    columns = min(3, len(terms))
    rows = -(-len(terms) // columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(max(4.0 * columns, 5.5), 2.7 * rows + 0.5), dpi=140, layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flat
        for panel, term in zip(panels, terms, strict=False):
            for color, (name, log) in zip(colors(len(runs)), runs.items(), strict=True):
                points = [(entry["step"], entry[term]) for entry in log if term in entry]
                if points:
                    _draw_curve(panel, np.array(points, dtype=float), name, color)
            panel.set_title(term)
            panel.set_xlabel("step")
            panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for panel in list(figure.axes)[len(terms) :]:
            panel.remove()
        lines = [line for panel in figure.axes for line in panel.get_lines()]
        handles = {line.get_label(): line for line in lines if line.get_label()[0] != "_"}
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=4)
        save(figure, path)


def score_table(path: str | Path, rows: Sequence[Sequence], columns: Sequence[str]) -> None:
    """Draw a table to a PNG: the first column names the row, the others are aligned to the right.

    Raises ValueError for a row with another number of cells than ``columns``.
    """
    cells = [_row(row, columns) for row in rows]
    texts = [list(columns), *cells]
    widths = np.array([max(len(text[i]) for text in texts) + 3.0 for i in range(len(columns))])
    with rc_context(STYLE):
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
                axes.text(x, i + 0.52, plain(cell), ha=align, va="center", weight=bold, color=color)
        save(figure, path)


def report_html(path: str | Path, title: str, sections: Sequence[Mapping]) -> None:
    """Write one HTML file that needs no other file.

    A section is a dict with any of: ``heading``, ``text`` (blank lines part paragraphs), ``columns`` with ``rows``
    (a table), ``image`` (path of a PNG, embedded), ``caption``, ``links`` ([(address, text), ...]), ``code``. Text is
    escaped. Raises ValueError for an unknown key and for an image that is not there.
    """
    body = "\n".join(_section(section) for section in sections)
    page = _PAGE.format(title=html.escape(title), body=body, style=_CSS)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(page, encoding="utf-8")


def _draw_curve(panel: Axes, points: np.ndarray, name: str, color: str) -> None:
    """One run's values [N, 2] (step, value): thin as logged, bold as a running mean when there are many."""
    steps, values = points.T
    window = len(values) // 40
    if window < 2:
        panel.plot(steps, values, color=color, linewidth=1.8, label=name)
        return
    panel.plot(steps, values, color=color, linewidth=0.7, alpha=0.3)
    known, place = np.ma.masked_invalid(values), np.arange(len(values))
    reach = np.minimum(window, np.minimum(place, place[::-1]))  # narrower at the ends, where a mean would bend the line
    smooth = [np.ma.filled(known[i - r : i + r + 1].mean(), np.nan) for i, r in enumerate(reach)]
    panel.plot(steps, smooth, color=color, linewidth=1.8, label=name)


def _row(row: Sequence, columns: Sequence[str]) -> list[str]:
    """The cells of a row as text: floats with two decimals (with some hundred clips the third is chance), None as –."""
    told = f"table row {list(row)!r} has {len(row)} cells, the columns {list(columns)!r} are {len(columns)}"
    need(len(row) == len(columns), told, ValueError)
    return ["–" if v is None else f"{v:.2f}" if isinstance(v, float | np.floating) else str(v) for v in row]


def _section(section: Mapping) -> str:
    unknown = set(section) - {"heading", "text", "columns", "rows", "image", "caption", "links", "code"}
    where, parts = f"report section {section.get('heading')!r}", []
    need(not unknown, f"{where}: unknown key {', '.join(sorted(unknown))}", ValueError)
    if "heading" in section:
        parts.append(f"<h2>{html.escape(section['heading'])}</h2>")
    parts += [f"<p>{html.escape(p)}</p>" for p in section.get("text", "").split("\n\n") if p.strip()]
    if "rows" in section:
        parts.append(_html_table(section["rows"], section["columns"]))
    if "image" in section:
        image = Path(section["image"])
        need(image.is_file(), f"{where}: there is no image {image}", ValueError)
        data = base64.b64encode(image.read_bytes()).decode()
        alt = html.escape(section.get("caption", section.get("heading", "")))
        parts.append(f'<figure><img alt="{alt}" src="data:image/png;base64,{data}"></figure>')
    if "caption" in section:
        parts.append(f'<p class="caption">{html.escape(section["caption"])}</p>')
    for address, text in section.get("links", ()):
        parts.append(f'<p><a href="{html.escape(address)}">{html.escape(text)}</a></p>')
    if "code" in section:
        parts.append(f"<pre><code>{html.escape(section['code'])}</code></pre>")
    return "<section>\n" + "\n".join(parts) + "\n</section>"


def _html_table(rows: Sequence[Sequence], columns: Sequence[str]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line("td", _row(row, columns)) for row in rows)
    return f'<div class="wide"><table><thead>{line("th", columns)}</thead><tbody>{body}</tbody></table></div>'


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
