"""What recomputing stages saves in memory and costs in time.

python -m bench.remat [--arch wide_resnet16_8] [--networks 4] [--batch 64] [--size 32] [--rounds 5]

Compiles the step of a stack (forward, cross-entropy, backward) for several values of
`config.remat` and prints XLA's own figure of the memory for temporary values; with --rounds also
the time of a step, the median of alternating rounds.
"""

import argparse
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp

from bench import made_by, show
from jaxsplit import compiler, losses, models, sharding, stack


def compile_step(args, remat: str):
    """The compiled step and its arguments' shapes, on one device."""
    mesh = sharding.make(
        1, 1, num_networks=args.networks, batch_size=args.batch, devices=jax.devices()[:1]
    )
    spec = models.divided(args.arch, args.networks)
    networks = stack.make(
        spec,
        args.networks,
        args.classes,
        mesh,
        lowering=args.lowering,
        dtype=args.dtype,
        remat=remat,
    )
    shape = (args.size, args.size, 3)
    variables = jax.eval_shape(lambda key: networks.init(key, shape), jax.random.key(0))
    images = jax.ShapeDtypeStruct((args.networks, args.batch, *shape), jnp.float32)

    def step(variables, images):
        def loss(params):
            logits, _, stats = networks.apply(
                dict(variables, params=params), images, train=True, key=jax.random.key(0)
            )
            return losses.cross_entropy(logits, jnp.zeros(args.batch, int)).sum(), stats

        return jax.grad(loss, has_aux=True)(variables["params"])

    lowered = jax.jit(step).lower(variables, images)
    return lowered.compile(compiler_options=compiler.options(mesh.platform)), variables, images


def measure(args) -> list[tuple[str, float, float]]:
    """(remat, MiB of temporary values, median seconds or NaN) of each."""
    made = {remat: compile_step(args, remat) for remat in args.remat}
    seconds: dict[str, list[float]] = {remat: [] for remat in made}
    if args.rounds:
        _, *shapes = made[args.remat[0]]
        inputs = jax.tree.map(lambda v: jnp.full(v.shape, 0.1, v.dtype), shapes)
        for _ in range(args.rounds + 1):
            for remat, (step, *_) in made.items():
                began = time.perf_counter()
                jax.block_until_ready(step(*inputs))
                seconds[remat].append(time.perf_counter() - began)
    rows = []
    for remat, (step, *_) in made.items():
        mib = step.memory_analysis().temp_size_in_bytes / 2**20
        times = seconds[remat][1:]  # the first round warms up
        rows.append((remat, mib, statistics.median(times) if times else float("nan")))
    return rows


def report(args, rows) -> str:
    lines = [
        f"{args.arch} divided in {args.networks}, batch {args.batch}, {args.size}x{args.size}, "
        f"{args.dtype}, {args.lowering}; "
        f"{made_by(jax.devices()[0].device_kind, f'jax {jax.__version__}')}; "
        + (f"median of {args.rounds} rounds" if args.rounds else "compiled only"),
        "",
        "| remat | temporary MiB | share | step s | ratio |",
        "|---|---|---|---|---|",
    ]
    _, base, base_time = rows[0]
    lines += [
        f"| {remat or 'none'} | {mib:.0f} | {mib / base:.2f} | {t:.3f} | {t / base_time:.2f} |"
        for remat, mib, t in rows
    ]
    return "\n".join(lines).replace("nan", "") + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="wide_resnet16_8")
    parser.add_argument("--networks", type=int, default=4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--lowering", default="auto")
    parser.add_argument("--rounds", type=int, default=0, help="0: memory only")
    parser.add_argument("--remat", nargs="+", default=["", "stage1", "all"], help="first the base")
    parser.add_argument("--out", type=pathlib.Path, help="Markdown file to append the table to")
    args = parser.parse_args()
    text = report(args, measure(args))
    show(text, args.out)


if __name__ == "__main__":
    main()
