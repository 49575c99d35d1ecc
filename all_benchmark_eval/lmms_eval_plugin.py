"""Our checkpoints in lmms-eval: ``--model videollm --model_args pretrained=DIR``, found by setup.py's entry point.

In: lmms-eval's requests, a text with a video or pictures. Out: the text of an answer each, in which times stand as
``12.00 - 15.50 seconds``, as the scripts of its tasks read them. Only lmms-eval imports this file, and nothing else
here imports lmms-eval. Knows no task; how samples that lmms-eval has logged are scored here is in ``answer_forms.py``.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from loguru import logger
from PIL import Image

from all_benchmark_eval.forms import need
from videollm.checkpoint import load, read_config
from videollm.common.answers import AnswerLine, split_spans
from videollm.common.command import usable_device
from videollm.common.processes import local_rank, world_size
from videollm.data import Record
from videollm.data.conversation import Turn, VisualMark
from videollm.inference.answer import answer_records
from videollm.inference.options import PRECISIONS, read_options
from videollm.inference.question import make_record
from videollm.inference.run import workers_for

ROOT = Path(Path.cwd().anchor)  # tasks keep their videos anywhere
ONLY_WORDS = "videollm answers in words: of lmms-eval's tasks it takes those of output_type generate_until"


def manifest() -> ModelManifest:
    """What lmms-eval loads by the entry point."""
    return ModelManifest(model_id="videollm", simple_class_path=f"{__name__}.VideoLLMModel")


class VideoLLMModel(lmms):
    """A checkpoint with whatever head. ``overrides`` are those of ``videollm.infer``, also over a task's decoding:
    ``--model_args pretrained=DIR,sampler.num_frames=32,generate.max_new_tokens=64,precision=bf16``."""

    def __init__(
        self, pretrained: str, batch_size: int | str = 1, max_batch_size: int | None = None, device: str | None = None,
        precision: str | None = None, **overrides: Any,
    ):  # fmt: skip
        super().__init__()
        need(f"{batch_size}".isdecimal() and int(batch_size), f"--batch_size {batch_size}: give a number of questions")
        self.batch_size = int(batch_size)
        own = f"cuda:{local_rank()}" if torch.cuda.is_available() else "cpu"
        self.device, self.precision = usable_device(own if device in (None, "cuda") else device), precision
        self.overrides = [f"{key}={value}" for key, value in overrides.items()]
        options = read_options(self.overrides, read_config(Path(pretrained)), self.device, precision)
        self.bundle = load(pretrained, head=options.head, dtype=PRECISIONS[options.precision])
        self.bundle.model.to(self.device)
        self.reader = self.bundle.reader(ROOT, options.sampler, options.preprocess)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answers in the order of the requests; "" for one that cannot be asked, which is logged.

        Raises:
            BenchmarkError: none of them can be asked.
        """
        alike: dict[str, list[int]] = {}  # places of requests that a task decodes in one way
        for place, request in enumerate(requests):
            alike.setdefault(str(request.args[1]), []).append(place)
        texts, errors = [""] * len(requests), []
        with TemporaryDirectory() as pictures:
            for places in alike.values():
                for place, line in self._answers([requests[i] for i in places], Path(pictures)):
                    texts[places[place]] = told(line, requests[places[place]].args[1].get("until"))
                    errors += [f"{line.id}: {line.error}"] if line.error else []
        need(len(errors) < len(requests) or not requests, f"no question could be asked, first {(errors or [''])[0]}")
        for error in errors:
            logger.warning(f"answered with nothing: {error}")
        return texts

    def _answers(self, requests: Sequence[Instance], pictures: Path) -> Iterator[tuple[int, AnswerLine]]:
        """(place, answer) of requests that are decoded in one way."""
        decoding = [*decoding_of(requests[0].args[1]), *self.overrides]
        options = read_options(decoding, self.bundle.config, self.device, self.precision)
        times: Counter = Counter()
        records = {}
        for place, request in enumerate(requests):
            text, _, visuals_of, doc, task, split = request.args
            name = f"{task}/{split}/{doc}"
            times[name] += 1  # an answer may be wanted several times; the id decides what is drawn
            record = record_of(f"{name}#{times[name]}", text, visuals_of(self.task_dict[task][split][doc]), pictures)
            records[record.id] = (place, record)
        lines = answer_records(
            self.bundle, [record for _, record in records.values()], self.reader, options.generate,
            batch_size=self.batch_size, workers=workers_for(None, world_size()), progress=self.rank == 0,
        )  # fmt: skip
        yield from ((records[line.id][0], line) for line in lines)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not to be had."""
        raise NotImplementedError(ONLY_WORDS)

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not to be had."""
        raise NotImplementedError(ONLY_WORDS)


def record_of(name: str, text: str, visuals: Sequence[Any] | None, pictures: Path) -> Record:
    """A question: one video, or pictures, which are written into ``pictures``, before the text, or the text alone.

    Raises:
        BenchmarkError: several videos, or what is neither a video's path nor a picture.
    """
    visuals = [visual for visual in visuals or () if visual is not None]
    paths = [os.path.realpath(visual) for visual in visuals if isinstance(visual, str | os.PathLike)]
    images = [visual for visual in visuals if isinstance(visual, Image.Image)]
    known = f"{name}: {', '.join(type(visual).__name__ for visual in visuals)}"
    one_kind = len(paths) + len(images) == len(visuals) and len(paths) < (1 if images else 2)
    need(one_kind, f"{known}: a question is about one video, or about pictures")
    for image in images:
        paths.append(str(pictures / f"{len(os.listdir(pictures))}.png"))
        image.convert("RGB").save(paths[-1])
    names = [os.path.relpath(path, ROOT) for path in paths]
    marks = tuple(map(VisualMark, range(len(names))))
    asked = make_record("", text.replace("<image>", "").strip())  # where pictures stand, the model's layout says
    turns = (Turn("user", (*marks, asked.question)),)
    video, images = (None, tuple(names)) if images else (next(iter(names), None), ())
    return replace(asked, id=name, video=video, images=images, turns=turns, path=name)


def decoding_of(kwargs: dict[str, Any]) -> list[str]:
    """A task's ``generation_kwargs`` as overrides. Raises BenchmarkError for a beam search."""
    need(kwargs.get("num_beams") in (None, 1), "num_beams: answers are greedy or drawn; --gen_kwargs num_beams=1")
    given = {key: kwargs[key] for key in ("max_new_tokens", "repetition_penalty") if kwargs.get(key) is not None}
    if kwargs.get("temperature") and kwargs.get("do_sample", True):
        drawn = {key: kwargs[key] for key in ("temperature", "top_p") if kwargs.get(key) is not None}
        given |= {"do_sample": True} | drawn
    return [f"generate.{key}={value}" for key, value in given.items()]


def told(line: AnswerLine, until: str | Sequence[str] | None) -> str:
    """An answer as its text, times written out; of one that is evidence alone, that. It ends before ``until``."""
    pieces, written = split_spans(line.text)
    spans = line.spans if len(line.spans) == len(written) else written
    if not line.text:
        spans, pieces = line.scored_spans, [""] * (len(line.scored_spans) + 1)
    text = pieces[0]
    for (start, end), after in zip(spans, pieces[1:], strict=True):
        text += f"{start:.2f} - {end:.2f}{'' if after.lstrip().startswith('second') else ' seconds'}{after}"
    for stop in [until] if isinstance(until, str) else until or ():
        text = text.partition(stop)[0] if stop else text
    return text
