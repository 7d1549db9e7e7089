"""Scores of other data sets' and of corrupted images, as an evaluation finds and writes them."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsplit import loop
from jaxsplit.errors import ConfigError
from jaxsplit.evaluation import corruptions, ood, predictions, scores, shift
from jaxsplit.report import shifted
from tests.support.runs import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(config, workdir) of a run on the synthetic images, 8x8."""
    workdir = tmp_path_factory.mktemp("run")
    config = tiny()
    loop.train_and_evaluate(config, workdir)
    return config, workdir


@pytest.mark.slow
def test_another_data_set(trained, capsys):
    config, workdir = trained
    config = config.copy_and_resolve_references()
    config.eval.ood = "digits"
    results = loop.evaluate_checkpoint(config, workdir)
    said = capsys.readouterr().out
    record = json.loads((workdir / "eval.json").read_text())
    found = record["ood"]
    assert found["data"] == "digits" and found["note"] in said
    assert (found["count"], found["foreign_count"]) == (512, 360)
    assert list(found["answers"]) == ["net0", "net1", "ensemble"]
    assert results["test/net0/ood_entropy_auroc"] == found["answers"]["net0"]["entropy"]["auroc"]
    assert "512 test images against 360 of 'digits'" in said
    # The labels of the other set are no scores, and its logits are not kept.
    assert set(predictions.read(workdir / "predictions.npz").splits) == {"test", "train"}
    for kinds in found["answers"].values():
        for kind, its in kinds.items():
            assert kind in ood.UNCERTAINTIES and set(its) == set(ood.Detection._fields)
            assert all(0 <= value <= 1 for value in its.values())
    assert set(found["networks"]) == {"mutual_information"}


def test_a_set_that_is_not_there_ends_before_anything_is_computed(trained, tmp_path):
    config, workdir = trained
    config = config.copy_and_resolve_references()
    config.data.dir, config.eval.ood = str(tmp_path), "fashion_mnist"
    with pytest.raises(ConfigError, match="^eval.ood='fashion_mnist': "):
        loop.evaluate_checkpoint(config, workdir)


@pytest.mark.slow
def test_corruptions(trained, capsys):
    config, workdir = trained
    config = config.copy_and_resolve_references()
    config.eval.corruptions = True
    results = loop.evaluate_checkpoint(config, workdir)
    said = capsys.readouterr().out
    found = json.loads((workdir / "eval.json").read_text())["corruptions"]
    assert found["count"] == 512 and list(found["kinds"]) == list(corruptions.KINDS)
    for name, its in found["answers"].items():
        errors = [1 - np.mean(k["answers"][name]["top1"]) for k in found["kinds"].values()]
        assert its["mean_corruption_error"] == pytest.approx(np.mean(errors))
        assert results[f"test/{name}/mean_corruption_error"] == its["mean_corruption_error"]
    assert "512 test images under 15 corruptions" in said and "frost*" in said
    before = found
    loop.evaluate_checkpoint(config, workdir)
    assert json.loads((workdir / "eval.json").read_text())["corruptions"] == before


def test_bins_give_the_calibration_error():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, 5)).astype(np.float32) * 3
    logits[3] = np.nan
    labels = rng.integers(0, 5, 200)
    mask = np.ones(200, np.float32)
    mask[150:] = 0
    bins = np.asarray(shift._bins(*map(jnp.asarray, (logits, labels, mask))))
    log_p = scores.log_softmax(logits[:150])
    want = scores.ece(scores.confidence(log_p), scores.predicted(log_p) == labels[:150])
    assert bins[:, 1].sum() == 150
    assert np.abs(bins[:, 0]).sum() / 150 == pytest.approx(want, abs=1e-6)


def test_the_section_and_its_table():
    """Ten images, of which severity s gets s wrong, whatever the kind."""
    totals = {
        (kind, s): {
            "net0": {
                "top1": np.float64(10 - s),
                "nll": np.float64(10 * s),
                "bins": np.array([[1.0, 4], [-1.0, 6]]),
            }
        }
        for kind in corruptions.KINDS
        for s in corruptions.SEVERITIES
    }
    section = shift._section(totals, 10)
    assert section["answers"]["net0"] == pytest.approx(
        {"mean_corruption_error": 0.3, "top1": 0.7, "nll": 3.0, "ece": 0.2}
    )
    fog = section["kinds"]["fog"]["answers"]["net0"]
    assert fog["top1"] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5])
    text = shifted.text({"corruptions": section, "answer": "net0"})
    (line,) = [line for line in text.splitlines() if line.startswith("fog")]
    assert line.split() == "fog 10.00 20.00 30.00 40.00 50.00 30.00 3.0000 20.00".split()
    assert shifted.text({"answer": "net0"}) == ""
