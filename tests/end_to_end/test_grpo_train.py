"""Reinforcement learning as a user runs it: it logs what answers earn, resumes exactly, and two ranks learn as one."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.models import clip_lines, read_log, turns, write_config
from tests.ranks import kill_after, output_of, run
from videollm import train
from videollm.checkpoint import load
from videollm.model.generate import Rows

TERMS = ("reward", "reward_spread", "flat_groups", "answer_tokens", "entropy_words", "entropy_spans", "mismatch")
WORTH = "tests.end_to_end.test_grpo_train:worth"
STEPS = 5
HARDER = {"share": 0.5, "flat": 0.1, "mean": 2.0, "spread": 0.5}  # of 16 questions 8 an epoch, which are two steps


def worth(answer, record, duration_s):
    """What differs for nearly every answer, also of a model that has learnt nothing."""
    return sum(map(len, answer.spans)) + sum(sum(s) for s in answer.scored_spans) / duration_s + len(answer.text) / 10


def configure(folder, head="d2vlm", rewards=None, lines=None, redraw=None, **options):
    """The config of a run of five steps of four questions with three answers each."""
    objective = {"name": "grpo", "answers": 3, "rewards": rewards or {WORTH: 1.0}, "show_every": 2, "redraw": redraw}
    options = {"steps": STEPS, "batch_size": 4, "lr": 1e-4, "warmup": 0.0, "schedule": "constant", **options}
    return write_config(folder, head, lines=lines or clip_lines(8), objective=objective, **options)


@pytest.mark.parametrize("head", ["d2vlm", "distime", "text"])
def test_a_run_logs_shows_and_validates(head, tmp_path):
    config = configure(tmp_path, head, {WORTH: 1.0, "f1": 0.5}, validate_every=5, best="mIoU")
    assert train.main(["--config", str(config)]) == 0
    log = read_log(tmp_path / "run")
    assert len(log) == STEPS
    for entry in log:
        absent = {*TERMS, "grpo", "reward_f1", f"reward_{WORTH}"} - set(entry)
        assert absent <= {"entropy_spans"} and entry["mismatch"] < 1e-5, "a step may have answers without spans"
        assert entry["reward"] == pytest.approx(entry[f"reward_{WORTH}"] + 0.5 * entry["reward_f1"], rel=1e-5)
    assert len(read_log(tmp_path / "run", "eval_mIoU")) == 1
    shown = [json.loads(line) for line in (tmp_path / "run/rollouts.jsonl").read_text().splitlines()]
    assert [line["step"] for line in shown] == [0] * 4 + [2] * 4 + [4] * 4
    assert all(len(line["answers"]) == 3 and set(line["answers"][0]["by"]) == {WORTH, "f1"} for line in shown)
    assert load(tmp_path / "run/best").config.head["name"] == head
    assert load(tmp_path / "run/final").model.objective.logged == ()


def sure(answer, record, duration_s):
    """Of questions with options always the same."""
    return 1.0


sure.needs, SURE = "choice", "tests.end_to_end.test_grpo_train:sure"


def test_what_a_step_has_none_of_is_no_0_in_the_log(tmp_path):
    """Of four steps of a question each, two are of one with options, or none is."""
    talk = turns("<video>\nwhat is it? (a) a dog (b) a cat", "(a) a dog <span>")
    choice = {"id": "c", "video": "clip0.mp4", "tgt": [0, 1], "conversations": talk}
    for name, lines in (("some", [choice, *clip_lines(1)]), ("none", clip_lines(2))):
        given = {"steps": 4, "batch_size": 1, "log_every": 4}
        config = configure(tmp_path / name, rewards={WORTH: 1.0, SURE: 1.0}, lines=lines, **given)
        assert train.main(["--config", str(config)]) == 0
        (entry,) = read_log(tmp_path / name / "run")
        assert entry.get(f"reward_{SURE}") == (1.0 if name == "some" else None) and entry[f"reward_{WORTH}"] > 0


@pytest.mark.parametrize("redraw", [None, HARDER], ids=["all", "redrawn"])
def test_a_run_that_was_killed_goes_on_as_if_nothing_had_happened(redraw, tmp_path):
    """In an epoch of two steps, behind its first."""
    given = {"lines": clip_lines(16 if redraw else 8), "redraw": redraw, "save_every": 3}
    whole, broken = (configure(tmp_path / name, **given) for name in ("whole", "broken"))
    assert run(whole) == [0]
    assert run(broken, hook=kill_after(4)) == [-9]
    assert run(broken, "train.resume=true") == [0], output_of(broken, 0).read_text()[-3000:]
    first, second = (config.parent / "run" for config in (whole, broken))
    untimed = [[{k: v for k, v in e.items() if "second" not in k} for e in read_log(f)] for f in (first, second)]
    assert untimed[0] == untimed[1]
    assert (first / "rollouts.jsonl").read_text() == (second / "rollouts.jsonl").read_text()
    states = [load_file(folder / "final/model.safetensors") for folder in (first, second)]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.distributed
@pytest.mark.parametrize("zero", [None, 2, 3])
def test_two_ranks_draw_what_one_draws_and_learn_the_same(zero, tmp_path, repository):
    given = {"lines": clip_lines(16), "redraw": HARDER}
    one, two = configure(tmp_path / "one", **given), configure(tmp_path / "two", batch_size=2, **given)
    assert run(one) == [0]
    deepspeed = [f"train.deepspeed={repository / f'configs/deepspeed/zero{zero}.json'}"] if zero else []
    assert run(two, *deepspeed, ranks=2) == [0, 0], output_of(two, 0).read_text()[-3000:]
    alone, shared = (read_log(config.parent / "run") for config in (one, two))
    for key in ("loss", "grad_norm", *TERMS[:-1]):
        values = [[e.get(key, -1.0) for e in log] for log in (shared, alone)]  # of a step without spans: none
        assert values[0] == pytest.approx(values[1], rel=1e-4, abs=1e-6), key
    drawn = [(config.parent / "run/rollouts.jsonl").read_text().splitlines() for config in (one, two)]
    assert len(drawn[1]) > 0 and set(drawn[1]) <= set(drawn[0])


@pytest.mark.distributed
def test_under_zero3_weights_are_gathered_once_for_all_tokens(tmp_path, repository):
    """As many gathers for answers of 3 tokens as for those of 12; that the draws are the same is tested above."""
    counts = {}
    for tokens in (3, 12):
        config = configure(tmp_path / f"{tokens}", steps=2, batch_size=2)
        given = [f"train.deepspeed={repository / 'configs/deepspeed/zero3.json'}", f"generate.max_new_tokens={tokens}"]
        counted = config.parent / "gathers.txt"
        assert run(config, *given, ranks=2, hook=lambda rank, out=counted: count_gathers(out, rank)) == [0, 0]
        counts[tokens] = [int(line) for line in counted.read_text().split()]
    assert counts[3] == counts[12] and len(counts[3]) == 2
    assert 0 < counts[3][0] < 200, "gloo gathers a weight at a time"


def count_gathers(out, rank):
    """Write how many gathers of weights each making of answers takes."""
    seen, enter, leave = [0], Rows.__enter__, Rows.__exit__

    def counting(gather):
        def gathered(*args, **kwargs):
            seen[0] += 1
            return gather(*args, **kwargs)

        return gathered

    def begin(rows):
        rows.before = seen[0]
        return enter(rows)

    def end(rows, *error):
        leave(rows, *error)
        if rank == 0:
            with open(out, "a") as file:
                file.write(f"{seen[0] - rows.before}\n")

    for name in ("all_gather_into_tensor", "all_gather"):
        setattr(torch.distributed, name, counting(getattr(torch.distributed, name)))
    Rows.__enter__, Rows.__exit__ = begin, end


def test_a_record_without_spans_is_one_clear_error(tmp_path, capsys):
    plain = {"id": "p", "video": "clip0.mp4", "conversations": turns("<video>\nwhat?", "a dog")}
    config = configure(tmp_path, rewards={"tiou": 1.0}, lines=[*clip_lines(2), plain])
    assert train.main(["--config", str(config)]) == 2
    message = capsys.readouterr().err
    assert "train.jsonl:3: no spans in its answer" in message and "1 of 3 records" in message


def test_a_reward_that_fails_ends_the_run_with_one_line(tmp_path, capsys):
    config = configure(tmp_path, rewards={"tests.end_to_end.test_grpo_train:broken": 1.0})
    assert train.main(["--config", str(config)]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "test_grpo_train:broken" in message and "ZeroDivisionError" in message and "train.jsonl:" in message


def broken(answer, record, duration_s):
    """A reward with a mistake in it."""
    return 1 / 0
