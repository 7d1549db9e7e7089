"""All measurements that need a GPU or a TPU, in one command of at most eight minutes.

python -m bench.device --out results [--seconds 460] [--parts parity lowering ...] [--tiny]

The parts run in order of importance, each within its own share of the time. Each figure is written
as soon as it is known, as a line of JSON in `results/device.jsonl`, so an interrupted run loses no
figure. At the end (or with `--table results/device.jsonl`) the figures become `device.md`. The
program needs jax, flax, optax, orbax and ml_collections. Parts that need PyTorch, timm or
torchvision print a line if these are missing. `--tiny` runs every part with small networks, on any
machine.
"""

import argparse
import json
import math
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Sequence

if __name__ == "__main__":  # before jax starts: PyTorch's process needs memory of the same device
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax

from bench import Results, programs
from bench import device_parts as parts
from bench.device_parts import Run

# Part -> (share of the time, function), in order of importance.
PARTS: dict[str, tuple[float, Callable[[Run], None]]] = {
    "parity": (0.07, parts.parity),
    "lowering": (0.30, parts.lowering),
    "peers": (0.30, parts.against_torch),
    "where": (0.05, parts.where_time_goes),
    "graphs": (0.15, parts.graphs),
    "flags": (0.13, parts.flags),
    "step": (0.08, parts.step_parts),
    "shapes": (0.03, parts.shapes),
    "accuracy": (0.04, parts.accuracy),
}
TARGETS = """\
Targets on an H100: divided networks at least 1.5 times as fast as compiled PyTorch, undivided at
least 1.0 times; a stack at most 1.05 of S steps alone, 0.7 where networks cannot fill the device;
MFU of WRN-28-10 at least 36 %; views at most 5 % of a step; S = 8 compiles in at most 2.5 times
the time of S = 1."""


def run_parts(run: Run, names: Sequence[str], seconds: float) -> None:
    """Runs the parts in order; later parts may use time that earlier ones have left."""
    end = time.monotonic() + seconds
    for i, name in enumerate(names):
        shares = [PARTS[n][0] for n in names[i:]]
        now = time.monotonic()
        run.deadline = now + (end - now) * shares[0] / sum(shares)
        began = time.perf_counter()
        try:
            PARTS[name][1](run)
            failed = {}
        except Exception as error:  # the other parts should still run
            failed = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        run.results.add("part", name=name, took_s=time.perf_counter() - began, **failed)
        print(f"{name}: {time.perf_counter() - began:.0f} s {failed or ''}", flush=True)


def report(rows: Sequence[dict]) -> str:
    """All figures as tables, part by part."""
    text = []
    for part in (*PARTS, "kernels"):
        own = [row for row in rows if row["part"] == part]
        if not own:
            continue
        hidden = {"part", "jax", "python", "commit", "time", "split", "batch", "devices"}
        keys = [k for k in dict.fromkeys(k for row in own for k in row) if k not in hidden]
        text += [f"## {part}", "", "| " + " | ".join(keys) + " |", "|---" * len(keys) + "|"]
        text += ["| " + " | ".join(_cell(row.get(k)) for k in keys) + " |" for row in own]
        text.append("")
    return "\n".join([*text, TARGETS])


def _cell(value) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, help="folder of device.jsonl and device.md")
    parser.add_argument("--seconds", type=float, default=460, help="of all parts together")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="small networks, on any machine")
    parser.add_argument("--torch-python", default=sys.executable, help="a Python with PyTorch")
    parser.add_argument("--table", type=pathlib.Path, help="only print those of a device.jsonl")
    args = parser.parse_args()
    if args.table:
        rows = [json.loads(line) for line in args.table.read_text().splitlines()]
        print(report(rows))
        return
    results = Results(args.out / "device.md" if args.out else None)
    name = programs.device_name()
    results.add("device", device=name, count=len(jax.devices()), seconds=args.seconds)
    # Figures are on disk one by one: a compilation that takes too long must not hold the machine.
    watchdog = threading.Timer(args.seconds + 60, lambda: os._exit(3))
    watchdog.daemon = True
    watchdog.start()
    run = Run(results, args.tiny, args.torch_python, out=args.out)
    run_parts(run, args.parts, args.seconds)
    watchdog.cancel()
    results.show(report(results.rows), name)


if __name__ == "__main__":
    main()
