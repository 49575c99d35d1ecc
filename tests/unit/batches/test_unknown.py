"""A model whose tokenizer does not know the words of its training or its questions says so, once."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.models import byte_tokenizer, clip_lines, clips, turns, write_config, write_lines
from videollm import ask, infer, train
from videollm.batches.unknown import warn_unknown
from videollm.data import parse_record

WORDS = "<unk> <|endoftext|> <|im_start|> <|im_end|> <|IMG|> when does the dog bark ? it is in system user assistant"


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Knows a dozen words."""
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS.split())}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", pad_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    made.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return made


def record(question: str, answer: str):
    line = {"id": "a", "video": "a.mp4", "duration": 4, "conversations": turns(f"<video>\n{question}", answer)}
    return parse_record(line, 1, "a.jsonl")


def test_share_and_most_frequent_words_are_told(caplog):
    records = [record("when does the zebra sing", "zebra it"), record("when ox owl ant ox", "owl is zebra in")]
    warn_unknown(records, word_tokenizer(), "data.train")
    (said,) = caplog.messages
    share = 100 * 9 / 16  # zebra three times, ox and owl twice, sing and ant once
    assert said.startswith("data.train: ") and f" {share:.1f} % of the text, most often 'zebra', 'ox', 'owl':" in said


@pytest.mark.parametrize("tokenizer", [word_tokenizer(), byte_tokenizer()], ids=["words", "bytes"])
def test_nothing_is_said_where_every_word_is_known(tokenizer, caplog):
    warn_unknown([record("when does the dog bark ?", "it is")], tokenizer, "data.train")
    assert not caplog.messages


def test_training_asking_and_inference_warn(tmp_path, caplog):
    """The pieces of a template are no words of the user."""
    word_tokenizer().save_pretrained(tmp_path / "words")
    lines = [line | {"conversations": turns("<video>\nwhen does the zebra sing ?", "<span>")} for line in clip_lines(1)]
    config = write_config(tmp_path, "text", lines=lines, steps=1, model={"tokenizer": str(tmp_path / "words")})
    video, model = str(clips() / "clip0.mp4"), str(tmp_path / "run" / "final")

    def warned(command, *arguments: str) -> list[str]:
        caplog.clear()
        assert command(list(arguments)) == 0
        return [said.partition(":")[0] for said in caplog.messages if "does not know" in said]

    assert warned(train.main, "--config", str(config)) == ["data.train"]
    asked = ("--model", model, "--device", "cpu")
    assert warned(ask.main, *asked, "--video", video, "--question", "when does the zebra sing ?") == ["--question"]
    assert warned(ask.main, *asked, "--video", video, "--question", "when does the dog bark ?") == []
    given = ("--annotations", write_lines(tmp_path / "asked.jsonl", lines), "--videos", str(clips()))
    assert warned(infer.main, *asked, *given, "--output", str(tmp_path / "a.jsonl")) == ["--annotations"]
