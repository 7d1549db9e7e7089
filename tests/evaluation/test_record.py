"""evaluation.record: what eval.json holds of given logits, and its text."""

import json

import numpy as np
import pytest
from sklearn import metrics as sk

from jaxsplit.evaluation import EXAMPLES, NETWORKS, flatten, record, scores
from jaxsplit.evaluation.predictions import Predictions, SplitPredictions

RNG = np.random.Generator(np.random.Philox(8))
K = 4


def split_of(count, names, sharpness=3.0):
    labels = RNG.integers(0, K, count).astype(np.int32)
    logits = {}
    for name in names:
        logits[name] = (RNG.normal(size=(count, K)) * sharpness).astype(np.float32)
        logits[name][np.arange(count), labels] += sharpness
    return SplitPredictions(labels, np.arange(count), logits)


def means_of(its):
    found = {
        name: {
            "nll": scores.nll(scores.log_softmax(logits), its.labels),
            "top1": float((logits.argmax(1) == its.labels).mean()),
        }
        for name, logits in its.logits.items()
    }
    if "ensemble" in found:
        found[NETWORKS] = {"disagreement": 0.5, "oracle": 0.75}
    return found | {EXAMPLES: {"count": float(len(its.labels))}}


def made(names=("net0", "net1", "ensemble"), **counts):
    splits = {name: split_of(count, names) for name, count in counts.items()}
    return {name: means_of(its) for name, its in splits.items()}, Predictions(3, splits)


def test_scores_of_each_answer():
    results, found = made(test=60, train=40)
    splits = record.of_splits(results, found)
    assert list(splits) == ["test", "train"] and splits["test"]["count"] == 60
    its = found.splits["test"]
    for name, values in splits["test"]["answers"].items():
        log_p = scores.log_softmax(its.logits[name])
        sure, right = scores.confidence(log_p), scores.predicted(log_p) == its.labels
        assert values["ece"] == scores.ece(sure, right)
        assert values["adaptive_ece"] == scores.adaptive_ece(sure, right)
        assert values["brier"] == scores.brier(log_p, its.labels)
        assert values["aurc"] == pytest.approx(scores.aurc(sure, right))
        assert values["top1"] == pytest.approx(np.trace(values["confusion"]) / 60)
        answer = scores.predicted(log_p)
        np.testing.assert_array_equal(values["confusion"], sk.confusion_matrix(its.labels, answer))
        curve = values["risk_coverage"]
        assert curve["coverage"][-1] == 1 and curve["risk"][-1] == pytest.approx(1 - right.mean())
        assert len(curve["risk"]) == 60
    flat = flatten(results)
    assert flat["test/net1/ece"] == splits["test"]["answers"]["net1"]["ece"]
    assert flat["train/mutual_information"] == splits["train"]["networks"]["mutual_information"]
    assert all(isinstance(value, float) for value in flat.values())


def test_curve_of_many_examples_has_100_points():
    results, found = made(test=1234)
    curve = record.of_splits(results, found)["test"]["answers"]["net0"]["risk_coverage"]
    np.testing.assert_allclose(curve["coverage"], np.arange(1, 101) / 100, atol=1 / 1234)
    assert curve["coverage"][-1] == 1


def test_ensemble_gain():
    results, found = made(test=60)
    networks = record.of_splits(results, found)["test"]["networks"]
    its = results["test"]
    for metric, sign in (("top1", 1), ("nll", -1)):
        mean = (its["net0"][metric] + its["net1"][metric]) / 2
        gain = sign * (its["ensemble"][metric] - mean)
        assert networks[f"ensemble_gain_{metric}"] == pytest.approx(gain)
    assert networks["disagreement"] == 0.5  # of METRICS, as it was
    assert networks["disagreement_matrix"].shape == (2, 2)


def test_a_single_network_has_no_diversity():
    results, found = made(("net0",), test=20, train=20)
    splits = record.of_splits(results, found)
    assert "networks" not in splits["test"] and record.gap(results) == {}
    assert list(record.scaled(results, found)["answers"]) == ["net0"]


def test_many_classes_have_no_confusion_matrix():
    logits = RNG.normal(size=(5, record.MOST_CONFUSION + 1))
    labels = np.arange(5)
    assert "confusion" not in record.of_answer(logits, labels)[1]
    assert "confusion" in record.of_answer(logits[:, :-1], labels)[1]


@pytest.mark.parametrize("held", [0, 300])
def test_temperature(held):
    counts = {"validation": held} if held else {}
    results, found = made(test=400, train=30, **counts)
    record.of_splits(results, found)
    section = record.scaled(results, found)
    assert section["scored_on"] == "test"
    if held:
        assert (section["fitted_on"], section["fitted_examples"]) == ("validation", 300)
    else:
        assert (section["fitted_on"], section["fitted_examples"]) == ("test halves", 400)
    for name, its in section["answers"].items():
        assert len(its["folds"]) == (0 if held else 2)
        for metric in ("nll", "ece", "brier", "adaptive_ece"):
            assert its["before"][metric] == results["test"][name][metric]
        assert its["after"]["nll"] < its["before"]["nll"]  # they are far too sure
        assert results["test"][name]["nll_scaled"] == its["after"]["nll"]
        assert results["test"][name]["temperature"] == its["temperature"] > 1
        assert its["after"]["reliability"]["count"].sum() == 400
        assert "temperature" not in results["train"][name]


def test_gap():
    results, found = made(test=60, train=40)
    record.of_splits(results, found)
    results["train"][NETWORKS]["disagreement"] = 0.25
    gap = record.gap(results)
    assert gap["disagreement"] == {"train": 0.25, "test": 0.5, "gap": 0.25}
    assert {"pairwise_kl", "error_correlation", "mutual_information"} < set(gap)


def test_text():
    value = {
        "a": {"b": np.array([[1, 2], [3, 4]]), "c": [np.nan, 1.5, np.inf]},
        "d": {},
        "e": "x",
        "f": float("nan"),
    }
    text = record.text(value)
    assert json.loads(text) == {
        "a": {"b": [[1, 2], [3, 4]], "c": [None, 1.5, None]},
        "d": {},
        "e": "x",
        "f": None,
    }
    assert len(text.splitlines()) == 9  # a line for each entry


def test_nan_logits_are_scored():
    results, found = made(test=20, train=20)
    found.splits["test"].logits["net0"][3, 1] = np.nan
    section = record.of_splits(results, found)["test"]
    wrong = section["answers"]["net0"]["confusion"]
    assert wrong.sum() == 19
    record.scaled(results, found)
    json.loads(record.text(section))
    assert np.isfinite(section["networks"]["pairwise_kl"])
