"""Texts with what the published parsers make of them, one test each: spans, steps, letters, right or wrong.

Cases come from corner/parse_cases.json of PAPER_DIR; without it there are none.
"""

import functools

import pytest

from all_benchmark_eval.benchmark import read_json
from all_benchmark_eval.metrics.choices import longvideobench_right, mvbench_right, videomme_letter
from all_benchmark_eval.metrics.parsing import (
    published_number,
    published_spans,
    published_spans_with_evidence,
    published_steps,
    published_steps_with_evidence,
)
from tests.conftest import place

PAPER = place("PAPER_DIR")
FILE = PAPER / "corner" / "parse_cases.json"
if not FILE.is_file():
    pytest.skip(f"no {FILE} (set PAPER_DIR)", allow_module_level=True)

PARSE = {
    "span_plain": published_spans,
    "first_number_plain": published_number,
    "span_evidence": published_spans_with_evidence,
    "steps_plain": lambda text: published_steps(text) or (None, None),
    "steps_evidence": lambda text: published_steps_with_evidence(text) or (None, None, None),
    "videomme_letter": functools.partial(videomme_letter, variant="d2vlm"),
}
ALL = read_json(FILE)
CASES = [pytest.param(kind, case, id=f"{kind}-{n}") for kind in PARSE for n, case in enumerate(ALL.get(kind, []))]
RIGHT = [
    pytest.param(
        lambda text, true, variant=variant: mvbench_right(text, true, variant), case, case[variant], id=f"{variant}-{n}"
    )
    for variant in ("distime", "d2vlm")
    for n, case in enumerate(ALL.get("mvbench_check", []))
]
RIGHT += [
    pytest.param(longvideobench_right, case, case, id=f"longvideobench-{n}")
    for n, case in enumerate(ALL.get("longvideobench_check", []))
]


def as_json(value):
    """Tuples as lists, infinity as "inf"."""
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return "inf" if value == float("inf") else value


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_a_text_is_parsed_as_published(kind, case):
    # two values for three, in the steps with evidence, mark where the published caller stops with a ValueError
    if "exception" in case or (kind == "steps_evidence" and case["value"] == [None, None]):
        with pytest.raises(Exception) as caught:
            PARSE[kind](case["text"])
        assert caught.type.__name__ == case.get("exception", "ValueError")
    else:
        assert as_json(PARSE[kind](case["text"])) == case["value"]


@pytest.mark.parametrize(("right", "case", "expected"), RIGHT)
def test_an_answer_is_right_as_published(right, case, expected):
    if "exception" in expected:
        with pytest.raises(Exception) as caught:
            right(case["pred"], case["gt"])
        assert caught.type.__name__ == expected["exception"]
    else:
        assert right(case["pred"], case["gt"]) is expected["value"]
