"""One network of a run as a workdir of its own; `weights.extract` does the work."""

import pathlib
from collections.abc import Callable

from ml_collections import ConfigDict

from jaxsplit import config as config_lib
from jaxsplit.export import target
from jaxsplit.weights import extract
from jaxsplit.workdir import files


def write(
    workdir: str | pathlib.Path,
    of: str = "",
    to: str | pathlib.Path | None = None,
    which: str | int = "latest",
    *,
    config: ConfigDict | None = None,
    say: Callable[[str], None] = print,
) -> target.Written:
    """Writes the workdir; arguments and errors as `export`. It must be new or empty."""
    del say
    config = config or config_lib.load(workdir)
    name = of or config_lib.resolve(config).entry.answer
    said = extract.alone(config, workdir, name, to, which)
    return target.Written(files.path_of(to or files.path_of(workdir) / name), (said,))
