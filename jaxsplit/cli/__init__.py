"""The command line `jaxsplit VERB ...`. main.py is the same program; its --mode is the verb.

This file imports nothing that imports jax, because `early` has to run first.
"""

import importlib
import sys

from jaxsplit import __version__
from jaxsplit.cli import pipes
from jaxsplit.hosts import allocator, signals

VERBS = {
    "train": "train a run, or resume it, then evaluate it",
    "eval": "evaluate a checkpoint of a run",
    "predict": "predict the classes of a folder of images",
    "export": "write networks of a run as a file that other programs load",
    "latency": "measure how long networks take to answer",
    "summary": "print costs, schedules and memory of a config, or costs of architectures",
    "report": "write a page on one run, or on several side by side",
    "compare": "train one experiment by several methods, and set them side by side",
    "views": "draw what the networks see: a picture of augmented images",
    "export-leader": "write one network of a run into a workdir of its own",
    "prepare": "turn images on disk into a prepared data set",
    "import-torch": "turn PyTorch weights into a workdir",
    "published": "print the results that the papers report",
}
# Verbs that are modes of main.py.
_RUNS = ("train", "eval", "predict", "export", "latency", "compare", "views", "export-leader")


def run() -> int:
    """The program `jaxsplit`; returns its exit status."""
    return pipes.quietly(lambda: _run(sys.argv[1:]))


def _run(argv: list[str]) -> int:
    verb = argv[0] if argv else ""
    if verb in _RUNS:
        early()
        from jaxsplit.cli import modes

        return modes.run(["jaxsplit", *argv[1:]], verb)
    if verb in VERBS:
        if verb == "report":  # which may evaluate
            early()
        module = importlib.import_module(f"jaxsplit.cli.{verb.replace('-', '_')}")
        return module.main(argv[1:])
    if verb.lstrip("-") in ("help", "h"):
        print(page())
        return 0
    if verb == "--version":
        print(f"jaxsplit {__version__}")
        return 0
    what = f"verb={verb!r}: must be" if argv else "a verb must be given:"
    print(f"error: {what} one of {', '.join(VERBS)}", file=sys.stderr)
    return 2


def run_main() -> int:
    """The program main.py."""
    early()
    from jaxsplit.cli import modes

    return pipes.quietly(lambda: modes.run(sys.argv))


def early() -> None:
    """Sets up signals and memory, before slow imports and before jax starts threads."""
    signals.early()
    allocator.keep_memory()


def page() -> str:
    """What `jaxsplit --help` prints."""
    verbs = "\n".join(f"  {verb:14} {about}" for verb, about in VERBS.items())
    return f"""usage: jaxsplit VERB [ARGUMENTS]

Divides one large image classifier into several small ones of the same total cost and trains them
together.

verbs:
{verbs}

`jaxsplit VERB --help` describes a verb; `jaxsplit --version` prints the version.

examples:
  jaxsplit train --config=digits_wrn16_4_x4 --workdir=runs/digits
  jaxsplit eval --workdir=runs/digits --checkpoint=best"""
