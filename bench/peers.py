"""Training steps of jaxsplit and of PyTorch in turn, on one machine: the ratio of their times.

python -m bench.peers [--arch wide_resnet16_8] [--split 4] [--batch 32] [--rounds 5] [--quick]

The peer is the same S networks (ResNets, ViT or ConvNeXt) in PyTorch as a user writes them: modules
in a loop, channels last, autocast for bfloat16, SGD with Nesterov momentum, cross-entropies and
Jensen-Shannon divergence (`bench/peer_torch.py`). It runs in a process of its own, by this Python
or by --torch-python, and both take turns. Without PyTorch only jaxsplit is measured, and a line
says so.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Sequence

if __name__ == "__main__":  # before jax starts: two programs share the memory of a GPU
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


from bench import Results, errors_in_one_line, programs
from bench.programs import Case
from jaxsplit import config as config_lib

QUICK = (Case("wide_resnet10_1", 1, 64, 8, 1, 10), Case("wide_resnet10_1", 2, 64, 8, 1, 10))


class Torch:
    """A process that trains the step of a case in PyTorch on request."""

    def __init__(self, python: str = sys.executable):
        worker = pathlib.Path(__file__).with_name("peer_torch.py")
        self._process = subprocess.Popen(
            [python, str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if _lacks_torch(python) else None,
            text=True,
        )
        line = self._process.stdout.readline()
        self.about = json.loads(line) if line else None  # None: there is no PyTorch

    def build(self, case: Case, *, form: str = "loop", compiled: bool = False, model: str = ""):
        """Makes the step of a case; {'ready': seconds, 'parameters': n} or {'error': text}."""
        spec = dataclasses.asdict(config_lib.resolve(programs.config_of(case)).spec)
        task = dataclasses.asdict(case)
        task |= {"spec": spec, "form": form, "compile": compiled, "model": model}
        return self._ask({"build": task})

    def seconds(self, steps: int = 1) -> float:
        """Mean seconds of n steps; NaN if they failed."""
        return self._ask({"steps": steps}).get("seconds", float("nan"))

    def profile(self) -> dict[str, float]:
        """Seconds of a step by operator, the slowest first."""
        return self._ask({"profile": 2}).get("operators", {})

    def one_pass(self, name: str, channels: int, side: int, batch: int) -> float:
        """Seconds of a pass of a 3x3 convolution: forward, input or kernel."""
        return self._ask({"pass": [name, channels, side, batch]}).get("seconds", float("nan"))

    def _ask(self, what: dict) -> dict:
        print(json.dumps(what), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"error": "the process with PyTorch ended"}

    def close(self) -> None:
        with self._process:  # closes the pipes, which ends it
            pass

    def __enter__(self) -> "Torch":
        return self

    def __exit__(self, *_) -> None:
        self.close()


@functools.lru_cache
def _lacks_torch(python: str) -> bool:
    found = "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is None)"
    return subprocess.run([python, "-c", found], check=False).returncode != 0


def compare(case: Case, torch: Torch, *, rounds: int, steps: int = 1, compiled=False) -> dict:
    """Median seconds of a step of both, and the median of the ratios of all rounds."""
    program = programs.compile_case(case)
    row = {"case": str(case), "compile_s": program.trace_s + program.compile_s}
    if torch.about:
        made = torch.build(case, compiled=compiled)
        if "error" in made:
            row["torch_error"] = made["error"]
        elif made["parameters"] != program.parameters:
            row["torch_error"] = (
                f"{made['parameters']:,} parameters, not {program.parameters:,} as jaxsplit"
            )
        else:
            row["torch_ready_s"] = made["ready"]
    ours, theirs = [], []
    for _ in range(rounds + 1):
        ours.append(program.seconds(steps))
        if "torch_ready_s" in row:
            theirs.append(torch.seconds(steps))
    row["jaxsplit_s"] = statistics.median(ours[1:])  # the first round warms up
    if theirs:
        row["torch_s"] = statistics.median(theirs[1:])
        ratios = [a / b for a, b in zip(ours[1:], theirs[1:], strict=True)]
        row |= {"ratio": statistics.median(ratios), "ratio_min": min(ratios)}
        row["ratio_max"] = max(ratios)
    return row


def table(rows: Sequence[dict]) -> str:
    lines = [
        "| step | jaxsplit s | PyTorch s | jaxsplit / PyTorch | range | compile s |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "ratio" in row:
            spread = f"{row['ratio_min']:.2f} to {row['ratio_max']:.2f}"
            theirs = f"{row['torch_s']:.4f} | {row['ratio']:.2f} | {spread}"
        else:
            theirs = f"{row.get('torch_error', '-')[:60]} | - | -"
        lines.append(
            f"| {row['case']} | {row['jaxsplit_s']:.4f} | {theirs} | {row['compile_s']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    programs.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="of a round")
    parser.add_argument("--compile", action="store_true", help="the peer by torch.compile")
    parser.add_argument("--torch-python", default=sys.executable, help="a Python with PyTorch")
    parser.add_argument("--quick", action="store_true", help="two small cases, some seconds")
    parser.add_argument("--out", type=pathlib.Path, help="Markdown file to append the table to")
    args = parser.parse_args()
    cases = QUICK if args.quick else [programs.of_arguments(args)]
    results = Results(args.out)
    with Torch(args.torch_python) as torch:
        if torch.about is None:
            print(f"no PyTorch in {args.torch_python}: jaxsplit alone is measured")
        versions = f"torch {torch.about['torch']}" if torch.about else "without PyTorch"
        rows = [
            compare(case, torch, rounds=args.rounds, steps=args.steps, compiled=args.compile)
            for case in cases
        ]
    for row in rows:
        results.add("peers", **row)
    results.show(table(rows), programs.device_name(), versions)


if __name__ == "__main__":
    with errors_in_one_line():
        main()
