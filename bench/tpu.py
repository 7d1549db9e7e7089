"""Compiles a training step with the TPU's compiler, without a TPU, and reports its needs.

python -m bench.tpu --list
python -m bench.tpu --config=configs/imagenet_seresnet101_x4.py --topology=v5e:4x4 \
    [--set batch_size=1024 --set mesh.net=2] [--lowerings dense unrolled packed] [--out FILE]

libtpu describes a topology and compiles for it on any machine (`pip install -e '.[tpu-compile]'`).
The step is not run. The report has, for one chip: the memory of the step and of the chip, FLOPs,
the padding of arrays to the chip's tiles, bytes in collectives by mesh axis, the size of the code.
It has no times, because XLA's prediction of them is wrong by orders of magnitude.
"""

import argparse
import ast
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from bench import Results, errors_in_one_line, programs
from bench.scaling import collectives
from jaxsplit import config as config_lib
from jaxsplit import costs, data, experiment, stack
from jaxsplit.data.feed import TrainFeed
from jaxsplit.errors import ConfigError
from jaxsplit.report import curves


class Chip(NamedTuple):
    """A device as jax sees it: a chip, with both cores on v4 and v5p."""

    accelerator: str  # TPU_ACCELERATOR_TYPE without the count
    per_count: int  # what the accelerator type counts for each chip
    hbm_gib: float
    peak: float  # bfloat16 FLOP/s
    topologies: tuple[str, ...]


CHIPS = {
    "v4": Chip("v4", 2, 32, 275e12, ("2x2x1", "2x2x2", "2x2x4", "4x4x4")),
    "v5e": Chip("v5litepod", 1, 16, 197e12, ("2x2", "4x4", "8x8", "16x16")),
    "v5p": Chip("v5p", 2, 95, 459e12, ("2x2x1", "2x2x2", "2x2x4", "4x4x4")),
    "v6e": Chip("v6e", 1, 32, 918e12, ("2x2", "4x4", "8x8", "16x16")),
}
_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8, "u64": 8}


def chip_of(topology: str) -> Chip:
    """The chip of a name such as 'v5e:4x4'.

    Raises:
      ConfigError: no such name; lists those that there are.
    """
    kind, _, shape = topology.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        names = ", ".join(f"{k}:{s}" for k, chip in CHIPS.items() for s in chip.topologies)
        raise ConfigError(f"topology={topology!r}: must be one like {names}")
    return CHIPS[kind]


def devices_of(topology: str) -> list:
    """The devices of a topology, described by libtpu.

    Raises:
      ConfigError: there is no libtpu, or it does not know the topology; lists those it knows.
    """
    chip = chip_of(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("libtpu is not installed: pip install -e '.[tpu-compile]'")
    try:
        return _describe(topology, chip)
    except Exception as error:  # what libtpu raises has no type of its own
        kind = topology.partition(":")[0]
        known = []
        for shape in chip.topologies:
            with contextlib.suppress(Exception):
                _describe(f"{kind}:{shape}", chip)
                known.append(f"{kind}:{shape}")
        line = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"topology={topology!r}: libtpu does not know it ({line}); of these it knows "
            + (", ".join(known) or "none")
        ) from None


def _describe(topology: str, chip: Chip) -> list:
    from jax.experimental import topologies

    count = int(np.prod([int(n) for n in topology.partition(":")[2].split("x")]))
    # libtpu asks the machine for these otherwise, and waits for an answer.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # compilers may run side by side
    os.environ["TPU_ACCELERATOR_TYPE"] = f"{chip.accelerator}-{count * chip.per_count}"
    os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
    # Else libtpu describes the two cores of a v4 chip as two devices; jax on a pod has one.
    one = {"chip_config_name": "megacore"} if chip.per_count == 2 else {}
    found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **one)
    return list(found.devices)


def load_config(text: str, fields: Sequence[str]) -> ConfigDict:
    """'FILE.py' or 'FILE.py:ARGUMENT', with fields 'name=value' changed."""
    path, _, argument = text.partition(":")
    spec = importlib.util.spec_from_file_location("measured_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(argument) if argument else module.get_config()
    for field in fields:
        name, _, value = field.partition("=")
        config_lib.check_field(name, value)
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value)
        config.update_from_flattened_dict({name: value})
    return config


def build(config: ConfigDict, devices: list) -> experiment.Experiment:
    """The experiment of a config on these devices, its data set empty but of the right size."""
    source = data.source(config.data)
    size = config.data.image_size or source.image_shape[0]
    shape = (size, size, source.image_shape[2])
    n = max(curves.TRAIN_EXAMPLES.get(config.data.name, 0), config.batch_size)
    images = np.broadcast_to(np.uint8(0), (n, *shape))  # takes no memory
    split = data.Arrays(images, np.broadcast_to(np.int32(0), n))
    fits = n * np.prod(shape) <= config.data.resident_limit * 2**20
    made_up = data.Dataset(
        source.name, source.num_classes, shape, source.mean, source.std, split, None, split, fits
    )
    exp = experiment.build(config, dataset=made_up, devices=devices)
    if source.one_size:
        return exp
    feed = TrainFeed(exp.feed.steps_per_epoch, None, True, exp.feed._make, exp.feed._skipped)
    return programs.changed(exp, feed=feed)


def lower(exp: experiment.Experiment):
    """Lowers the training step with shapes as arguments."""
    config, mesh, feed = exp.config, exp.sharding, exp.feed

    def array(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=mesh.named(spec))

    resident, batch = {}, {}
    if feed.resident is not None:
        split = feed.resident
        resident = {
            "images": array(split.images.shape, np.uint8, mesh.replicated),
            "labels": array(split.labels.shape, np.int32, mesh.replicated),
        }
        batch = {"index": array((config.batch_size,), np.int32, mesh.batch)}
    else:
        shared = exp.resolved.shared_view
        shape = (exp.resolved.num_views, config.batch_size, *exp.dataset.image_shape)
        batch = {
            "images": array(shape, np.uint8, mesh.shared_view if shared else mesh.views),
            "labels": array((config.batch_size,), np.int32, mesh.batch),
        }
    lowered, _ = experiment.lower_step(exp, exp.state_shapes(), resident, batch)
    return lowered


def padding(text: str) -> float:
    """Bytes of the arrays of a compiled TPU program as they lie in tiles, over those they hold.

    Of all results in the program's main computation; `T(8,128)` in a layout is its tile.
    """
    held = tiled = 0
    main = text[text.index("\nENTRY") :]
    for kind, dims, order, tile in re.findall(r"= (\w+)\[([\d,]+)\]\{([\d,]+):T\(([\d,]+)\)", main):
        shape, size = [int(d) for d in dims.split(",")], _SIZES.get(kind, 4)
        minor_first = [shape[int(i)] for i in order.split(",")]
        sides = [int(n) for n in tile.split(",")][::-1]
        padded = [
            -(-n // sides[i]) * sides[i] if i < len(sides) else n for i, n in enumerate(minor_first)
        ]
        held += size * int(np.prod(shape))
        tiled += size * int(np.prod(padded))
    return tiled / held if held else float("nan")


def measure(config: ConfigDict, topology: str) -> dict:
    """Compiles the step; returns its figures for one chip."""
    devices, chip = devices_of(topology), chip_of(topology)
    exp = build(config, devices)
    began = time.perf_counter()
    lowered = lower(exp)
    traced = time.perf_counter()
    mesh = exp.sharding
    row = {
        "topology": topology,
        "mesh": f"{mesh.data_devices} x {mesh.net_devices}",
        "arch": f"{config.arch}/{config.split}",
        "batch": config.batch_size,
        "dtype": config.dtype,
        "lowering": config.lowering,
        "remat": config.remat,
        "hbm_gib": chip.hbm_gib,
        "trace_s": traced - began,
    }
    try:
        compiled = lowered.compile()
    except Exception as error:  # the compiler says here that the memory does not suffice
        line = " ".join(str(error).split())[:300]
        needs = re.search(r"Used ([\d.]+)([GM])", line)
        scale = {"G": 1.0, "M": 2**-10}
        if needs:
            row["needs_gib"] = float(needs[1]) * scale[needs[2]]
        return row | {"error": line, "fits": False}
    row["compile_s"] = time.perf_counter() - traced
    memory, text = compiled.memory_analysis(), compiled.as_text()
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    shape = exp.dataset.image_shape
    cost = costs.cost(exp.resolved.spec, num_classes=exp.dataset.num_classes, image_shape=shape)
    model_flops = 6.0 * cost.macs * config.split * config.batch_size / len(devices)
    flops = float(compiled.cost_analysis()["flops"])
    crossing: Counter = Counter()
    gathered = 0
    for c in collectives(text, mesh.data_devices, mesh.net_devices):
        if c.axis != "none":
            crossing[f"{c.kind} {c.axis}"] += c.bytes
        # Logits, labels and keys are gathered along `net`; activations have four axes.
        gathered += c.kind == "all-gather" and any(len(s) >= 4 for s in c.shapes)
    return row | {
        "needs_gib": peak / 2**30,
        "temporary_gib": memory.temp_size_in_bytes / 2**30,
        "arguments_gib": memory.argument_size_in_bytes / 2**30,
        "code_mib": memory.generated_code_size_in_bytes / 2**20,
        "fits": peak <= chip.hbm_gib * 2**30,
        "gflop": flops / 1e9,
        "model_gflop": model_flops / 1e9,
        "flops_over_model": flops / model_flops,
        "padding": padding(text),
        "collective_mib": {key: b / 2**20 for key, b in sorted(crossing.items())},
        "gathers_of_activations": gathered,
        "at_least_ms": 1e3 * model_flops / chip.peak,
    }


def table(rows: Sequence[dict]) -> str:
    lines = [
        "| topology, mesh data x net | network, batch | lowering | GiB of the chip's | fits "
        "| GFLOP a chip | / model | padding | MiB in collectives | code MiB | compile s |",
        "|---" * 11 + "|",
    ]
    for row in rows:
        start = (
            f"| {row['topology']}, {row['mesh']} | {row['arch']}, {row['batch']}, {row['dtype']}"
            f"{', remat ' + row['remat'] if row['remat'] else ''} | {row['lowering']} "
        )
        needs = f"{row['needs_gib']:.2f}" if "needs_gib" in row else "?"
        start += f"| {needs} of {row['hbm_gib']:g} | {'yes' if row['fits'] else 'no'} "
        if "error" in row:
            lines.append(start + "| - | - | - | - | - | - |")
            continue
        crossing = ", ".join(f"{k} {v:.1f}" for k, v in row["collective_mib"].items()) or "none"
        lines.append(
            start + f"| {row['gflop']:,.0f} | {row['flops_over_model']:.2f} | {row['padding']:.2f} "
            f"| {crossing} | {row['code_mib']:.1f} | {row['compile_s']:.0f} |"
        )
    return "\n".join(lines)


def advice(row: dict) -> str:
    """What to change if a step does not fit into memory; '' if it fits."""
    if row["fits"]:
        return ""
    return (
        f"{row['arch']} at batch {row['batch']} does not fit a chip of {row['topology']} "
        f"({row['hbm_gib']:g} GiB). In this order: config.remat=all (one more forward pass), "
        "dtype=bfloat16, mesh.net (parameters, momenta and activations of fewer networks a chip), "
        "a smaller batch_size or optim.accumulate, more chips."
    )


def known() -> str:
    """A table of the topologies that can be compiled for."""
    lines = [
        "| topology | chips | HBM a chip, GiB | bfloat16 peak a chip, TFLOP/s |",
        "|---|---|---|---|",
    ]
    for kind, chip in CHIPS.items():
        for shape in chip.topologies:
            count = int(np.prod([int(n) for n in shape.split("x")]))
            lines.append(f"| {kind}:{shape} | {count} | {chip.hbm_gib:g} | {chip.peak / 1e12:g} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="the topologies, and nothing else")
    parser.add_argument("--config", default="configs/imagenet_seresnet101_x4.py")
    parser.add_argument("--set", nargs=1, action="extend", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--lowerings", nargs="+", default=["auto"], help=", ".join(stack.LOWERINGS))
    parser.add_argument("--out", type=pathlib.Path, help="Markdown file to append the table to")
    args = parser.parse_args()
    if args.list:
        print(known())
        return
    # Only the compiler of the TPU is used; programs of jaxsplit's own run on the CPU.
    jax.config.update("jax_platforms", "cpu")
    results, rows = Results(args.out), []
    with errors_in_one_line():
        for lowering in args.lowerings:
            config = load_config(args.config, [*args.set, f"lowering={lowering}"])
            row = measure(config, args.topology)
            print(json.dumps(row, default=str), flush=True)
            results.add("tpu", config=args.config, **row)
            rows.append(row)
    notes = "\n\n".join(filter(None, map(advice, rows)))
    made = f"{args.config} {' '.join(args.set)}".strip()
    version = importlib.metadata.version("libtpu")
    text = table(rows) + (f"\n\n{notes}" if notes else "")
    results.show(text, made, "compiled only", f"libtpu {version}")


if __name__ == "__main__":
    main()
