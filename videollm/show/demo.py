"""The demo's page: a clip is uploaded or picked, a question asked, and the answer of every model streams in.

In: loaded models, example clips, limits. Out: a Gradio page; what it draws is drawn by ``assets/show.js``, as in the
viewer. Clips are read from Gradio's upload folder and nowhere else, and leave it when another takes their place.
Knows no checkpoint and no command line.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr
from gradio.utils import get_upload_folder

from videollm.common.answers import AnswerLine
from videollm.common.config import UserError
from videollm.data import Record, load_records
from videollm.show.answers import answer_json, judge
from videollm.show.viewer import ASSETS, of_record
from videollm.video.decode import probe

if TYPE_CHECKING:
    from videollm.inference.session import Session

LONGEST_QUESTION = 2000  # characters
KEPT_S = 3600  # seconds after which a clip of a page that was never closed is deleted
DRAW = """
const draw = () => {
  const row = JSON.parse(props.value || "null");
  if (row) Show.draw(element.querySelector(".show"), row, () => document.querySelector("#clip video"));
};
watch("value", draw);
for (const name of ["timeupdate", "seeking"])
  document.addEventListener(name, () => element.querySelector(".show").follow?.(), true);
draw();
"""
STYLE = """
footer, #clip button[aria-label="Trim video to selection"] { display: none !important; }
.gradio-container { width: 100%; max-width: 66rem !important; margin: auto; }
#ask { align-self: end; }
"""


@dataclass(frozen=True)
class Limits:
    """What a clip may be."""

    megabytes: int = 200
    seconds: float = 1800.0

    def refused(self, clip: Path) -> str | None:
        """Why a clip is not taken, in words without its path."""
        size = clip.stat().st_size / 2**20
        if size > self.megabytes:
            return f"{clip.name} has {size:.0f} MB; at most {self.megabytes} MB are taken here. Cut it, or shrink it."
        try:
            length = probe(clip).duration_s
        except UserError as error:
            return without_path(error, clip)
        if length > self.seconds:
            return f"{clip.name} lasts {length:.0f} s; at most {self.seconds:.0f} s are taken here. Cut it."
        return None


@dataclass
class Uploads:
    """The clip that each open page has: deleted when another takes its place, or when the page is closed."""

    clips: dict[str | None, Path] = field(default_factory=dict)

    def keep(self, page: str | None, clip: Path | None) -> None:
        """Note the clip of a page; the one before goes."""
        before = self.clips.pop(page, None)
        if before is not None and before not in (clip, *self.clips.values()):  # the same file has the same path
            before.unlink(missing_ok=True)
        if clip is not None:
            self.clips[page] = clip


def inside(video: str | None) -> Path | None:
    """The clip as a path, if it lies in the upload folder: all that a browser sends is looked at."""
    if not video:
        return None
    clip = Path(video).resolve()
    return clip if clip.is_relative_to(Path(get_upload_folder()).resolve()) and clip.is_file() else None


def without_path(error: Exception, clip: Path) -> str:
    """An error's text that names the clip, but not where it lies."""
    return str(error).replace(str(clip), clip.name).replace(f"{clip.parent}/", "")


def examples_in(folder: Path) -> dict[str, Record]:
    """{label: annotation} of the clips that lie in a folder, by its annotation files."""
    records = load_records(sorted(folder.rglob("*.jsonl"))) if any(folder.rglob("*.jsonl")) else []
    return {f"{r.question} · {r.video}": r for r in records if r.video and (folder / r.video).is_file()}


class Demo:
    """The page for ``models``, {name: session}, with the examples of a folder."""

    def __init__(self, models: Mapping[str, "Session"], folder: Path, examples: Mapping[str, Record], limits: Limits):
        self.models, self.folder, self.examples, self.limits = models, folder, examples, limits
        self.uploads = Uploads()
        self.page = self.blocks()

    def uploaded(self, video: str | None) -> tuple:
        """A clip of the user's own: one beyond the limits is told, and taken out."""
        clip = inside(video)
        refused = self.limits.refused(clip) if clip else "The clip is no longer there; upload it again."
        if refused is None:
            return gr.skip(), None, ""
        gr.Warning(refused)
        return None, None, ""

    def changed(self, video: str | None, request: gr.Request) -> None:
        """Another clip is in the player, or none: the one before is deleted."""
        self.uploads.keep(request.session_hash, inside(video))

    def closed(self, request: gr.Request) -> None:
        """The page was closed."""
        self.uploads.keep(request.session_hash, None)

    def picked(self, label: str | None) -> tuple:
        """An example: its clip and its question."""
        if label not in self.examples:
            return gr.skip(), gr.skip(), gr.skip()
        record = self.examples[label]
        return str(self.folder / record.video), record.question, ""

    def answer(self, video: str | None, question: str, label: str | None) -> Iterator[str]:
        """What ``show.js`` draws, anew with every piece of every model's answer; an error is told in its place."""
        clip, question = inside(video), question.strip()
        if clip is None or not question:
            gr.Warning("Upload or pick a clip first." if clip is None else "Type a question first.")
            return
        if len(question) > LONGEST_QUESTION:
            gr.Warning(f"The question has {len(question)} characters; at most {LONGEST_QUESTION} are taken here.")
            return
        if (refused := self.limits.refused(clip)) is not None:
            gr.Warning(refused)
            return
        known = of_record(self.examples[label]) if label in self.examples else None
        truth = known.truth if known is not None and known.question == question else []
        answers: list[dict | None] = [None] * len(self.models)
        row = {"truth": truth, "duration": None, "answers": answers}
        for place, (name, model) in enumerate(self.models.items()):
            answers[place] = answer_json(AnswerLine(id="", text="", spans=[]), name) | {"note": "", "going": True}
            yield json.dumps(row)
            try:
                for piece in model.stream(clip, question):
                    line, done = piece.answer, bool(piece.answer.finish_reason)
                    row["duration"] = line.duration
                    answers[place] = answer_json(line, name) | (judge([line], [truth])[0] if done else {"note": ""})
                    yield json.dumps(row)
            except UserError as error:
                answers[place] |= {"error": without_path(error, clip), "note": without_path(error, clip)}
                yield json.dumps(row)

    def blocks(self) -> gr.Blocks:
        """The page."""
        with gr.Blocks(title="videollm", analytics_enabled=False, delete_cache=(KEPT_S, KEPT_S)) as page:
            gr.Markdown(f"### Ask a video *when*\n{', '.join(self.models)}")
            label = gr.Dropdown(
                list(self.examples), value=None, label="Example", visible=bool(self.examples), elem_id="examples"
            )
            with gr.Row():
                question = gr.Textbox(
                    label="Question", placeholder="in the words the model was trained on", max_lines=3,
                    max_length=LONGEST_QUESTION, scale=5, min_width=260, elem_id="question",
                )  # fmt: skip
                button = gr.Button("Ask", variant="primary", scale=1, min_width=120, elem_id="ask")
            most = f"Clip, at most {self.limits.megabytes} MB and {self.limits.seconds:.0f} s"
            video = gr.Video(label=most, sources=["upload"], height=360, elem_id="clip", buttons=[])
            place = {"html_template": '<div class="show"></div>', "js_on_load": DRAW, "apply_default_css": False}
            shown = gr.HTML(value="", **place)
            hidden = {"api_visibility": "private", "show_progress": "hidden"}
            label.input(self.picked, label, [video, question, shown], **hidden)
            video.upload(self.uploaded, video, [video, label, shown], **hidden)
            video.change(self.changed, video, None, **hidden)
            page.unload(self.closed)
            # One question at a time for all pages; the others wait, and are told their place.
            told = {"show_progress": "minimal", "show_progress_on": question}
            asked = {"concurrency_limit": 1, "api_visibility": "private", **told}
            gr.on([button.click, question.submit], self.answer, [video, question, label], shown, **asked)
        return page

    def launch(self, host: str, port: int | None) -> str:
        """Serve the page; its address. Raises OSError where the port is taken."""
        style = f"<style>{(ASSETS / 'show.css').read_text(encoding='utf-8')}{STYLE}</style>"
        script = f"<script>{(ASSETS / 'show.js').read_text(encoding='utf-8')}</script>"
        fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # none from the net
        _, address, _ = self.page.queue(max_size=64).launch(
            server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, share=False, footer_links=[],
            max_file_size=f"{self.limits.megabytes}mb", head=style + script, theme=gr.themes.Default(**fonts),
            allowed_paths=[str(self.folder / record.video) for record in self.examples.values()], ssr_mode=False,
        )  # fmt: skip
        return address
