"""Memory that a program on CPU has freed is available at its next call."""

import os
import subprocess
import sys

import pytest

from jaxsplit.hosts import allocator

PROGRAM = """
from jaxsplit.hosts import allocator
print(allocator.keep_memory())
import resource
import jax
maps = jax.numpy.ones((64, 2**19))  # 128 MiB, and as much for the sines
step = jax.jit(lambda x: (jax.numpy.sin(x) @ jax.numpy.sin(x).T).sum())
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(maps).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(*[faults() for _ in range(10)])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is told")
def test_pages_are_not_asked_for_again():
    env = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    kept, *faults = done.stdout.split()
    if kept == "False":
        pytest.skip("the C library is not glibc")
    first, *later = map(int, faults)
    # Of 32768 pages; not at each call: what jax frees late is not there for the next one.
    assert min(later) < 2000 < first


def test_nothing_is_told_where_there_may_be_an_accelerator(monkeypatch):
    told = []
    library = type("Library", (), {"mallopt": lambda self, *a: told.append(a)})()
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(allocator.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(allocator.importlib.metadata, "entry_points", lambda group: ["cuda"])
    assert not allocator.keep_memory() and not told
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert allocator.keep_memory() and len(told) == 3
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocator.keep_memory() and len(told) == 3
