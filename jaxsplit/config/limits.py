"""Limits of a config's values that the images, the machine and the devices set.

`check_memory` refuses only what is certain not to fit: the images of one batch, or the weights,
alone take more memory than there is. `check_new_run` refuses values that would ruin a run in
silence; a run that was begun with them before they were refused goes on.
"""

import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxsplit.augment import policies
from jaxsplit.errors import ConfigError
from jaxsplit.sharding import Sharding

SEEDS = 2**32  # jax.random.key takes no more in 32 bits
_CGROUP = pathlib.Path("/sys/fs/cgroup")


# ---- Memory


def host_memory() -> int | None:
    """Bytes that this machine has, or that the process may have of them; None: not known."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    return min([machine, *_cgroup_limits()])


def _cgroup_limits() -> Iterator[int]:
    """Limits of the control groups of this process, versions 1 and 2, in bytes."""
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
    """Bytes of a device's own memory; None: it has none, as a CPU, or does not tell."""
    try:
        stats = device.memory_stats() or {}
    except Exception:  # not every backend has them, and each has its own error
        return None
    return stats.get("bytes_limit")


def check_memory(
    config: ConfigDict, image_shape: tuple[int, int, int], mesh: Sharding, *, training: bool
) -> None:
    """Checks that the images of one batch, of training and of evaluation, fit into memory.

    Args:
      config: of the run.
      image_shape: (H, W, C) that the networks see.
      mesh: of the run; its devices exist.
      training: whether the run trains.

    Raises:
      ConfigError: they do not, as uint8 and as what the networks compute with.
    """
    of_compute = 2 if config.dtype == "bfloat16" else 4
    batches = [("eval.batch_size" if config.eval.batch_size else "batch_size", 1)]
    if training:
        batches.append(("batch_size", config.optim.accumulate))
    for field, parts in batches:
        size = config.batch_size if field == "batch_size" else config.eval.batch_size
        pixels = math.prod(image_shape) * -(-size // mesh.data_devices)
        device_bytes = pixels + pixels * of_compute // parts
        what = f"{size:,} images of {_shape(image_shape)}"
        sizes = f"{field}={size}, data.image_size={config.data.image_size}"
        _check_fits(sizes, what, device_bytes, mesh)


def check_weights(config: ConfigDict, params: Any, mesh: Sharding) -> None:
    """Checks that the weights fit into memory. `params`: {part: tree of shapes}.

    Raises:
      ConfigError: they alone do not.
    """
    sizes = {part: sum(_bytes(x) for x in jax.tree.leaves(tree)) for part, tree in params.items()}
    device_bytes = sum(
        n // (mesh.net_devices if part == "stack" else 1) for part, n in sizes.items()
    )
    field = f"arch={config.arch!r}, split={config.split}"
    _check_fits(field, "the weights", device_bytes, mesh)


def _check_fits(field: str, what: str, device_bytes: int, mesh: Sharding) -> None:
    """Raises ConfigError if each device needs more bytes than there are."""
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
    """Raises ConfigError if this machine has not so many bytes; names the field and `what`."""
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


# ---- Values that ruin a run in silence


def check_new_run(config: ConfigDict, image_shape: tuple[int, int, int], *, cropped: bool) -> None:
    """Checks what a new run may not have.

    Args:
      config: of the run.
      image_shape: (H, W, C) that the networks see.
      cropped: images are streamed as random-resized crops, so that `crop_padding` is not used.

    Raises:
      ConfigError: the first such field, its value and what is allowed for such images.
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
        deviation = policies.parse_randaugment(augment.randaugment).magnitude_std
        allowed = "with -mstd<0 to 10>, as magnitudes are in 0 to 10"
        need("augment.randaugment", augment.randaugment, deviation <= 10, allowed)
    if not cropped:
        allowed = f"below {side}, the side of {images}, so that each crop holds some of them"
        need("augment.crop_padding", augment.crop_padding, augment.crop_padding < side, allowed)
    if augment.random_resized_crop and not cropped:
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
    """Whether any rectangle of those areas and aspects has a pixel and fits; see `random_erase`."""
    pixels = np.linspace(area[0], area[1], 129)[:, None] * height * width
    ratio = np.geomspace(aspect[0], aspect[1], 129)[None]
    h, w = np.round(np.sqrt(pixels * ratio)), np.round(np.sqrt(pixels / ratio))
    return bool(((h >= 1) & (h < height) & (w >= 1) & (w < width)).any())
