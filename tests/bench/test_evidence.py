"""The tables of docs/evidence.md are those of the results that are kept."""

import csv
import json
import re
import shutil

import pytest

from bench import evidence
from jaxsplit.errors import ConfigError
from tests.support.paths import ROOT

FOLDERS = sorted(path.parent.name for path in evidence.FOLDER.glob("*/compare.csv"))


@pytest.mark.parametrize("name", FOLDERS)
def test_the_page_has_its_table(name):
    with (evidence.FOLDER / name / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    page = (ROOT / "docs" / "evidence.md").read_text()
    assert evidence.table(rows) in page or evidence.networks(rows) in page


@pytest.mark.parametrize("name", FOLDERS)
def test_the_page_has_its_figure(name):
    """If this fails: python -m bench.evidence --figures docs/figures."""
    with (evidence.FOLDER / name / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    path = f"figures/evidence_{name}.svg"
    assert f"({path})" in (ROOT / "docs" / "evidence.md").read_text()
    assert f"rows {evidence.digest(rows)}" in (ROOT / "docs" / path).read_text()


@pytest.mark.parametrize("name", ["fashion_mnist_ffsd", "digits_joint"])
def test_figures(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["evidence", "--figures", str(tmp_path)])
    kept = evidence.FOLDER
    monkeypatch.setattr(evidence, "FOLDER", tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    shutil.copytree(kept / name, tmp_path / "kept" / name)
    evidence.main()
    drawn = tmp_path / f"evidence_{name}.svg"
    assert capsys.readouterr().out == f"{drawn}\n"
    text = drawn.read_text()
    for word in ("ffsd, S = 2", "accuracy, %") if "ffsd" in name else ("joint.weight = 1.0",):
        assert word in text


def test_a_row():
    row = dict(method="cotrain", split="4", seeds="3", top1="0.995", top1_deviation="0.0016")
    row = {"method": "cotrain", "split": "4", "cotrain.weight": "0.1"} | row
    row |= dict(difference="0.0028", difference_lower="-0.0047", difference_upper="0.0177")
    row |= dict(nll="0.02", nll_deviation="", ece="", seconds="61.4", seconds_deviation="5.2")
    row |= dict(params="2767336", macs="25207808", train_macs="25207808")
    assert evidence.table([row]).splitlines()[-1] == (
        "| cotrain, S = 4, cotrain.weight = 0.1 | 3 | 99.50 ± 0.16 | +0.28 (-0.47 to +1.77) "
        "| 0.0200 | - | 2,767,336 | 25,207,808 | 25,207,808 | 61 ± 5 |"
    )


def test_a_workdir_without_a_comparison(tmp_path):
    with pytest.raises(ConfigError, match="has no compare.csv; it holds no comparison"):
        evidence.keep(tmp_path, "x", "command")


def test_kept_files_name_no_path_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "FOLDER", tmp_path / "kept")
    record = {"config": {"data": {"dir": "/somewhere"}}, "runs": f"{tmp_path}/cotrain-s4-seed0"}
    for file in evidence.KEPT:
        (tmp_path / file).write_text(json.dumps(record))
    kept = evidence.keep(tmp_path, "x", "command")
    for file in evidence.KEPT:
        assert json.loads((kept / file).read_text())["runs"] == "cotrain-s4-seed0"
    assert "/somewhere" not in (kept / "compare.json").read_text()


@pytest.mark.parametrize("name", FOLDERS)
def test_no_path_of_a_machine_is_kept(name):
    for file in evidence.KEPT:
        assert not re.search(
            r"(?<![\w~])/(tmp|home|root|work|usr)\b", (evidence.FOLDER / name / file).read_text()
        )
