"""Flags in files, expanded before every check; config files that return no config."""

import pathlib
import subprocess
import sys

import pytest

from jaxsplit.cli import modes, run_flags
from jaxsplit.config import flag_files
from jaxsplit.errors import ConfigError
from tests.support.paths import ROOT
from tests.support.runs import DIGITS
from tests.support.samples import first

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def test_expanded(tmp_path):
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    inner.write_text("# a comment\n--b=2\r\n\n")
    outer.write_text(f"--a=1 1\n  // another\n--flagfile={inner}\n  --c\n--flagfile={inner}")
    for given in ([f"--flagfile={outer}"], ["-flagfile", str(outer)]):
        made = flag_files.expanded(["--x", *given, "y", "--", "--flagfile=z"])
        assert made == ["--x", "--a=1 1", "--b=2", "--c", "--b=2", "y", "--", "--flagfile=z"]


def test_files_that_cannot_be(tmp_path):
    file = tmp_path / "flags"

    def line(text: bytes | None = None, argument: str = f"--flagfile={file}") -> str:
        if text is not None:
            file.write_bytes(text)
        with pytest.raises(ConfigError) as caught:
            flag_files.expanded([argument])
        (said,) = str(caught.value).splitlines()
        return said

    must = f"flagfile={str(file)!r}: must"
    assert line() == f"{must} be a file with one flag per line (No such file or directory)"
    assert line(b"\xff\xfe") == f"{must} be a file with one flag per line (not a text file)"
    assert line(b"hello") == f"flagfile={str(file)!r}: 'hello' must begin with '--'"
    again = f"--flagfile={file}".encode()
    assert line(again) == f"{must} not include itself"
    assert line(argument=f"--flagfile={tmp_path}").endswith("one flag per line (Is a directory)")
    assert line(argument="--flagfile") == line(argument="--flagfile=")
    assert line(argument="--flagfile=") == "flagfile: must name a file"


def test_all_flags_from_a_file(run, monkeypatch, tmp_path):
    file = tmp_path / "flags"
    file.write_text(f"--mode=summary\n--workdir={tmp_path}\n{DIGITS}\n--config.batch_size=32\n")
    seen = []
    monkeypatch.setitem(modes.MODES, "summary", seen.append)
    run(f"--flagfile={file}", "--config.duration=3 epochs")
    run("--flagfile", str(file), "--config.duration=3 epochs")
    for config in seen:
        assert (config.batch_size, config.duration) == (32, "3 epochs")
    assert run_flags.WORKDIR.value is None  # as before
    run("--mode=eval", f"--flagfile={file}", "--config.seed=4")  # the last one holds
    assert seen[2].seed == 4


def test_wrong_flags_in_a_file(refused, tmp_path):
    file = tmp_path / "flags"
    wrong = {
        "--config.btch_size=3": "btch_size='3': no such field",
        "--workers=3": "Unknown command line flag 'workers'",
        "--mode=guess": "mode='guess': must be one of train",
        "--config=nowhere.py": "config='nowhere.py': must be a file with get_config()",
        "--config.seed=x": "flag --config.seed=x: invalid literal",
    }
    for flag, start in wrong.items():
        file.write_text(flag + "\n")
        assert refused(DIGITS, "--mode=summary", f"--flagfile={file}").startswith(start)
    assert refused(f"--flagfile={tmp_path / 'none'}").startswith("flagfile=")


RETURNS = "get_config() must return what jaxsplit.defaults.get_config() does, with fields changed"


@pytest.mark.parametrize(
    ("text", "said", "said_overridden"),
    [
        ("def other(): pass", "must be a file with get_config()", None),
        (
            "get_config = 5",
            "must be a file with get_config() (TypeError: 'int' object is not callable)",
            None,
        ),
        ("def get_config(): pass", f"{RETURNS}, it returns None", RETURNS),
        ("def get_config(): return 5", f"{RETURNS}, it returns 5", RETURNS),
    ],
)
def test_config_files_without_a_config(
    refused,
    tmp_path,
    text,
    said,
    said_overridden,
    monkeypatch,
):
    file = pathlib.Path(tmp_path / "own.py")
    # ml_collections loads each file into one module, where that of another test may be.
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    file.write_text(text + "\n")
    given = (f"--config={file}", f"--workdir={tmp_path / 'run'}")
    assert refused(*given) == f"config={str(file)!r}: {said}"
    overridden = said_overridden or said
    assert refused(*given, "--config.seed=3") == f"config={str(file)!r}: {overridden}"


def test_a_bug_in_a_config_file_keeps_its_traceback(run, tmp_path):
    file = tmp_path / "own.py"
    file.write_text("def get_config():\n    return [].nope\n")
    with pytest.raises(AttributeError, match="nope"):
        run(f"--config={file}", "--mode=summary")


def test_one_network_is_single(refused):
    line = refused(DIGITS, "--config.split=1", "--mode=summary")
    assert line == (
        "split=1: must be 2 or more with method='cotrain'; one network is method='single'"
    )


@pytest.mark.parametrize("program", first(1, [["main.py"], ["-m", "jaxsplit", "train"]]))
def test_a_missing_file_of_a_program(program, tmp_path):
    """Of a process of its own: ml_collections reads the command line when it is imported."""
    missing = tmp_path / "none.flags"
    command = [sys.executable, *program, f"--flagfile={missing}", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: flagfile={str(missing)!r}: ")
    assert done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()
