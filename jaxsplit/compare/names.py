"""Names of groups and runs: also those of their folders, so they are safe on every file system."""

import re
import zlib
from collections.abc import Mapping
from typing import Any

_MOST = 120  # characters; file systems allow 255


def of_group(method: str, split: int, axes: Mapping[str, Any]) -> str:
    """'<method>-s<split>', followed by '-<last part of the field>=<value>' for each axis.

    Where two axes end alike, their whole names are used. A name that would be too long ends in a
    checksum.
    """
    last = [field.rpartition(".")[2] for field in axes]
    short = last if len(set(last)) == len(last) else list(axes)
    parts = [f"{method}-s{split}"]
    parts += [f"{name}={_safe(value)}" for name, value in zip(short, axes.values(), strict=True)]
    return _shortened("-".join(parts))


def of_run(group: str, seed: int) -> str:
    """'<group>-seed<seed>'."""
    return f"{group}-seed{seed}"


def _safe(value: Any) -> str:
    """A value as text; a checksum marks a text in which characters are replaced."""
    text = f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
    if isinstance(value, float):
        text = text.replace("e+", "e")
    safe = re.sub(r"[^A-Za-z0-9._%+-]+", "_", text.replace("+", "_").replace(" ", "+"))
    if safe != text.replace(" ", "+") or "+" in text:
        safe += f"~{zlib.crc32(text.encode()):08x}"
    return safe


def _shortened(name: str) -> str:
    if len(name) <= _MOST:
        return name
    return f"{name[: _MOST - 9]}~{zlib.crc32(name.encode()):08x}"
