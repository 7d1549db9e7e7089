"""What the views cost: the full CIFAR recipe for S networks, and its share of a training step.

python -m bench.augment [--arch wide_resnet16_8] [--networks 1 4] [--batch 128] [--out FILE]

Times, alternately and in one process: the views of a batch of 32x32 images (crop, flip, policy,
normalise, erase, mixup), and the whole training step of the network divided in S, which makes them
itself. Prints medians, and appends them to a Markdown file where asked to.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np

from bench import made_by, show
from configs import cifar10
from jaxsplit import augment, compiler, experiment, metrics, state, step
from jaxsplit import config as config_lib


def make(args, num_networks: int, workdir_data: pathlib.Path):
    """(views, step): functions without arguments that run once and wait."""
    config = cifar10.get_config(f"arch={args.arch},split={num_networks}")
    config.batch_size = args.batch
    config.mesh.data = 1
    config.data.dir = str(workdir_data)
    config_lib.check(config)
    exp = experiment.build(config)
    ops = augment.pipeline(
        config.augment,
        exp.dataset.mean,
        exp.dataset.std,
        streamed=False,
        scale_min=config.data.scale_min,
    )
    inputs = step.make_inputs(
        exp.sharding,
        ops,
        num_networks=num_networks,
        shared_view=num_networks == 1,
        streamed=False,
        mixup=config.augment.mixup,
        cutmix=config.augment.cutmix,
        mix_switch=config.augment.mix_switch,
    )
    split = exp.feed.resident
    resident = jax.device_put({"images": split.images, "labels": split.labels})
    batch = {"index": np.arange(args.batch, dtype=np.int32)}
    views = jax.jit(inputs, compiler_options=compiler.options(exp.sharding.platform))
    key = jax.random.key(0)
    train_state = state.init(exp.method, exp.optimizer, 0, exp.dataset.image_shape, exp.sharding)
    train_step = step.make_train_step(exp.method, exp.optimizer, inputs)
    _, shapes = jax.eval_shape(train_step, train_state, metrics.empty(), resident, batch)
    totals = metrics.zeros(shapes)
    compiled = jax.jit(train_step, compiler_options=compiler.options(exp.sharding.platform))

    def run_views():
        jax.block_until_ready(views(resident, batch, key))

    def run_step():
        jax.block_until_ready(compiled(train_state, totals, resident, batch))

    return run_views, run_step


def measure(args, workdir_data: pathlib.Path) -> list[tuple[int, float, float]]:
    """(S, seconds of the views, seconds of the step) of each S."""
    made = {s: make(args, s, workdir_data) for s in args.networks}
    seconds = {(s, i): [] for s in made for i in (0, 1)}
    for _ in range(args.rounds + 1):
        for s, runs in made.items():
            for i, run in enumerate(runs):
                began = time.perf_counter()
                run()
                seconds[s, i].append(time.perf_counter() - began)
    # The first round compiles.
    median = {key: statistics.median(times[1:]) for key, times in seconds.items()}
    return [(s, median[s, 0], median[s, 1]) for s in made]


def report(args, rows) -> str:
    lines = [
        f"CIFAR-10's recipe, {args.arch}, batch {args.batch}, 32x32, float32; "
        f"{made_by(jax.devices()[0].device_kind, f'jax {jax.__version__}')}; "
        f"median of {args.rounds} rounds",
        "",
        "| S | views ms | images/s | views/s | step s | share of the step |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {s} | {1e3 * views:.1f} | {args.batch / views:,.0f} | {s * args.batch / views:,.0f} | "
        f"{whole:.3f} | {views / whole:.2%} |"
        for s, views, whole in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="wide_resnet16_8")
    parser.add_argument("--networks", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, help="Markdown file to append the table to")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        images = rng.integers(0, 256, (1024, 32, 32, 3), dtype=np.uint8)
        labels = rng.integers(0, 10, 1024)
        np.savez(
            pathlib.Path(folder) / "cifar10.npz",
            train_images=images,
            train_labels=labels,
            test_images=images[:128],
            test_labels=labels[:128],
        )
        text = report(args, measure(args, pathlib.Path(folder)))
    show(text, args.out)


if __name__ == "__main__":
    main()
