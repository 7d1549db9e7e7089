"""What stacking S networks costs: the step of a stack against S steps of one network.

python -m bench.stack_overhead [--arch wide_resnet16_4] [--networks 4] [--batch 64] [--size 32]

Times, alternately and in one process: S steps of a single network compiled alone (the base), and
one step of the stack by each lowering. A step is forward, cross-entropy, backward, SGD. Prints the
median of the ratios and the time to compile, and appends them to a Markdown file where asked to.
"""

import argparse
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bench import made_by, show
from configs import common
from jaxsplit import compiler, losses, models, optim, sharding, stack


def compile_step(args, num_networks: int, lowering: str):
    """(step, its state, its images, seconds to compile) on one device."""
    mesh = sharding.make(
        1, 1, num_networks=num_networks, batch_size=args.batch, devices=jax.devices()[:1]
    )
    spec = models.divided(args.arch, args.networks)
    networks = stack.make(spec, num_networks, 10, mesh, lowering=lowering)
    shape = (args.size, args.size, 3)
    variables = jax.jit(lambda: networks.init(jax.random.key(0), shape))()
    config = common.get_config().optim
    optimizer = optim.build(config, lambda _: 1e-3, variables["params"], num_networks)
    state = variables, optimizer.init(variables["params"])
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(num_networks, args.batch, *shape)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 10, args.batch))

    def step(state, images):
        variables, opt_state = state

        def loss(params):
            v = {"params": params, "batch_stats": variables["batch_stats"]}
            logits, _, stats = networks.apply(v, images, train=True)
            return losses.cross_entropy(logits, labels).sum(), stats

        grads, stats = jax.grad(loss, has_aux=True)(variables["params"])
        updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        return {"params": params, "batch_stats": stats}, opt_state

    began = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=0).lower(state, images)
    compiled = lowered.compile(compiler_options=compiler.options(mesh.platform))
    return compiled, state, images, time.perf_counter() - began


def measure(args) -> list[tuple[str, float, float, float]]:
    """(name, seconds, ratio to the base, seconds to compile) of each."""
    base = f"{args.networks} single steps"
    made = {base: compile_step(args, 1, "unrolled")}  # a plain network
    for lowering in args.lowerings:
        made[lowering] = compile_step(args, args.networks, lowering)
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(args.rounds + 1):
        for name, (step, state, images, compile_time) in made.items():
            began = time.perf_counter()
            for _ in range(args.networks if name == base else 1):
                state = step(state, images)
            jax.block_until_ready(state)
            seconds[name].append(time.perf_counter() - began)
            made[name] = (step, state, images, compile_time)
    rows = []
    for name in made:
        times = seconds[name][1:]  # the first round warms up
        ratios = [t / b for t, b in zip(times, seconds[base][1:], strict=True)]
        rows.append((name, statistics.median(times), statistics.median(ratios), made[name][3]))
    return rows


def report(args, rows) -> str:
    device = f"{jax.devices()[0].device_kind} ({jax.local_device_count()} device)"
    lines = [
        f"{args.arch} divided in {args.networks}, batch {args.batch}, {args.size}x{args.size}, "
        f"float32; {made_by(device, f'jax {jax.__version__}')}; median of {args.rounds} rounds",
        "",
        "| step | seconds | ratio | compile s |",
        "|---|---|---|---|",
    ]
    lines += [f"| {name} | {t:.4f} | {ratio:.3f} | {c:.1f} |" for name, t, ratio, c in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="wide_resnet16_4")
    parser.add_argument("--networks", type=int, default=4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--lowerings", nargs="+", default=["dense", "unrolled", "grouped"], help="without auto"
    )
    parser.add_argument("--out", type=pathlib.Path, help="Markdown file to append the table to")
    args = parser.parse_args()
    text = report(args, measure(args))
    show(text, args.out)


if __name__ == "__main__":
    main()
