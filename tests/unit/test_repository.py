"""The repository keeps its own rules: one version, safe scripts, no path of one machine, files of a readable size."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import Distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

MAX_LINES = 500
EMPTY = "setup(install_requires=[{}], extras_require={{'dev': []}})\n"  # of a checkout that needs nothing
CODE = {".py", ".sh", ".yaml", ".md", ".toml", ".js", ".css", ".html"}
MACHINE_PATH = re.compile(r"(?<![\w.$}])/(?:work|home|root|Users)/\w")


@pytest.fixture(scope="module")
def texts(repository) -> dict[str, str]:
    """{path: content} of every text file that git tracks or would add."""
    if not (repository / ".git").exists():
        pytest.skip("not a git checkout, so there is no list of files")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout.split("\0")
    contents = {name: (repository / name).read_bytes() for name in names if name and (repository / name).is_file()}
    return {name: data.decode() for name, data in contents.items() if b"\0" not in data}


@pytest.fixture(scope="module")
def scripts(texts) -> dict[str, str]:
    return {name: text for name, text in texts.items() if name.endswith(".sh") or name == ".ci/run"}


def test_the_version_is_the_same_everywhere(repository):
    setup = re.search(r'version="([^"]+)"', (repository / "setup.py").read_text())[1]
    changelog = re.search(r"^## (\d\S*)", (repository / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    citation = yaml.safe_load((repository / "CITATION.cff").read_text())["version"]
    assert setup == changelog == str(citation)


def test_every_script_parses_and_stops_at_the_first_error(repository, scripts):
    assert {".ci/run", "scripts/test.sh", "scripts/_venv.sh"} <= set(scripts)
    for name, text in scripts.items():
        subprocess.run(["bash", "-n", name], cwd=repository, check=True)
        commands = [line for line in text.splitlines() if line and not line.startswith("#")]
        assert commands[0] == "set -euo pipefail", f"{name} must begin with set -euo pipefail"


def test_no_file_names_a_path_of_one_machine(texts):
    found = {name: hit[0] for name, text in texts.items() if (hit := MACHINE_PATH.search(text))}
    assert not found


def test_no_file_is_longer_than_can_be_read(texts):
    long = {
        name: n for name, text in texts.items() if Path(name).suffix in CODE and (n := text.count("\n")) > MAX_LINES
    }
    assert not long


@pytest.fixture(scope="module")
def metadata(repository, tmp_path_factory) -> Distribution:
    """What setup.py tells an installer, packages and requirements."""
    folder = tmp_path_factory.mktemp("metadata")
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(folder)]
    subprocess.run(command, cwd=repository, check=True, capture_output=True)
    return Distribution.at(folder / "videollm.egg-info")


@pytest.fixture(scope="module")
def needed(metadata) -> dict[str, Requirement]:
    """{name: requirement} of what running and testing need; optional extras are not among it."""
    requirements = [Requirement(text) for text in metadata.requires]
    return {r.name.lower(): r for r in requirements if r.marker is None or r.marker.evaluate({"extra": "dev"})}


def exact(text: str) -> dict[str, str]:
    """{name: version} of lines such as ``name==version  # why``."""
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return dict(line.lower().split("==") for line in lines if line)


def test_every_dependency_is_pinned_to_a_version_in_its_range(repository, metadata, needed):
    pins = exact((repository / "requirements.txt").read_text())
    assert set(needed) <= set(pins)
    ranges = {requirement.name.lower(): requirement.specifier for requirement in map(Requirement, metadata.requires)}
    assert [name for name, version in pins.items() if version not in ranges[name]] == []


def test_the_oldest_versions_are_the_lowest_of_every_range(repository, needed):
    command = [sys.executable, "scripts/_floors.py"]
    floors = exact(subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout)
    assert set(floors) == set(needed)
    for name, version in floors.items():
        assert f">={version}" in str(needed[name].specifier).split(","), name


def test_every_package_is_installed(metadata):
    names = metadata.read_text("top_level.txt").split()
    assert names == ["all_benchmark_eval", "d2vlm", "distime", "quickstart", "realweights", "videollm"]


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_leaves_sizes_and_the_optimizer_to_the_trainer(repository, stage):
    config = json.loads((repository / f"configs/deepspeed/zero{stage}.json").read_text())
    assert config["zero_optimization"]["stage"] == stage
    assert "optimizer" not in config and "scheduler" not in config
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    assert {config[name] for name in sizes} == {config["bf16"]["enabled"]} == {"auto"}
    # Without it a full fine-tune under ZeRO-3 ends with no model file.
    assert config["zero_optimization"].get("stage3_gather_16bit_weights_on_model_save", False) == (stage == 3)


def test_the_registry_needs_no_opencv(repository):
    """A machine without libGL cannot import cv2; the project has to work there, without a misleading warning."""
    code = "import sys, warnings; warnings.simplefilter('error'); sys.modules['cv2'] = None\n"
    code += (
        "from videollm.common.registry import new_registry; r = new_registry('x'); r.register(int); print(r.get('int'))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "<class 'int'>\n", "")


@pytest.fixture
def small_checkout(tmp_path, repository) -> Path:
    """The set-up script in a folder of its own, with nothing to install."""
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/_venv.sh", "scripts/_floors.py"):
        (tmp_path / name).write_text((repository / name).read_text())
    (tmp_path / "requirements.txt").write_text("# nothing\n")
    (tmp_path / "setup.py").write_text(EMPTY.format(""))
    return tmp_path


def set_up(checkout: Path, **environment: str) -> subprocess.CompletedProcess:
    code = f'cd / && source "{checkout}/scripts/_venv.sh" && "$PYTHON" -c "import sys; print(sys.executable)"'
    clean = {name: value for name, value in os.environ.items() if name != "VIDEOLLM_PYTHON"}
    return subprocess.run(["bash", "-c", code], env=clean | environment, capture_output=True, text=True)


def test_set_up_uses_the_given_interpreter_and_installs_nothing(small_checkout):
    result = set_up(small_checkout, VIDEOLLM_PYTHON=sys.executable)
    assert result.stdout.strip() == sys.executable
    assert not (small_checkout / ".venv").exists()
    refused = set_up(small_checkout, VIDEOLLM_PYTHON="no-such-python")
    assert refused.returncode == 1
    assert "VIDEOLLM_PYTHON=no-such-python is not an executable" in refused.stderr


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="a GPU computes")
def test_large_blocks_stay_with_a_process_where_a_cpu_computes(small_checkout):
    """Without it a step at batch 8 pays for its memory anew; what the user sets stays."""
    code = f'source "{small_checkout}/scripts/_venv.sh" && echo "$MALLOC_MMAP_THRESHOLD_ $MALLOC_TRIM_THRESHOLD_"'
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    clean["VIDEOLLM_PYTHON"] = sys.executable
    for own, told in ({}, f"{2**30} {2**32}"), ({"MALLOC_MMAP_THRESHOLD_": "7"}, f"7 {2**32}"):
        assert subprocess.check_output(["bash", "-c", code], env=clean | own, text=True).strip() == told


@pytest.mark.slow
@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("versions", "folder", "file", "text"),
    [
        ("", ".venv", "requirements.txt", "# nothing, otherwise\n"),
        ("oldest", ".venv-oldest", "setup.py", EMPTY.format("""'x>=1;python_version<"3"'""")),
    ],
)
def test_set_up_installs_once_and_again_when_the_requirements_change(small_checkout, versions, folder, file, text):
    own = str(small_checkout / folder / "bin/python")
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "versions": versions}
    first, second = set_up(small_checkout, **environment), set_up(small_checkout, **environment)
    assert first.stdout.strip() == second.stdout.strip() == own
    assert "installing" in first.stderr and "installing" not in second.stderr
    (small_checkout / file).write_text(text)
    assert "installing" in set_up(small_checkout, **environment).stderr
