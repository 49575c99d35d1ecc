"""The command ``videollm``: its table, its help, and what it says of wrong words before anything heavy is loaded."""

import contextlib
import json
import os
import re
import subprocess
import sys
from importlib import metadata

import pytest

from tests.models import clip_lines, clips, make_bundle, write_config, write_lines
from videollm.__main__ import ABSENT, main, overview
from videollm.common.command import UNREAD, ended
from videollm.common.declared import COMMANDS, declared, file_of, of_clone, sign

HEAVY = ("torch", "transformers")
RUN = f"""
import json, sys
from videollm.__main__ import main
try:
    status = main(json.loads(sys.argv[1]))
except SystemExit as end:
    status = end.code
print(json.dumps([status, [name for name in {HEAVY} if name in sys.modules]]))
"""
# Command line -> what must be said of it, all in one run. {model}, {lines}, {videos} and {config} are good.
WRONG = {
    "train --config {config} train.stpes=1 data.videos={none} data.train=[{none}.jsonl] train.output=/proc/no": (
        "train.stpes: unknown key; did you mean train.steps?", "data.videos: ", "data.train: no file", "train.output: ",
    ),
    "train --config {none}.yaml": ("none.yaml: cannot read the config file",),
    "infer --model {none} --annotations {none}.jsonl --videos {none} --output /proc/no/a.jsonl samplr.fps=1 "
    "generate.top=1": ("--model: ", "--annotations: ", "--videos: ", "--output: ", "samplr: ", "generate.top: unknown"),
    "infer --model {model} --annotations {lines} --videos {videos} --output {none}/a.jsonl sampler.fsp=1": (
        "sampler.fsp: unknown key; did you mean sampler.fps?",
    ),
    "ask --model {none} --video {none}.mp4 --question= --output {none}/a.gif generate.seed=x": (
        "--model: ", "none.mp4: does not exist", "--question: ", ".png", "generate.seed: expected int, got 'x'",
    ),
    "evaluate {none} --benchmarks charades,nothing --data {none} --output /proc/no/x sampler=1": (
        "MODEL: ", "'nothing'", "--data: ", "--output: ", "sampler: expected a mapping",
    ),
    "difficulty --annotations {none} --answers {none} --output /proc/no/x cuont=3 spread=x": (
        "cuont: unknown key; did you mean count?", "spread: expected a number", "--annotations: ", "--answers: ",
        "--output: ",
    ),
    "difficulty --annotations {lines} --answers {lines} --output {none} count=0 spread=0 quantiles=[1]": (
        "count: 0", "spread: 0", "quantiles: ",
    ),
    "launch trian --config {config}": ("error: trian: no such command or module",),
    "launch train --confg {config}": ("error: --confg: unknown option; did you mean --config?",),
    "launch train --config {config} train.stpes=1 data.videos={none}": ("train.stpes: unknown key; ", "data.videos: "),
    "launch infer --model {none} --annotations {none} --videos {none} --output /proc/no/x": (
        "--model: ", "--annotations: ", "--videos: ", "--output: ",
    ),
    "convert {model} {none} --bakc": ("error: --bakc: unknown option; did you mean --back?",),
    "convert {none} {videos} --head d2vml": (
        "--head: 'd2vml' is unknown; did you mean d2vlm?", "no such folder, and no hub name", "not an empty folder",
    ),
    "convert {none} a --head=": ("--head: '' is unknown; known values: text, d2vlm, distime", "no such folder, and no"),
    "push {videos} lab --licence mit --scores {none}.json": ("no config.json; give", "OWNER/NAME: ", "--scores: "),
    "convert {none} {videos}": ("no such folder, and no hub name", "not an empty folder"),
    "memory --config {config} model.hed=1 model.checkpoint={none}": ("model.hed: unknown", "model.checkpoint: "),
    "frames build --annotations {none}.jsonl --videos {none} --output /proc/no/x --model {none} sampler.fsp=1": (
        "--annotations: ", "--videos: ", "--output: ", "--model: ", "sampler.fsp: unknown",
    ),
    "train --confg {config}": ("error: --confg: unknown option; did you mean --config?",),
    "ask --modle {model} --video x": ("error: --modle: unknown option; did you mean --model?",),
    "infer --model {model} --batchsize=4": ("error: --batchsize: unknown option; did you mean --batch-size?",),
    "data import videomind {lines} --outptu x": ("error: --outptu: unknown option; did you mean --output?",),
    "ask --model {run} --video {videos}/clip0.mp4 --question x": ("no config.json; it is a run, its model is ",),
    "ask --model {model}": ("error: the following arguments are required: --video, --question; videollm ask --help ",),
    "score charades --protocol publishd": (
        "error: argument --protocol: 'publishd' is unknown; did you mean published?",
    ),
    "data chekc --annotations {lines}": ("error: argument command: 'chekc' is unknown; did you mean check?",),
    "ask --model {model} --video {videos}/clip0.mp4 --question x --device cud": (
        "error: --device: 'cud' is no device; did you mean cuda?",
    ),
    "infer --model {model} --annotations {lines} --videos {videos} --output {none}/a.jsonl --device=cuda:x": (
        "error: --device: 'cuda:x' is no device; did you mean cuda?",
    ),
    "push {model} lab/x --licence apach-2.0": (
        "error: argument --licence: 'apach-2.0' is unknown; did you mean apache-2.0?",
    ),
    "memory --config configs/finetune.yaml": (" --head d2vlm",),
    "trian": ("videollm trian: no such command; did you mean train?",),
    "--help": (),
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("commands")
    make_bundle("internvl", "text").save(folder / "model")
    (folder / "run" / "final").mkdir(parents=True)
    (folder / "run" / "final" / "config.json").write_text("{}")
    return {
        "none": str(folder / "none"), "videos": str(clips()), "model": str(folder / "model"), "run": f"{folder}/run",
        "lines": write_lines(folder / "lines.jsonl", clip_lines()), "config": str(write_config(folder / "run", "text")),
    }  # fmt: skip


@pytest.mark.parametrize("line", WRONG)
def test_wrong_words_are_told_all_at_once_before_torch_is_loaded(line, places, repository):
    words = [part.format(**places) for part in line.split()]
    call = [sys.executable, "-c", RUN, json.dumps(words)]
    done = subprocess.run(call, cwd=repository, capture_output=True, text=True, check=False)
    assert json.loads(done.stdout.splitlines()[-1]) == [0 if line == "--help" else 2, []], done.stdout + done.stderr
    told = [row for row in done.stderr.splitlines() if row.startswith("error: ")]
    assert len(told) == len(WRONG[line]) and all(any(said in row for row in told) for said in WRONG[line]), told


@pytest.mark.parametrize("gpus", ["2", ""])
def test_a_launch_of_several_processes_tells_wrong_words_once_and_at_once(gpus, places, repository):
    call = [sys.executable, "-c", RUN, json.dumps(["launch", "train", "--config", places["config"], "train.stpes=1"])]
    environment = os.environ | {"GPUS": gpus}
    done = subprocess.run(call, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == "error: train.stpes: unknown key; did you mean train.steps?\n"
    assert json.loads(done.stdout) == [2, []]


def test_the_version_is_told_without_loading_what_it_names(repository):
    call = [sys.executable, "-c", RUN, json.dumps(["--version"])]
    done = subprocess.run(call, cwd=repository, capture_output=True, text=True, check=True)
    first, second, end = done.stdout.splitlines()
    stated = re.search(r'version="([\d.]+)"', (repository / "setup.py").read_text())[1]
    assert re.fullmatch(rf"videollm {stated} \((commit [0-9a-f]{{40}}(, with changes)?|no git checkout)\)", first)
    assert f"torch {metadata.version('torch')}, transformers {metadata.version('transformers')}, " in second
    assert json.loads(end) == [0, []]


def test_help_lists_every_command_with_a_line(capsys):
    assert main(["--help"]) == 0 and main([]) == 2
    rows = dict(re.findall(r"^  (\w+) +(\S.*)$", capsys.readouterr().out, re.MULTILINE))
    assert list(rows) == list(declared(COMMANDS))
    assert rows["ask"] == "Ask one question about one video" and all(len(row) < 100 for row in rows.values())


@pytest.mark.parametrize("name", [name for name, value in declared(COMMANDS).items() if sign(value.partition(":")[0])])
def test_the_help_of_a_command_is_its_own(name, capsys):
    try:
        assert main([name, "--help"]) == 0
    except SystemExit as end:
        assert end.code == 0
    assert capsys.readouterr().out.startswith(f"usage: videollm {name}")


def options_of(capsys, *words: str) -> list[str]:
    """What ``videollm WORDS --help`` lists: options, and those of its own commands as ``command --option``."""
    with contextlib.suppress(SystemExit):
        main([*words, "--help"])
    said = capsys.readouterr().out
    found = [name for name in re.findall(r"^  (?:-\w, )?(--[\w-]+)", said, re.MULTILINE) if name != "--help"]
    inner = re.findall(r"^  \{([\w,]+)\}$", said, re.MULTILINE)
    return found + [f"{c} {o}" for names in inner for c in names.split(",") for o in options_of(capsys, *words, c)]


def test_the_page_lists_commands_and_options_as_they_are(repository, capsys):
    """After a change, put the table of the failure into the page."""
    rows = ["| command | what it does | options |", "|---|---|---|"]
    for name, value in declared(COMMANDS).items():
        if line := sign(value.partition(":")[0]):
            options = ", ".join(f"`{option}`" for option in options_of(capsys, name))
            rows.append(f"| `videollm {name}` | {line} | {options} |")
    page = (repository / "docs/commands.md").read_text(encoding="utf-8")
    assert "\n".join(rows) == "\n".join(line for line in page.splitlines() if line.startswith("|"))


def test_what_an_installation_declares_is_what_a_clone_has(repository):
    """``setup.py`` itself, as pip runs it, against what is read of it."""
    code = "import setuptools, json; setuptools.setup = lambda **given: print(json.dumps(given['entry_points'])); "
    code += "exec(open('setup.py').read())"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    if "No module named 'setuptools'" in done.stderr:
        pytest.skip("no setuptools here")
    groups = json.loads(done.stdout)
    assert (
        groups == of_clone(repository / "setup.py") and "videollm = videollm.__main__:main" in groups["console_scripts"]
    )
    commands = dict(line.split(" = ") for line in groups[COMMANDS])
    assert commands.items() <= declared(COMMANDS).items()


def test_a_plug_in_adds_a_command(monkeypatch):
    extra = metadata.EntryPoint("sing", "opera.song:main", COMMANDS)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [extra])
    declared.cache_clear()
    assert declared(COMMANDS)["sing"] == "opera.song:main" and "train" in declared(COMMANDS)
    declared.cache_clear()


def test_a_command_that_is_declared_but_not_there_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("videollm.__main__.declared", lambda group: {"sing": "nothing.song:main"})
    assert f"sing  {ABSENT}" in overview()
    assert main(["sing"]) == 2
    assert capsys.readouterr().err == f"error: videollm sing: {ABSENT}; its module nothing.song is missing\n"


def test_a_file_is_found_without_importing_what_is_above_it():
    assert file_of("videollm.data.__main__").name == "__main__.py" and file_of("videollm.heads").name == "__init__.py"
    assert file_of("videollm.none") is None and file_of("nothing.at.all") is None


@pytest.mark.parametrize("unbuffered", ["", "1"])  # by default what is printed is written at the end
@pytest.mark.parametrize("words", [[], ["--help"], ["train", "--help"]], ids=" ".join)
def test_a_reader_that_leaves_early_is_no_error(words, unbuffered):
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", "videollm", *words]
    ran = subprocess.run(
        command, stdout=writes, stderr=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": unbuffered}
    )
    os.close(writes)
    assert ran.stderr == b"" and ran.returncode in (0, UNREAD)  # argparse, too, drops what nobody reads


def test_another_broken_pipe_is_told(tmp_path, capfd):
    def broken():
        raise BrokenPipeError(32, "Broken pipe", "peer")

    with open(tmp_path / "out", "w") as out, contextlib.redirect_stdout(out):
        assert ended(broken) == 2
    assert "peer: Broken pipe" in capfd.readouterr().err


EMPTY = ("view a.jsonl --videos . --output=", "report run --output=", "check ", "data check a --videos . --output=")


@pytest.mark.parametrize("line", EMPTY)
def test_an_empty_path_is_not_the_folder_that_one_is_in(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(line.split(" "))
    assert ": it is empty (an empty variable?); give a path" in capsys.readouterr().err and not any(tmp_path.iterdir())
