"""The demo in a real browser: upload, ask, the answer streams in, a chip takes the player to its second; two models."""

import os
import threading
from pathlib import Path

import pytest

from tests.browser.conftest import NARROW, resize
from tests.browser.driving import every, second, texts, until, write_webm
from tests.models import write_lines
from videollm.common.answers import AnswerLine, span_text
from videollm.inference.session import Piece
from videollm.video.decode import VideoError

pytestmark = pytest.mark.end_to_end
LOADED = "return document.querySelector('#clip video')?.readyState >= 1"
TOLD = "<script>document.title = 'taken'</script>"


class Speaker:
    """Stands for a model: it says a word, waits until the test has seen it, and says when."""

    def __init__(self, start_s: float):
        self.span, self.go, self.asked = [start_s, start_s + 3], threading.Event(), []
        self.go.set()

    def stream(self, video: Path, question: str):
        self.asked.append((Path(video), question))
        if "refuse" in question:
            raise VideoError(f"{video}: no frame of it can be decoded")
        own = {"id": "ask", "duration": 10.0, "raw_text": "raw"}
        yield Piece("at", [], AnswerLine(**own, text=f"{TOLD} at", spans=[]))
        assert self.go.wait(60)
        text = f"{TOLD} at {span_text(*self.span)}"
        yield Piece(text, [self.span], AnswerLine(**own, text=text, spans=[self.span], finish_reason="stop"))


@pytest.fixture(scope="module")
def speakers() -> dict[str, Speaker]:
    return {"first": Speaker(2.0), "second": Speaker(6.0)}


@pytest.fixture(scope="module")
def demo(tmp_path_factory, speakers):
    """The page of two models with an example, and its address."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[demo]'")
    folder = tmp_path_factory.mktemp("demo")
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    from videollm.show.demo import Demo, Limits, examples_in

    write_webm(folder / "examples/clips/ten.webm")
    write_webm(folder / "own clip #1.webm", 12)
    write_webm(folder / "long.webm", 30)
    (folder / "large.webm").write_bytes(bytes(2 << 20))
    (folder / "text.webm").write_text("no clip")
    turns = [{"from": "human", "value": "<video>\nwhen ?"}, {"from": "gpt", "value": "at <span>"}]
    known = {"id": "one", "video": "clips/ten.webm", "tgt": [2.0, 5.0], "conversations": turns}
    write_lines(folder / "examples/truth.jsonl", [known])
    made = Demo(speakers, folder / "examples", examples_in(folder / "examples"), Limits(1, 20.0))
    made.address = made.launch("127.0.0.1", None)
    made.place = folder
    yield made
    made.page.close()
    del os.environ["GRADIO_TEMP_DIR"]


@pytest.fixture
def page(browser, demo):
    browser.get("about:blank")
    browser.get(demo.address)
    until(lambda: every(browser, "#question textarea"), "the page is there")
    until(lambda: browser.find_elements("css selector", "#clip input[type=file]"), "a clip can be uploaded")
    return browser


def upload(page, path: Path) -> None:
    page.find_element("css selector", "#clip input[type=file]").send_keys(str(path))


def uploaded(page, path: Path) -> None:
    upload(page, path)
    until(
        lambda: page.execute_script("return document.querySelector('#clip video')?.readyState") or 0, "the clip loads"
    )


def ask(page, question: str) -> None:
    field = every(page, "#question textarea")[0]
    field.clear()
    field.send_keys(question)
    every(page, "#ask")[0].click()


def clips(demo) -> list[str]:
    """Names of the clips in the upload folder."""
    return sorted(path.name for path in (demo.place / "uploads").rglob("*.webm"))


def test_upload_ask_and_a_chip_takes_the_player_to_its_second(page, demo, speakers):
    speakers["first"].go.clear()
    uploaded(page, demo.place / "own clip #1.webm")
    ask(page, "when is it ?")
    until(lambda: "at" in "".join(texts(page, ".spoken")), "the first words are there")
    assert not every(page, ".chip")  # while it is still speaking
    speakers["first"].go.set()
    until(lambda: len(every(page, ".spoken .chip")) == 2, "both models have answered")
    assert texts(page, ".answer .name") == ["first", "second"]
    assert texts(page, ".timeline .lane") == ["first", "second"]  # nothing is known to be true
    assert TOLD in texts(page, ".spoken")[0] and page.title == "videollm"
    every(page, ".spoken .chip")[1].click()
    until(lambda: second(page) == pytest.approx(6.0), "the player is at the second")
    every(page, ".bar.tone0")[0].click()
    until(lambda: second(page) == pytest.approx(2.0), "the player is at the second")
    clip, question = speakers["first"].asked[-1]
    assert question == "when is it ?" and clip.is_relative_to(demo.place / "uploads")


def test_an_example_has_its_question_and_the_truth(page):
    field = every(page, "#examples input")[0]
    field.click()
    until(lambda: every(page, "[role=option]"), "the list is open")[0].click()
    question = every(page, "#question textarea")[0]
    until(lambda: question.get_attribute("value") == "when ?", "the question is there")
    until(
        lambda: page.execute_script("return document.querySelector('#clip video')?.readyState") or 0, "the clip loads"
    )
    every(page, "#ask")[0].click()
    until(lambda: texts(page, ".answer .iou") == ["IoU 1.00", "IoU 0.00"], "both are compared with the truth")
    assert texts(page, ".timeline .lane") == ["truth", "first", "second"]
    ask(page, "another question ?")
    until(lambda: texts(page, ".timeline .lane") == ["first", "second"], "of it nothing is known")


def test_what_cannot_be_taken_is_said_and_not_kept(page, demo):
    for name, told in (("long.webm", "lasts 30 s; at most 20 s are taken"), ("text.webm", "text.webm: ")):
        upload(page, demo.place / name)
        until(lambda told=told: any(told in text for text in texts(page, ".toast-body")), f"{name} is refused")
        assert str(demo.place) not in "".join(texts(page, ".toast-body"))
        until(lambda name=name: name not in clips(demo), f"{name} is deleted")
        page.get(demo.address)
        until(lambda: page.find_elements("css selector", "#clip input[type=file]"), "a clip can be uploaded")
    upload(page, demo.place / "large.webm")
    until(lambda: "exceed the maximum allowed size" in "".join(texts(page, ".toast-body")), "it is refused")


def test_an_error_is_told_in_the_place_of_the_answer_without_a_path(page, demo):
    uploaded(page, demo.place / "own clip #1.webm")
    ask(page, "refuse this")
    until(lambda: len(every(page, ".note")) == 2, "both errors are there")
    assert texts(page, ".note")[0] == "own clip #1.webm: no frame of it can be decoded"


def test_a_clip_is_deleted_when_another_comes_or_the_page_is_left(page, demo):
    uploaded(page, demo.place / "own clip #1.webm")
    assert clips(demo).count("own clip #1.webm") == 1
    every(page, "#clip button[aria-label='Clear'], #clip button[aria-label='Remove video']")[0].click()
    until(lambda: "own clip #1.webm" not in clips(demo), "it is deleted")
    uploaded(page, demo.place / "own clip #1.webm")
    page.get("about:blank")
    until(lambda: "own clip #1.webm" not in clips(demo), "it is deleted")


def test_one_question_is_answered_at_a_time(page, demo, speakers):
    speakers["first"].go.clear()
    before, first = len(speakers["first"].asked), page.current_window_handle
    uploaded(page, demo.place / "own clip #1.webm")
    ask(page, "the first ?")
    until(lambda: len(speakers["first"].asked) == before + 1, "it is asked")
    page.switch_to.new_window("tab")
    try:
        page.get(demo.address)
        until(lambda: page.find_elements("css selector", "#clip input[type=file]"), "a clip can be uploaded")
        uploaded(page, demo.place / "own clip #1.webm")
        ask(page, "the second ?")
        until(lambda: "queue: " in page.find_element("tag name", "body").text, "its place is told")
        assert len(speakers["first"].asked) == before + 1
        speakers["first"].go.set()
        until(lambda: len(every(page, ".spoken .chip")) == 2, "both models have answered")
    finally:
        speakers["first"].go.set()
        page.close()
        page.switch_to.window(first)
    until(lambda: len(every(page, ".spoken .chip")) == 2, "the first page has its answers too")


def test_a_narrow_window_has_room_for_all(page, demo):
    resize(page, NARROW)
    uploaded(page, demo.place / "own clip #1.webm")
    ask(page, "when ?")
    until(lambda: len(every(page, ".spoken .chip")) == 2, "both models have answered")
    assert page.execute_script("return document.documentElement.scrollWidth") <= NARROW[0]
    every(page, ".spoken .chip")[0].send_keys("\ue007")  # the keyboard alone
    until(lambda: second(page) == pytest.approx(2.0), "the player is at the second")
