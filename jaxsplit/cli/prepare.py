"""`jaxsplit prepare`: see `jaxsplit.data.prepare`."""

import sys
from collections.abc import Sequence

from absl import flags

from jaxsplit.cli import pages
from jaxsplit.data import prepare
from jaxsplit.errors import ConfigError
from jaxsplit.report import following

PAGE = pages.Page(
    usage="jaxsplit prepare NAME --source=PATH [FLAGS]",
    about=f"""Turns images on disk into a prepared data set. Needs no internet.

NAME is one of {", ".join(prepare.KNOWN)},
or a new name for a set of your own: one folder of images per class, or IDX files.
The same command resumes an interrupted preparation.
`python -m jaxsplit.data.prepare` is the same.""",
    flags={
        "source": "PATH",
        "data_dir": "DIR",
        "holdout": "SHARE",
        "check": "full|header",
        "partial": "",
    },
    examples=(
        "jaxsplit prepare cifar100 --source=downloads",
        "jaxsplit prepare imagenet2012 --source=/data/imagenet --data_dir=/data/tfds",
        "jaxsplit prepare birds --source=birds --holdout=0.1   # birds/<class>/*.jpg",
    ),
)


_DATA_DIR = "~/tensorflow_datasets"
# Known set -> an experiment that reads it; all others are read by `folder`.
_EXPERIMENTS = {
    "cifar10": "cifar10",
    "cifar100": "cifar100:arch=resnet110,split=2",
    "svhn_cropped": "svhn:split=2",
    "fashion_mnist": "fashion_mnist_wrn16_4_x4",
    "imagenet2012": "imagenet_seresnet101_x4",
}


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("source", None, "folder or archive with the images", flag_values=values)
    flags.DEFINE_string(
        "data_dir",
        _DATA_DIR,
        "folder of the prepared sets: config.data.dir of a run",
        flag_values=values,
    )
    flags.DEFINE_float(
        "holdout",
        0.0,
        "share of each class to hold out for testing, if the set has no test images",
        flag_values=values,
    )
    flags.DEFINE_string(
        "check",
        "full",
        "full: decode every image; header: read its header only, which is faster",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "partial", False, "allow missing images, and leave out damaged ones", flag_values=values
    )
    return values


def main(argv: Sequence[str]) -> int:
    """Runs the command. Returns 0: the set is prepared, 2: bad input, 130: interrupted."""
    values = _flags()

    def command(names: list[str]) -> int:
        if not names:
            raise ConfigError(f"a name must be given: {PAGE.usage}")
        if names[1:]:
            raise ConfigError(f"unknown argument {names[1]!r}")
        if values.source is None:
            raise ConfigError(f"source: must be given: {PAGE.usage}")
        prepare.prepare(
            names[0],
            values.source,
            data_dir=values.data_dir,
            holdout=values.holdout,
            check=values.check,
            incomplete="accept" if values.partial else "refuse",
        )
        print(next_of(names[0], values.data_dir), flush=True)
        return 0

    try:
        return pages.run(PAGE, argv, values, command)
    except KeyboardInterrupt:
        print(
            "interrupted; the same command resumes after the last complete shard",
            file=sys.stderr,
            flush=True,
        )
        return 130


def next_of(name: str, data_dir: str) -> str:
    """The command that trains on a prepared set."""
    experiment = _EXPERIMENTS.get(name, f"folder:name={name}")
    given = [f"--config={experiment}"]
    if data_dir != _DATA_DIR:
        given.append(f"--config.data.dir={data_dir}")
    return following.line(["train", *given, f"--workdir=runs/{name}"])
