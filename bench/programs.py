"""The training step that benchmarks measure: the program of a run, on random images.

`experiment.lower_step` makes it, as in a run: views (or only the normalisation), forward pass,
losses, backward pass, optimizer, metrics.
"""

import argparse
import dataclasses
import math
import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import common
from jaxsplit import compiler, costs, data, experiment, metrics, state
from jaxsplit import config as config_lib


@dataclasses.dataclass(frozen=True)
class Case:
    """A training step: `arch` divided in `split`, on images of size x size x channels."""

    arch: str = "wide_resnet16_8"
    split: int = 4
    batch: int = 32
    size: int = 32  # pixels
    channels: int = 3
    classes: int = 100
    dtype: str = "float32"
    lowering: str = "auto"
    method: str = ""  # '': cotrain, or single if S is 1
    views: bool = False  # crop, flip, AutoAugment and mixup as for CIFAR; else none
    shared: bool = False  # all networks see the same view
    remat: str = ""
    divide: bool = True  # False: each network is the whole `arch`
    divide_in: int = 0  # as config.divide_in

    @property
    def name(self) -> str:
        divided = f"/{self.divide_in or self.split}" if self.divide else ""
        several = f" x {self.split}" if self.divide_in or not self.divide else ""
        return f"{self.arch}{divided}{several}"

    def __str__(self) -> str:
        size = f"{self.size}x{self.size}"
        return f"{self.name}, batch {self.batch}, {size}, {self.dtype}, {self.lowering}"


changed = dataclasses.replace


def add_arguments(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """--arch, --split, --batch ... of a `Case`."""
    base = Case(**defaults)
    group = parser.add_argument_group("the training step")
    group.add_argument("--arch", default=base.arch)
    group.add_argument("--split", type=int, default=base.split, help="networks that replace it")
    group.add_argument("--batch", type=int, default=base.batch)
    group.add_argument("--size", type=int, default=base.size, help="side of the images in pixels")
    group.add_argument("--channels", type=int, default=base.channels)
    group.add_argument("--classes", type=int, default=base.classes)
    group.add_argument("--dtype", default=base.dtype, choices=config_lib.DTYPES)
    group.add_argument("--lowering", default=base.lowering, help="as config.lowering")
    group.add_argument("--remat", default=base.remat, help="as config.remat")
    group.add_argument("--views", action="store_true", help="with CIFAR's augmentation")


def of_arguments(args: argparse.Namespace) -> Case:
    names = {field.name for field in dataclasses.fields(Case)} & set(vars(args))
    return Case(**{name: getattr(args, name) for name in names})


def config_of(case: Case) -> ConfigDict:
    """The config of a case, with the data set `synthetic`."""
    config = common.get_config()
    config.arch, config.split = case.arch, case.split
    config.divide, config.divide_in = case.divide, case.divide_in
    config.method = case.method or ("single" if case.split == 1 else "cotrain")
    config.views = "same" if case.shared else "different"
    config.batch_size, config.dtype = case.batch, case.dtype
    config.lowering, config.remat = case.lowering, case.remat
    config.data.name, config.data.image_size = "synthetic", max(case.size, 4)
    if case.views:
        config.augment.autoaugment = "cifar10"
    else:
        config.augment.crop_padding, config.augment.flip, config.augment.mixup = 0, False, 0.0
    config.duration = "1000 steps"
    config.schedule.warmup = config.cotrain.warmup = config.ffsd.warmup = "0 steps"
    return config


def dataset_of(config: ConfigDict, num_classes: int, channels: int, size: int) -> data.Dataset:
    """A data set of random images, as many as a batch holds."""
    shape, n = (size, size, channels), config.batch_size
    rng = np.random.default_rng(0)
    split = data.Arrays(
        rng.integers(0, 256, (n, *shape), dtype=np.uint8),
        rng.integers(0, num_classes, n, dtype=np.int32),
    )
    mean, std = (0.5,) * channels, (0.25,) * channels
    return data.Dataset("synthetic", num_classes, shape, mean, std, split, None, split)


class Program(NamedTuple):
    """A compiled training step and its arguments."""

    exp: experiment.Experiment
    compiled: Any
    arguments: list  # state, totals, resident, batch; the first two are replaced at every step
    trace_s: float
    compile_s: float

    def run(self) -> None:
        """Runs a step and waits for its end."""
        out = self.compiled(*self.arguments)
        self.arguments[:2] = jax.block_until_ready(out)

    def seconds(self, steps: int = 1) -> float:
        """Mean seconds of n steps that are queued one after another, as in a run."""
        began = time.perf_counter()
        for _ in range(steps):
            self.arguments[:2] = self.compiled(*self.arguments)
        jax.block_until_ready(self.arguments[:2])
        return (time.perf_counter() - began) / steps

    @property
    def parameters(self) -> int:
        """Trained numbers of all networks."""
        return sum(x.size for x in jax.tree.leaves(self.arguments[0].params))

    @property
    def temporary_mib(self) -> float:
        return self.compiled.memory_analysis().temp_size_in_bytes / 2**20

    def loss(self) -> float:
        """The mean loss of the steps so far."""
        return float(metrics.means(jax.device_get(self.arguments[1]))["loss"])


def build(case: Case, devices: Sequence[jax.Device] | None = None) -> experiment.Experiment:
    """The experiment of a case, on one device or on the given ones."""
    config = config_of(case)
    made_up = dataset_of(config, case.classes, case.channels, case.size)
    return experiment.build(config, dataset=made_up, devices=devices or jax.devices()[:1])


def compile_case(
    case: Case,
    options: dict | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Program:
    """The program of a case, compiled with jaxsplit's compiler options and the given ones."""
    exp = build(case, devices)
    mesh, split = exp.sharding, exp.feed.resident
    resident = mesh.put({"images": split.images, "labels": split.labels}, mesh.replicated)
    batches = exp.feed.batches(0)
    batch = experiment.put_batch(exp, next(batches))
    batches.close()
    start = state.init(exp.method, exp.optimizer, 0, exp.dataset.image_shape, mesh)
    began = time.perf_counter()
    lowered, shapes = experiment.lower_step(exp, start, resident, batch)
    traced = time.perf_counter()
    own = compiler.options(mesh.platform)
    compiled = lowered.compile(compiler_options=(own or {}) | (options or {}) or None)
    done = time.perf_counter()
    totals = mesh.put(metrics.zeros(shapes), mesh.replicated)
    arguments = [start, totals, resident, batch]
    return Program(exp, compiled, arguments, traced - began, done - traced)


def train_flops(case: Case) -> float:
    """Model FLOPs of a training step: 6 per multiply-add of the forward pass (2, and 4 backward).

    By convention normalisation, losses, views and recomputation do not count.
    """
    config = config_of(case)
    shape = (case.size, case.size, case.channels)
    cost = costs.cost(config_lib.resolve(config).spec, num_classes=case.classes, image_shape=shape)
    return 6.0 * cost.macs * case.split * case.batch


# Dense peaks by the makers' data sheets, FLOP/s of one device: bfloat16, and float32 as jax's
# default precision computes it there (TF32 on tensor cores; bfloat16 passes on a TPU).
PEAKS = {
    "h100": {"bfloat16": 989.4e12, "float32": 494.7e12},
    "h200": {"bfloat16": 989.4e12, "float32": 494.7e12},
    "a100": {"bfloat16": 312e12, "float32": 156e12},
    "v100": {"float32": 15.7e12},
    "l4": {"bfloat16": 121e12, "float32": 60e12},
    "tpu v4": {"bfloat16": 275e12, "float32": 275e12},
    "tpu v5 lite": {"bfloat16": 197e12, "float32": 197e12},
    "tpu v5e": {"bfloat16": 197e12, "float32": 197e12},
    "tpu v5p": {"bfloat16": 459e12, "float32": 459e12},
    "tpu v5": {"bfloat16": 459e12, "float32": 459e12},
    "tpu v6 lite": {"bfloat16": 918e12, "float32": 918e12},
    "tpu v6e": {"bfloat16": 918e12, "float32": 918e12},
}


def peak(device_kind: str, dtype: str) -> float:
    """Peak FLOP/s of a device; NaN if unknown."""
    kind = device_kind.lower()
    for name, by_dtype in PEAKS.items():
        if name in kind:
            return by_dtype.get(dtype, math.nan)
    return math.nan


def device_name() -> str:
    """The name of the first device; for a CPU with its number of cores."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return f"CPU, {os.cpu_count()} cores"
    return device.device_kind
