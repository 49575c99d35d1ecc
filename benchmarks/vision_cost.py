"""Where a training step of E.T. Chat and D2VLM goes, and what is saved on its vision tower: arithmetic, and measured.

The arithmetic counts multiply-adds of the matrix products at the real sizes, for one video of ``--frames`` frames. The
measurements are of a scaled-down EVA tower and Q-Former on this machine: each saving against the same work without it,
taking turns in one process, a ratio being the median over rounds.

    python -m benchmarks.vision_cost --repeats 5 --json out.json
"""

import copy
import statistics
import sys
from collections.abc import Callable

import torch

from benchmarks.rounds import command_line, peak_mib, ratio, rounds, write_json
from videollm.common.command import ended
from videollm.model.connectors import build_connector
from videollm.model.towers import build_tower, encode_frames

TOWER = {"layers": 39, "width": 1408, "mlp": 6144, "patches": 256}
QFORMER = {"layers": 12, "width": 768, "mlp": 3072, "queries": 32, "words": 20, "cross": 6}
LANGUAGE = {"layers": 32, "width": 3072, "mlp": 8192, "words": 80}


def shares(frames: int) -> dict[str, float]:
    """TFLOPs of one training step on one video: frozen tower, trained Q-Former, language model with adapters."""
    t, q, m = TOWER, QFORMER, LANGUAGE
    tokens = t["patches"] + 1
    block = tokens * (4 * t["width"] ** 2 + 2 * t["width"] * t["mlp"]) + 2 * tokens**2 * t["width"]
    tower = t["layers"] * block  # forward only
    seen = q["queries"] + q["words"]
    layer = seen * (4 * q["width"] ** 2 + 2 * q["width"] * q["mlp"]) + 2 * seen**2 * q["width"]
    cross = t["patches"] * 2 * t["width"] * q["width"] + q["queries"] * 2 * q["width"] ** 2
    cross += 2 * q["queries"] * t["patches"] * q["width"]
    pool = (t["patches"] + q["queries"]) * t["width"] ** 2 + 2 * q["queries"] * t["patches"] * t["width"]
    qformer = 3 * (q["layers"] * layer + q["cross"] * cross + pool)  # forward, and backward to inputs and weights
    length = frames + m["words"]
    language = m["layers"] * (length * (4 * m["width"] ** 2 + 3 * m["width"] * m["mlp"]) + 2 * length**2 * m["width"])
    language += m["words"] * 32064 * m["width"]
    return {
        "vision tower": 2e-12 * frames * tower,
        "Q-Former": 2e-12 * frames * qformer,
        "language model": 2e-12 * 2 * language,  # frozen weights: backward to inputs only
    }


def tower_of(attention: str = "sdpa") -> torch.nn.Module:
    """EVA's form, an eighth of its depth and a quarter of its width; frames of 224 pixels, 256 patches."""
    torch.manual_seed(0)
    tower = build_tower(
        {
            "type": "instructblip", "image_size": 224, "patch_size": 14, "hidden_size": 352, "num_hidden_layers": 5,
            "num_attention_heads": 4, "intermediate_size": 1536, "attn_implementation": attention,
        }
    )  # fmt: skip
    return tower.eval()


def compressor_of(width: int, layers: int, seen: int) -> torch.nn.Module:
    """A Q-Former of ``width`` behind a tower of width ``seen``, to be trained; without dropout."""
    fields = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    fields |= {"num_attention_heads": 6, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return build_connector({"type": "qformer", **fields}, seen, 512)


def read(compressor: torch.nn.Module, features: torch.Tensor, questions: int) -> None:
    """A training step of a compressor on ``questions`` of 20 words about the same frames, [F, P, Dv]."""
    frames = len(features)
    with features.device:
        words = torch.arange(20 * questions).view(questions, 20)
        owner, source = torch.arange(questions).repeat_interleave(frames), torch.arange(frames).repeat(questions)
    compressor(features, words, torch.ones_like(words), owner, source).sum().backward()


def kinds(frames: int, questions: int, chunk: int) -> dict[str, tuple[Callable, Callable]]:
    """saving -> (the work without it, the work with it)."""
    tower, eager = tower_of(), tower_of("eager")
    half = tower_of().bfloat16()
    pixels = torch.randn(frames, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    connector = compressor_of(192, 6, 352)
    features = encode_frames(tower, pixels, chunk)
    ids = torch.randint(0, 1000, (1, 20))
    owner = torch.zeros(frames, dtype=torch.int64)

    def compress(once: bool) -> None:
        text = (ids, torch.ones_like(ids), owner) if once else (ids[owner], torch.ones_like(ids)[owner], None)
        connector(features, *text).sum().backward()

    plain = copy.deepcopy(connector)
    plain.plain = lambda: True

    return {
        f"each video once, for {questions} questions": (
            lambda: encode_frames(tower, torch.cat([pixels] * questions), chunk),
            lambda: encode_frames(tower, pixels, chunk),
        ),
        "no graph": (lambda: tower(pixels), lambda: encode_frames(tower, pixels, frames)),
        f"{chunk} of {frames} frames at a time": (
            lambda: encode_frames(tower, pixels, frames),
            lambda: encode_frames(tower, pixels, chunk),
        ),
        "SDPA": (lambda: encode_frames(eager, pixels, chunk), lambda: encode_frames(tower, pixels, chunk)),
        "bf16": (lambda: encode_frames(tower, pixels, chunk), lambda: encode_frames(half, pixels.bfloat16(), chunk)),
        "question embedded once (Q-Former, training)": (lambda: compress(False), lambda: compress(True)),
        "patches read with no way back (Q-Former, training)": (
            lambda: read(plain, features, 1),
            lambda: read(connector, features, 1),
        ),
        f"patches read once a frame for {questions} questions (Q-Former, training)": (
            lambda: read(plain, features, questions),
            lambda: read(connector, features, questions),
        ),
    }


def main() -> None:
    """Count, measure and print."""
    sizes = {"frames": (100, "of the arithmetic"), "measured_frames": 16, "questions": 4, "chunk": 4, "repeats": 5}
    args = command_line(__doc__, file=True, **sizes).parse_args()
    counted = shares(args.frames)
    for part, count in counted.items():
        print(f"{part}: {count:.1f} TFLOP, {100 * count / sum(counted.values()):.0f} % of a step, {args.frames} frames")
    found = {}
    for name, (without, with_it) in kinds(args.measured_frames, args.questions, args.chunk).items():
        times = rounds({"without": without, "with": with_it}, args.repeats, "cpu")
        peaks = [peak_mib(step, "cpu") for step in (without, with_it)]
        found[name] = {"speed": ratio(times, "without", "with"), "seconds": times, "peak MiB": peaks}
        spent = [1000 * statistics.median(times[kind]) for kind in ("without", "with")]
        print(
            f"{name}: {found[name]['speed']['median']:.2f}x the speed ({spent[0]:.0f} -> {spent[1]:.0f} ms), "
            f"peak {peaks[0]:.0f} -> {peaks[1]:.0f} MiB"
        )
    write_json(args.json, {"TFLOP": counted, "measured": found})


if __name__ == "__main__":
    sys.exit(ended(main))
