"""The start of DisTime's head on a pretrained language model: times are said in its words.

In: the converted language model. Out: ``times.safetensors``, weights of the published head (distime/time_head.py). Its
encoder says a time bin by the embedding of a word that stands for it, and what lies between two bins by a mix of both;
its decoder reads the bins from states that lean towards those words. A language model can copy words from its input
already, which is how times as text are learnt so fast; from random time codes it has to learn that first.

    python -m realweights.times --language DIR --output FILE --seed 0
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from distime.losses import dfl, gaussian
from distime.time_head import TimeHead, TimeOptions
from realweights.language import check_converted
from realweights.objects import ANSWERS, GROUNDING
from videollm.common.command import Parser, ended, whole
from videollm.common.config import ConfigError, need
from videollm.common.files import replacing

BATCH, LR = 256, 1e-3
COMMON = slice(1000, 8000)  # tokens among which words are chosen: byte-pair merges are numbered by frequency
LETTERS = 4  # of a word, at least
SHARP = 0.6  # width in bins of the words that states lean to


def choose_words(weight: Tensor, tokenizer: PreTrainedTokenizerBase, count: int) -> Tensor:
    """``count`` common words whose embeddings of ``weight`` [V, D] are as unlike each other as can be. [count]."""
    pieces = range(len(tokenizer))[COMMON] or range(len(tokenizer))  # of a small vocabulary any
    texts = {i: tokenizer.decode([i]) for i in pieces}
    words = [i for i, t in texts.items() if t[:1] == " " and t[1:].isalpha() and t.islower() and len(t) > LETTERS]
    need(len(words) >= count, f"the language model's tokenizer has {len(words)} whole words, {count} are needed")
    vectors = normalize(weight[words] - weight.mean(0), dim=-1)
    chosen, nearest = [0], vectors @ vectors[0]
    while len(chosen) < count:
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, vectors @ vectors[chosen[-1]])
    return torch.tensor(words)[chosen]


@torch.no_grad()
def states(model, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Last states of the language model on questions and answers of training. [N, D]."""
    text = " ".join(wording.format("ball") for wording in (*GROUNDING, *ANSWERS))
    return model.model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]


def fit(head: TimeHead, said: Tensor, center: Tensor, base: Tensor, steps: int) -> tuple[float, float]:
    """Fit the head to words ``said`` [K, D] around the mean embedding ``center`` [D], over the states ``base`` [N, D].

    Returns the last errors: of the encoder as a share of the words' spread, of the decoder as DFL. Torch's own
    generator draws.
    """
    last, sigma, length = head.options.reg_max, head.options.sigma, base.norm(dim=-1).mean()
    optimizer = torch.optim.Adam(head.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - 0.95 * step / steps)
    spread = said.square().sum(-1).mean()
    for _ in tqdm(range(steps), desc="times in words", unit="step"):
        bins = (last * torch.rand(BATCH, 2)).sort(-1).values
        bins[: BATCH // 2, 1] = bins[: BATCH // 2, 0]  # of a frame
        curves = gaussian(bins, last, sigma)  # [BATCH, 2, K]
        off = head.time_enc(curves.flatten(-2)) - center - curves.mean(1) @ said
        encoded = off.square().sum(-1).mean() / spread
        bins = (last * torch.rand(BATCH, 2)).sort(-1).values
        words = gaussian(bins, last, SHARP) @ said * (0.7 + 0.6 * torch.rand(BATCH, 2, 1))
        leaning = length * (0.2 + 1.2 * torch.rand(BATCH, 1)) * normalize(words.sum(1), dim=-1)
        state = base[torch.randint(len(base), (BATCH,))] * torch.rand(BATCH, 1) + leaning
        read = dfl(head.time_gen(state).unflatten(-1, (2, -1)).flatten(0, 1), bins.flatten()).mean()
        optimizer.zero_grad()
        (encoded + read).backward()
        optimizer.step()
        schedule.step()
    return encoded.item(), read.item()


def start_times(language: Path, output: Path, *, steps: int, seed: int) -> tuple[float, float]:
    """Write the head's start to ``output``; returns its errors (see ``fit``). Raises ConfigError without a model."""
    check_converted(language)
    tokenizer = AutoTokenizer.from_pretrained(language)
    model = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32).eval()
    weight = model.get_input_embeddings().weight.detach()
    torch.manual_seed(seed)
    head = TimeHead(TimeOptions(), weight.shape[1])
    head.reset_parameters()
    center = weight.mean(0)
    words = choose_words(weight, tokenizer, head.options.reg_max + 1)
    errors = fit(head, weight[words] - center, center, states(model, tokenizer), steps)
    with replacing(output) as fresh:
        save_file(head.state_dict(), fresh, metadata={"steps": str(steps), "seed": str(seed)})
    return errors


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    parser = Parser(prog="python -m realweights.times", description=__doc__.split("\n")[0])
    parser.add_argument("--language", type=Path, required=True, help="folder made by realweights.language")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    parser.add_argument("--steps", type=whole(1), default=800)
    parser.add_argument("--seed", type=whole(0), default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # the same numbers on every machine of a kind

    def run() -> None:
        if args.output.is_file():
            try:
                with safe_open(args.output, "pt") as file:
                    made = file.metadata()
            except SafetensorError as error:
                raise ConfigError(f"{args.output}: cannot be read ({error}); delete it, or give another file") from None
            same = made == {"steps": str(args.steps), "seed": str(args.seed)}
            need(same, f"{args.output}: was made with {made}, not with these options; give another file")
            return
        encoded, read = start_times(args.language, args.output, steps=args.steps, seed=args.seed)
        print(f"{args.output}: encoder's error {encoded:.4f} of the spread of words, decoder's DFL {read:.3f}")

    return ended(run)


if __name__ == "__main__":
    sys.exit(main())
