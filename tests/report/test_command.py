"""`jaxsplit report`: where it writes, and bad input."""

import sys

import pytest

from jaxsplit.cli import report
from jaxsplit.report import page, runs
from tests.support import reports


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return [reports.workdir(folder / name, reports.digits()) for name in ("a", "b")]


def refused(*argv: str, capsys) -> str:
    assert report.main(argv) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    return line


def test_command(made, tmp_path, capsys, undrawn):
    out = tmp_path / "sub" / "page.html"
    assert report.main([f"--workdir={made[0]},{made[1]}", f"--out={out}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"report: {out} (") and out.exists()
    assert lines[1] == f"next: python -m webbrowser {out.as_uri()}"


def test_a_comma_in_the_name_of_a_workdir(tmp_path, capsys, undrawn):
    path = reports.workdir(tmp_path / "a,b", reports.digits())
    assert report.main([f"--workdir={path}"]) == 0
    assert (path / page.FILE).exists()


def test_bad_input(made, tmp_path, capsys, undrawn):
    assert "workdir: must be given" in refused(capsys=capsys)
    assert "workdir: must be given" in refused("--workdir=,", capsys=capsys)
    line = refused(f"--workdir={tmp_path}", capsys=capsys)
    assert f"workdir='{tmp_path}': holds no readable config.json" in line
    (tmp_path / "link").symlink_to(made[0])
    line = refused(f"--workdir={made[0]},{tmp_path / 'link'}", capsys=capsys)
    assert "is given twice" in line
    line = refused(f"--workdir={made[0]}", f"--out={tmp_path}", capsys=capsys)
    assert line.endswith("must be a file, is a directory")
    line = refused(f"--workdir={made[0]}", "--out=/proc/x/page.html", capsys=capsys)
    assert "out='/proc/x/page.html': cannot be written" in line
    assert "unknown argument 'x'" in refused("x", capsys=capsys)
    broken = reports.workdir(tmp_path / "broken", reports.digits())
    (broken / runs.EVAL).write_text("[")
    assert "eval.json: cannot be read" in refused(f"--workdir={broken}", capsys=capsys)
    (broken / runs.EVAL).write_text("[]")
    assert "must hold an object of JSON" in refused(f"--workdir={broken}", capsys=capsys)
    (broken / runs.EVAL).write_text('{"format": 99}')
    assert "format=99: must be 1" in refused(f"--workdir={broken}", capsys=capsys)


def test_without_matplotlib(made, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = refused(f"--workdir={made[0]}", capsys=capsys)
    assert "pip install 'matplotlib>=3.9'" in line
