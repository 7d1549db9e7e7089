"""A report of a run that was trained, by the program: evaluated first, with its images."""

import re

import pytest

from jaxsplit.cli import modes
from jaxsplit.evaluation import predictions
from jaxsplit.loop import train_and_evaluate
from jaxsplit.report import page, runs
from jaxsplit.workdir import versions
from tests.support import reports


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "digits"
    train_and_evaluate(reports.digits(), folder)
    return folder


def test_the_program_evaluates_and_writes_a_page(trained, tmp_path, capsys):
    given = tmp_path / "given"
    given.write_text("--mode=report\n")
    assert modes.run(["main.py", f"--flagfile={given}", f"--workdir={trained}"]) == 0
    said = capsys.readouterr().out
    assert f"{trained} had no evaluation; evaluating it first" in said
    assert said.splitlines()[-2].startswith(f"report: {trained / page.FILE} (")
    text = (trained / page.FILE).read_text()
    assert (trained / runs.EVAL).exists() and (trained / predictions.FILE).exists()
    assert 'src="data:image/png;base64,' in text
    for title in ("Training", "Calibration", "Errors", "Diversity", "Cost", "wrong"):
        assert re.search(rf"<h2>[^<]*{title}", text), title


def test_a_run_records_its_versions(trained):
    (start,) = versions.read(trained)
    assert start["step"] == 0 and start["device"] == "cpu"
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", start["jax"])
