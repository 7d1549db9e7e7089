"""Limits that the images, the machine and the devices set to the values of a config.

`check_memory` and `check_weights` refuse only what cannot fit: the images of one batch alone, or
the weights alone, need more memory than there is. `check_new_run` refuses values that would ruin a
run silently. A run that an older version began with such values may still be resumed.
"""

import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxsplit.augment import randaugment
from jaxsplit.errors import ConfigError
from jaxsplit.sharding import Sharding

SEEDS = 2**32  # the number of seeds that jax.random.key takes with 32-bit integers
_CGROUP = pathlib.Path("/sys/fs/cgroup")


# ---- Memory


def host_memory() -> int | None:
    """Bytes of this machine's memory, or this process's limit if it is lower; None: unknown."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    return min([machine, *_cgroup_limits()])


def _cgroup_limits() -> Iterator[int]:
    """Memory limits in bytes of this process's control groups, versions 1 and 2."""
    try:
        lines = pathlib.Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        controllers, _, group = line.partition(":")[2].partition(":")
        if controllers not in ("", "memory"):
            continue
        root = _CGROUP / controllers
        path = root / group.strip("/")
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        for folder in (root, path, *(p for p in path.parents if p.is_relative_to(root))):
            try:
                yield int((folder / name).read_text())
            except (OSError, ValueError):  # no such file, or "max"
                continue


def device_memory(device: jax.Device) -> int | None:
    """Bytes of a device's own memory; None: it has none, such as a CPU, or does not report it."""
    try:
        stats = device.memory_stats() or {}
    except Exception:  # some backends have no statistics, and each raises its own error
        return None
    return stats.get("bytes_limit")


def check_memory(config: ConfigDict, image_shape: tuple[int, int, int], mesh: Sharding) -> None:
    """Checks that the images of a batch of training, and of one of evaluation, fit into memory.

    They are counted twice: as uint8, and in `config.dtype`.

    Args:
      config: the config of the run.
      image_shape: (H, W, C) of the images that the networks see.
      mesh: the mesh of the run; its devices exist.

    Raises:
      ConfigError: they do not fit.
    """
    check_evaluation_memory(config, image_shape, mesh)
    _check_batch(config, image_shape, mesh, "batch_size", parts=config.optim.accumulate)


def check_evaluation_memory(
    config: ConfigDict, image_shape: tuple[int, int, int], mesh: Sharding
) -> None:
    """As `check_memory`, for a batch of evaluation only."""
    field = "eval.batch_size" if config.eval.batch_size else "batch_size"
    _check_batch(config, image_shape, mesh, field, parts=1)


def _check_batch(
    config: ConfigDict, image_shape: tuple[int, int, int], mesh: Sharding, field: str, parts: int
) -> None:
    """Checks a batch of the size in `field`, computed in so many parts one after another."""
    of_compute = 2 if config.dtype == "bfloat16" else 4
    size = config.batch_size if field == "batch_size" else config.eval.batch_size
    pixels = math.prod(image_shape) * -(-size // mesh.data_devices)
    device_bytes = pixels + pixels * of_compute // parts
    what = f"{size:,} images of {_shape(image_shape)}"
    sizes = f"{field}={size}, data.image_size={config.data.image_size}"
    _check_fits(sizes, what, device_bytes, mesh)


def check_weights(config: ConfigDict, params: Any, mesh: Sharding) -> None:
    """Checks that the weights alone fit into memory. `params`: {part: tree of shapes}.

    Raises:
      ConfigError: they do not.
    """
    sizes = {part: sum(_bytes(x) for x in jax.tree.leaves(tree)) for part, tree in params.items()}
    device_bytes = sum(
        n // (mesh.net_devices if part == "stack" else 1) for part, n in sizes.items()
    )
    field = f"arch={config.arch!r}, split={config.split}"
    _check_fits(field, "the weights", device_bytes, mesh)


def _check_fits(field: str, what: str, device_bytes: int, mesh: Sharding) -> None:
    """Raises ConfigError if `device_bytes` on each device of the mesh exceed its memory."""
    local = list(mesh.mesh.local_devices)
    own = device_memory(local[0])
    if own is None:
        check_host(field, what, device_bytes * len(local))
    elif device_bytes > own:
        raise ConfigError(
            f"{field}: must fit into memory; {what} take {_gigabytes(device_bytes)} of the "
            f"{_gigabytes(own)} of a device"
        )


def check_host(field: str, what: str, needed: int) -> None:
    """Raises ConfigError, with the field and `what`, if `needed` bytes exceed the host memory."""
    there = host_memory()
    if there is not None and needed > there:
        raise ConfigError(
            f"{field}: must fit into memory; {what} take {_gigabytes(needed)} of the "
            f"{_gigabytes(there)} of this machine"
        )


def _gigabytes(count: int) -> str:
    """12345678901 -> '12.3 GB'."""
    return f"{count / 1e9:,.1f} GB"


def _bytes(x: Any) -> int:
    return math.prod(x.shape) * np.dtype(x.dtype).itemsize


def _shape(image_shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, image_shape))


# ---- Values that would ruin a run silently


def check_new_run(config: ConfigDict, image_shape: tuple[int, int, int], *, crops_on: str) -> None:
    """Refuses values with which a new run would learn nothing useful.

    Args:
      config: the config of the run.
      image_shape: (H, W, C) of the images that the networks see.
      crops_on: 'host' if images are streamed as random-resized crops, so that `crop_padding` is
        unused; else 'device'.

    Raises:
      ConfigError: names the first such field, its value and what is allowed for these images.
    """

    def need(field: str, value: Any, fine: bool, allowed: str) -> None:
        if not fine:
            raise ConfigError(f"{field}={value!r}: must be {allowed}")

    height, width, _ = image_shape
    side, augment = min(height, width), config.augment
    images = f"images of {height} x {width} pixels"
    need("seed", config.seed, config.seed < SEEDS, f"in 0 ... {SEEDS - 1}")
    smoothing = config.label_smoothing
    need("label_smoothing", smoothing, smoothing <= 0.9, "in [0, 0.9]")
    for field in ("mixup", "cutmix"):
        alpha = augment[field]
        fine = alpha == 0 or 1e-3 <= alpha <= 100
        need(f"augment.{field}", alpha, fine, "0 (off) or in [0.001, 100]")
    if augment.randaugment:
        deviation = randaugment.parse(augment.randaugment).magnitude_std
        allowed = "with -mstd<0 to 10>, as magnitudes are in 0 to 10"
        need("augment.randaugment", augment.randaugment, deviation <= 10, allowed)
    if crops_on == "device":
        allowed = f"below {side}, the side of {images}, so that each crop holds some of them"
        need("augment.crop_padding", augment.crop_padding, augment.crop_padding < side, allowed)
    if augment.random_resized_crop and crops_on == "device":
        scale, least = config.data.scale_min, 1 / (height * width)
        allowed = f"at least {least:.3g}, one pixel of {images}"
        need("data.scale_min", scale, scale >= least, allowed)
    need("augment.cutout", augment.cutout, augment.cutout < side, f"below {side}, of {images}")
    if augment.erase_prob > 0:
        area, aspect = augment.erase_area, augment.erase_aspect
        need("augment.erase_area", area, area[1] <= 0.8, "at most 0.8 of the image")
        allowed = f"such that with augment.erase_aspect={aspect} a rectangle of some pixels fits"
        fine = _erases(area, aspect, height, width)
        need("augment.erase_area", area, fine, f"{allowed} in {images}")


def _erases(area: Sequence[float], aspect: Sequence[float], height: int, width: int) -> bool:
    """Whether a rectangle of such areas and aspects has a pixel and fits; see `random_erase`."""
    pixels = np.linspace(area[0], area[1], 129)[:, None] * height * width
    ratio = np.geomspace(aspect[0], aspect[1], 129)[None]
    h, w = np.round(np.sqrt(pixels * ratio)), np.round(np.sqrt(pixels / ratio))
    return bool(((h >= 1) & (h < height) & (w >= 1) & (w < width)).any())
