"""Compiled programs are kept on disk, so that a run that is resumed starts sooner."""

import contextlib
import pathlib
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

FOLDER = ".jax_cache"
# Seconds of compilation from which on a program is kept; jax's own 1 leaves out many small ones
# that together take as long as the training step.
_WORTH = 0.1


@contextlib.contextmanager
def inside(workdir: pathlib.Path) -> Iterator[None]:
    """Within it compiled programs are kept in the workdir.

    Where JAX_COMPILATION_CACHE_DIR (or jax.config) names a folder, all stays as it is. Of several
    processes the first one writes.
    """
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    if before[0]:
        yield
        return
    try:
        _set(names, [str(workdir / FOLDER), min(_WORTH, before[1])])
        yield
    finally:
        _set(names, before)


def _set(names: tuple[str, ...], values: list) -> None:
    for name, value in zip(names, values, strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # jax opens a folder once, unless told so
