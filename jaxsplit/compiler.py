"""What XLA is told beside its defaults: `compiler_options` of jax.jit."""

import jax
import jaxlib

# For programs that run once, where a fast compilation is worth more than a fast program.
_FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
# XLA:CPU up to here computes sums by YNNPACK in a way that races: one program called twice on the
# same arrays now and then gives different numbers (github.com/jax-ml/jax issue 39741), so that no
# run was repeatable or resumed bit for bit. With products and convolutions by YNNPACK but not sums,
# steps took up to 1.7 times as long; without it altogether, five of six about as long as with all
# of it and one 1.5 times (`bench/results/ynnpack_cpu.md`).
_FIRST_WITHOUT_RACE = (0, 11, 2)
_YNN = "xla_cpu_experimental_ynn_fusion_type"
# The same as a flag of XLA_FLAGS, for programs that are compiled without `options`.
NO_RACE_FLAG = f"--{_YNN}="


def races() -> bool:
    """Whether the sums of this jaxlib's programs race on CPU, by default."""
    return tuple(int(n) for n in jaxlib.__version__.split(".")[:3]) < _FIRST_WITHOUT_RACE


def options(remat: str = "", *, once: bool = False) -> dict | None:
    """What to compile a program with on this backend; None for nothing.

    Args:
      remat: `config.remat` where the program is a training step.
      once: the program runs once.
    """
    if jax.default_backend() != "cpu":
        return None
    chosen = dict(_FAST) if once else {}
    if races():
        chosen[_YNN] = ""  # nothing by YNNPACK
    if remat:
        # XLA:CPU drops the barriers that hold the recomputation back until it is needed, and then
        # finds the same computation twice and keeps its first result, as without `remat`.
        chosen["xla_disable_hlo_passes"] = "cse_barrier_expander"
    return chosen or None
