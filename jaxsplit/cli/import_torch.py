"""`jaxsplit import-torch`: see `jaxsplit.weights.torch_import`."""

import sys
from collections.abc import Sequence

from absl import app, flags

from jaxsplit.cli import pages, run_flags
from jaxsplit.errors import ConfigError
from jaxsplit.report import following, summary
from jaxsplit.weights import torch_files, torch_import

PAGE = pages.Page(
    usage="jaxsplit import-torch CHECKPOINT... --config=NAME|FILE --workdir=DIR [FLAGS]",
    about="""Turns files of PyTorch weights into a workdir, which `jaxsplit eval` evaluates and
`jaxsplit train --init_from=DIR` starts from. Give one file with all networks, or one per network.

You are responsible for the licence of imported weights. `python -m jaxsplit.torch_import` is the
same.""",
    flags={"config": "NAME|FILE", "workdir": "DIR", "ema": ""},
    examples=(
        "jaxsplit import-torch model.pth.tar --config=cifar100:arch=wide_resnet28_10,split=2 \\\n"
        "      --workdir=runs/imported",
    ),
    more=run_flags.overrides_and_experiments,
)


def main(argv: Sequence[str]) -> int:
    """The command; `argv`: its arguments."""
    app.run(command, argv=["jaxsplit", *argv], flags_parser=parse)
    return 0


def parse(argv: list[str]) -> list[str]:
    """Parses the flags of the command; returns its name and the files."""
    if "ema" not in flags.FLAGS:  # defined here, because other commands lack this flag
        text = "import the moving average of the weights (EMA) instead of the weights"
        flags.DEFINE_bool("ema", False, text, module_name=sys.argv[0])
    return run_flags.parse_with_files(argv, PAGE)


def command(argv: list[str]) -> None:
    """Imports the files; `argv`: the program's name and the files."""
    with run_flags.errors_in_one_line():
        if not run_flags.WORKDIR.value or len(argv) < 2:
            raise ConfigError("files and --workdir must be given: CHECKPOINT... --workdir=DIR")
        config, workdir = run_flags.CONFIG.value, run_flags.WORKDIR.value
        take: torch_files.Take = "average" if flags.FLAGS.ema else "weights"
        weights = torch_import.import_checkpoint(config, argv[1:], workdir, take=take)
        what = summary.title(config)
        what += " with its trans-fusion module" * bool(weights.trans_fusion)
        if weights.epoch is not None:
            what += f", epoch {weights.epoch:g}"
        if weights.top1 is not None:
            what += f", test top-1 {weights.top1:.2%} according to the file"
        for note in weights.notes:
            print(note)
        print(f"imported {what}, into {workdir}")
        print(following.of_workdir(workdir, "eval"))
