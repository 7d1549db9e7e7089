"""`jaxsplit report`, and main.py --mode=report: see `jaxsplit.report.page`."""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from jaxsplit.cli import pages
from jaxsplit.errors import ConfigError

if TYPE_CHECKING:
    from jaxsplit.report import runs

PAGE = pages.Page(
    usage="jaxsplit report --workdir=DIR[,DIR,...] [--out=FILE]",
    about="""Writes a page on one run, or on several side by side: results, curves, calibration,
errors, differences. It is one HTML file, which needs no script and no network.

A run that has not been evaluated is evaluated first. Needs matplotlib.""",
    flags={"workdir": "DIR,...", "out": "FILE"},
    examples=(
        "jaxsplit report --workdir=runs/digits",
        "jaxsplit report --workdir=runs/seed0,runs/seed1,runs/dml --out=compared.html",
    ),
)


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("mode", "report", "as of main.py", flag_values=values)
    flags.DEFINE_string(
        "workdir", None, "folders of runs, with commas between them", flag_values=values
    )
    flags.DEFINE_string(
        "out", None, "the page; report.html in the first workdir if not given", flag_values=values
    )
    return values


def main(argv: Sequence[str]) -> int:
    """The command; 0, or 2 at bad input."""
    values = _flags()

    def command(rest: list[str]) -> int:
        if rest:
            raise ConfigError(f"unknown argument {rest[0]!r}")
        write(values.workdir or "", values.out)
        return 0

    return pages.run(PAGE, argv, values, command)


def write(workdirs: str, out: str | None) -> pathlib.Path:
    """Writes the page and says where it lies.

    Args:
      workdirs: of --workdir.
      out: the file; None: report.html in the first workdir.

    Raises:
      ConfigError: wrong input.
    """
    from jaxsplit.cli import run_flags  # noqa: F401  quiets TensorFlow before it is imported
    from jaxsplit.report import page, runs
    from jaxsplit.workdir import files

    paths = runs.paths(workdirs)
    to = files.path_of(out) if out else paths[0] / page.FILE
    if to.is_dir():
        raise ConfigError(f"out={out!r}: must be a file, is a directory")
    written = page.write(paths, to, _evaluate)
    size = len(written.read_bytes())
    print(f"report: {written} ({size / 1e6:.2f} MB)")
    if not files.is_remote(written):
        print(f"next: python -m webbrowser {written.as_uri()}")
    return written


def _evaluate(run: "runs.Run") -> str:
    from jaxsplit import evaluate

    return evaluate.evaluated_checkpoint(run.config, run.path).unwritten
