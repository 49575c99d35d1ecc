"""The tokenizer of an official checkpoint, without its remote code; and the tokens that the time head needs.

Qwen2's files are read by transformers itself. InternLM2 comes as a sentencepiece model with a Python class; its
byte-pair model, normaliser and added tokens are rebuilt here as a ``tokenizer.json``. It knows no weights.
"""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from distime.time_head import FRAME_TIME, STAMP
from videollm.checkpoint import CheckpointError, need
from videollm.checkpoint.tensors import read_json

TIME_TOKENS = (STAMP, FRAME_TIME)  # in the order in which they are added, as published
IMAGE_TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>")
ROLES = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "</s>"}  # InternLM2's, where its config is silent
BPE_KIND, CONTROL, USER_DEFINED = 2, 3, 4  # numbers of the sentencepiece format


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder.

    Raises:
        CheckpointError: none there, damaged, or without the tokens of InternVL's images.
    """
    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        elif (folder / "tokenizer.model").is_file():
            tokenizer = from_sentencepiece(folder)
        else:  # a config of its own keeps transformers from guessing by the official one, which it does not know
            tokenizer = AutoTokenizer.from_pretrained(folder, config=PretrainedConfig(), local_files_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # the tokenizers library raises plain Exception for a damaged file
        raise CheckpointError(
            f"{folder}: cannot read its tokenizer ({' '.join(str(error).split())[:200]}); fetch tokenizer.json, or "
            "vocab.json, merges.txt and tokenizer_config.json, or tokenizer.model"
        ) from None
    lacks = ", ".join(lacking(tokenizer, IMAGE_TOKENS))
    files = "is this InternVL2.5 or DisTime, with all its files (added_tokens.json, tokenizer_config.json)?"
    need(not lacks, f"{folder}: its tokenizer has no {lacks}; {files}")
    return tokenizer


def lacking(tokenizer: PreTrainedTokenizerBase, names: tuple[str, ...]) -> list[str]:
    """Those of ``names`` that are no tokens of ``tokenizer``."""
    known = tokenizer.get_vocab()
    return [name for name in names if name not in known]


def from_sentencepiece(folder: Path) -> PreTrainedTokenizerBase:
    """InternLM2's ``tokenizer.model`` and the tokens added to it, as a fast tokenizer."""
    from transformers.convert_slow_tokenizer import generate_merges, import_protobuf

    path, model = folder / "tokenizer.model", import_protobuf().ModelProto()
    model.ParseFromString(path.read_bytes())
    pairs = model.trainer_spec.model_type == BPE_KIND
    need(pairs, f"{path}: not a byte-pair model, as InternLM2 has it; fetch it again")
    settings = read_json(folder / "tokenizer_config.json")
    named = {i: (p.piece, p.type == CONTROL) for i, p in enumerate(model.pieces) if p.type in (CONTROL, USER_DEFINED)}
    for place, token in settings.get("added_tokens_decoder", {}).items():
        named[int(place)] = token["content"], token.get("special", True)
    # An added token may take the place of a piece that the model has left unused, as <|im_start|> does.
    pieces = [named[i][0] if i in named else p.piece for i, p in enumerate(model.pieces)]
    scores = [(name, piece.score) for name, piece in zip(pieces, model.pieces, strict=True)]
    vocabulary = {name: i for i, name in enumerate(pieces)}
    merges = generate_merges(vocabulary, scores, skip_tokens=[name for name, _ in named.values()])
    raw = Tokenizer(BPE(vocabulary, merges, unk_token=model.trainer_spec.unk_piece, fuse_unk=True, byte_fallback=True))
    prefix = [normalizers.Prepend("▁")] if model.normalizer_spec.add_dummy_prefix else []
    raw.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    for place, (name, special) in sorted(named.items()):
        raw.add_tokens([AddedToken(name, normalized=False, special=special)])
        found, remedy = raw.token_to_id(name), "the two files are of different checkpoints: fetch both"
        other = f"tokenizer_config.json has {name} as token {place}, but with tokenizer.model it is token {found}"
        need(found == place, f"{folder}: {other}; {remedy}")
    roles = {f"{role}_token": text(settings.get(f"{role}_token")) or name for role, name in ROLES.items()}
    bos = roles["bos_token"]
    forms = {"single": f"{bos} $A", "pair": f"{bos} $A {bos} $B"}
    raw.post_processor = processors.TemplateProcessing(**forms, special_tokens=[(bos, raw.token_to_id(bos))])
    return PreTrainedTokenizerFast(tokenizer_object=raw, clean_up_tokenization_spaces=False, **roles)


def text(token: str | dict | None) -> str | None:
    """A token of tokenizer_config.json by name; it may be written with its properties."""
    return token["content"] if isinstance(token, dict) else token


def add_time_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Add the time tokens that ``tokenizer`` lacks; returns which ones."""
    if lacks := lacking(tokenizer, TIME_TOKENS):
        tokenizer.add_special_tokens({"extra_special_tokens": lacks}, replace_extra_special_tokens=False)
    return lacks
