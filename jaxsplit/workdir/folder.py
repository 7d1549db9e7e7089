"""Makes a workdir."""

import pathlib
from collections.abc import Callable
from typing import Any

from jaxsplit.errors import ConfigError
from jaxsplit.workdir import files


def prepare_workdir(
    workdir: str | pathlib.Path, lock: Callable[[pathlib.Path], Any] | None = None
) -> pathlib.Path:
    """Makes the workdir and checks that it is writable; returns its absolute path.

    `lock`: called with the folder before anything else is written there.

    Raises:
      ConfigError: the workdir cannot be made or written; also whatever `lock` raises.
    """
    path = files.path_of(workdir)
    make_writable(path, f"workdir={str(workdir)!r}:", lock)
    return path


def make_writable(
    path: pathlib.Path, name: str, lock: Callable[[pathlib.Path], Any] | None = None
) -> None:
    """Makes a folder and checks that it is writable; `lock` as of `prepare_workdir`.

    Raises:
      ConfigError: it cannot be made or written, which begins with `name`; also what `lock` raises.
    """
    # A bucket's library raises many kinds of errors: no rights, no network, no such bucket.
    errors = Exception if files.is_remote(path) else OSError
    try:
        path.mkdir(parents=True, exist_ok=True)
        if lock is not None:
            lock(path)
        files.try_to_write(path)
    except ConfigError:
        raise
    except errors as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(f"{name} must be a writable directory ({reason})") from None
