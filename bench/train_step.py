"""Speed, memory and compile time of a training step on the devices of this machine.

python -m bench.train_step [--arch wide_resnet16_8] [--split 4] [--batch 32] [--dtype bfloat16]
    [--lowering dense] [--quick]
python -m bench.train_step --grow networks|batch|devices --out FILE   # a series; plots: bench.plots

The step is that of a run (`bench/programs.py`), without views unless --views is given. Model FLOP/s
count 6 FLOPs per multiply-add of the forward pass; MFU is their share of the device's peak FLOP/s,
if that is known.
"""

import argparse
import math
import os
import pathlib
import statistics
import sys
from collections.abc import Sequence

if __name__ == "__main__" and "--grow=devices" in " ".join(sys.argv).replace("--grow ", "--grow="):
    os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax

from bench import Results, errors_in_one_line, programs
from bench.programs import Case, changed

QUICK = (Case("wide_resnet10_1", 1, 16, 8, 1, 10), Case("wide_resnet10_1", 2, 16, 8, 1, 10))


def measure(
    case: Case,
    *,
    rounds: int = 5,
    steps: int = 1,
    devices: Sequence[jax.Device] | None = None,
    options: dict | None = None,
) -> dict:
    """Measures a case and returns a row of results; seconds are the median of `rounds`."""
    program = programs.compile_case(case, options, devices)
    program.seconds(steps)
    times = [program.seconds(steps) for _ in range(rounds)]
    return {"case": str(case), "split": case.split, "batch": case.batch} | figures(
        case, program, times, devices
    )


def figures(case: Case, program: programs.Program, times: Sequence[float], devices=None) -> dict:
    """The figures that follow from the seconds of the steps."""
    devices = list(devices or jax.devices()[:1])
    seconds = statistics.median(times)
    flops = programs.train_flops(case) / seconds
    peak = programs.peak(devices[0].device_kind, case.dtype) * len(devices)
    stats = devices[0].memory_stats() or {}
    return {
        "devices": len(devices),
        "seconds": seconds,
        "seconds_min": min(times),
        "seconds_max": max(times),
        "images_per_s": case.batch / seconds,
        "trace_s": program.trace_s,
        "compile_s": program.compile_s,
        "temporary_mib": program.temporary_mib,
        "peak_mib": stats.get("peak_bytes_in_use", math.nan) / 2**20,
        "model_gflops": flops / 1e9,
        "mfu": flops / peak,
    }


def table(rows: Sequence[dict]) -> str:
    lines = [
        "| step | devices | ms | range | images/s | compile s | temporary MiB "
        "| model GFLOP/s | MFU |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = 1e3 * row["seconds_min"], 1e3 * row["seconds_max"]
        mfu = "" if math.isnan(row["mfu"]) else f"{row['mfu']:.1%}"
        lines.append(
            f"| {row['case']} | {row['devices']} | {1e3 * row['seconds']:.1f} "
            f"| {low:.1f} to {high:.1f} | {row['images_per_s']:,.0f} "
            f"| {row['trace_s'] + row['compile_s']:.1f} | {row['temporary_mib']:,.0f} "
            f"| {row['model_gflops']:,.0f} | {mfu} |"
        )
    return "\n".join(lines)


def series(name: str, base: Case) -> list[tuple[Case, int]]:
    """The (case, devices) of a series.

    networks: S = 1 ... 16 networks of about the same total cost. batch: 16 ... 512 images. devices:
    1 ... 8 devices that divide the batch.
    """
    if name == "networks":
        return [(changed(base, split=s), 1) for s in (1, 2, 4, 8, 16)]
    if name == "batch":
        return [(changed(base, batch=b), 1) for b in (16, 32, 64, 128, 256, 512)]
    counts = [n for n in (1, 2, 4, 8) if n <= len(jax.devices())]
    return [(base, n) for n in counts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    programs.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="of a round")
    parser.add_argument("--grow", choices=("networks", "batch", "devices"), help="a series")
    parser.add_argument("--quick", action="store_true", help="two small cases, some seconds")
    parser.add_argument("--out", type=pathlib.Path, help="Markdown file to append the table to")
    args = parser.parse_args()
    base, rows = programs.of_arguments(args), []
    cases = [(base, 1)]
    if args.quick:
        cases = [(case, 1) for case in QUICK]
    elif args.grow:
        cases = series(args.grow, base)
    results = Results(args.out)
    for case, n in cases:
        row = measure(case, rounds=args.rounds, steps=args.steps, devices=jax.devices()[:n])
        results.add(f"train_step {args.grow or ''}".strip(), **row)
        rows.append(row)
    text = table(rows)
    base_row = rows[0]
    if len(rows) > 1:
        ratios = ", ".join(f"{r['seconds'] / base_row['seconds']:.2f}" for r in rows)
        compiled = [r["trace_s"] + r["compile_s"] for r in rows]
        text += f"\n\nTime to the first row's: {ratios}. Compile time: "
        text += ", ".join(f"{c / compiled[0]:.2f}" for c in compiled) + "."
    results.show(text, programs.device_name(), f"median of {args.rounds} rounds")


if __name__ == "__main__":
    with errors_in_one_line():
        main()
