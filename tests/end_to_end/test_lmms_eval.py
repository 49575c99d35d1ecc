"""lmms-eval both ways, against the installed package: its tasks asked of our checkpoints, its samples scored here.

``bash scripts/lmms_eval.sh`` makes an environment with it and runs this file; without it the tests skip. Tasks are the
package's own, on four clips in place of their data sets.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from all_benchmark_eval.score import score_file
from tests.answers import answer_line
from tests.form_files import write
from tests.models import clips, make_bundle

lmms_eval = pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: bash scripts/lmms_eval.sh")
QUERIES = {f"clip{i}": [i / 2, 2.5 + i / 2] for i in range(4)}  # video -> when it happens
TRUTH = {v: {"duration": 4 + i, "spans": [s], "queries": [f"it is {i}"]} for i, (v, s) in enumerate(QUERIES.items())}
DOCS = {  # as the data sets of the tasks have them
    "timelens": [
        {"video_path": f"{v}.mp4", "query": f"it is {i}", "span": [s], "duration": 4 + i}
        for i, (v, s) in enumerate(QUERIES.items())
    ],
    "charades": [
        {"video": f"{v}.mp4", "caption": f"it is {i}", "timestamp": s} for i, (v, s) in enumerate(QUERIES.items())
    ],
    "extreme": [
        {
            "qid": f"q{i}", "video_id": v, "source_corpus": "LVBench", "question": f"when is it {i}?",
            "correct_interval": s, "video_duration_s": 4.0 + i, "event_summary": "", "category": "a",
        }
        for i, (v, s) in enumerate(QUERIES.items())
    ],
}  # fmt: skip
TASKS = {  # ours -> its file in the package, where its videos lie, whose metrics, and the variant that computes them
    "timelens": ("timelens/timelens_charades.yaml", "timelens", "charades_timelens", "timelens"),
    "charades": ("charades_sta/charades.yaml", "charades_sta/Charades_v1_480", "charades_timelens", "lmms_charades"),
    "extreme": ("extremewhenbench/extremewhenbench.yaml", "lvbench", "extremewhenbench", "extremewhen"),
}
OURS = {"mIOU": "mIoU", "mIoU": "mIoU", "fail": "parse_fail"}  # by the ends of their names
OURS |= {f"{of}{t}": f"R1@0.{t}" for of in ("IOU@", "R@0.") for t in (3, 5, 7)}
HEADS = {"text": "qwen3_vl", "d2vlm": "etchat", "distime": "internvl"}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder for lmms-eval: tasks, documents, videos where the tasks look for them."""
    home = tmp_path_factory.mktemp("home")
    for name, (file, videos, *_) in TASKS.items():
        (home / videos).parent.mkdir(parents=True, exist_ok=True)
        (home / videos).symlink_to(clips())
        documents = home / f"{name}.jsonl"
        documents.write_text("".join(f"{json.dumps(doc)}\n" for doc in DOCS[name]))
        task = {
            "include": str(Path(lmms_eval.__file__).parent / "tasks" / file), "task": f"our_{name}",
            "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": {"test": str(documents)}},
            "test_split": "test",
        }  # fmt: skip
        (home / "tasks").mkdir(exist_ok=True)
        (home / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return home


@pytest.fixture(scope="module")
def installed(repository, tmp_path_factory) -> str:
    """A folder with what installing this repository tells others, for PYTHONPATH."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(folder)]
    subprocess.run(command, cwd=repository, check=True, capture_output=True)
    return f"{repository}{os.pathsep}{folder}"


def talkative(folder: Path, head: str) -> Path:
    """A tiny model that often says a span token, if its head has one."""
    bundle = make_bundle(HEADS[head], head)
    ids = bundle.tokenizer.convert_tokens_to_ids(list(bundle.model.head.span_tokens))
    with torch.no_grad():
        bundle.model.language_model.get_output_embeddings().weight[ids] *= 20
    bundle.save(folder)
    return folder


def run(home: Path, installed: str, output: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lmms_eval", "--model", "videollm", "--device", "cpu", "--log_samples"]
    command += ["--include_path", str(home / "tasks"), "--output_path", str(output), *arguments]
    environment = os.environ | {"PYTHONPATH": installed, "HF_HOME": str(home), "HF_DATASETS_OFFLINE": "1"}
    return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("head", HEADS)
def test_its_tasks_run_with_our_heads_and_its_samples_score_here_as_it_scores_them(head, home, installed, tmp_path):
    model = talkative(tmp_path / "model", head)
    given = f"pretrained={model},generate.max_new_tokens=12,sampler.num_frames=4"
    tasks = ",".join(f"our_{name}" for name in TASKS)
    done = run(home, installed, tmp_path / "out", "--model_args", given, "--tasks", tasks, "--batch_size", "3")
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (tmp_path / "out").rglob("*results.json")
    results = json.loads(results.read_text())["results"]
    texts = []
    for name, (_, _, benchmark, variant) in TASKS.items():
        (samples,) = (tmp_path / "out").rglob(f"*samples_our_{name}.jsonl")
        truth = DOCS["extreme"] if name == "extreme" else TRUTH
        paths = samples, [write(tmp_path / f"{name}.json", truth)], tmp_path / f"{name}_scores.json"
        ours = score_file(benchmark, *paths, variant=variant)["protocols"]["published"]["metrics"]
        scale = 100 if name == "extreme" else 1  # fractions there
        named = {key.partition(",")[0].rpartition("_")[2]: value for key, value in results[f"our_{name}"].items()}
        theirs = {OURS[key]: value * scale for key, value in named.items() if key in OURS}
        assert len(theirs) >= 4 and {key: ours[key] for key in theirs} == pytest.approx(theirs, abs=1e-9)
        texts += [json.loads(line)["filtered_resps"] for line in samples.read_text().splitlines()]
    assert len(texts) == 12 and any(" seconds" in text for text in texts) == (head != "text")


# ---- what does not need a run of it ----------------------------------------------------------------------------------


def test_times_are_written_as_the_scripts_of_its_tasks_read_them():
    from lmms_eval.tasks.charades_sta.utils import extract_time as of_charades
    from lmms_eval.tasks.extremewhenbench.utils import _parse_interval
    from lmms_eval.tasks.timelens.utils import extract_time

    from all_benchmark_eval.lmms_eval_plugin import told

    line = answer_line("q", "The event happens in [12.0 s - 15.5 s] .", [[12.04, 15.51]])
    text = told(line, None)
    assert text == "The event happens in 12.04 - 15.51 seconds ."
    assert of_charades(text) == [[12.04, 15.51]] and _parse_interval(text) == (12.04, 15.51)
    assert extract_time(text) == [(12.04, 15.51)]
    assert told(answer_line("q", "[1.0 s - 2.0 s] seconds\n\nmore", [[1, 2]]), "\n\n") == "1.00 - 2.00 seconds"
    assert told(answer_line("q", "", evidence=[[1, 2]]), None) == "1.00 - 2.00 seconds"
    assert told(answer_line("q", "(C)", evidence=[[1, 2]]), ["\n"]) == "(C)"
    assert told(answer_line("q", "from 3 to 4"), None) == "from 3 to 4"


def test_a_question_is_about_one_video_or_pictures_and_what_is_neither_is_refused(tmp_path):
    from PIL import Image

    from all_benchmark_eval.forms import BenchmarkError
    from all_benchmark_eval.lmms_eval_plugin import decoding_of, record_of
    from videollm.data.conversation import VisualMark

    record = record_of("t/test/3#1", "<image>when is <span>?", [str(clips() / "clip0.mp4")], tmp_path)
    assert Path("/", record.video) == clips() / "clip0.mp4"
    assert record.turns[0].parts == (VisualMark(0), "when is <span>?")
    pictures = record_of("t", "which?", [Image.new("RGBA", (8, 8)), Image.new("L", (8, 8))], tmp_path)
    assert len(pictures.images) == 2 and all(Path("/", name).is_file() for name in pictures.images)
    assert record_of("t", "why?", None, tmp_path).text_only
    for visuals in (["a.mp4", "b.mp4"], ["a.mp4", Image.new("RGB", (8, 8))], [b"array"]):
        with pytest.raises(BenchmarkError, match="a question is about one video, or about pictures"):
            record_of("t", "why?", visuals, tmp_path)
    drawn = {"temperature": 0.7, "top_p": 0.9, "until": ["\n"], "num_beams": 1, "max_new_tokens": 5}
    assert decoding_of(drawn)[1:] == ["generate.do_sample=True", "generate.temperature=0.7", "generate.top_p=0.9"]
    assert decoding_of(drawn | {"temperature": 0}) == ["generate.max_new_tokens=5"]
    with pytest.raises(BenchmarkError, match="num_beams"):
        decoding_of({"num_beams": 4})


# ---- its scripts and our variants of them ----------------------------------------------------------------------------


def odd_text(rng: random.Random, true: list[float]) -> str:
    """Right, at a threshold, reversed, of no length, several, none, as clock times, or in words that mislead."""
    start, end = true
    tie = start + (end - start) * rng.choice((3, 5, 7)) / 10
    pairs = [[start, end], [end, start], [start, start], [start, tie], [tie, end], sorted(rng.sample(range(90), 2))]
    a, b = rng.choice(pairs)
    clock = [f"0:{int(time):02d}" for time in (a, b)]
    forms = [
        f"The event happens in {a} - {b} seconds.", f"From {a} to {b}.", f"{a}-{b}", f"start {a}\nend {b}",
        f"it starts at {a}! it ends at {b}", f"{a} and {b}", f"{clock[0]} - {clock[1]}", f"{a} – {b}",
        f"at {a}", "I do not know.", "", f"{a} - {b} or {b} to {a + 1}", f"3 to 4, 5 - 6 and {a} - {b}",
        f"A specific example is : 20.8 - 30.0 seconds. It happens in {a} - {b}", f"{a}s - {b}s", " to ".join(clock),
    ]  # fmt: skip
    return rng.choice(forms)


def theirs_of(name: str, keys: list[str], truths: list, texts: list[str]) -> dict[str, float]:
    """The metrics of a task's own functions, in percent."""
    from lmms_eval.tasks.charades_sta.utils import _temporal_grounding_compute_metrics
    from lmms_eval.tasks.extremewhenbench import utils as extreme
    from lmms_eval.tasks.timelens.utils import _timelens_compute_metrics

    if name != "extreme":
        compute = {"timelens": _timelens_compute_metrics, "charades": _temporal_grounding_compute_metrics}[name]
        return compute([dict(zip(keys, texts, strict=True))])
    doc = {"qid": "", "video_id": "", "source_corpus": ""}
    rows = [extreme.ewb_process_results(doc | {"correct_interval": s}, [t]) for s, t in zip(truths, texts, strict=True)]
    rows = [row["ewb_mIoU"] for row in rows]
    means = {"mIoU": "miou", "R@0.3": "r03", "R@0.5": "r05", "R@0.7": "r07", "fail": "parse_fail"}
    return {metric: 100 * getattr(extreme, f"ewb_aggregate_{end}")(rows) for metric, end in means.items()}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("seed", range(3))
def test_its_scripts_and_our_variants_agree_on_300_odd_answers(name, seed, tmp_path):
    rng = random.Random(seed)
    truths = [[s, s + 10 * rng.randint(0, 3)] for s in (rng.randrange(50) for _ in range(300))]
    texts = [odd_text(rng, true) for true in truths]
    keys = [f"v{i}>>>it is {i}>>>{[true] if name == 'timelens' else true}" for i, true in enumerate(truths)]
    truth = {f"v{i}": {"duration": 100, "spans": [true], "queries": [f"it is {i}"]} for i, true in enumerate(truths)}
    given = dict(zip(keys, texts, strict=True))
    *_, benchmark, variant = TASKS[name]
    if name == "extreme":
        own = [{"qid": f"q{i}", "question": f"when {i}?", "correct_interval": true} for i, true in enumerate(truths)]
        truth = [DOCS[name][0] | row for row in own]
        given = {f"q{i}": text for i, text in enumerate(texts)}
    paths = write(tmp_path / "given.json", given), [write(tmp_path / "truth.json", truth)], tmp_path / "scores.json"
    ours = score_file(benchmark, *paths, variant=variant)["protocols"]["published"]["metrics"]
    theirs = {OURS[key]: value for key, value in theirs_of(name, keys, truths, texts).items() if key in OURS}
    assert len(theirs) >= 4 and {key: ours[key] for key in theirs} == pytest.approx(theirs, abs=1e-9)
