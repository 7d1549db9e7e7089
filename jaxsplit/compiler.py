"""The platform that a program is traced for, and the XLA options that it is compiled with."""

import contextlib
import contextvars
import os
import re
from collections.abc import Iterator

import jax
import jaxlib
from jax import lax

_platform = contextvars.ContextVar("platform", default="")

# With these options XLA:CPU compiles fast to programs that run slowly.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
# XLA:CPU before this jaxlib has a data race in sums that YNNPACK computes: the same program called
# twice on the same arrays sometimes gives different numbers (github.com/jax-ml/jax issue 39741).
# With it no run is repeatable, and none resumes bit for bit.
_FIRST_WITHOUT_RACE = (0, 11, 2)
YNN = "xla_cpu_experimental_ynn_fusion_type"
# The same option as a flag in XLA_FLAGS, for programs that are compiled without `options`.
NO_RACE_FLAG = f"--{YNN}="


def races() -> bool:
    """Whether sums on CPU have a data race with the default options of this jaxlib."""
    return tuple(int(n) for n in jaxlib.__version__.split(".")[:3]) < _FIRST_WITHOUT_RACE


@contextlib.contextmanager
def tracing_for(platform: str) -> Iterator[None]:
    """Inside this context `platform()` returns this platform: 'cpu', 'gpu' or 'tpu'."""
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def platform() -> str:
    """The platform that is traced for: that of the mesh inside `Sharding.map`, else jax's default.

    The two differ when a program is compiled for devices that this machine does not have.
    """
    return _platform.get() or jax.default_backend()


def kept(x: jax.Array) -> jax.Array:
    """`x`, on CPU as an array in memory, which XLA does not fuse with what makes or reads it.

    Inputs and outputs of products need it: otherwise XLA:CPU computes a chain of normalisations
    again inside the transposed copy that a kernel's gradient reads.
    """
    return lax.optimization_barrier(x) if platform() == "cpu" else x


def options(platform: str) -> dict | None:
    """The XLA options to compile a program with; None: the defaults.

    Options that the user sets in XLA_FLAGS are left out.

    Args:
      platform: 'cpu', 'gpu' or 'tpu'.
    """
    # XLA:CPU drops optimization barriers by default. Three are needed: they keep the operands
    # of products (`kept`), divide a sum (`layers.py`), and keep XLA from undoing the recomputation
    # of `config.remat`.
    return _on_cpu(platform, {"xla_disable_hlo_passes": "cse_barrier_expander"})


def fast_options(platform: str) -> dict | None:
    """As `options`, for a program that runs only once: it compiles fast and runs slowly."""
    return _on_cpu(platform, FAST)


def _on_cpu(platform: str, more: dict) -> dict | None:
    """The options of all programs and `more` on CPU, without those that the user sets."""
    if platform != "cpu":
        return None
    # `bench/results/compiler_options_cpu.md` has the measurements behind this choice.
    chosen = {YNN: "" if races() else "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"} | more
    by_user = re.findall(r"--(\w+)", os.environ.get("XLA_FLAGS", ""))
    return {name: value for name, value in chosen.items() if name not in by_user} or None
