"""Memory of programs on CPU: kept between calls, not asked for again. Imports no jax."""

import ctypes
import importlib.metadata
import importlib.util
import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # malloc.h


def keep_memory() -> bool:
    """Keeps what a program on CPU has freed for its next call; whether it does.

    XLA:CPU allocates the temporary arrays of a program anew at each call. glibc gives arrays of
    that size back to the system, which hands them out page by page, with zeros in them, at the
    next step: 2 to 5 % of a step of WRN-16-8, 40 % of one on digits
    (`bench/results/memory_cpu.md`). The process keeps its largest size until it ends.

    To be called before jax starts: the threads that it starts would have pools of their own, which
    hold no array above 64 MiB. Nothing happens where jax may find an accelerator, or where the C
    library is not glibc.
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
    """glibc's defaults again, but for the one pool; to measure against."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_MAX, 65536)
    libc.mallopt(_TRIM_THRESHOLD, 128 * 1024)
    libc.malloc_trim(0)


def _may_have_accelerator() -> bool:
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return bool(plugins) or importlib.util.find_spec("libtpu") is not None
