"""Time of training steps on CPU by the operations that XLA gives to YNNPACK.

python -m bench.compiler_options [--rounds 5] [--out bench/results/compiler_options_cpu.md]

The options in `compiler.options` follow from this table. YNNPACK computes convolutions, dots and
reductions or not, in all combinations, for four networks, undivided and divided. The programs of
one network take turns; ratios are to the program without YNNPACK. Each step also runs four times
from the same state; the table says `no` if the bits of the results differ.
"""

import argparse
import itertools
import json
import pathlib
import statistics
from collections.abc import Sequence

import jax
import numpy as np

from bench import Results, programs
from bench.programs import Case
from jaxsplit import compiler

KINDS = {"dots": "INDIVIDUAL_DOT", "convolutions": "INDIVIDUAL_CONVOLUTION", "sums": "REDUCE"}
CASES = (
    Case("wide_resnet16_4", 4, 64, 8, 1, 10),  # configs/digits_wrn16_4_x4.py
    Case("wide_resnet16_8", 4, 32, 32, 3, 100),
    Case("wide_resnet10_2", 4, 128, 28, 1, 10),  # configs/fashion_mnist_wrn10_2_x4.py
    Case("resnet110", 2, 16, 32, 3, 100),
)


def choices() -> dict[str, str]:
    """Name -> value of XLA's option, for all combinations."""
    found = {}
    for n in range(len(KINDS) + 1):
        for names in itertools.combinations(KINDS, n):
            value = ",".join(f"LIBRARY_FUSION_TYPE_{KINDS[name]}" for name in names)
            found[", ".join(names) or "nothing"] = value
    return found


def repeats(program: programs.Program, times: int = 4) -> bool:
    """Whether the step gives the same bits every time from the same state."""

    state, *rest = program.arguments
    results = []
    for _ in range(times):
        # The step takes its state's memory: each call gets a copy.
        start = jax.tree.map(lambda x: jax.device_put(np.array(x), x.sharding), state)
        out = jax.device_get(program.compiled(start, *rest))
        results.append([np.asarray(x).tobytes() for x in jax.tree.leaves(out)])
    return all(r == results[0] for r in results)


def measure(
    case: Case, rounds: int, results: Results, names: Sequence[str] | None = None
) -> list[dict]:
    """A row for each choice, or for those named; ratios are to the first."""
    made = {
        name: programs.compile_case(case, {compiler.YNN: choices()[name]})
        for name in names or choices()
    }
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds + 1):
        for name, program in made.items():
            seconds[name].append(program.seconds())
    rows = []
    for name, program in made.items():
        pairs = zip(seconds[name][1:], seconds["nothing"][1:], strict=True)
        row = {
            "case": str(case),
            "ynnpack": name,
            "seconds": statistics.median(seconds[name][1:]),
            "ratio": statistics.median(a / b for a, b in pairs),
            "compile_s": program.compile_s,
            "temporary_mib": program.temporary_mib,
            "repeats": repeats(program),
        }
        results.add("compiler_options", **row)
        rows.append(row)
    return rows


def table(rows: list[dict]) -> str:
    cases = list(dict.fromkeys(row["case"] for row in rows))
    lines = ["| by YNNPACK | " + " | ".join(cases) + " |", "|---" * (len(cases) + 1) + "|"]
    for name in dict.fromkeys(row["ynnpack"] for row in rows):
        cells = []
        for case in cases:
            row = next(r for r in rows if (r["case"], r["ynnpack"]) == (case, name))
            same = "" if row["repeats"] else ", no"
            base = f" ({row['seconds']:.3f} s)" if name == "nothing" else ""
            cells.append(f"{row['ratio']:.2f}{base}{same}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", type=int, nargs="+", default=range(len(CASES)), help="0 ...")
    parser.add_argument("--table", type=pathlib.Path, help="only print that of a .jsonl")
    parser.add_argument("--quick", action="store_true", help="one small network, two rounds")
    parser.add_argument("--out", type=pathlib.Path, help="Markdown file to append the table to")
    args = parser.parse_args()
    if args.table:
        print(table([json.loads(line) for line in args.table.read_text().splitlines()]))
        return
    results, rows = Results(args.out), []
    if args.quick:
        rows = measure(Case("wide_resnet10_1", 1, 16, 8, 1, 10), 2, results, ("nothing", "dots"))
    else:
        for case in (CASES[i] for i in args.cases):
            for split in (1, case.split):
                rows += measure(programs.changed(case, split=split), args.rounds, results)
    results.show(table(rows), programs.device_name(), f"median of {args.rounds} rounds")


if __name__ == "__main__":
    main()
