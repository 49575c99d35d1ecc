"""README.md's tables say what the code has: sizes and memory of models, benchmarks with their scripts, tested cells."""

import re
from pathlib import Path

import pytest

from all_benchmark_eval.benchmark import get, names
from tests.models import BACKBONES, HEADS, PAIRS
from tests.unit.d2vlm.test_fpo import BUNDLES
from tests.unit.grpo.test_rollout import CASES
from tests.unit.model.test_matrix import CELLS, FAST

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
OBJECTIVE = {"S": "supervised", "P": "fpo", "G": "grpo"}  # letters of the matrix
PUBLISHED = {  # the recipe of a published system, and how docs/memory.md names it
    "D2VLM": "configs/d2vlm/sft_etchat_phi3.yaml",
    "E.T. Chat, stage 2": "configs/d2vlm/sft_etchat_phi3.yaml",
    "DisTime-1B": "configs/distime/internvl2_5_1b_lora.yaml",
    "DisTime-8B": "configs/distime/internvl2_5_8b_lora.yaml",
}


def table(heading: str) -> list[list[str]]:
    """The cells of the rows of a section's table."""
    section = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line.strip() for line in section.splitlines()]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    return rows[2:]


def read(path: str) -> str:
    return (REPOSITORY / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("row", table("Models"), ids=lambda row: row[0])
def test_a_models_size_and_memory_are_those_of_its_recipe(row):
    model, hub, convert, size, memory, *_ = row
    billions, gib = float(size.removesuffix(" B")), float(memory)
    if model in PUBLISHED:
        count = re.search(r"of ([\d,]+) parameters", read(PUBLISHED[model]))[1]
        line = next(li for li in read("docs/memory.md").splitlines() if f"`{PUBLISHED[model]}`" in li)
        wanted = int(count.replace(",", "")) / 1e9, float(re.findall(r"([\d.]+) GiB", line)[-1])
    else:
        family, number = re.fullmatch(r"([\w.]+(?:-VL)?)-(\d)B", model).groups()
        recipe = read(f"configs/{family.lower().replace('.', '_').replace('-', '_')}/text_lora.yaml")
        wanted = float(number), float(re.search(rf"#   {number}B: \S+ on 1 GPU, (\S+) on 8 GPUs", recipe)[1])
        assert f"{number}B" in hub
    assert (billions, gib) == pytest.approx(wanted, rel=0.02, abs=0.06)
    assert hub.strip("`") in convert or " SRC " in convert


def test_every_benchmark_is_listed_with_its_scripts_and_a_number_of_its_page():
    rows = {re.search(r"`(\w+)`", row[0])[1]: row for row in table("Benchmarks")}
    assert sorted(rows) == sorted(names())
    for name, (link, _, scripts, metrics, published) in rows.items():
        assert int(scripts) == len(get(name).variants), name
        heads = {re.split("[@_]", metric)[0] for metric in get(name).headline if not metric.islower()}
        assert all(metric in metrics for metric in heads), name
        page = read(re.search(r"\((\S+)\)", link)[1])
        if (number := re.search(r"\d[\d.]*$", published)) and "](" not in published:
            assert number[0] in page, name


def test_the_matrix_shows_the_cells_that_tests_run():
    """Capital letters: fast tests; small ones: those behind ``--all``."""
    fast = {"S": set(PAIRS), "P": set(BUNDLES), "G": {(backbone, head) for backbone, head, _ in CASES}}
    fast = {name: cells | {c[:2] for c in FAST if c[2] == OBJECTIVE[name]} for name, cells in fast.items()}
    rows = {re.search(r"\(`(\w+)`\)", row[0])[1]: row[1:] for row in table("Backbone × head × objective")}
    assert list(rows) == list(BACKBONES)
    for backbone, cells in rows.items():
        for head, cell in zip(HEADS, cells, strict=True):
            slow = {name for name in OBJECTIVE if (backbone, head, OBJECTIVE[name]) in CELLS}
            wanted = [n if (backbone, head) in fast[n] else n.lower() for n in OBJECTIVE
                      if (backbone, head) in fast[n] or n in slow]  # fmt: skip
            assert cell.split() == wanted, (backbone, head, wanted)


def test_the_versions_are_those_that_are_pinned_and_the_lowest_allowed():
    pinned, ranges = read("requirements.txt"), read("setup.py")
    newest, lowest, cuda = (row[1:3] for row in table("Status and hardware"))
    assert newest == cuda == [re.search(rf"^{name}==(\S+)", pinned, re.M)[1] for name in ("torch", "transformers")]
    assert lowest == [re.search(rf'"{name}>=([\d.]+)', ranges)[1] for name in ("torch", "transformers")]


def test_what_has_not_run_is_said_as_long_as_it_is_so():
    assert "Not yet run with released weights or on a GPU" in README
    assert {row[-1] for row in table("Models")} == {"not run"}
