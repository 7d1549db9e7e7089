"""The program in this process, as the shell would run it."""

import pytest

from jaxsplit.cli import modes
from tests.support import shell


@pytest.fixture
def run(monkeypatch):
    """A function that runs main.py with arguments, in this process, as the shell would."""

    def run_(*args: str) -> None:
        shell.run(monkeypatch, lambda argv: modes.main(modes.parse(argv)), "main.py", *args)

    return run_


@pytest.fixture
def refused(run, capsys, monkeypatch):
    """A function that runs main.py, which must end with status 2, and returns its one line."""

    def compiled(*_, **__):
        raise AssertionError("bad input was found only after compilation")

    monkeypatch.setattr("jax.stages.Lowered.compile", compiled)

    def refused_(*args: str, status: int = 2) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run(*args)
        assert caught.value.code == status
        said = capsys.readouterr()
        assert said.out == ""
        (line,) = said.err.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return refused_
