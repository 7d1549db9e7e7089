"""The verb `jaxsplit published`; see `jaxsplit.recipes.published`."""

from collections.abc import Sequence

from absl import flags

from jaxsplit.cli import pages
from jaxsplit.errors import ConfigError
from jaxsplit.recipes import published

PAGE = pages.Page(
    usage="jaxsplit published [DATASET ...]",
    about=f"""Prints a table of the results that the papers report, for all data sets or for some.

DATASET is one of {", ".join(published.DATASETS)}. `python -m jaxsplit.published` is the same.""",
    flags={},
    examples=("jaxsplit published", "jaxsplit published cifar100"),
)


def main(argv: Sequence[str]) -> int:
    """Runs the command. Returns 0, or 2 at bad input."""

    def command(names: list[str]) -> int:
        for name in names:
            if name not in published.DATASETS:
                raise ConfigError(f"{name!r}: must be one of {', '.join(published.DATASETS)}")
        chosen = [r for r in published.RESULTS if not names or r.dataset in names]
        print(published.table(tuple(chosen)))
        return 0

    return pages.run(PAGE, argv, flags.FlagValues(), command)
