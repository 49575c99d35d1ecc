"""E.T. Bench: samples of all tasks in, the official tables out.

Here the samples are put together by task and source, all texts of a run are tokenized and embedded together, and the
numbers of the sources are averaged: a task is the mean of its sources, a group of tasks the mean of its tasks.
"""

import math
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from all_benchmark_eval.benchmark import Options, Scores
from all_benchmark_eval.etbench import corrected, dense, grounding, referring
from all_benchmark_eval.etbench.outcomes import Outcome
from all_benchmark_eval.etbench.samples import CAPTION, PRIMARY, REFERRING, Sample
from all_benchmark_eval.metrics.dense_scores import Words
from all_benchmark_eval.metrics.moments import no_length
from all_benchmark_eval.metrics.sentences import SentenceModel, sentence_model

Outcomes = dict[str, dict[str, Outcome]]  # task -> source
Grouped = dict[str, dict[str, list[Sample]]]
Read = Callable[[Sequence[Sample]], dense.Source]

GROUNDING: dict[str, Callable[[Sequence[Sample], str], Outcome]] = {
    "tvg": grounding.moment, "epm": grounding.moment, "tal": grounding.actions, "evs": grounding.summary,
    "vhd": grounding.highlight, "tem": grounding.event,
}  # fmt: skip
# The means of the official "Merged" table, over numbers of tasks.
MERGED = {
    "Acc_ref": ("RAR_Acc", "ECA_Acc", "RVQ_Acc"),
    "F1_gnd": ("TVG_F1", "EPM_F1", "TAL_F1", "EVS_F1", "VHD_F1"),
    "F1_cap": ("DVC_F1", "SLC_F1"),
    "Sim_cap": ("DVC_Sim", "SLC_Sim"),
    "Rec_com": ("TEM_Rec", "GVQ_Rec"),
}
_COLUMN = {"Acc": "Acc", "F1": "F1", "mRec": "Rec", "SentSim": "Sim"}
_DIGITS = 5  # to which the scripts round all but the ratios of matched letters


def score(samples: Sequence[Sample], missing: Sequence[Sample], options: Options) -> Scores:
    """``missing`` are samples of the annotations without an answer: wrong under the corrected protocol only."""
    published = options.protocol == "published"
    scored = samples if published else [*samples, *(replace(sample, answer=None) for sample in missing)]
    grouped = _grouped(scored)
    model = sentence_model(options.sentence_model)
    outcomes, notes = (_published if published else _corrected)(grouped, options, model)
    notes += _without_nan(outcomes)
    scores = _tables(outcomes, published)
    scores.counts = _counts(outcomes, samples, missing)
    scores.notes = notes + _notes(outcomes, samples, missing, published)
    states = ChainMap(*(outcome.states for group in outcomes.values() for outcome in group.values()))
    scores.unread = {s.id: s.answer or "" for s in samples if states[s.id] != "scored"}
    if published:
        scores.denominator = "the samples in the prediction file; of evs the parsed ones; captions: parsed videos"
    return scores


def _grouped(samples: Sequence[Sample]) -> Grouped:
    """By task, in the official order, and source, in the order of the file."""
    grouped: Grouped = {task: {} for task in PRIMARY}
    for sample in samples:
        grouped[sample.task].setdefault(sample.source, []).append(sample)
    return {task: sources for task, sources in grouped.items() if sources}


def _published(grouped: Grouped, options: Options, model: SentenceModel) -> tuple[Outcomes, list[str]]:
    variant = options.variant
    captioned, notes = _dense(grouped, options, model, lambda s: dense.read_source(s, variant), dense.PUBLISHED)
    choosing = {t: sources for t, sources in grouped.items() if t in (*REFERRING, "gvq")}
    found = {t: {s: referring.verdicts(group, variant) for s, group in srcs.items()} for t, srcs in choosing.items()}
    model.encode([text for t, srcs in choosing.items() for s in srcs for text in referring.texts(srcs[s], found[t][s])])
    outcomes: Outcomes = {}
    for task, sources in grouped.items():
        if task in choosing:
            rule = referring.grounded if task == "gvq" else referring.choice
            outcomes[task] = {s: rule(group, variant, found[task][s], model) for s, group in sources.items()}
        elif task in CAPTION:
            outcomes[task] = captioned[task]
        else:
            outcomes[task] = {s: GROUNDING[task](group, variant) for s, group in sources.items()}
    return outcomes, notes


def _corrected(grouped: Grouped, options: Options, model: SentenceModel) -> tuple[Outcomes, list[str]]:
    captioned, notes = _dense(grouped, options, model, dense.corrected_source, dense.CORRECTED)
    return {
        task: captioned[task] if task in CAPTION else {s: corrected.score(group) for s, group in sources.items()}
        for task, sources in grouped.items()
    }, notes


def _dense(
    grouped: Grouped, options: Options, model: SentenceModel, read: Read, rules: dense.Rules
) -> tuple[Outcomes, list[str]]:
    """dvc and slc: all sources read, then tokenized together, then scored."""
    sources = {task: {s: read(group) for s, group in grouped[task].items()} for task in CAPTION if task in grouped}
    texts = [text for group in sources.values() for source in group.values() for text in source.texts()]
    if not texts:
        options = replace(options, skip_meteor=True)  # nothing to score: no Java
    words = Words(options)
    words.add(texts)
    true = [text for group in sources.values() for source in group.values() for text in source.true_texts()]
    scorer = dense.Dense(words, model, rules, options.seed, true)
    outcomes = {task: {s: scorer.score(source) for s, source in group.items()} for task, group in sources.items()}
    return outcomes, words.notes if texts else []


def _without_nan(outcomes: Outcomes) -> list[str]:
    """Take out each 0/0 (spans of no length, published): None in the tables, 0 for the sample. Gives the notes."""
    found = []
    for task, group in outcomes.items():
        for source, outcome in group.items():
            bad = [name for name, value in outcome.numbers.items() if value is not None and math.isnan(value)]
            found += [f"{task}/{source}/{name}" for name in bad]
            outcome.numbers |= dict.fromkeys(bad)
            for table in outcome.per_sample.values():
                table |= {name: 0.0 for name, value in table.items() if math.isnan(value)}
    return [f"NaN in the published script, 0/0 for spans of no length: {', '.join(found)}"] if found else []


def _tables(outcomes: Outcomes, rounded: bool) -> Scores:
    """Flat metrics (merged, tasks, main number of each source) and the whole tables as details, fractions."""
    sources = {task: {source: o.numbers for source, o in group.items()} for task, group in outcomes.items()}
    tasks = _task_means(sources)
    metrics = _merged(tasks) | tasks
    per_sample = {}
    for task, group in outcomes.items():
        for source, outcome in group.items():
            name = f"{task}/{source}/{PRIMARY[task]}"
            metrics[name] = outcome.numbers[PRIMARY[task]]
            per_sample |= {f"{task}/{source}/{key}": values for key, values in outcome.per_sample.items()}
    details = {"per_task_source": sources}
    if rounded:
        printed = {t: {s: _rounded(numbers) for s, numbers in group.items()} for t, group in sources.items()}
        means = _rounded(_task_means(printed))
        details |= {"per_task_source_as_printed": printed, "task_means_as_printed": means}
        merged = {name: None if value is None else round(100 * value, 1) for name, value in _merged(means).items()}
        details["merged_as_printed_percent"] = merged
    return Scores(metrics, "fraction", {}, per_sample, details=details)


def _task_means(sources: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> dict[str, float | None]:
    """Each task's number(s), the mean over its sources; None for a task without samples."""
    means = {}
    for task, name in PRIMARY.items():
        for key in (name, "SentSim") if task in CAPTION else (name,):
            values = [numbers[key] for numbers in sources.get(task, {}).values()]
            means[f"{task.upper()}_{_COLUMN[key]}"] = _mean(values)
    return means


def _merged(tasks: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: _mean([tasks[task] for task in parts]) for name, parts in MERGED.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    return sum(values) / len(values) if values and None not in values else None


def _rounded(numbers: Mapping[str, float | None]) -> dict[str, float | None]:
    return {
        name: round(value, _DIGITS) if isinstance(value, float) and "atio" not in name else value
        for name, value in numbers.items()
    }


def _counts(outcomes: Outcomes, samples: Sequence[Sample], missing: Sequence[Sample]) -> dict[str, int]:
    every = [outcome for group in outcomes.values() for outcome in group.values()]
    states = ChainMap(*(outcome.states for outcome in every))
    scored = sum(states[sample.id] == "scored" for sample in samples)
    counts = {"samples": len(samples) + len(missing), "scored": scored, "unparsed": len(samples) - scored}
    return counts | {"missing": len(missing), "clipped": sum(outcome.clipped for outcome in every)}


def _notes(outcomes: Outcomes, samples: Sequence[Sample], missing: Sequence[Sample], published: bool) -> list[str]:
    notes = no_length(np.array([span for s in samples if s.task != "vhd" for span in s.spans]).reshape(-1, 2))
    if absent := [task for task in PRIMARY if task not in outcomes]:
        notes.append(f"no sample of {', '.join(absent)}: the means over them are left out")
    if stops := [name for group in outcomes.values() for outcome in group.values() for name in outcome.stops]:
        notes.append(f"the published script stops at {len(stops)} answers, here they failed: {', '.join(stops[:5])}")
    if missing and published:
        unseen = f"{len(missing)} samples of the annotations have no answer"
        notes.append(f"{unseen}; the published script does not see them")
    return notes
