"""Pictures show what they were given at the right place, and refuse what cannot be drawn."""

import html.parser

import numpy as np
import pytest
from PIL import Image

from quickstart import pictures
from videollm.inference import timeline


def pixels(path) -> np.ndarray:
    """uint8 [H, W, 3]."""
    return np.asarray(Image.open(path).convert("RGB"))


def columns_of(image: np.ndarray, color: str) -> np.ndarray:
    """Columns that hold a pixel of a colour (#rrggbb)."""
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return np.flatnonzero((np.abs(image.astype(int) - rgb) <= 2).all(-1).any(0))


def sample(**changes) -> dict:
    values = {"frames": None, "frame_times_s": [], "duration_s": 40.0, "title": "when ?"}
    return values | {"truth": {"truth": [[0.0, 40.0]]}, "predictions": {"model": [[10.0, 20.0]]}} | changes


def test_a_bar_covers_its_part_of_the_axis(tmp_path):
    timeline.timeline(tmp_path / "made/one.png", **sample())
    image = pixels(tmp_path / "made/one.png")
    whole, part = columns_of(image, timeline.TRUTH), columns_of(image, timeline.PALETTE[0])
    length = whole[-1] - whole[0]
    assert (part[0] - whole[0]) / length == pytest.approx(0.25, abs=0.01)
    assert (part[-1] - whole[0]) / length == pytest.approx(0.5, abs=0.01)


def test_frames_stand_above_their_times_and_an_empty_lane_is_drawn(tmp_path):
    frames = [np.full((20, 20, 3), 255, np.uint8) for _ in range(20)]
    frames[15][:] = (255, 0, 255)  # at 31 s of 40 s
    times = (np.arange(20) + 0.5) * 2
    shown = sample(frames=frames, frame_times_s=times, predictions={"model": []})
    timeline.timeline(tmp_path / "frames.png", **shown)
    image = pixels(tmp_path / "frames.png")
    whole, frame = columns_of(image, timeline.TRUTH), columns_of(image, "#ff00ff")
    center = (frame.mean() - whole[0]) / (whole[-1] - whole[0])
    assert center == pytest.approx(31 / 40, abs=0.06)
    assert not columns_of(image, timeline.PALETTE[0]).size


def test_a_span_without_length_is_seen(tmp_path):
    timeline.timeline(tmp_path / "point.png", **sample(predictions={"model": [[10.0, 10.0]]}))
    assert columns_of(pixels(tmp_path / "point.png"), timeline.PALETTE[0]).size


def test_spans_that_touch_are_parted(tmp_path):
    touching = {"truth": {"truth": [[10.0, 20.0], [20.0, 30.0]]}, "predictions": {}}
    timeline.timeline(tmp_path / "parted.png", **sample(**touching))
    image = pixels(tmp_path / "parted.png")
    green = (np.abs(image.astype(int) - [int(timeline.TRUTH[i : i + 2], 16) for i in (1, 3, 5)]) <= 2).all(-1)
    row = green[green.any(1)][0]  # the upper edge of the bars, above what is written in them
    bars = np.flatnonzero(np.diff(np.flatnonzero(row)) > 1)
    assert len(bars) == 1


def test_the_answer_is_printed_with_the_numbers_of_its_bars(tmp_path):
    text = "a circle [1.0 s - 2.5 s] and a square [30.0 s - 40.0 s] ."
    assert timeline.numbered(text) == "a circle (1) 1.0 – 2.5 s and a square (2) 30.0 – 40.0 s ."
    for name, texts in (("without", {}), ("with", {"model": text}), ("long", {"model": text * 9})):
        timeline.timeline(tmp_path / f"{name}.png", **sample(), texts=texts)
    without, short, long = (pixels(tmp_path / f"{name}.png") for name in ("without", "with", "long"))
    assert without.shape[0] < short.shape[0] < long.shape[0]
    assert (short[without.shape[0] - 10 :] < 128).any()  # ink below where the other one ends


def test_a_grid_has_a_cell_for_each_sample(tmp_path):
    samples = [sample(title="a $ sign, and a title that is much longer than any picture is wide " * 3)] * 3
    timeline.timeline_grid(tmp_path / "grid.png", samples)
    image = pixels(tmp_path / "grid.png")
    half = image.shape[1] // 2
    upper, lower = image[: image.shape[0] // 2], image[image.shape[0] // 2 :]
    cells = [cell for row in (upper, lower) for cell in (row[:, :half], row[:, half:])]
    assert [bool(columns_of(cell, timeline.TRUTH).size) for cell in cells] == [True, True, True, False]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"duration_s": 0.0}, "'when \\?': duration_s must be above 0"),
        ({"frames": [np.zeros((2, 2, 3), np.uint8)]}, "1 frames but 0 times"),
        ({"predictions": {"model": [[0.0, float("nan")]]}}, "'model' are not finite"),
    ],
)
def test_timelines_that_cannot_be_drawn_are_refused(tmp_path, change, why):
    with pytest.raises(ValueError, match=why):
        timeline.timeline(tmp_path / "no.png", **sample(**change))
    assert not (tmp_path / "no.png").exists()


def test_an_empty_grid_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no samples"):
        timeline.timeline_grid(tmp_path / "no.png", [])


def test_every_run_has_its_line_though_terms_differ(tmp_path):
    long = [{"step": i, "loss": 1 / (i + 1), "lm": 0.5} for i in range(200)]
    long[3]["loss"] = float("nan")
    short = [{"step": i, "loss": 0.5, "dfl": 1.0} for i in range(5)]
    pictures.loss_curves(tmp_path / "curves.png", {"long": long, "short": short})
    image = pixels(tmp_path / "curves.png")
    assert columns_of(image, timeline.PALETTE[0]).size and columns_of(image, timeline.PALETTE[1]).size


def test_curves_without_a_term_are_refused(tmp_path):
    with pytest.raises(ValueError, match="runs \\['empty'\\] log no term"):
        pictures.loss_curves(tmp_path / "no.png", {"empty": [{"step": 1}]})


def test_a_score_table_grows_with_its_rows_and_refuses_a_short_one(tmp_path):
    columns = ["model", "mIoU", "samples"]
    pictures.score_table(tmp_path / "one.png", [["a", 0.5, 10]], columns)
    pictures.score_table(tmp_path / "two.png", [["a", 0.5, 10], ["b", None, 10]], columns)
    assert pixels(tmp_path / "two.png").shape[0] > pixels(tmp_path / "one.png").shape[0]
    with pytest.raises(ValueError, match="has 2 cells"):
        pictures.score_table(tmp_path / "no.png", [["a", 0.5]], columns)


class Page(html.parser.HTMLParser):
    """Tags, the sources of images, and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.sources, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data + "\n"


def test_a_report_escapes_text_and_needs_no_other_file(tmp_path):
    pictures.score_table(tmp_path / "image.png", [["a", 0.5]], ["model", "mIoU"])
    sections = [
        {
            "heading": "A < B",
            "text": "first\n\n<script>second</script>",
            "columns": ["m", "x"],
            "rows": [["<i>", 0.25]],
        },
        {"image": tmp_path / "image.png", "caption": 'a "picture"', "code": "<i>a > b"},
    ]
    pictures.report_html(tmp_path / "made/report.html", "Report & more", sections)
    (tmp_path / "image.png").unlink()
    page = Page((tmp_path / "made/report.html").read_text())
    assert not {"script", "i", "link"} & set(page.tags)
    assert len(page.sources) == 1 and page.sources[0].startswith("data:image/png;base64,")
    for text in ("Report & more", "A < B", "<script>second</script>", "<i>", "0.25", 'a "picture"', "<i>a > b"):
        assert text in page.text.splitlines()


def test_a_report_refuses_what_it_does_not_know(tmp_path):
    with pytest.raises(ValueError, match="'Scores': unknown key txt"):
        pictures.report_html(tmp_path / "no.html", "t", [{"heading": "Scores", "txt": ""}])
    with pytest.raises(ValueError, match="there is no image"):
        pictures.report_html(tmp_path / "no.html", "t", [{"image": tmp_path / "no.png"}])
