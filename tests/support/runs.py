"""What the tests of whole runs share: small configs, and what lies in a workdir."""

import dataclasses
import importlib
import json
import signal

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import common
from jaxsplit import experiment, metrics
from jaxsplit.checkpoints import read, store
from jaxsplit.hosts import signals
from tests.support import nets
from tests.support.paths import ROOT

ENSEMBLE = "test/ensemble/top1"

DIGITS = f"--config={ROOT / 'configs' / 'digits_wrn16_4_x4.py'}"
DATA = {  # config, and its arguments: the data set that it reads
    "cifar10": "cifar10",
    "cifar100:arch=resnet110,split=2": "cifar100",
    "svhn:split=2": "svhn_cropped",
    "fashion_mnist_wrn16_4_x4": "fashion_mnist",
    "imagenet_seresnet101_x4": "imagenet2012",
}


def tiny(**fields) -> ConfigDict:
    """Two small networks on 8x8 images, 4 steps on one device; random crops, flips and mixup."""
    config = common.get_config()
    config.arch, config.split = nets.SMALLEST, 2
    config.divide_anyway = True  # so narrow a network does not divide
    config.trackers = ()  # TensorBoard files take time to write
    config.data.name, config.data.image_size = "synthetic", 8
    config.batch_size, config.eval.batch_size, config.mesh.data = 16, 256, 1
    config.duration = "4 steps"
    config.schedule.warmup, config.cotrain.warmup = "1 steps", "2 steps"
    config.log_every, config.eval.every, config.checkpoint.every = "1 steps", "2 steps", "2 steps"
    config.augment.crop_padding, config.augment.erase_prob = 1, 0.5
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


def one_network(**fields) -> ConfigDict:
    """One small network on 8x8 images for 4 steps."""
    config = common.get_config()
    config.arch, config.split, config.method = nets.SMALLEST, 1, "single"
    config.divide_anyway = True
    config.trackers = ()  # TensorBoard files take time to write
    config.data.name, config.data.image_size = "synthetic", 8
    config.batch_size, config.eval.batch_size, config.mesh.data = 16, 256, 1
    config.duration = "4 steps"
    config.schedule.warmup = "1 steps"
    config.log_every, config.eval.every, config.checkpoint.every = "1 steps", "4 steps", "2 steps"
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


def config_of(name: str) -> ConfigDict:
    """What --config=configs/<name> stands for; with or without arguments behind a colon."""
    module, *arguments = name.split(":")
    return importlib.import_module(f"configs.{module}").get_config(*arguments)


def shallow(spec):
    """One block a stage, and few channels where that is one field."""
    if hasattr(spec, "depth"):  # EfficientNet
        return dataclasses.replace(spec, width=0.3, depth=0.25)
    if hasattr(spec, "growth"):  # DenseNet
        return dataclasses.replace(spec, layers=(1,) * len(spec.layers))
    narrow = dict(width=32) if spec.arch.startswith("wide") and spec.image_size == 32 else {}
    return dataclasses.replace(spec, blocks=(1,) * len(spec.blocks), **narrow)


def lines_of(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / metrics.JSONL).read_text().splitlines()]


def untimed(workdir) -> list[dict]:
    return [{k: v for k, v in x.items() if k != "images_per_second"} for x in lines_of(workdir)]


def events(path) -> dict[str, list[tuple[int, float]]]:
    """tag -> (step, value), as TensorBoard reads the event files of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    accumulator = EventAccumulator(str(path), size_guidance={"tensors": 0, "scalars": 0})
    accumulator.Reload()
    tags = accumulator.Tags()
    read = {t: [(e.step, e.value) for e in accumulator.Scalars(t)] for t in tags["scalars"]}
    for tag in tags["tensors"]:
        found = accumulator.Tensors(tag)
        read[tag] = [(e.step, tensor_util.make_ndarray(e.tensor_proto).item()) for e in found]
    return read


def steps_in(workdir) -> list[int]:
    folder = workdir / store.FOLDER
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def files_of(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def state_at(config, workdir, step: int):
    checkpoints = read.Reader(workdir, ENSEMBLE)
    state = read.restore(checkpoints.path(step), experiment.build(config).state_shapes())
    return state


def assert_same_bits(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        same = x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        assert same, jax.tree_util.keystr(path)


class AskedAt(signals.Stop):
    """Asked to stop while a step is made."""

    def __init__(self, step: int):
        super().__init__()
        self.step = step

    def after(self, step: int) -> bool:
        if step == self.step:
            self._handle(signal.SIGTERM, None)
        return super().after(step)
