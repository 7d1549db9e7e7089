"""The verb `jaxsplit summary`; see `jaxsplit.report.summary`."""

from collections.abc import Sequence

from absl import flags

from jaxsplit.cli import pages
from jaxsplit.errors import ConfigError
from jaxsplit.report import summary

PAGE = pages.Page(
    usage="jaxsplit summary --config=NAME|FILE [--config.FIELD=VALUE ...] | --arch=NAME | --all",
    about="""Prints parameters and multiply-adds.

With --config or --workdir: of the networks that a run trains, with curves of its learning rate and
loss weights. With --arch or --all: of architectures, divided in 1, 2 and 4.

`python -m jaxsplit.summary` is the same.""",
    flags={"config": "NAME|FILE", "workdir": "DIR", "arch": "NAME", "all": ""},
    examples=(
        "jaxsplit summary --config=imagenet_seresnet101_x4",
        "jaxsplit summary --config=cifar100:arch=resnet110,split=2 --config.batch_size=64",
        "jaxsplit summary --arch=resnet50 --arch=resnest50",
    ),
)


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string(
        "config", None, "an experiment, as for `jaxsplit train`", flag_values=values
    )
    flags.DEFINE_string(
        "workdir", None, "the workdir of a run, instead of --config", flag_values=values
    )
    flags.DEFINE_multi_string("arch", None, "an architecture; can be repeated", flag_values=values)
    flags.DEFINE_bool("all", False, "every architecture; takes some minutes", flag_values=values)
    return values


def main(argv: Sequence[str]) -> int:
    """Runs the command. Returns 0, or 2 at bad input. Prints each line as soon as it is known."""
    values = _flags()
    names = {a.lstrip("-").partition("=")[0] for a in argv if a.startswith("-")}
    if not names & {"arch", "all"} and argv and not pages.asked_for(argv):
        from jaxsplit.cli import modes

        return modes.run(["jaxsplit", *argv], "summary")

    def command(rest: list[str]) -> int:
        if rest:
            raise ConfigError(f"unknown argument {rest[0]!r}")
        if not argv:
            raise ConfigError("one of --config, --workdir, --arch and --all must be given")
        if values.config or values.workdir or (values.arch and values.all):
            raise ConfigError("only one of --config, --workdir, --arch and --all may be given")
        for line in summary.rows(summary.architectures() if values.all else values.arch):
            print(line.rstrip(), flush=True)
        return 0

    return pages.run(PAGE, argv, values, command)
