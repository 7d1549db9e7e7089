"""Keeps compiled programs on disk: a resumed run, or the next seed of a sweep, starts sooner.

A compiled program is code that jax runs unchecked. So the folder belongs to the user and lies
outside any workdir: whoever receives a workdir runs no programs from it.
"""

import contextlib
import os
import pathlib
import stat
from collections.abc import Callable, Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

# Programs that compile for at least so many seconds are kept. jax's own 1 would leave out many
# small ones that together take as long as the training step.
_WORTH = 0.1


def folder() -> pathlib.Path:
    """`jaxsplit/jax` in XDG_CACHE_HOME, or in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    base = base if os.path.isabs(base) else os.path.expanduser("~/.cache")
    return pathlib.Path(base) / "jaxsplit" / "jax"


@contextlib.contextmanager
def kept(say: Callable[[str], None] = print) -> Iterator[None]:
    """Caches compiled programs in `folder()` unless JAX already has a cache directory.

    JAX_COMPILATION_CACHE_DIR or jax.config name such a directory. If the folder cannot be made, or
    others can write to it, it is not used, and `say` gets a line. In a run of several processes
    process 0 writes.
    """
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    if before[0]:
        yield
        return
    try:
        path = folder()
        if reason := _unfit(path):
            say(f"compiled programs are not kept: {path} {reason}")
        else:
            _set(names, [str(path), min(_WORTH, before[1])])
        yield
    finally:
        _set(names, before)


def _unfit(path: pathlib.Path) -> str:
    """Makes the folder, for its owner only; returns why it must not be used, or ''."""
    if not path.is_absolute():
        return "cannot be made (there is no home directory)"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.mkdir(exist_ok=True, mode=0o700)
        for made in (path.parent, path):
            status = made.lstat()
            if not stat.S_ISDIR(status.st_mode):
                return f"({made.name}) must be a directory, no link"
            if status.st_uid != os.geteuid():
                return f"({made.name}) belongs to another user"
            if status.st_mode & 0o022:
                return f"({made.name}) can be written by others; chmod go-w it"
        if not os.access(path, os.W_OK):
            return "cannot be written"
    except OSError as error:  # such as a home directory that is read-only
        return f"cannot be made ({error})"
    return ""


def _set(names: tuple[str, ...], values: list) -> None:
    for name, value in zip(names, values, strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # otherwise jax keeps the folder that it opened first
