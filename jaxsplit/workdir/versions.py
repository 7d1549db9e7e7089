"""`versions.json` of a workdir: what each start of the run was made with."""

import contextlib
import importlib.metadata
import json
import pathlib
import platform
import subprocess
from collections.abc import Iterable
from typing import Any

import jaxsplit
from jaxsplit.workdir import files

NAME = "versions.json"
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_STARTS = "starts"


def now(device: str) -> dict[str, str]:
    """Versions of this program, Python and the libraries; `device`: what it computes on."""
    found = {"jaxsplit": jaxsplit.__version__}
    if known := commit():
        found["commit"] = known
    return found | of_libraries(_LIBRARIES) | {"device": device}


def of_libraries(names: Iterable[str]) -> dict[str, str]:
    """The versions of Python and of those of the libraries that are installed."""
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def commit(folder: pathlib.Path | None = None) -> str:
    """The git commit of the clone that the program runs from; '' where it is none.

    'with changes' follows where files that git knows differ from it. folder: of the package.
    """
    root = (folder or pathlib.Path(jaxsplit.__file__).parent).resolve().parent
    if not (root / ".git").exists():  # not that of a clone in which the package is installed
        return ""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), "--no-optional-locks", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        head = git("rev-parse", "HEAD")
        return head + " with changes" * bool(head and git("status", "--porcelain", "-uno"))
    except (OSError, subprocess.SubprocessError):  # no git on this machine
        return ""


def record(workdir: pathlib.Path, step: int, found: dict[str, str]) -> None:
    """Adds a start at `step`, unless the one before was made with the same."""
    starts = read(workdir) if step else []
    if not starts or {k: v for k, v in starts[-1].items() if k != "step"} != found:
        starts.append({"step": step, **found})
        files.write_text(workdir / NAME, json.dumps({_STARTS: starts}, indent=2) + "\n")


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The starts of a run, {'step': int, name: version} each; []: it has no file."""
    try:
        starts = json.loads((workdir / NAME).read_text())[_STARTS]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    right = isinstance(starts, list) and all(isinstance(one, dict) for one in starts)
    return starts if right else []
