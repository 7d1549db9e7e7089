"""Compiler options of the tests' programs."""

from jaxsplit import compiler

# Tiny programs that run a few times: compiled fast rather than well.
FAST = compiler.FAST
# For comparisons with the reference's own rounding. With YNNPACK, which conftest.py turns off where
# its sums race: XLA's own add one number after the other, 2 to 3 times less exactly.
EXACT = FAST | {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,"
    "LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION,LIBRARY_FUSION_TYPE_REDUCE"
}
# Float64 convolutions are loops of XLA, not of a library: 10 times slower without optimisation.
EXACT_FLOAT64 = EXACT | {"xla_backend_optimization_level": 1}
# For two programs that compute the same, bit by bit or nearly: with the usual code generator, which
# fuses multiplications and additions alike in both. Newer jaxlibs have no other.
USUAL = {"xla_cpu_use_fusion_emitters": True} if compiler.races() else {}
