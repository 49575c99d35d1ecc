"""``videollm convert`` on this head's own checkpoints: found by the head, which a model names itself."""

import json

from tests.unit.d2vlm.test_d2vlm_convert import own, published, same_state  # noqa: F401 - own and published: fixtures
from videollm.checkpoint import QUESTION_TOKENIZER, load
from videollm.convert import main as everything


def test_the_command_of_all_families_finds_this_one_by_the_models_head(own, tmp_path, capsys):  # noqa: F811
    assert everything([str(own), str(tmp_path / "back"), "--back"]) == 0
    assert json.loads((tmp_path / "back/config.json").read_text())["model_type"].startswith("etchat_")
    assert everything([str(tmp_path / "back"), str(tmp_path / "again")]) == 2
    assert "name it with --head" in capsys.readouterr().err
    words = ["--head", "d2vlm", "--question-tokenizer", str(own / QUESTION_TOKENIZER)]
    assert everything([str(tmp_path / "back"), str(tmp_path / "again"), *words]) == 0
    same_state(tmp_path / "again", load(own).model.state_dict())
