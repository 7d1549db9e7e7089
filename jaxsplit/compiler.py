"""What programs are compiled for, and what XLA is told beside its defaults."""

import contextlib
import contextvars
import os
import re
from collections.abc import Iterator

import jax
import jaxlib

_platform = contextvars.ContextVar("platform", default="")

# For programs that run once, where a fast compilation is worth more than a fast program.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
# XLA:CPU up to here computes sums by YNNPACK in a way that races: one program called twice on the
# same arrays now and then gives different numbers (github.com/jax-ml/jax issue 39741), so that no
# run was repeatable or resumed bit for bit.
_FIRST_WITHOUT_RACE = (0, 11, 2)
YNN = "xla_cpu_experimental_ynn_fusion_type"
# The same as a flag of XLA_FLAGS, for programs that are compiled without `options`.
NO_RACE_FLAG = f"--{YNN}="


def races() -> bool:
    """Whether the sums of this jaxlib's programs race on CPU, by default."""
    return tuple(int(n) for n in jaxlib.__version__.split(".")[:3]) < _FIRST_WITHOUT_RACE


@contextlib.contextmanager
def tracing_for(platform: str) -> Iterator[None]:
    """While tracing inside, `platform()` is this one: 'cpu', 'gpu' or 'tpu'."""
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def platform() -> str:
    """What is being traced for: the devices of the mesh inside `Sharding.map`, else jax's default.

    They differ where a program is compiled for devices that this machine has not got.
    """
    return _platform.get() or jax.default_backend()


def options(platform: str, *, once: bool = False) -> dict | None:
    """What to compile a program for `platform` with; None for nothing.

    What XLA_FLAGS sets is left to it.

    Args:
      platform: 'cpu', 'gpu' or 'tpu'.
      once: the program runs once.
    """
    if platform != "cpu":
        return None
    # What YNNPACK computes was chosen by `bench/results/compiler_options_cpu.md`.
    chosen = {YNN: "" if races() else "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    if once:
        chosen |= FAST
    else:
        # XLA:CPU would drop the barriers that keep what a convolution reads (`conv.py`), that part
        # a sum (`layers.py`), and that hold the recomputation of `config.remat` back.
        chosen["xla_disable_hlo_passes"] = "cse_barrier_expander"
    by_user = re.findall(r"--(\w+)", os.environ.get("XLA_FLAGS", ""))
    return {name: value for name, value in chosen.items() if name not in by_user} or None
