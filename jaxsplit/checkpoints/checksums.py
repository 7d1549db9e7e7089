"""Checksums of every array of a checkpoint; they reveal a byte that has changed on disk.

An array has one CRC-32 for each index of its first axis. If arrays lie on several devices, that is
the axis of the networks, so each process computes and checks the checksums of the networks that it
holds. The checksums are therefore the same on any mesh, and no array is sent anywhere.
"""

import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_MAX_ROWS = 64  # a longer first axis is not the axis of the networks; the array then is one row


def of_arrays(tree: Any) -> dict[str, str]:
    """The checksums of a tree: 'params/stack/head/bias' -> 'float32[2,10] 8d1f00aa 00c0ffee'.

    A value holds dtype and shape, then the CRC-32 of each row's bytes in C order. Collective.
    """
    found = _held(tree)
    if jax.process_count() > 1:
        rows = [row for _, crcs in found.values() for row in crcs]
        table = np.array([[row is not None for row in rows], [row or 0 for row in rows]], np.uint32)
        # uint32[processes, 2, rows]; processes that hold a row agree on it.
        every = np.asarray(multihost_utils.process_allgather(table))
        merged = iter(np.max(every[:, 0] * every[:, 1], axis=0).tolist())
        found = {n: (kind, [next(merged) for _ in crcs]) for n, (kind, crcs) in found.items()}
    return {n: " ".join([kind, *(f"{c:08x}" for c in crcs)]) for n, (kind, crcs) in found.items()}


def differing(saved: dict[str, str], tree: Any) -> list[str]:
    """Names of the arrays that differ from what was saved, among those that this process holds.

    It skips arrays that were read as another dtype than they have on disk.
    """
    names = []
    for name, (kind, crcs) in _held(tree).items():
        before, *rows = saved[name].split() if saved.get(name) else [kind]
        if before.partition("[")[0] != kind.partition("[")[0]:
            continue
        same = before == kind and len(rows) == len(crcs)
        pairs = zip(rows, crcs, strict=False)
        if not same or any(c is not None and row != f"{c:08x}" for row, c in pairs):
            names.append(name)
    return names


def of_json(item: Any) -> str:
    """The CRC-32 of a JSON value; the order of its keys does not matter."""
    return f"{zlib.crc32(json.dumps(item, sort_keys=True).encode()):08x}"


def shape(text: str) -> tuple[int, ...]:
    """The shape in a checksum text: (2, 10) for 'float32[2,10] 8d1f00aa 00c0ffee'.

    Raises:
      ValueError: the text has another form.
    """
    numbers = text.partition(" ")[0].partition("[")[2].removesuffix("]")
    return tuple(int(n) for n in numbers.split(",") if n)


def _held(tree: Any) -> dict[str, tuple[str, list[int | None]]]:
    """name -> (dtype and shape, CRC-32 of each row; None: another process holds the row)."""
    leaves = jax.tree.leaves_with_path(tree)
    for _, leaf in leaves:
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()  # starts all copies before it waits for the first
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # zlib lets other threads run
        made = pool.map(_of_array, [leaf for _, leaf in leaves])
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
        return dict(zip(names, made, strict=True))


def _of_array(x: Any) -> tuple[str, list[int | None]]:
    count = x.shape[0] if x.ndim and 0 < x.shape[0] <= _MAX_ROWS else 1
    crcs: list[int | None] = [None] * count
    for first, part in _parts(x):
        rows = part if count > 1 else [part]
        for k, row in enumerate(rows, first):
            crcs[k] = zlib.crc32(np.ascontiguousarray(row).reshape(-1).view(np.uint8))
    return f"{x.dtype}[{','.join(map(str, x.shape))}]", crcs


def _parts(x: Any) -> list[tuple[int, np.ndarray]]:
    """(first row, rows) of each part that this process holds, cut along the first axis."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
        return [(0, np.asarray(x))]
    parts = {(s.index[0].start or 0 if x.ndim else 0): s for s in x.addressable_shards}
    if any(s.data.shape[1:] != x.shape[1:] for s in parts.values()):
        raise ValueError(f"an array of shape {x.shape} is cut along another axis than the first")
    return [(first, np.asarray(s.data)) for first, s in parts.items()]
