"""ActivityNet Captions' own protocol: several references, both denominators, paragraphs, SODA's two sides.

METEOR is here the share of a hypothesis's words that the reference has, so that no Java is needed; BLEU, CIDEr and
ROUGE_L come from pycocoevalcap on pairs that are written down by hand.
"""

import json

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor as PublishedMeteor
from pycocoevalcap.rouge.rouge import Rouge

from all_benchmark_eval import score
from all_benchmark_eval.benchmark import BenchmarkError, Options, get
from all_benchmark_eval.metrics import captions, paragraphs
from all_benchmark_eval.metrics.dense import Events, pool
from all_benchmark_eval.metrics.dense_scores import DenseAnswers, DenseTruth
from tests.form_files import write

# v_a is in both references, v_b in the second only and not answered.
FIRST = {"v_a": {"duration": 60, "timestamps": [[0, 10]], "sentences": ["a man cuts"]}}
SECOND = {
    "v_a": {"duration": 60, "timestamps": [[0, 9], [30, 40]], "sentences": ["he cuts onions", "he leaves"]},
    "v_b": {"duration": 50, "timestamps": [[5, 15]], "sentences": ["a dog runs"]},
}
SAID = [([0.0, 10.0], "a man cuts"), ([50.0, 60.0], "a cat"), ([30.0, 40.0], "he leaves")]
RANDOM = "qwertyuiop"


def scored(folder, variant, protocol="published", truths=(FIRST, SECOND)):
    task = get("anet_dvc")
    loaded = [task.load(write(folder / f"val_{n}.json", truth)) for n, truth in enumerate(truths, start=1)]
    truth = task.joined(loaded)
    answers = DenseAnswers.none(len(truth))
    answers.put(truth.rows["v_a"], [span for span, _ in SAID], [text for _, text in SAID])
    return task.score(truth, answers, Options(protocol, variant))


def library(scorer, pairs):
    """What a published scorer makes of (hypothesis, reference) pairs."""
    more = {"verbose": 0} if isinstance(scorer, Bleu) else {}
    true, said = ({k: [pair[side]] for k, pair in enumerate(pairs)} for side in (1, 0))
    return scorer.compute_score(true, said, **more)[0]


AT_LOOSE = [  # at 0.3, 0.5 and 0.7; [0, 9] is 0.9 of [0, 10], less the script's epsilon
    *(("a man cuts", "a man cuts"), ("a man cuts", "he cuts onions")),
    *(("he leaves", "he leaves"), ("a cat", RANDOM)),
]
AT_TIGHT = [pair for pair in AT_LOOSE if pair[1] != "he cuts onions"]


@pytest.mark.parametrize(("variant", "videos"), [("densevid_eval", 2), ("densevid_eval_present", 1)])
def test_a_prediction_meets_the_events_of_every_reference_or_random_letters(variant, videos, tmp_path, plain_words):
    metrics = scored(tmp_path, variant).metrics
    for name, measure in (
        ("METEOR", lambda pairs: captions.meteor([pairs])[0]),
        ("CIDEr", lambda pairs: library(Cider(), pairs)),
        ("ROUGE_L", lambda pairs: library(Rouge(), pairs)),
        *((f"BLEU_{n}", lambda pairs, n=n: library(Bleu(4), pairs)[n - 1]) for n in range(1, 5)),
    ):
        expected = (3 * measure(AT_LOOSE) + measure(AT_TIGHT)) / 4
        assert metrics[name] == pytest.approx(100 * expected / videos), name


@pytest.mark.parametrize(("variant", "videos"), [("densevid_eval", 2), ("densevid_eval_present", 1)])
def test_the_best_reference_of_a_video_counts_for_precision_recall_and_soda(variant, videos, tmp_path, plain_words):
    scores = scored(tmp_path, variant)
    # SODA_c, first reference: 1 of 3 predictions, 1 of 1 events. Second: 0.9 / 3 + 1 of 3 and of 2, the better F.
    earned = 0.9 * (1 / 3) + 1
    precision, recall = earned / 3, earned / 2
    expected = {
        "Recall@0.5": 1.0, "Recall@0.9": 1.0, "Precision@0.5": 2 / 3, "Precision@0.9": 1 / 3,
        "SODA_c": 2 * precision * recall / (precision + recall),
        "SODA_c_Precision": precision, "SODA_c_Recall": recall,
    }  # fmt: skip
    for name, value in expected.items():
        assert scores.metrics[name] == pytest.approx(100 * value / videos, rel=1e-6), name
    assert scores.denominator == ("all videos of the references" if videos == 2 else "videos in the predictions")
    assert scores.counts == {"samples": 2, "scored": 1, "unparsed": 0, "missing": 1, "clipped": 0}


def test_neighbours_with_the_same_sentence_stay_two_events(tmp_path, plain_words):
    task = get("anet_dvc")
    truth = task.load(write(tmp_path / "val.json", FIRST))
    answers = DenseAnswers.none(1)
    answers.put(0, [[0.0, 5.0], [5.0, 10.0]], ["a man cuts"] * 2)
    precision = {
        variant: task.score(truth, answers, Options("published", variant)).metrics["Precision@0.7"]
        for variant in ("seconds", "densevid_eval")
    }
    assert precision == {"seconds": 100, "densevid_eval": 0}


def test_paragraphs_are_one_corpus_with_the_references_that_a_video_has(tmp_path, plain_words):
    metrics = scored(tmp_path, "densevid_eval").metrics
    said = {0: ["a man cuts a cat he leaves"], 1: [""]}
    true = {0: ["a man cuts", "he cuts onions he leaves"], 1: ["a dog runs"]}
    bleu = Bleu(4).compute_score(true, said, verbose=0)[0]
    assert [metrics[f"Para_BLEU_{n}"] for n in range(1, 5)] == pytest.approx([100 * value for value in bleu])
    assert metrics["Para_CIDEr"] == pytest.approx(100 * Cider().compute_score(true, said)[0])
    assert metrics["Para_ROUGE_L"] == pytest.approx(100 * Rouge().compute_score(true, said)[0])


def test_corrected_takes_several_references_too(tmp_path, plain_words):
    scores = scored(tmp_path, "densevid_eval", "corrected")
    # [0, 9] is 0.9 of [0, 10] on paper: a pair at every threshold; what matches nothing counts 0, and so does v_b
    assert scores.metrics["METEOR"] == pytest.approx(100 * (1 + 1 / 3 + 1 + 0) / 4 / 2)
    assert scores.metrics["Precision@0.9"] == pytest.approx(100 * 2 / 3 / 2)
    assert scores.metrics["BLEU_4"] is None


def test_several_references_are_for_their_own_variant_and_benchmark(tmp_path, plain_words, capsys):
    with pytest.raises(BenchmarkError, match="--annotations: seconds takes one reference.*densevid_eval"):
        scored(tmp_path, "seconds")
    truth = write(tmp_path / "anet.json", FIRST)
    predictions = write(tmp_path / "p.json", {"results": {}})
    files = ["--annotations", truth, truth, "--predictions", predictions, "--output", tmp_path / "s.json"]
    assert score.main(["anet", *map(str, files)]) == 2
    assert "--annotations: anet takes one file, not 2" in capsys.readouterr().err


def test_the_command_takes_several_annotation_files(tmp_path, plain_words):
    truths = [write(tmp_path / f"val_{n}.json", truth) for n, truth in enumerate((FIRST, SECOND), start=1)]
    answer = json.dumps([{"event": text, "timestamps": f"{s:.0f} - {e:.0f}"} for (s, e), text in SAID])
    predictions = write(tmp_path / "p.jsonl", {"video_id": "v_a", "task": "captioning", "answer": answer})
    files = ["--annotations", *truths, "--predictions", predictions, "--output", tmp_path / "s.json"]
    assert score.main(["anet_dvc", *map(str, files), "--variant", "densevid_eval"]) == 0
    result = json.loads((tmp_path / "s.json").read_text())
    assert set(result["files"]) == {"predictions", "annotations", "annotations 2"}
    assert result["protocols"]["published"]["metrics"]["Recall@0.9"] == pytest.approx(50)


def test_references_are_pooled_video_by_video():
    first = Events.of([[[0, 1]], [], [[2, 3]]], [["a"], [], ["b"]])
    second = Events.of([[[4, 5], [6, 7]], [[8, 9]], []], [["c", "d"], ["e"], []])
    pooled = pool([first, second])
    assert pooled.sizes.tolist() == [3, 1, 1]
    assert pooled.captions == ["a", "c", "d", "e", "b"]
    assert pooled.spans[:, 0].tolist() == [0, 4, 6, 8, 2]


def test_joined_references_know_each_videos_length_and_last_end():
    first = DenseTruth.of([("a", None, [[0, 5]], ["x"])], "1")
    second = DenseTruth.of([("b", 9.0, [[0, 7]], ["y"]), ("a", 8.0, [[1, 6]], ["z"])], "2")
    joined = DenseTruth.joined([first, second])
    assert (joined.names, joined.durations.tolist(), joined.ends.tolist()) == (["a", "b"], [8, 9], [6, 7])
    assert joined.select(np.array([False, True])).others[0].captions == [["y"]]


@pytest.mark.slow
def test_meteor_with_several_references_is_its_own():
    """METEOR takes the reference that is best for each hypothesis."""
    said = ["a man cuts an onion", "a dog runs", "the end"]
    true = [["a man", "someone cuts onions", "a man cuts an onion"], ["dogs run", "a cat runs"], ["the end"]]
    published = PublishedMeteor()
    expected, _ = published.compute_score(dict(enumerate(true)), {k: [text] for k, text in enumerate(said)})
    assert captions.meteor_of_best(said, true) == pytest.approx(expected, rel=1e-9)


def test_paragraphs_of_nothing_are_no_crash():
    assert paragraphs.paragraph_scores([], [], meteor=False) == {}
