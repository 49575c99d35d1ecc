"""What batches of videos of several sizes cost on a native backbone: padding, time a token, and the tower once a video.

A small Qwen3-VL with random weights and videos of noise in six shapes, two of them far below the budget of pixels. A
pass over them in random order, grouped by length as the budget alone tells it, and as headers tell it: padding, and
processor time a token that is none, of forward and backward. Then one video with many questions: answered
together, the tower runs once.

    python -m benchmarks.any_size
"""

import random
import sys

import numpy as np
import torch

from benchmarks.rounds import command_line, seconds
from videollm.batches.dataset import VideoDataset
from videollm.batches.lengths import item_sizes
from videollm.batches.order import LengthGroupedSampler
from videollm.batches.reader import Seen
from videollm.checkpoint import Bundle
from videollm.common.command import ended
from videollm.data import Record, parse_record
from videollm.inference.answer import answer_records
from videollm.model.generate import GenerateOptions
from videollm.model.videollm import VideoLLM, VideoLLMConfig
from videollm.training.memory import word_bundle
from videollm.video.sampling import Sampler

# Height and width of files; the budget makes all but the last two smaller.
SIZES = ((240, 426), (720, 1280), (640, 360), (480, 480), (24, 24), (24, 40))
TOKENS = ("<|video_pad|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>")


def small_model() -> Bundle:
    """A Qwen3-VL of four layers and a tokenizer of one word."""
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [8, 4, 4]}
    sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    text = {"model_type": "qwen3_vl_text", "vocab_size": 64, "intermediate_size": 256, "head_dim": 32, **sizes}
    vision = {"hidden_size": 64, "depth": 4, "num_heads": 4, "intermediate_size": 128, "patch_size": 4}
    tokens = dict(zip(("token", "image", "start", "end"), TOKENS, strict=True))
    config = VideoLLMConfig(
        text_config=text | {"rope_parameters": rope, "pad_token_id": 0}, connector={"type": "qwen3_vl"},
        vision={"type": "qwen3_vl", "deepstack_visual_indexes": [1, 2], "num_position_embeddings": 256, **vision},
        head={"name": "text", "unit": "seconds"}, template="bare",
        visual_tokens={**tokens, "before": "{time:.1f} ", "after": ""},
        preprocess={"kind": "qwen3_vl", "factor": 8, "budget": "frame", "min_pixels": 64, "max_pixels": 64 * 80},
    )  # fmt: skip
    torch.manual_seed(0)
    return word_bundle(VideoLLM(config))


class Noise:
    """Videos of noise; the name tells the number of frames, height and width."""

    fixed, stored, max_tiles = True, None, 1

    def __init__(self, bundle: Bundle):
        self.sampler, self.preprocess = Sampler(rule="fps", fps=1.0), bundle.model.preprocess

    def shape(self, name: str, view: object = None) -> tuple[int, int]:
        """As ``VisualReader.shape``."""
        return tuple(map(int, name.removesuffix(".mp4").split("-")[1:]))

    def video(self, name: str, rng: random.Random | None, view: object = None, limits: tuple = ()) -> Seen:
        """As ``VisualReader.video``."""
        count, height, width = map(int, name.removesuffix(".mp4").split("-"))
        size = self.preprocess.frame_size(height, width, count)
        pixels = torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8)
        return Seen(pixels, None, np.arange(count, dtype=float), float(count))


def records(count: int, draw: random.Random) -> list[Record]:
    """Questions, each about a video of its own number of frames and size."""
    lines = []
    for k in range(count):
        frames, (height, width) = draw.randrange(4, 13), draw.choice(SIZES)
        said = [{"from": "human", "value": "<video>\nw w w"}, {"from": "gpt", "value": "w " * draw.randrange(4, 24)}]
        lines.append(
            {"id": f"{k}", "video": f"{frames}-{height}-{width}.mp4", "duration": frames, "conversations": said}
        )
    return [parse_record(line, k + 1, "noise.jsonl") for k, line in enumerate(lines)]


def passes(bundle: Bundle, found: list[Record], rows: int) -> None:
    """Padding and time of a pass over ``found`` in batches of ``rows``, in both orders."""
    model, dataset = bundle.model.train(), VideoDataset(found, Noise(bundle), bundle.encoder(), max_length=4096)
    torch.manual_seed(0)
    orders = {"random order": torch.randperm(len(dataset)).tolist()}
    known = dataset.reader.shape
    for name, shape in (("grouped by the budget of pixels", lambda *_: None), ("grouped by headers", known)):
        dataset.reader.shape = shape
        sizes = item_sizes(dataset, "benchmark").sum(1)
        orders[name] = list(LengthGroupedSampler(dataset, sizes, rows, 1, 0))
    print("| batches of several sizes | padding | processor ms a token |\n|---|---|---|")
    for name, order in orders.items():
        spent, padded, places = 0.0, 0, 0
        for start in range(0, len(order), rows):
            batch = bundle.collator()([dataset[i] for i in order[start : start + rows]])
            spent += seconds(lambda batch=batch: model(batch).loss.backward(), "cpu")
            padded, places = padded + batch.padded[0], places + batch.padded[1]
        print(f"| {name} | {padded / places:.1%} | {1000 * spent / (places - padded):.3f} |")


def shared(bundle: Bundle, questions: int) -> None:
    """Patches that go through the tower for many questions about one video: together, and one by one."""
    said, patches, tower = [{"from": "human", "value": "<video>\nw"}], [], bundle.model.eval().vision_tower
    one = {"video": "8-480-480.mp4", "duration": 8, "conversations": said}
    asked = [parse_record({"id": f"{k}", **one}, k + 1, "noise.jsonl") for k in range(questions)]
    hook = tower.register_forward_pre_hook(lambda _, given: patches.append(len(given[0])))
    options, counts = GenerateOptions(max_new_tokens=1), []
    for groups in ([asked], [[record] for record in asked]):
        patches.clear()
        for group in groups:
            list(answer_records(bundle, group, Noise(bundle), options, batch_size=questions))
        counts.append(sum(patches))
    hook.remove()
    print(
        f"\n{questions} questions about a video: {counts[0]} patches through the tower together, {counts[1]} one by one"
    )


def main() -> None:
    """Measure and print."""
    args = command_line(__doc__, videos=64, rows=8, questions=12).parse_args()
    torch.set_num_threads(1)
    bundle = small_model()
    passes(bundle, records(args.videos, random.Random(0)), args.rows)
    shared(bundle, args.questions)


if __name__ == "__main__":
    sys.exit(ended(main))
