"""A language model in a GGUF file -> a folder of transformers: float32 safetensors and the tokenizer.

transformers dequantises the file with the package ``gguf``, which need not be installed: a folder that holds it is put
on the path. It knows no video and no head.

    python -m realweights.language --gguf FILE --output DIR --reader DIR
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from videollm.common.command import Parser, ended
from videollm.common.config import ConfigError, need
from videollm.common.files import write_text


def convert(file: Path, output: Path) -> None:
    """Write the model and tokenizer of a GGUF file to ``output``, and behind them the empty file ``complete``.

    Raises ConfigError where the file cannot be read.
    """
    import torch  # behind the reader's folder on the path, which transformers looks for when it is imported
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        named = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
        tokenizer = AutoTokenizer.from_pretrained(**named)
        read = AutoModelForCausalLM.from_pretrained(**named, dtype=torch.float32)
    except Exception as error:  # of any kind
        why = str(error).strip().splitlines()[0]
        raise ConfigError(f"{file}: cannot be read as GGUF ({why}); fetch it again") from None
    # The model as read cannot be saved: it takes itself for quantised. A fresh one with its state is an ordinary one,
    # in every version of transformers, and takes no weights that were left packed.
    config = type(read.config)(**{k: v for k, v in read.config.to_dict().items() if k != "quantization_config"})
    fresh = type(read)(config)
    fresh.load_state_dict(read.state_dict())
    fresh.save_pretrained(output)
    tokenizer.save_pretrained(output)
    write_text(output / "complete", "")


def check_converted(folder: Path) -> None:
    """ConfigError where ``folder`` holds no language model that ``convert`` has written whole."""
    remedy = "make it with python -m realweights.language, or run bash scripts/realweights.sh"
    need((folder / "complete").is_file(), f"{folder}: no converted language model; {remedy}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    parser = Parser(prog="python -m realweights.language", description=__doc__.split("\n")[0])
    parser.add_argument("--gguf", type=Path, required=True, help="folder with the .gguf file")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--reader", type=Path, help="folder of the package gguf, if it is not installed")
    args = parser.parse_args(argv)

    def run() -> None:
        if (args.output / "complete").is_file():
            return
        if args.reader:
            sys.path.insert(0, str(args.reader))
        files = sorted(args.gguf.glob("*.gguf"))
        need(files, f"no .gguf file in {args.gguf}; run bash scripts/realweights.sh, which fetches it")
        convert(files[0], args.output)

    return ended(run)


if __name__ == "__main__":
    sys.exit(main())
