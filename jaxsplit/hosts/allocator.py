"""The process keeps the memory that programs on CPU free between calls. Imports no jax."""

import ctypes
import importlib.metadata
import importlib.util
import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # malloc.h


def keep_memory() -> bool:
    """Keeps memory that programs on CPU free, for their next call; returns whether it does.

    XLA:CPU allocates the temporary arrays of a program at each call. glibc returns arrays of that
    size to the system, which hands them out again page by page, filled with zeros, at the next
    step. That takes 2 to 5 % of a step of WRN-16-8 and 40 % of one on digits
    (`bench/results/memory_cpu.md`). The process keeps its largest size until it ends.

    Call it before jax starts: threads that jax started before would have their own pools, which
    hold no array above 64 MiB. It does nothing if jax may find an accelerator, or if the C library
    is not glibc.
    """
    if not sys.platform.startswith("linux") or _may_have_accelerator():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mallopt(_ARENA_MAX, 1)
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    return True


def give_back() -> None:
    """Restores glibc's defaults, except the single pool; benchmarks compare with it."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_MAX, 65536)
    libc.mallopt(_TRIM_THRESHOLD, 128 * 1024)
    libc.malloc_trim(0)


def _may_have_accelerator() -> bool:
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return bool(plugins) or importlib.util.find_spec("libtpu") is not None
