"""Every command of README.md and docs/*.md, as a reader types it, on small files under the names that it has there.

A document's commands run in its order, in a folder that holds links to the repository and the files that they name.
``RULES`` says how each is run; one that no rule covers is a failure. ``KNOWN`` are the commands that fail today: a list
that may only get shorter.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.document_files import build, desk
from tests.documents import Command, commands, documents
from tests.warm_python import warm_python

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = documents(REPOSITORY)
LIMIT_S = 300  # for one command


@dataclass(frozen=True)
class Rule:
    """How the commands that begin with ``pattern`` are run.

    run: as it stands, but for ``swaps`` and what ``more`` appends. parse: until its command line is read, needing no
    weights, network or GPU. settings: the same, and of a training the whole config, with a model without memory. help:
    it is only named, its ``--help`` runs. told: not ours to run, and ``why``. slow: run in the slow test, in the fast
    one parsed.
    """

    pattern: str
    how: str
    more: str = ""
    swaps: tuple[tuple[str, str], ...] = ()
    why: str = ""


TINY = " --train 12 --val 4 --test 4 --unseen 4 --steps 4 --tower-steps 3"
FEW = " train.deepspeed=null data.workers=0 train.validate_every=null train.best=null"
PIXELS = {"factor": 8, "min_pixels": 64, "max_pixels": 4096}  # of the stand-in
TINY_FRAMES = " data.max_length=512" + "".join(f" data.preprocess.{key}={value}" for key, value in PIXELS.items())
ONE_GPU = ("GPUS=8 ", ""), ("--gpus 8", "--gpus 1")
SHORT = " generate.max_new_tokens=4"  # models that have learnt nothing never end by themselves
CPU = f" --device cpu{SHORT}"
CHARADES = *ONE_GPU, ("VIDEOS", "CHARADES")
CARD = (("checkpoints/distime_1b", "checkpoints/internvl2_5_1b"),)  # of released weights
CONVERTED = (("checkpoints/", "converted/"), (r"\b(SRC|LLM|runs/\S+)", "runs/NAME/final"))  # from what is there
RULES = (
    Rule(r"pip install (decord|torchcodec|-e '\.\[(demo|browser|flash)\]')$", "told", why="extras of setup.py"),
    Rule(r"(GPUS=8 )?sh evaluate\.sh ", "told", why="of DisTime's repository"),
    Rule(r"bash scripts/train_inference_eval\.sh$", "told", why="as called in D2VLM's repository"),
    Rule(r"bash \.ci/run$", "told", why="makes an environment and runs these tests"),
    Rule(r"pytest ", "told", why="runs tests; test_document_text sees that they are there"),
    Rule(r"python -m videollm\.launch$", "run", " videollm.data check --help"),
    Rule(r"python -m [\w.]+( check)?$", "help"),
    Rule(r"python -m videollm --(help|version)$", "run"),
    Rule(r"pip install -e \.", "told", why="tests/unit/test_commands.py reads what it would install"),
    Rule(r"GPUS=8 python -m videollm\.launch videollm\.train ", "settings", swaps=ONE_GPU),
    Rule(r"(SEED=\d )?bash scripts/quickstart\.sh( --output \S+)?$", "slow", TINY),
    Rule(r"(SEED=\d )?bash scripts/realweights\.sh", "told", why="fetches packages; test_stages runs it at toy size"),
    Rule(r"python -m realweights\.seeds ", "told", why="tests/unit/realweights/test_seeds.py runs it"),
    Rule(r"pip download$", "told", why="only named: scripts/realweights.sh runs it"),
    Rule(r"bash scripts/test\.sh --oldest$", "told", why="makes an environment and runs these tests"),
    Rule(r"bash scripts/test\.sh( --all)?$", "parse"),
    Rule(r"bash scripts/lmms_eval\.sh$", "told", why="makes an environment and runs end_to_end/test_lmms_eval"),
    Rule(r"(pip install --no-deps -e \.$|lmms-eval )", "told", why="end_to_end/test_lmms_eval runs it, where it is"),
    Rule(r"bash scripts/gpu_check\.sh ", "told", why="needs a GPU; end_to_end/test_gpu_check runs it at its smallest"),
    Rule(r"bash scripts/_venv\.sh$", "run"),
    Rule(r"python -m benchmarks\.", "parse"),
    # training
    Rule(r"bash scripts/train\.sh configs/tiny/", "run", " train.steps=2"),
    Rule(r"python -m videollm\.train --config configs/finetune\.yaml model", "run", f"{FEW} train.steps=2"),
    Rule(r"DS_ACCELERATOR=cpu deepspeed ", "settings", " --config configs/tiny/text.yaml"),
    Rule(r"python -m videollm\.train --config configs/realweights/", "told", why="see test_stages"),
    Rule(r"(python -m videollm\.train|torchrun|deepspeed) ", "settings"),
    Rule(r"(\w+=\w+ )*(bash|srun \S+ bash|sbatch) scripts/(train\.sh|slurm\.sbatch) ", "settings"),
    Rule(r"(\w+=\w+ )*bash scripts/(d2vlm|distime)/train_\w+\.sh ", "settings"),
    Rule(r"GPUS=8 bash scripts/train_inference_eval\.sh ", "settings"),
    Rule(r"bash scripts/train_inference_eval\.sh ANNOTATIONS \[", "settings", swaps=((r" \[sft.*", ""),)),
    Rule(r"python -m videollm\.memory --config configs/distime/", "run", " data.preprocess.size=28"),  # of the stand-in
    Rule(r"python -m videollm\.memory --config configs/qwen3_vl/", "run", TINY_FRAMES),
    Rule(r"python -m videollm\.memory ", "run"),
    # data
    Rule(r"python -m videollm\.(data|frames|checkpoint|difficulty) ", "run"),
    Rule(r"(CLEAN=\S+ )?bash scripts/d2vlm/prepare_data\.sh ", "run"),
    Rule(r"python -m d2vlm\.preference --packed ", "parse", why="made from files of the hub"),
    Rule(r"python -m d2vlm\.(preference|rank) ", "run"),
    Rule(r"python -m (d2vlm|distime|videollm)\.convert ", "parse", swaps=CONVERTED, why="released weights"),
    # answers and scores
    Rule(r"for seed in 0 1 2; do\n +python -m videollm\.infer", "run", swaps=(("=1.0 ", f"=1.0{SHORT} "),)),
    Rule(r"bash scripts/infer\.sh runs/(quickstart/d2vlm|NAME)/final ", "run"),
    Rule(r"python -m videollm\.(ask|view) ", "run"),
    Rule(r"python -m videollm\.demo ", "parse", why="serves until it is ended"),
    Rule(r"python -m videollm\.push .*--dry-run$", "run"),
    Rule(r"python -m videollm\.infer ", "run", SHORT),
    Rule(r"python -m all_benchmark_eval\.(score|compare|check|report|moving_shapes\.task) ", "run"),
    Rule(r"python -m all_benchmark_eval\.evaluate MODEL ", "run", f" --skip-meteor{CPU}", ONE_GPU),
    Rule(r"python -m all_benchmark_eval\.card ", "run", f" --benchmarks charades{CPU}", CARD),
    Rule(r"GPUS=8 bash all_benchmark_eval/charades/inference\.sh MODEL VIDEOS", "run", CPU, CHARADES),
    Rule(r"bash all_benchmark_eval/\w+/inference\.sh MODEL$", "parse"),
    Rule(r"(\w+=\w+ )*bash scripts/(evaluate|inference)\.sh ", "parse"),
)  # fmt: skip

# What stands for something of the reader's own, and what stands for it here.
PLACEHOLDERS = (
    (r" \[\S+ \.\.\.\]", ""),
    (r" \[(--[^\]]*)\]", r" \1"),
    (r" (key=value|\.\.\.)(?= |$)", ""),
    (r"(GPUS=|nproc_per_node |num_gpus )n\b", r"\g<1>1"),
    (r"(--config |train\.sh |slurm\.sbatch )(FILE|CONFIG)(\.yaml)?\b", r"\1configs/tiny/text.yaml"),
    (r"--model DIR\b", "--model MODEL"),
    (r"--videos DIR\b", "--videos VIDEOS"),
    (r"--annotations FILE\b", "--annotations questions.jsonl"),
    (r"--output FILE\b(\.jsonl)?", "--output written.jsonl"),
    (r"(?<=[ =])/(?=(data|path|videos)\b)", "absolute/"),
)

KNOWN: dict[tuple[str, str], str] = {}  # (document, beginning of a command): why it fails today


def rule_of(command: Command) -> Rule | None:
    """The first rule that covers a command."""
    return next((rule for rule in RULES if re.match(rule.pattern, command.text)), None)


def known(command: Command) -> bool:
    """Whether a command is on the list of those that fail."""
    return any(command.file == file and command.text.startswith(prefix) for file, prefix in KNOWN)


def typed(command: Command, rule: Rule) -> str:
    """The command as it runs here."""
    text = command.text
    for pattern, value in (*rule.swaps, *PLACEHOLDERS):
        text = re.sub(pattern, value, text)
    return text + (" --help" if rule.how == "help" else rule.more)


# ---- running ---------------------------------------------------------------------------------------------------------


@dataclass
class Shell:
    """Runs commands with a ``python`` that is warm; ``base`` holds the files that documents name."""

    environment: dict[str, str]
    base: Path

    def run(self, text: str, folder: Path, mode: str = "run", limit_s: float = LIMIT_S) -> str:
        """What is wrong with a command, as its last lines say; empty if it ends with status 0."""
        environment = os.environ | self.environment | {"WARM_MODE": mode, "PYTHONPATH": str(folder)}
        if variables := re.match(r"((?:[A-Z_]+=\S+ )+)bash (\S+)", text):
            given = [item.split("=")[0] for item in variables[1].split()]
            shown = subprocess.run(["bash", variables[2], "--help"], cwd=folder, capture_output=True, text=True).stdout
            if unknown := [name for name in given if name not in shown]:
                return f"{variables[2]} --help names no {', '.join(unknown)}"
        command = ["bash", "-c", text]
        options = {"cwd": folder, "env": environment, "stdin": subprocess.DEVNULL, "timeout": limit_s}
        try:
            done = subprocess.run(command, capture_output=True, text=True, **options)
        except subprocess.TimeoutExpired:
            return f"takes more than {limit_s} s"
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-12:])
        return f"status {done.returncode}: {tail}" if done.returncode else ""


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """The warm interpreter, and the files that the documents name."""
    folder = tmp_path_factory.mktemp("documents")
    with warm_python(folder / "bin") as environment:
        made = Shell(environment, folder / "base")

        def run(text: str, where: Path) -> None:
            said = made.run(text, where)
            assert not said, f"{text}\n{said}"

        build(made.base, REPOSITORY, run)
        yield made


HOW = {"help": "run", "slow": "run"}  # in the terms of warm_python


def faults(shell: Shell, path: Path, folder: Path, mode_of: Callable[[Rule], str]) -> dict[Command, str]:
    """What is wrong with each command of a document that does not work, run in its order in a folder."""
    found = {}
    for command in commands(REPOSITORY, path):
        rule = rule_of(command)
        if rule is None or rule.how == "told":
            continue
        if said := shell.run(typed(command, rule), folder, mode_of(rule)):
            found[command] = said
    return found


def check(found: dict[Command, str], shown: list[Command]) -> None:
    """Hold what fails against ``KNOWN``: neither more nor fewer."""
    wrong = [f"{command}\n    {said}" for command, said in found.items() if not known(command)]
    works = [f"{command}\n    works: take it off KNOWN" for command in shown if known(command) and command not in found]
    assert not wrong + works, "\n".join(wrong + works)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_every_command_works_as_it_is_shown(shell, tmp_path, path):
    folder = desk(shell.base, tmp_path / "desk")
    found = faults(shell, path, folder, lambda rule: (HOW | {"slow": "parse"}).get(rule.how, rule.how))
    check(found, commands(REPOSITORY, path))


@pytest.mark.slow
def test_the_page_of_the_quickstart_works_behind_it(shell, tmp_path):
    """The quickstart itself, at its smallest, and the other commands on what it has left."""
    folder, page = desk(shell.base, tmp_path / "desk"), REPOSITORY / "docs/quickstart.md"
    shutil.rmtree(folder / "runs/quickstart")
    found = faults(shell, page, folder, lambda rule: HOW.get(rule.how, rule.how))
    check(found, commands(REPOSITORY, page))


def test_a_table_of_moments_becomes_a_fine_tuned_model_that_answers(shell, tmp_path):
    """docs/finetune.md from its script to its picture, on a tiny model in place of the converted one."""
    folder, page = desk(shell.base, tmp_path / "desk"), REPOSITORY / "docs/finetune.md"
    for made in ("runs/finetune", "mine.jsonl", "held_out.jsonl"):
        path = folder / made
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = page.read_text(encoding="utf-8")
    head, script = (re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL)[1] for kind in ("csv", "python"))
    rows = "".join(f"kitchen/001.mp4,she brushes the ski {n},{n},{n + 2}\n" for n in range(10))
    (folder / "moments.csv").write_text(head.splitlines()[0] + "\n" + rows)
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True)
    assert [(folder / f).read_text().count("\n") for f in ("mine.jsonl", "held_out.jsonl")] == [9, 1]
    steps = {r"python -m videollm\.data check": "", r"GPUS=8 bash scripts/train": f"{FEW} train.steps=2"}
    for step, more in (steps | {r"python -m videollm\.ask": SHORT, r"python -m videollm\.infer": SHORT}).items():
        command = next(command.text for command in commands(REPOSITORY, page) if re.match(step, command.text))
        assert not (said := shell.run(command.replace("GPUS=8 ", "GPUS=1 ") + more, folder)), f"{command}\n{said}"
    assert (folder / "timeline.png").stat().st_size > 1000 and (folder / "answers.jsonl").read_text().count("\n") == 1


# What a newcomer wants first: the page for it, and the commands there that do it, in order. Nothing else is needed.
TASKS = {
    "see it work": ("docs/quickstart.md", ["bash scripts/quickstart.sh"]),
    "ask a question about a video": ("docs/quickstart.md", ["python -m videollm.ask"]),
    "answer a file of questions, and score them": (
        "docs/quickstart.md", ["bash scripts/infer.sh", "python -m all_benchmark_eval.moving_shapes.task"],
    ),
    "fine-tune on my videos": (
        "docs/finetune.md",
        ["python -m videollm.data", "python -m videollm.convert", "GPUS=8 bash scripts/", "python -m videollm.ask"],
    ),
    "use another group's training set": ("docs/data.md", ["python -m videollm.data import"]),
    "know the memory that a run needs": ("docs/memory.md", ["python -m videollm.memory"]),
    "score somebody else's answers": ("docs/evaluation.md", ["python -m all_benchmark_eval.score"]),
    "compare two models": (
        "docs/evaluation.md", ["python -m all_benchmark_eval.score", "python -m all_benchmark_eval.compare"],
    ),
    "run a benchmark with a model": ("docs/evaluation.md", ["python -m all_benchmark_eval.evaluate"]),
    "learn from the model's own mistakes": (
        "docs/fpo.md", ["python -m d2vlm.preference", "bash scripts/d2vlm/train_fpo.sh"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_a_newcomers_task_is_done_by_the_commands_of_a_page_that_the_index_links(task):
    page, wanted = TASKS[task]
    assert f"({Path(page).name}" in (REPOSITORY / "docs/index.md").read_text(encoding="utf-8")
    shown = iter(command for command in commands(REPOSITORY, REPOSITORY / page))
    for prefix in wanted:
        found = next((command for command in shown if command.text.startswith(prefix)), None)
        assert found and rule_of(found).how != "told", f"{page} does not show {prefix!r} where it is wanted"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_every_command_is_covered_by_a_rule(path):
    assert not [str(command) for command in commands(REPOSITORY, path) if rule_of(command) is None]


def test_rules_and_known_failures_belong_to_a_command():
    shown = [command for path in DOCUMENTS for command in commands(REPOSITORY, path)]
    used = {rule_of(command) for command in shown}
    assert not [rule.pattern for rule in RULES if rule not in used]
    for file, prefix in KNOWN:
        hits = [command for command in shown if command.file == file and command.text.startswith(prefix)]
        assert len(hits) == 1, f"{file}: {len(hits)} commands begin with {prefix!r}"


@pytest.mark.parametrize(
    "mode, text, says",
    [
        ("parse", "python -m d2vlm.convert runs/NAME/final DST --bock", "--bock"),
        ("parse", "bash scripts/infer.sh MODEL questions.jsonl VIDEOS out.jsonl --batchsize 3", "--batchsize"),
        ("settings", "bash scripts/train.sh configs/tiny/text.yaml train.step=3", "train.step: unknown key"),
        ("settings", "torchrun --nproc_per_node 2 -m videollm.train --config no.yaml", "no.yaml"),
        ("run", "SEEDS=1 bash scripts/quickstart.sh --help", "names no SEEDS"),
        ("run", "python -m videollm.nothing", "videollm.nothing"),
        ("run", "python -m videollm.data check --annotations nothing.jsonl", "nothing.jsonl"),
    ],
)
def test_a_command_that_is_wrong_is_seen(shell, mode, text, says):
    assert says in shell.run(text, shell.base, mode)


def test_a_command_that_no_rule_covers_is_seen():
    assert rule_of(Command("docs/new.md", 1, "python -m videollm.new --option")) is None
