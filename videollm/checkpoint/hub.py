"""Where a checkpoint lies: a folder, or a name on the hub (``owner/model``, ``owner/model@revision``).

In: what a user gave where a folder may stand. Out: a folder, of the hub's cache where it is a name. Fetched are
safetensors, JSON, tokenizers and text, and never what can run (pickles, Python). Knows names and folders; no model.
"""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from videollm.checkpoint.tensors import CheckpointError
from videollm.common.config import ConfigError
from videollm.common.files import HUB_NAME

WORDS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")  # configs and tokenizers
TENSORS = ("*.safetensors",)
QUESTION_TOKENIZER = "question_tokenizer"
PARTS = ("", f"{QUESTION_TOKENIZER}/")  # of a checkpoint folder
FOLDER = "give the folder of a trained model, such as runs/NAME/final"
OWN = (  # what ``Bundle.save`` and ``save_adapters`` may write; other files of a folder are somebody's own
    "config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors",
    "model.safetensors.index.json", "adapters.safetensors", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def local(source: str | Path, weights: bool = True, key: str = "") -> Path:
    """The folder ``source``; if there is none, what the hub has of that name, without the ``weights`` if unwanted.

    What a process has asked for once it does not ask for again. ``HF_HUB_OFFLINE=1`` takes what the cache has.

    Raises:
        CheckpointError: neither a folder nor a name that can be fetched; ConfigError of a config's ``key``.
    """
    try:
        return Path(source) if os.path.isdir(source) else fetched(str(source), weights)
    except CheckpointError as error:
        raise ConfigError(f"{key}: {error}") if key else error from None


@cache
def fetched(source: str, weights: bool) -> Path:
    """The snapshot of a name on the hub. Raises CheckpointError."""
    match = HUB_NAME.fullmatch(source)
    if match is None or os.path.lexists(source):
        raise CheckpointError(f"{source}: no such folder; {FOLDER}, or a name on the hub (owner/model)")
    from huggingface_hub import constants, errors, snapshot_download  # starts a client; a folder needs none

    name, revision = match["name"], match["revision"]
    try:
        found = snapshot_download(name, revision=revision, allow_patterns=[*WORDS, *TENSORS * weights])
    except errors.GatedRepoError:
        why = f"its owner asks for consent: accept at https://huggingface.co/{name}, then log in (hf auth login)"
    except errors.RevisionNotFoundError:
        why = f"the hub has no revision {revision} of it; give a branch, tag or commit that it has"
    except errors.RepositoryNotFoundError:
        why = f"no such folder, and no such public model on the hub; {FOLDER}, mend the name, or log in (hf auth login)"
    except errors.LocalEntryNotFoundError:
        here = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        why = f"no such folder, {here} and the hub's cache lacks it; {FOLDER}; if it is a name on the hub, where there "
        why += f"is a network: hf download {name}"
    except Exception as error:  # of two http clients, and OSError
        why = f"no such folder, and it cannot be fetched from the hub ({' '.join(str(error).split())[:200]}); {FOLDER}"
    else:
        return Path(found)
    raise CheckpointError(f"{source}: {why}")


def files_of(folder: Path) -> list[Path]:
    """The files of a folder that make it a checkpoint."""
    there = (path for part in PARTS for path in folder.glob(f"{part}*"))  # links to nothing, too
    return sorted(path for path in there if any(map(path.match, OWN)))


def pushed(name: str, files: Mapping[str, Path | bytes], private: bool) -> str:
    """Make the model ``name`` if there is none, put ``files`` there in one commit, and give its address.

    Raises:
        CheckpointError: no right to, or no network.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    try:
        found = HfApi().create_repo(name, private=private, exist_ok=True)
        HfApi().create_commit(name, operations, commit_message="A checkpoint of videollm")
        return str(found)
    except Exception as error:  # of two http clients, and OSError
        raise CheckpointError(
            f"{name}: cannot be pushed ({' '.join(str(error).split())[:200]}); see that there is a network, and log in "
            "with a token that may write there (hf auth login)"
        ) from None
