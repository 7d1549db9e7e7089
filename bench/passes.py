"""GFLOP/s of the three passes of 3x3 convolutions on CPU, in XLA and in PyTorch (oneDNN).

python -m bench.passes [--torch-python PYTHON] [--rounds 9] [--out FILE]

The passes are forward, gradient of the input, and gradient of the kernel. They limit the speed that
a training step of plain JAX can reach.
"""

import argparse
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bench import Results, programs
from bench.peers import Torch
from jaxsplit import compiler

# (channels, side, batch): the stages of WRN-16-8 in 4, WRN-10-2 in 4, WRN-16-4 in 4 on digits.
SHAPES = ((64, 32, 32), (128, 16, 32), (256, 8, 32), (16, 28, 128), (32, 14, 128), (32, 8, 64))
QUICK = ((8, 8, 4),)
PASSES = ("forward", "input", "kernel")


def xla(channels: int, side: int, batch: int) -> dict:
    """Name of a pass -> a function that runs it once and waits for it."""
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.normal(size=(batch, side, side, channels)), "float32") for _ in "xg")
    kernel = jnp.asarray(rng.normal(size=(3, 3, channels, channels)), "float32")

    def conv(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    fns = {
        "forward": lambda x, kernel, g: conv(x, kernel),
        "input": lambda x, kernel, g: jax.linear_transpose(lambda t: conv(t, kernel), x)(g)[0],
        "kernel": lambda x, kernel, g: jax.linear_transpose(lambda t: conv(x, t), kernel)(g)[0],
    }
    options = compiler.options(jax.default_backend())
    made = {
        name: jax.jit(fn).lower(x, kernel, g).compile(compiler_options=options)
        for name, fn in fns.items()
    }
    return {
        name: lambda program=program: program(x, kernel, g).block_until_ready()
        for name, program in made.items()
    }


def seconds(run) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="one small shape")
    parser.add_argument("--torch-python", default=sys.executable, help="a Python with PyTorch")
    parser.add_argument("--out", type=pathlib.Path, help="Markdown file to append the table to")
    args = parser.parse_args()
    results = Results(args.out)
    lines = [
        "| channels, side, batch | pass | XLA GFLOP/s | PyTorch GFLOP/s | time, XLA / PyTorch |",
        "|---|---|---|---|---|",
    ]
    with Torch(args.torch_python) as torch:
        for channels, side, batch in QUICK if args.quick else SHAPES:
            flops = 2 * batch * side**2 * 9 * channels**2
            programs_of_xla = xla(channels, side, batch)
            ours = {name: [] for name in PASSES}
            theirs = {name: [] for name in PASSES}
            for _ in range(args.rounds + 1):
                for name in PASSES:
                    ours[name].append(seconds(programs_of_xla[name]))
                    if torch.about:
                        theirs[name].append(torch.one_pass(name, channels, side, batch))
            for name in PASSES:
                mine = statistics.median(ours[name][1:])
                other = statistics.median(theirs[name][1:]) if torch.about else float("nan")
                shape = f"{channels}, {side}, {batch}"
                row = {"shape": shape, "name": name, "xla_s": mine, "torch_s": other}
                results.add("passes", **row, ratio=mine / other)
                lines.append(
                    f"| {shape} | {name} | {flops / mine / 1e9:.0f} | {flops / other / 1e9:.0f} "
                    f"| {mine / other:.2f} |".replace("nan", "-")
                )
    results.show("\n".join(lines), programs.device_name(), f"median of {args.rounds} rounds")


if __name__ == "__main__":
    main()
