"""Counts FLOPs per device, and bytes between devices, of a training step on several meshes.

python -m bench.scaling [--arch wide_resnet16_8] [--networks 8] [--method cotrain] [--out FILE]

Compiles the step for 8 virtual CPU devices. From the program it reads the FLOPs of a device (XLA's
count) and the bytes that a device sends into collectives, by kind and mesh axis. The step is not
run. For devices and links of given speeds it predicts the time of a step. `docs/scaling.md` draws
conclusions from the numbers.
"""

import argparse
import os
import pathlib
import re
from collections import Counter
from typing import NamedTuple

if __name__ == "__main__":  # before jax starts
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true",
    )
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from bench import made_by, show
from configs import common
from jaxsplit import experiment

MESHES = ((1, 1), (2, 1), (4, 1), (8, 1), (4, 2), (2, 4), (1, 8))
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4}
_BYTES |= {"f64": 8, "s64": 8, "u64": 8}
_KINDS = "all-gather|all-to-all|all-reduce|collective-permute|reduce-scatter|collective-broadcast"


class Collective(NamedTuple):
    """A collective of a compiled program; `shapes` and `bytes` are of the result on one device."""

    kind: str
    axis: str  # data, net, both, or ? if the program does not tell
    shapes: tuple[tuple[int, ...], ...]
    bytes: int


def collectives(text: str, data: int, net: int) -> list[Collective]:
    """The collectives of a compiled program (`as_text()`) on a mesh of data x net devices."""
    found = []
    for line in text.splitlines():
        match = re.search(rf"= (.*?) ({_KINDS})(?:-start)?\(", line)
        if not match:
            continue
        typed = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
        shapes = tuple(tuple(map(int, dims.split(","))) if dims else () for _, dims in typed)
        size = sum(
            _BYTES[kind] * int(np.prod(shape))
            for (kind, _), shape in zip(typed, shapes, strict=True)
        )
        found.append(Collective(match[2], _axis(line, data, net), shapes, size))
    return found


def _axis(line: str, data: int, net: int) -> str:
    """The mesh axis along which the devices of a group lie; devices are numbered row by row."""
    groups = _groups(line)
    if groups is None:
        return "?"
    crosses_data = any(len({device // net for device in group}) > 1 for group in groups)
    crosses_net = any(len({device % net for device in group}) > 1 for group in groups)
    return {(1, 1): "both", (1, 0): "data", (0, 1): "net", (0, 0): "none"}[
        int(crosses_data), int(crosses_net)
    ]


def _groups(line: str) -> list[list[int]] | None:
    """The groups of devices of a collective, in any of XLA's notations."""
    listed = r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}"  # {{0,2},{1,3}}
    if match := re.search(listed, line):
        return [list(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", match[1])]
    order = r"(?:T\(([\d,]+)\))?"
    if match := re.search(rf"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\]{order}", line):
        return _devices(match[2], match[3]).reshape(_numbers(match[1])).tolist()  # [2,2]<=[4]
    # mesh['data'=2,'net'=2], device_ids=([2,2]T(1,0)) {'net'}
    ids = rf"(?:, device_ids=\(\[([\d,]+)\]{order}\))?"
    if match := re.search(rf"replica_groups=mesh\[(.*?)\]{ids} \{{(.*?)\}}", line):
        axes = re.findall(r"'(\w+)'=(\d+)", match[1])
        shape = [int(size) for _, size in axes]
        devices = _devices(match[2] or ",".join(map(str, shape)), match[3]).reshape(shape)
        within = [i for i, (name, _) in enumerate(axes) if f"'{name}'" in match[4]]
        devices = np.moveaxis(devices, within, range(-len(within), 0))
        return devices.reshape(-1, int(np.prod([shape[i] for i in within]))).tolist()
    return None


def _devices(dims: str, order: str | None) -> np.ndarray:
    """The numbers 0, 1, 2 ... in the shape `dims`, with transposed axes."""
    shape = _numbers(dims)
    devices = np.arange(np.prod(shape)).reshape(shape)
    return devices.transpose(_numbers(order)) if order else devices


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


class Step(NamedTuple):
    """A compiled training step that was not run."""

    exp: experiment.Experiment
    flops: float  # of one device
    collectives: list[Collective]


def compile_step(config) -> Step:
    """The step of a config whose data lie on the device."""
    exp = experiment.build(config)
    everywhere = exp.sharding.named(exp.sharding.replicated)
    split = exp.feed.resident
    resident = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere)
        for name, x in (("images", split.images), ("labels", split.labels))
    }
    batches = exp.feed.batches(0)
    batch = experiment.put_batch(exp, next(batches))
    batches.close()
    compiled, _ = experiment.compile_step(exp, exp.state_shapes(), resident, batch)
    data, net = exp.sharding.data_devices, exp.sharding.net_devices
    found = collectives(compiled.as_text(), data, net)
    return Step(exp, float(compiled.cost_analysis()["flops"]), found)


def make_config(args, data: int, net: int):
    config = common.get_config()
    config.arch, config.split, config.method = args.arch, args.networks, args.method
    config.divide = args.divide
    config.batch_size = args.batch
    config.batch_norm, config.lowering = args.batch_norm, "dense"
    config.data.name = "synthetic"
    config.data.image_size = args.size
    config.augment.mixup = 0.0
    config.duration = "10 steps"
    config.schedule.warmup = config.cotrain.warmup = config.ffsd.warmup = "0 steps"
    config.mesh.data, config.mesh.net = data, net
    return config


def report(args) -> str:
    lines = [
        f"{args.method}, {args.arch} {'divided in' if args.divide else 'x'} {args.networks}, "
        f"batch {args.batch}, {args.size}x{args.size}, BatchNorm {args.batch_norm}, float32; "
        f"{made_by('8 virtual devices', f'jax {jax.__version__}')}; compiled only",
        "",
        "| mesh data x net | MFLOP a device | x devices / that of 1 x 1 "
        "| KiB along data | KiB along net | parameters a device "
        "| us computing | us along data | us along net |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    base = None
    kinds: dict[tuple[int, int], Counter] = {}
    for data, net in args.meshes:
        step = compile_step(make_config(args, data, net))
        base = base or step.flops
        kinds[data, net] = Counter()
        along, seconds = Counter(), Counter()
        for c in step.collectives:
            kinds[data, net][c.kind, c.axis] += c.bytes
            for axis, devices, link in (
                ("data", data, args.data_link),
                ("net", net, args.net_link),
            ):
                if c.axis in (axis, "both"):
                    along[axis] += c.bytes
                    seconds[axis] += predicted_seconds(c, devices, link)
        params = sum(
            int(np.prod(leaf.sharding.shard_shape(leaf.shape)))
            for leaf in jax.tree.leaves(step.exp.state_shapes().params)
        )
        lines.append(
            f"| {data} x {net} | {step.flops / 1e6:,.0f} | {step.flops * data * net / base:.3f} "
            f"| {along['data'] / 2**10:,.1f} | {along['net'] / 2**10:,.1f} | {params:,} "
            f"| {step.flops / args.tflops / 1e6:,.0f} "
            f"| {seconds['data'] * 1e6:,.1f} | {seconds['net'] * 1e6:,.1f} |"
        )
    found = sorted({key for counted in kinds.values() for key in counted})
    lines += [
        "",
        f"Predicted for {args.tflops:g} TFLOP/s a device and rings of {args.data_link:g} GB/s "
        f"along data, {args.net_link:g} GB/s along net; nothing overlaps.",
        "",
        "| KiB of collectives | " + " | ".join(f"{kind}, {axis}" for kind, axis in found) + " |",
        "|---" * (len(found) + 1) + "|",
    ]
    for (data, net), counted in kinds.items():
        cells = " | ".join(f"{counted[key] / 2**10:,.1f}" for key in found)
        lines.append(f"| {data} x {net} | {cells} |")
    return "\n".join(lines) + "\n"


def predicted_seconds(c: Collective, devices: int, link: float) -> float:
    """Seconds of a collective over a ring of devices with links of the given GB/s."""
    share = (devices - 1) / devices  # of the result comes from others
    times = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(c.kind, share)
    return times * c.bytes / link / 1e9


def _mesh(text: str) -> tuple[int, int]:
    data, _, net = text.partition("x")
    return int(data), int(net)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="wide_resnet16_8")
    parser.add_argument("--networks", type=int, default=8)
    parser.add_argument("--method", default="cotrain")
    parser.add_argument("--divide", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--batch", type=int, default=64, help="images of a step, of all devices")
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--batch_norm", default="local")
    parser.add_argument("--meshes", type=_mesh, nargs="+", default=MESHES, help="such as 4x2")
    parser.add_argument("--tflops", type=float, default=40.0, help="a device's, sustained")
    parser.add_argument("--data_link", type=float, default=100.0, help="GB/s between neighbours")
    parser.add_argument("--net_link", type=float, default=12.5, help="GB/s between neighbours")
    parser.add_argument("--out", type=pathlib.Path, help="Markdown file to append the table to")
    args = parser.parse_args()
    text = report(args)
    show(text, args.out)


if __name__ == "__main__":
    main()
