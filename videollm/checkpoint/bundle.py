"""``Bundle``: a model with everything that is needed to ask it something, and how it is written.

A checkpoint is one folder with config, weights (safetensors), tokenizer(s) and head; load.py takes it by path alone.
Knows no training and no data.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from videollm.batches.collate import Collator
from videollm.batches.prompt import PromptEncoder, VisualTokens
from videollm.batches.reader import VisualReader
from videollm.batches.templates import TEMPLATES
from videollm.checkpoint.adapters import write_adapters
from videollm.checkpoint.hub import QUESTION_TOKENIZER
from videollm.common.command import without_bars
from videollm.common.config import ConfigError, build, need
from videollm.model.tying import stored
from videollm.model.videollm import VideoLLM, VideoLLMConfig, tower_shape
from videollm.video.preprocess import Preprocess
from videollm.video.sampling import Sampler


def check_frames(
    model: VideoLLM, key: str = "data.preprocess", remedy: str = "", preprocess: Preprocess | None = None
) -> None:
    """ConfigError where the frames are not made as the vision tower takes them; ``key`` says who makes them."""
    preprocess, patching = preprocess or model.preprocess, model.patching
    factor, made = patching and patching.factor, (preprocess.channels, preprocess.size, preprocess.size)
    told = f"{preprocess.factor}, the vision tower's {factor} (null: frames of one size)"
    need(preprocess.factor == factor, f"{key}: sides are multiples of {told}; {remedy or 'set kind and factor alike'}")
    if patching is None and made != (taken := tower_shape(model.vision_tower)):
        remedy = remedy or f"let {key}.size and frame_difference agree with model.vision"
        raise ConfigError(f"{key}: makes frames of {made} (channels, height, width), the tower takes {taken}; {remedy}")


@dataclass
class Bundle:
    """A model, its tokenizers, and the settings they share."""

    model: VideoLLM
    tokenizer: PreTrainedTokenizerBase
    question_tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def config(self) -> VideoLLMConfig:
        """The model's config."""
        return self.model.config

    @property
    def stop_id(self) -> int:
        """Id of the token that ends an answer."""
        return self.tokenizer.convert_tokens_to_ids(TEMPLATES[self.config.template].stop)

    def encoder(self) -> PromptEncoder:
        """Prompts as this model reads them."""
        model, patching = self.model, self.model.patching
        per_frame = 1 if patching else model.connector.tokens_per_frame(model.vision_tower.num_patches)
        visual = build(VisualTokens, self.config.visual_tokens | {"per_frame": per_frame}, "visual_tokens")
        return PromptEncoder(self.tokenizer, TEMPLATES[self.config.template], model.head, visual, patching)

    def reader(
        self, videos: str | Path, sampler: Sampler | None = None, preprocess: Preprocess | None = None, **options
    ) -> VisualReader:
        """Frames as this model sees them, below the folder ``videos``; by default sampled and sized as it says."""
        sampler = sampler or build(Sampler, self.config.sampler, "sampler")
        preprocess = preprocess or build(Preprocess, self.config.preprocess, "preprocess")
        where = f"{Path(self.model.name_or_path, 'config.json')}: preprocess"
        check_frames(self.model, where, "copy the file from the run that made the checkpoint", preprocess)
        return VisualReader(Path(videos), sampler, preprocess, **{"max_tiles": self.config.max_tiles} | options)

    def collator(self, *, asked: bool = False, pack: bool = False, **options) -> Collator:
        """Batches as this model takes them; ``asked`` for questions without their answers, ``pack`` for packed rows,
        and ``Collator``'s own options."""
        split = (self.model.head.inject_layer is not None or pack) and not asked
        pad = self.tokenizer.pad_token_id or 0
        options |= {"question_tokenizer": self.question_tokenizer}
        return Collator(pad, split, self.config.bidirectional_frames, **options)

    def save(self, folder: str | Path, state_dict: dict | None = None) -> None:
        """Write everything into ``folder``; ``state_dict`` where the model's own has not all weights (ZeRO-3)."""
        state = self.model.state_dict() if state_dict is None else state_dict
        kept = {name: state[name] for name in stored(state, self.config.text_config)}
        with without_bars():
            self.model.save_pretrained(folder, state_dict=kept)
        self.save_tokenizers(folder)

    def save_adapters(self, folder: str | Path, base: str | Path) -> list[str]:
        """Write only what differs from the checkpoint ``base`` (folder or hub name): adapters, head, further weights.

        ``load`` takes the folder as long as ``base`` stays where it is. Returns the names of the tensors.
        """
        names = write_adapters(self.model.state_dict(), Path(folder), base, self.config.text_config)
        config = copy.deepcopy(self.config)
        config.base = str(Path(base).resolve() if Path(base).is_dir() else base)
        config.save_pretrained(folder)
        self.save_tokenizers(folder)
        return names

    def save_tokenizers(self, folder: str | Path) -> None:
        """Write the tokenizers into ``folder``, as they were before any text: how they padded last is not kept."""
        places = ((self.tokenizer, Path(folder)), (self.question_tokenizer, Path(folder) / QUESTION_TOKENIZER))
        for tokenizer, place in places:
            if tokenizer is not None:
                if tokenizer.is_fast:
                    tokenizer.backend_tokenizer.no_padding()
                    tokenizer.backend_tokenizer.no_truncation()
                tokenizer.save_pretrained(place)
