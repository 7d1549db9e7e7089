"""report.evaluated: the small tables below those of an evaluation."""

from jaxsplit.report import evaluated

NETWORKS = {
    "disagreement": 0.125,
    "pairwise_kl": 0.25,
    "error_correlation": float("nan"),
    "entropy": 0.5,
    "mutual_information": 0.0625,
    "oracle": 0.975,
    "ensemble_gain_top1": 0.0125,
    "ensemble_gain_nll": -0.03125,
}


def of_answer(temperature, **after):
    return {
        "temperature": temperature,
        "folds": [],
        "before": {"nll": 1.0, "ece": 0.125, "brier": 0.5},
        "after": {"nll": 0.75, "ece": 0.03125, "brier": 0.25} | after,
    }


def scored(fitted_on, *splits):
    return {
        "splits": {name: {"networks": NETWORKS} for name in splits} | {"other": {"count": 3}},
        "temperature": {
            "fitted_on": fitted_on,
            "fitted_examples": 1234,
            "scored_on": "test",
            "answers": {"net0": of_answer(0.5), "ensemble": of_answer(12.25, nll=0.5)},
        },
    }


def test_both_tables():
    lines = evaluated.text(scored("validation", "test", "train", "validation")).splitlines()
    assert lines[0].split() == ("diversity of the networks validation test training sample".split())
    rows = {line[:33].strip(): line[33:].split() for line in lines[1:9]}
    assert rows["pairwise disagreement %"] == ["12.50"] * 3
    assert rows["correlation of errors"] == ["nan"] * 3
    assert rows["gain of the ensemble, top-1 %"] == ["+1.25"] * 3
    assert rows["gain of the ensemble, NLL"] == ["-0.0312"] * 3
    assert lines[9:] == [
        "",
        "temperature fitted on the 1,234 validation images, scored on test",
        "               T     NLL  -> scaled  ECE %  -> scaled   Brier  -> scaled",
        "net0       0.500  1.0000     0.7500  12.50       3.12  0.5000     0.2500",
        "ensemble  12.250  1.0000     0.5000  12.50       3.12  0.5000     0.2500",
    ]


def test_one_network_without_a_held_out_part():
    lines = evaluated.text(scored("test halves")).splitlines()
    assert lines[0] == "temperature fitted on one half of test, scored on the other, both ways"
    assert len(lines) == 4
