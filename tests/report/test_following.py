"""The line that names the next command."""

import pathlib
import shlex

from jaxsplit.report import following


def test_one_and_several_commands():
    path = pathlib.Path("runs/a")
    assert following.of_workdir(path, "eval") == "next: jaxsplit eval --workdir=runs/a"
    both = following.of_workdir("gs://b/a", "eval", "report")
    assert both == "next: jaxsplit eval --workdir=gs://b/a && jaxsplit report --workdir=gs://b/a"


def test_a_shell_reads_it_back():
    given = [
        "train",
        "--config=folder:name=my birds",
        "--config.duration=3 epochs",
        "--workdir=a'b",
    ]
    line = following.line(given)
    assert shlex.split(line.removeprefix("next: ")) == ["jaxsplit", *given]
