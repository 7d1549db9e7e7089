"""Time of the views of the full CIFAR recipe for S networks, and their share of a training step.

python -m bench.augment [--arch wide_resnet16_8] [--networks 1 4] [--batch 128] [--out FILE]

Times two programs in turn in one process: one makes the views of a batch of 32x32 images (crop,
flip, AutoAugment, normalise, mixup); the other is a whole training step of the network divided in
S, including its views.
"""

import argparse
import pathlib
import statistics
import time
from collections.abc import Callable

import jax

from bench import Results, errors_in_one_line, programs
from jaxsplit import compiler, experiment


def views_of(program: programs.Program) -> Callable[[], None]:
    """Makes the views of the program's batch once, and waits for them."""
    _, _, resident, batch = program.arguments
    options = compiler.options(program.exp.sharding.platform)
    views = jax.jit(experiment.inputs(program.exp), compiler_options=options)
    key = jax.random.key(0)
    return lambda: jax.block_until_ready(views(resident, batch, key))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    programs.add_arguments(parser, batch=128, classes=10)
    parser.add_argument("--networks", type=int, nargs="+", default=[1, 4], help="instead of split")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, help="Markdown file to append the table to")
    args = parser.parse_args()
    runs: dict[tuple[int, str], Callable[[], None]] = {}
    with errors_in_one_line():
        base = programs.changed(programs.of_arguments(args), views=True)
        for s in args.networks:
            program = programs.compile_case(programs.changed(base, split=s))
            runs[s, "views"], runs[s, "step"] = views_of(program), program.run
    seconds: dict[tuple[int, str], list[float]] = {key: [] for key in runs}
    for _ in range(args.rounds + 1):  # the first compiles the views
        for key, run in runs.items():
            began = time.perf_counter()
            run()
            seconds[key].append(time.perf_counter() - began)
    results = Results(args.out)
    lines = [
        "| S | views ms | images/s | views/s | step s | share of the step |",
        "|---|---|---|---|---|---|",
    ]
    for s in args.networks:
        views, whole = (statistics.median(seconds[s, what][1:]) for what in ("views", "step"))
        results.add("augment", case=str(base), networks=s, views_s=views, step_s=whole)
        lines.append(
            f"| {s} | {1e3 * views:.1f} | {args.batch / views:,.0f} "
            f"| {s * args.batch / views:,.0f} | {whole:.3f} | {views / whole:.2%} |"
        )
    made = f"median of {args.rounds} rounds"
    results.show("\n".join(lines), str(base), programs.device_name(), made)


if __name__ == "__main__":
    main()
