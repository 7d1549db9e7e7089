"""Measurements; `results/` holds their figures."""

import datetime
import pathlib
import platform
import subprocess


def made_by(*facts: str) -> str:
    """What a figure has to say of itself: `facts`, Python, the commit and the date."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    python = f"Python {platform.python_version()}"
    return ", ".join([*facts, python, f"commit {commit or 'unknown'}", str(datetime.date.today())])


def show(text: str, out: pathlib.Path | None) -> None:
    """Prints a table; `out`: the Markdown file that it is appended to."""
    print(text)
    if out:
        with out.open("a") as f:
            f.write(text + "\n")
