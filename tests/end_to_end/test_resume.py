"""A run that was killed, told to stop or ran out of disk goes on as if nothing had happened, to the last bit.

Each case trains once without a break and once with one, and compares the whole log, the order of the data, the random
state and every tensor for equality.
"""

import json
import os
import re
import resource
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from tests.models import clip_lines, read_log, turns, write_config, write_lines
from tests.ranks import kill_after, noting, order, output_of, ran, run
from videollm import train
from videollm.training import saving
from videollm.training.trainer import VideoTrainer

RANDOM_FRAMES = "data.sampler={rule: segments, num_frames: 3, pick: random}"
STEPS = 7
LORA = {"r": 2, "dropout": 0.1}
WORSE = [{"factor": "shift", "value": "It is in <span>.", "tgt": [0, 1]}, {"factor": "wording", "value": "Never."}]
BROKEN = {"video": "broken.mp4", "conversations": turns("<video>\nwhen?", "now")}


def configure(folder, repository, *, stage=None, full=True, objective="supervised", head="d2vlm", **options):
    """The config of a run of seven steps over two and a half passes, with a checkpoint every second step."""
    lines = [line | {"rejected": WORSE} for line in clip_lines(6)]
    options = {"steps": STEPS, "save_every": 2, "lines": lines, "objective": {"name": objective}, **options}
    if stage is not None:
        file = repository / f"configs/deepspeed/zero{stage or 1}.json"
        if stage == 0:  # DeepSpeed without ZeRO, which no shipped file asks for
            folder.mkdir(parents=True)
            text = file.read_text().replace('"stage": 1', '"stage": 0')
            file = folder / "zero0.json"
            file.write_text(text)
        options["deepspeed"] = str(file)
    if not full:
        options |= {"lora": LORA, "merge_lora": stage not in (3, "3_offload")}
    return write_config(folder, head, **options)


def entries(config) -> list[dict]:
    """The log of a run, but for the times."""
    return read_log(config.parent / "run")


def assert_same(whole, broken, ranks: int = 1, name: str = f"checkpoint-{STEPS}") -> None:
    """Log, data order, random state and tensors of two runs are equal."""
    assert [e["step"] for e in entries(whole)] == sorted({e["step"] for e in entries(broken)})
    assert entries(broken) == entries(whole)
    for rank in range(ranks):
        assert order(broken.parent, rank) == order(whole.parent, rank)
        file = f"rng_state{f'_{rank}' if ranks > 1 else ''}.pth"
        states = [torch.load(c.parent / "run" / name / file, weights_only=False) for c in (whole, broken)]
        assert states[0]["python"] == states[1]["python"] and torch.equal(states[0]["cpu"], states[1]["cpu"])
    for folder in (name, "final"):
        tensors, others = (load_file(c.parent / "run" / folder / "model.safetensors") for c in (whole, broken))
        assert tensors.keys() == others.keys()
        assert [key for key in tensors if not torch.equal(tensors[key], others[key])] == []


def started(config, *overrides, ranks=1, then=None, status=0):
    """Run, noting the order of the data."""
    ran(config, RANDOM_FRAMES, *overrides, ranks=ranks, hook=noting(config.parent, then), status=status)


def check_kill(tmp_path, repository, ranks: int, **options) -> None:
    """Killed after step 5, resumed from step 4, which is in the middle of a pass over the data."""
    whole, broken = (configure(tmp_path / name, repository, **options) for name in ("whole", "broken"))
    started(whole, ranks=ranks)
    started(broken, ranks=ranks, then=kill_after(5), status=-signal.SIGKILL)
    assert saving.last_good(broken.parent / "run").facts.step == 4
    started(broken, "train.resume=true", ranks=ranks)
    assert_same(whole, broken, ranks)


# ---- killed ----------------------------------------------------------------------------------------------------------


def test_a_killed_process_resumes_exactly(tmp_path, repository):
    """With accumulated batches, a pass that ends in a smaller step, and a log entry over several steps."""
    options = {"accumulation": 4, "log_every": 3, "batch_size": 1}
    check_kill(tmp_path, repository, 1, full=False, objective="d2vlm.fpo", **options)


@pytest.mark.distributed
def test_two_killed_ranks_resume_exactly(tmp_path, repository):
    check_kill(tmp_path, repository, 2, stage=2, full=False, objective="d2vlm.fpo")


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("objective", ["supervised", "d2vlm.fpo"])
@pytest.mark.parametrize("full", [True, False], ids=["full", "adapters"])
@pytest.mark.parametrize("stage", [None, 0, 1, 2, 3, "2_offload", "3_offload"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_combination_resumes_exactly(tmp_path, repository, ranks, stage, full, objective):
    check_kill(tmp_path, repository, ranks, stage=stage, full=full, objective=objective)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("stage", [None, 2, 3])
@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"gradient_checkpointing": True}, {"head": "distime"}])
def test_other_training_resumes_exactly(tmp_path, repository, stage, options):
    check_kill(tmp_path, repository, 2, stage=stage, **options)


def test_data_workers_and_packing_resume_exactly(tmp_path, repository):
    whole, broken = (configure(tmp_path / name, repository, head="distime") for name in ("whole", "broken"))
    given = ("data.workers=1", "data.pack=true", "train.batch_size=2")
    started(whole, *given)
    started(broken, *given, then=kill_after(5), status=-signal.SIGKILL)
    started(broken, *given, "train.resume=true")
    assert_same(whole, broken)


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory, repository):
    """A run of one process without a break."""
    config = configure(tmp_path_factory.mktemp("whole"), repository, head="text")
    started(config)
    return config


@pytest.fixture
def broken(tmp_path, repository, whole):
    """The config of the same run, to be broken."""
    return configure(tmp_path / "broken", repository, head="text")


def die_in(name: str, calls: int):
    """A hook: the process is killed when a function of ``saving`` is called for the n-th time."""

    def hook(_rank: int) -> None:
        function, made = getattr(saving, name), []

        def dies(*args, **kwargs):
            made.append(args)
            if len(made) == calls:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        setattr(saving, name, dies)

    return hook


@pytest.mark.parametrize("name, calls, left", [("finish", 2, [2, 4]), ("remove", 1, [4, 6]), ("publish", 1, [6, 7])])
def test_a_kill_while_saving_leaves_the_last_good_checkpoint(whole, broken, name, calls, left):
    """Before the second checkpoint has its manifest, while an old one is deleted, while the final model is written."""
    started(broken, then=die_in(name, calls), status=-signal.SIGKILL)
    folder = broken.parent / "run"
    assert (folder / saving.STAGING).is_dir() or (folder / "checkpoint-4" / saving.UNFINISHED).is_file()
    assert sorted(step for step, _ in saving.checkpoint_folders(folder)) == left and not (folder / "final").exists()
    started(broken, "train.resume=auto")
    assert_same(whole, broken)
    assert not (folder / saving.STAGING).exists() and not list(folder.rglob(saving.UNFINISHED))


def test_a_checkpoint_that_lost_a_file_is_passed_over_and_replaced(whole, broken, caplog):
    started(broken, then=kill_after(5), status=-signal.SIGKILL)
    folder = broken.parent / "run"
    newest = folder / "checkpoint-4"
    (newest / "optimizer.pt").write_bytes((newest / "optimizer.pt").read_bytes()[:100])
    assert saving.last_good(folder).facts.step == 2
    assert "checkpoint-4: passed over, 1 files are missing or have another size, first optimizer.pt" in caplog.text
    started(broken, "train.resume=true", "train.keep=1")
    assert_same(whole, broken)
    assert [step for step, _ in saving.checkpoint_folders(folder)] == [7]


def test_only_the_last_checkpoints_are_kept(whole):
    assert [step for step, _ in saving.checkpoint_folders(whole.parent / "run")] == [7, 6]


def test_a_finished_run_trains_no_further(whole, broken):
    started(broken)
    shutil.rmtree(broken.parent / "run" / "final")
    started(broken, "train.resume=true")
    assert_same(whole, broken)


def test_resume_auto_starts_where_nothing_was_saved(whole, broken):
    started(broken, then=kill_after(1), status=-signal.SIGKILL)
    started(broken, "train.resume=auto")
    assert_same(whole, broken)


def test_the_best_model_and_unreadable_videos_are_counted_over_a_break(tmp_path, repository):
    """With a log of its own for what was skipped, which holds each step once."""
    lines = [*clip_lines(3), *({**BROKEN, "id": f"bad{i}"} for i in range(2))]
    runs = [configure(tmp_path / name, repository, head="text", lines=lines) for name in ("whole", "broken")]
    checked = write_lines(tmp_path / "checked.jsonl", clip_lines(2))
    given = ("data.max_bad_fraction=0.5", "train.validate_every=2", "train.best=mIoU", f"data.validation=[{checked}]")
    started(runs[0], *given)
    started(runs[1], *given, then=kill_after(5), status=-signal.SIGKILL)
    started(runs[1], *given, "train.resume=true")
    assert_same(*runs)
    assert entries(runs[1])[-1]["bad_videos"] > 0
    for name in ("skipped.jsonl", "best/model.safetensors"):
        files = [config.parent / "run" / name for config in runs]
        assert files[0].read_bytes() == files[1].read_bytes()


# ---- told to stop ----------------------------------------------------------------------------------------------------


def test_sigterm_saves_and_ends_with_status_75(whole, broken):
    """Also where a data worker gets the signal too, as all processes of a job do."""
    given = ("data.workers=1",)
    started(broken, *given, then=kill_after(3, signal.SIGTERM, group=True), status=75)
    assert "told to stop: saved checkpoint-4, go on with train.resume=true" in output_of(broken, 0).read_text()
    assert not (broken.parent / "run" / "final").exists()
    started(broken, *given, "train.resume=true")
    assert_same(whole, broken)


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path, repository, stage):
    runs = [configure(tmp_path / name, repository, stage=stage, head="text", log_every=2) for name in "ab"]
    started(runs[0], ranks=2)
    started(runs[1], ranks=2, then=kill_after(4, signal.SIGTERM, rank=1), status=75)
    started(runs[1], "train.resume=true", ranks=2)
    assert_same(*runs, ranks=2)


# ---- what goes wrong while it runs -----------------------------------------------------------------------------------


def full_disk(step: int, only: int = 0):
    """A hook: from ``step`` on, no file of the rank may grow beyond a few bytes, as on a full disk."""

    def hook(rank: int) -> None:
        save, train, limits = VideoTrainer.save_model, VideoTrainer.train, resource.getrlimit(resource.RLIMIT_FSIZE)

        def limited(self, *args, **options):  # the beginning of a checkpoint
            if self.state.global_step == step and rank == only:
                resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
            save(self, *args, **options)

        def freed(self, *args, **options):  # for what is said in the end
            try:
                train(self, *args, **options)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)

        VideoTrainer.save_model, VideoTrainer.train = limited, freed

    return hook


def errors(config, ranks: int = 1) -> list[str]:
    """What the ranks said."""
    said = [output_of(config, rank).read_text() for rank in range(ranks)]
    assert not any("Traceback" in text for text in said), said
    return [line for text in said for line in re.findall(r"error: .*", text)]  # a progress bar may stand before it


def test_a_full_disk_is_one_message_and_damages_nothing(whole, broken):
    started(broken, then=full_disk(4), status=2)
    (said,) = errors(broken)
    assert said.startswith("error: train.output: cannot write checkpoint-4 into ") and "train.resume=true" in said
    started(broken, "train.resume=true")
    assert_same(whole, broken)


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_a_full_disk_of_one_rank_ends_all(tmp_path, repository, stage, monkeypatch):
    monkeypatch.setattr("videollm.common.command.HEAD_START_S", 0.5)
    config = configure(tmp_path, repository, stage=stage, head="text")
    ended = run(config, ranks=2, hook=full_disk(4, only=1))
    assert ended[1] == 2 and ended[0] != 0
    assert len(errors(config, 2)) == 1
    assert saving.last_good(tmp_path / "run").facts.step == 2


@pytest.mark.distributed
def test_out_of_memory_names_the_batch_and_its_largest_sample(tmp_path, repository, monkeypatch):
    monkeypatch.setattr("videollm.common.command.HEAD_START_S", 0.5)

    def hook(rank: int) -> None:
        def runs_out(self, model, inputs, *_):
            if rank == 1 and self.state.global_step == 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return step(self, model, inputs, *_)

        step, VideoTrainer.training_step = VideoTrainer.training_step, runs_out

    config = configure(tmp_path, repository, head="distime", batch_size=2)
    ended = run(config, ranks=2, hook=hook)
    assert ended[1] == 2 and ended[0] != 0
    (said,) = errors(config, 2)
    assert said.startswith("error: out of memory in step 2 on rank 1, in batches of 2 rows x ")
    assert "with 8 frames; the largest sample is q" in said and "lower train.batch_size" in said
    assert "(CUDA out of memory. Tried to allocate 2.00 GiB.)" in said


# ---- the run's folder ------------------------------------------------------------------------------------------------


def test_resuming_takes_the_intervals_of_the_new_config_and_every_start_is_recorded(broken):
    started(broken, then=kill_after(3), status=-signal.SIGKILL)
    started(broken, "train.resume=true", "train.save_every=1", "train.keep=9")
    folders = saving.checkpoint_folders(broken.parent / "run")
    assert sorted(step for step, _ in folders) == [2, 3, 4, 5, 6, 7]
    first, second = map(json.loads, (broken.parent / "run" / "starts.jsonl").read_text().splitlines())
    assert (first["step"], second["step"]) == (0, 2) and first["processes"] == 1
    assert torch.__version__.startswith(first["versions"]["torch"].split("+")[0])
    assert {"command", "commit", "changed", "host", "time", "python"} <= set(first)


@pytest.mark.distributed
def test_nodes_that_do_not_share_the_output_are_told(tmp_path, repository, monkeypatch):
    monkeypatch.setattr("videollm.common.command.HEAD_START_S", 0.2)
    monkeypatch.setattr("videollm.training.runfolder.PATIENCE_S", 1)
    config = configure(tmp_path, repository, head="text")
    for rank in (0, 1):
        (tmp_path / f"node{rank}").mkdir()
    ended = run(config, "train.output=run", ranks=2, hook=lambda rank: os.chdir(tmp_path / f"node{rank}"))
    assert ended[1] == 2
    (said,) = errors(config, 2)
    assert f"{tmp_path / 'node1' / 'run'} on " in said and "give a path that all nodes share" in said


@pytest.mark.slow
def test_deterministic_algorithms_are_asked_for(whole, broken):
    def hook(_rank: int) -> None:
        step = VideoTrainer.training_step

        def checked(self, *args):
            assert torch.are_deterministic_algorithms_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"]
            return step(self, *args)

        VideoTrainer.training_step = checked

    started(broken, "train.deterministic=true", then=hook)
    assert_same(whole, broken)


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override, says",
    [
        ("train.lr=0.5", "train.lr: 0.5, but the run in"),
        ("train.batch_size=2", "train.batch_size: 2, but the run in"),
        ("train.steps=3", "train.steps: 3, but"),
        ("train.deepspeed={zero2}", "was written with no DeepSpeed, this run has ZeRO-2"),
        ("data.train=[{more}]", "data.train: 5 items, but"),
    ],
)
def test_another_training_does_not_go_on_from_a_checkpoint(whole, repository, tmp_path, capsys, override, says):
    zero2, more = repository / "configs/deepspeed/zero2.json", write_lines(tmp_path / "more.jsonl", clip_lines(5))
    before = {p: p.stat().st_mtime_ns for p in (whole.parent / "run").rglob("*") if "checkpoint" in str(p)}
    given = override.format(zero2=zero2, more=more)
    assert train.main(["--config", str(whole), RANDOM_FRAMES, "train.resume=true", given]) == 2
    message = capsys.readouterr().err
    assert says in message and ("model.checkpoint" in message or "give more" in message)
    assert before == {p: p.stat().st_mtime_ns for p in before}
