"""Where the time of a training step on CPU goes, by kind of work; PyTorch's time by operator.

python -m bench.where [--arch wide_resnet16_8] [--split 4] [--batch 32] [--torch-python PYTHON]

Profiles one step with XLA and groups its operations by kind and by layer. Times are summed over all
threads ("core seconds"). A convolution runs in a thread pool that the profile does not show, so the
rest of the step's wall-clock time on all cores counts as convolutions and waiting.
"""

import argparse
import gzip
import os
import pathlib
import re
import sys
import tempfile
from collections import Counter
from typing import NamedTuple

import jax

from bench import Results, errors_in_one_line, programs
from bench.peers import Torch

REST = "convolutions on the pool, and waiting"


def group(name: str, text: str) -> str:
    """The group of an operation, from its name and its line in the compiled program."""
    match = re.search(r'op_name="([^"]*)"', text)
    path = match[1] if match else ""
    backwards = "transpose(" in path
    if re.search(r"\bconvolution\(|__cudnn\$conv", text):
        return "convolutions, their calls"
    if re.match(r"(transpose_copy|copy|transpose)", name):
        return "copies and transposes, for kernels' gradients"
    if re.search(r"\bdot\(", text) or "dot_general" in path:
        return "1x1 convolutions and the head"
    if re.search(r"/\w*bn\w*/", path):
        return f"BatchNorm {'backwards' if backwards else 'forwards'}"
    if re.search(r"relu|/add(_any)?$|/max$|/select", path):
        return f"ReLU and sums of branches {'backwards' if backwards else 'forwards'}"
    if name.startswith(("slice", "concatenate", "dynamic")):
        return "slices and stacks of the networks"
    return "optimizer, losses, pooling and the rest"


def operations(text: str) -> dict[str, str]:
    """Name of each operation of a compiled program -> its line."""
    found = re.findall(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$", text, re.MULTILINE)
    return dict(found)


def measure(program: programs.Program) -> tuple[dict[str, float], float]:
    """(core seconds of a step by group, wall-clock seconds of that step)."""
    lines = operations(program.compiled.as_text())
    program.seconds(2)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            wall = program.seconds()
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(path))
    groups: Counter = Counter()
    for plane in profile.planes:
        for line in plane.lines:
            for event in line.events:
                if event.name in lines:
                    name = event.name
                    groups[group(name, lines[name])] += event.duration_ns / 1e9
    groups[REST] = max(0.0, wall * (os.cpu_count() or 1) - sum(groups.values()))
    return dict(groups), wall


class Kernels(NamedTuple):
    """What a device did in a step; seconds are means over the profiled steps."""

    seconds: Counter  # by kind of work
    names: Counter  # by kernel
    busy: float  # of all kernels
    wall: float  # of a step, while profiled
    count: int  # kernels of a step


# Kernels of libraries, which the program's text does not name.
LIBRARY = (
    (r"memcpy|memset", "copies of memory"),
    (r"nchwtonhwc|nhwctonchw|transpose|copy", "copies and transposes"),
    (r"fprop|dgrad|wgrad|conv|implicit|cudnn|xmma|scudnn", "convolutions"),
    (r"gemm|nvjet|cublas|cutlass|splitk", "1x1 convolutions and the head"),
)


def kind_of(kernel: str, lines: dict[str, str]) -> str:
    """The kind of work of a GPU's kernel; `lines`: see `operations`."""
    for name in (kernel, re.sub(r"_(\d+)$", r".\1", kernel), kernel.replace("_", ".")):
        if name in lines:
            return group(name, lines[name])
    for pattern, kind in LIBRARY:
        if re.search(pattern, kernel.lower()):
            return kind
    return "other kernels"


def kernels(program: programs.Program, steps: int, keep: pathlib.Path | None = None) -> Kernels:
    """Profiles steps of a program on its device; without a GPU, operations on the host.

    `keep`: the program's text and the profile are kept as this path and `.hlo.txt.gz`,
    `.xplane.pb.gz`.
    """
    text = program.compiled.as_text()
    lines = operations(text)
    program.seconds(2)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            wall = program.seconds(steps)
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        raw = path.read_bytes()
        profile = jax.profiler.ProfileData.from_file(str(path))
    if keep:
        keep.parent.mkdir(parents=True, exist_ok=True)
        for suffix, what in ((".hlo.txt.gz", text.encode()), (".xplane.pb.gz", raw)):
            keep.with_name(keep.name + suffix).write_bytes(gzip.compress(what))
    on_gpu = any("/device:GPU" in plane.name for plane in profile.planes)
    by_kind: Counter = Counter()
    names: Counter = Counter()
    count = 0
    for plane in profile.planes:
        if on_gpu and "/device:GPU" not in plane.name:
            continue
        for line in plane.lines:
            if on_gpu and not line.name.startswith("Stream"):
                continue  # lines derived from the streams
            for event in line.events:
                if not on_gpu and event.name not in lines:
                    continue
                seconds = event.duration_ns / 1e9 / steps
                by_kind[kind_of(event.name, lines)] += seconds
                names[event.name] += seconds
                count += 1
    return Kernels(by_kind, names, sum(names.values()), wall, count // steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    programs.add_arguments(parser)
    parser.add_argument("--torch-python", default=sys.executable, help="a Python with PyTorch")
    parser.add_argument("--out", type=pathlib.Path, help="Markdown file to append the table to")
    args = parser.parse_args()
    case, results = programs.of_arguments(args), Results(args.out)
    groups, wall = measure(programs.compile_case(case))
    lines = [f"jaxsplit, {wall:.3f} s:", "", "| kind of work | core seconds |", "|---|---|"]
    for name, seconds in sorted(groups.items(), key=lambda item: -item[1]):
        results.add("where", case=str(case), who="jaxsplit", kind=name, core_seconds=seconds)
        lines.append(f"| {name} | {seconds:.3f} |")
    with Torch(args.torch_python) as torch:
        operators = {}
        if torch.about and "error" not in torch.build(case):
            operators = torch.profile()
        if operators:
            lines += ["", "PyTorch, wall-clock:", "", "| operator | seconds |", "|---|---|"]
        for name, seconds in operators.items():
            results.add("where", case=str(case), who="PyTorch", kind=name, seconds=seconds)
            lines.append(f"| {name} | {seconds:.3f} |")
    results.show("\n".join(lines), str(case), programs.device_name())


if __name__ == "__main__":
    with errors_in_one_line():
        main()
