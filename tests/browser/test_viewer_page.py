"""The page of answers in a real browser, opened as a file: lists, filters, order, player, keyboard, a narrow window."""

import json
import os
from pathlib import Path

import pytest

from tests.browser.conftest import NARROW, resize
from tests.browser.driving import click_at, every, keys, put, second, texts, until, write_webm
from tests.models import write_lines
from videollm.common.answers import AnswerLine, span_text
from videollm.view import main

pytestmark = pytest.mark.end_to_end

MANY = 20_000
CLIP = "my clips/50% #1.webm"
DOWN, UP, ESCAPE = "\ue015", "\ue013", "\ue00c"


def answer(k: int, start_s: float, **more) -> AnswerLine:
    """Question ``k`` of the clip, answered with the four seconds from ``start_s`` on."""
    span = [start_s, start_s + 4]
    own = {"id": f"q{k:05d}", "video": CLIP, "question": f"when {k} ?", "duration": 10.0, "spans": [span]}
    return AnswerLine(**own | {"text": f"at {span_text(*span)} .", "raw_text": f"raw {k}"} | more)


def truth(k: int) -> dict:
    """Its annotation: from 2 s to 6 s."""
    turns = [{"from": "human", "value": f"<video>\nwhen {k} ?"}, {"from": "gpt", "value": "at <span> ."}]
    own = {"id": f"q{k:05d}", "video": CLIP, "duration": 10.0, "task": "even" if k % 2 == 0 else "odd"}
    return own | {"tgt": [2.0, 6.0], "conversations": turns}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two files of answers to five questions, their truth, and many answers; each with its page."""
    folder = tmp_path_factory.mktemp("viewer")
    write_webm(folder / "videos" / CLIP)
    told = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
    first = [
        answer(0, 2.0, evidence_spans=[[1.0, 5.0]], scores=[0.5]),  # IoU 1
        answer(1, 4.0),  # 1/3
        answer(2, 6.0),  # 0
        answer(3, 2.0, spans=[], text="never"),
        answer(4, 3.0, question=told, text=f"{told} {span_text(3, 7)}"),  # 3/5
    ]
    other = [answer(0, 6.0), answer(1, 2.0), answer(2, 3.0), answer(3, 2.0)]  # 0, 1, 3/5, 1, none
    for name, lines in (("first", first), ("other", other), ("many", [answer(k, k % 6) for k in range(MANY)])):
        write_lines(folder / f"{name}.jsonl", [line.to_json() for line in lines])
    write_lines(folder / "truth.jsonl", [truth(k) for k in range(5)])
    write_lines(folder / "truths.jsonl", [truth(k) for k in range(MANY)])
    for page, files, annotations in (("one", ["first"], "truth"), ("two", ["first", "other"], "truth"),
                                     ("many", ["many"], "truths")):  # fmt: skip
        words = [str(folder / f"{name}.jsonl") for name in files]
        words += ["--annotations", str(folder / f"{annotations}.jsonl"), "--output", str(folder / page)]
        videos = folder / "videos"  # linked as seen from the page, for one of the pages
        assert main([*words, "--videos", os.path.relpath(videos) if page == "two" else str(videos)]) == 0
    return folder


def opened(browser, folder: Path, page: str, state: str = ""):
    browser.get("about:blank")  # a change of the state alone would not load the page anew
    browser.get(f"{(folder / page / 'index.html').as_uri()}#{state}")
    return browser


def ids(browser) -> list[str]:
    """The ids in the list."""
    return [text.split("\n")[-1] for text in texts(browser, "#list .under")]


def listed(browser, expected: list[str]) -> None:
    until(lambda: ids(browser) == expected, f"the list is {expected}")


def chosen(browser) -> str:
    return browser.find_element("id", "facts").text.split(" · ")[0]


def test_a_chip_and_a_bar_take_the_player_to_their_second(browser, folder):
    opened(browser, folder, "one", "id=q00000")
    until(lambda: browser.execute_script("return document.querySelector('video').readyState") >= 1, "the clip loads")
    assert "2.0 – 6.0 s" in texts(browser, ".spoken .chip")[0]
    every(browser, ".spoken .chip")[0].click()
    assert second(browser) == pytest.approx(2.0)
    until(lambda: len(every(browser, ".bar.current")) == 2, "the bars of answer and truth are marked")
    every(browser, ".bar.evidence")[0].click()
    assert second(browser) == pytest.approx(1.0)
    click_at(browser, every(browser, ".track")[0], 0.9)
    assert second(browser) == pytest.approx(9.0, abs=0.1)
    assert "raw 0" in browser.find_element("css selector", ".answer details pre").get_attribute("textContent")
    assert "true answer: at <span> ." in browser.find_element("css selector", "#prompt pre").text


def test_filters_and_order(browser, folder):
    opened(browser, folder, "one")
    listed(browser, [f"q{k:05d}" for k in range(5)])
    put(browser, "order", "worst")
    listed(browser, ["q00003", "q00002", "q00001", "q00004", "q00000"])
    put(browser, "iou_low", "0.3")
    put(browser, "iou_high", "0.6")
    listed(browser, ["q00001", "q00004"])
    put(browser, "task", "even")
    listed(browser, ["q00004"])
    assert "1 of 5 answers · mean IoU 0.600" in browser.find_element("id", "summary").text
    browser.execute_script("document.querySelector('#filters details').open = true")
    every(browser, "#filters button")[0].click()
    listed(browser, [f"q{k:05d}" for k in range(5)])
    put(browser, "kind", "none")
    listed(browser, ["q00003"])
    put(browser, "kind", "")
    put(browser, "search", "WHEN 2")
    listed(browser, ["q00002"])
    put(browser, "search", "nothing like it")
    assert texts(browser, ".nothing") == ["No answer passes these filters."]
    put(browser, "search", "")
    put(browser, "video_low", "11")
    listed(browser, [])


def test_a_link_leads_back_to_the_same_answer_and_filters(browser, folder):
    opened(browser, folder, "one", "order=worst&id=q00001")
    assert chosen(browser) == "q00001"
    listed(browser, ["q00003", "q00002", "q00001", "q00004", "q00000"])
    every(browser, ".item")[1].click()
    assert "id=q00002" in browser.current_url and "order=worst" in browser.current_url


def test_markup_in_an_answer_stays_text(browser, folder):
    opened(browser, folder, "one", "id=q00004")
    assert "<script>document.title" in browser.find_element("id", "question").text
    assert "<img src=x" in texts(browser, ".spoken")[0]
    assert browser.title == "first" and not every(browser, "#detail img")


def test_two_files_are_compared_by_id(browser, folder):
    opened(browser, folder, "two", "order=lost")
    until(lambda: browser.execute_script("return document.querySelector('video').readyState") >= 1, "the clip loads")
    listed(browser, ["q00000", "q00004", "q00002", "q00001", "q00003"])
    assert texts(browser, ".answer .name") == ["first", "other"]
    assert texts(browser, ".timeline .lane") == ["truth", "first", "evidence", "other"]
    put(browser, "order", "gained")
    listed(browser, ["q00003", "q00001", "q00002", "q00004", "q00000"])
    put(browser, "kind", "missing")
    listed(browser, ["q00004"])


def test_the_keyboard_is_enough(browser, folder):
    opened(browser, folder, "one", "id=q00000")
    until(lambda: browser.execute_script("return document.querySelector('video').readyState") >= 1, "the clip loads")
    keys(browser, DOWN, DOWN)
    assert chosen(browser) == "q00002"
    keys(browser, UP, "1")
    assert chosen(browser) == "q00001" and second(browser) == pytest.approx(4.0)
    keys(browser, "/", "n", "e", "v")
    listed(browser, ["q00003"])
    keys(browser, ESCAPE, "j")
    assert chosen(browser) == "q00003"


def test_a_narrow_window_shows_list_or_answer(browser, folder):
    resize(browser, NARROW)
    opened(browser, folder, "two")
    assert every(browser, "#list") and not every(browser, "#detail")
    every(browser, ".item")[1].click()
    assert every(browser, "#detail") and not every(browser, "#list")
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= NARROW[0]
    every(browser, "#back")[0].click()
    assert every(browser, "#list") and not every(browser, "#detail")


def test_a_video_that_cannot_be_played_is_told(browser, folder):
    opened(browser, folder, "one")
    browser.execute_script("document.getElementById('player').src = 'nowhere.webm'")
    until(lambda: every(browser, "#unplayable"), "the message is shown")
    assert CLIP in texts(browser, "#unplayable")[0]


def test_of_many_answers_few_are_in_the_document(browser, folder):
    opened(browser, folder, "many", "order=worst")
    assert f"{MANY:,} of {MANY:,} answers" in browser.find_element("id", "summary").text
    count = "return document.querySelectorAll('.item').length"
    assert 5 < browser.execute_script(count) < 60
    browser.execute_script("const list = document.getElementById('list'); list.scrollTop = list.scrollHeight")
    until(lambda: ids(browser) and ids(browser)[-1] == f"q{MANY - 6:05d}", "the end of the list is drawn")
    assert browser.execute_script(count) < 60
    put(browser, "search", "q19999")
    listed(browser, ["q19999"])
    data = json.loads(browser.execute_script("return JSON.stringify([VIEW.rows.length, VIEW.videos.length])"))
    assert data == [MANY, 1]
