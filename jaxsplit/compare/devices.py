"""Shows each process of a comparison one local accelerator, by environment variables.

Several processes may share a GPU: a small network leaves most of it idle.
"""

import os
import subprocess
import sys
from collections.abc import Mapping

from jaxsplit.errors import ConfigError

_ASK = "import jax; d = jax.local_devices(); print(d[0].platform, len(d))"
# Platform -> the variables in which a process lists the devices that it may see.
_VISIBLE = {
    "gpu": ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"),
    "tpu": ("TPU_VISIBLE_CHIPS",),
}
# A process that sees one chip of a TPU host takes it for the whole slice.
_ALONE = {
    "tpu": {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"},
}
# By default jax takes most of a GPU's memory when it starts, so that a second process finds none.
_SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def environments(text: str, per_device: int = 1) -> list[dict[str, str]]:
    """The variables of each process that runs at the same time.

    Args:
      text: '' for one process, which sees all devices; 'all' for processes on every accelerator; a
        number for so many accelerators.
      per_device: processes on each of them; more than one need a GPU, and '' means 'all' then.

    Raises:
      ConfigError: another text, there are fewer accelerators, or they cannot be shared.
    """
    if per_device < 1:
        raise ConfigError(f"compare.per_device={per_device}: must be a number of 1 or more")
    if not text and per_device == 1:
        return [{}]
    text = text or "all"
    if text != "all" and (not text.isdecimal() or int(text) < 1):
        raise ConfigError(f"compare.devices={text!r}: must be a number of 1 or more, or all")
    platform, there = found()
    if per_device > 1 and platform != "gpu":
        raise ConfigError(
            f"compare.per_device={per_device}: must be 1; this is a {platform}, and only "
            "processes on a GPU can share it"
        )
    if platform not in _VISIBLE:
        if text in ("1", "all"):
            return [{}]
        raise ConfigError(
            f"compare.devices={text!r}: must be 1 or all; there is no accelerator ({platform}), "
            "and processes that share the cores of a CPU slow each other down"
        )
    count = there if text == "all" else int(text)
    if count > there:
        raise ConfigError(f"compare.devices={text!r}: must be at most {there}, all that are here")
    alone = [of_device(platform, i, os.environ) for i in range(count)]
    return alone if per_device == 1 else [{**_SHARED, **one} for one in alone * per_device]


def of_device(platform: str, index: int, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that show one device; `environ` may already show only some of them."""
    variables = dict(_ALONE.get(platform, {}))
    for name in _VISIBLE[platform]:
        shown = [device for device in environ.get(name, "").split(",") if device.strip()]
        if shown or name == _VISIBLE[platform][0]:
            variables[name] = shown[index].strip() if index < len(shown) else str(index)
    return variables


def found() -> tuple[str, int]:
    """(platform, number) of this machine's devices, asked in a process that frees them again.

    Raises:
      ConfigError: jax does not start.
    """
    asked = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True)
    words = asked.stdout.split()
    if asked.returncode or len(words) < 2:
        last = (asked.stderr.strip().splitlines() or ["no output"])[-1]
        raise ConfigError(f"compare.devices: jax finds no devices ({last})")
    return words[-2], int(words[-1])
