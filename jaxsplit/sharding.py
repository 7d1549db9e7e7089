"""The device mesh. No other module names its axes.

Axis `data`: the devices divide the batch. Axis `net`: the groups of devices divide the S networks;
each group holds the parameters, statistics and optimizer state of its own networks. Every Linen
module is applied inside `shard_map`, on a single device too. Losses run outside, on global arrays,
and do not know the mesh.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsplit import compiler
from jaxsplit.errors import ConfigError

DATA, NET = "data", "net"
PyTree = Any


@dataclass(frozen=True)
class Sharding:
    """A mesh, and a PartitionSpec for each kind of array; a spec holds for all leaves of a tree."""

    mesh: Mesh
    networks: P = P(NET)  # [S, ...]: parameters, statistics, optimizer state of the stack
    batch: P = P(DATA)  # [B, ...]
    views: P = P(NET, DATA)  # [S, B, ...]: views of each network, logits, features
    shared_view: P = P(None, DATA)  # [1, B, ...]: views that all networks share
    replicated: P = P()

    @property
    def data_devices(self) -> int:
        """Number of devices that divide the batch."""
        return self.mesh.shape[DATA]

    @property
    def net_devices(self) -> int:
        """Number of device groups that divide the networks."""
        return self.mesh.shape[NET]

    @property
    def platform(self) -> str:
        """'cpu', 'gpu' or 'tpu': the mesh's platform, which may not be this machine's."""
        return self.mesh.devices.flat[0].platform

    def named(self, spec: P) -> NamedSharding:
        """The sharding of an array with this spec on the mesh."""
        return NamedSharding(self.mesh, spec)

    def whole_networks(self) -> "Sharding":
        """The same mesh for other networks, all of which lie on every device."""
        return dataclasses.replace(self, networks=P(), views=self.shared_view)

    def put(self, tree: PyTree, spec: P) -> PyTree:
        """Makes global arrays from a tree that every process holds whole, with equal values."""

        def put(x):
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, self.named(spec), lambda i: x[i])

        return jax.tree.map(put, tree)

    @property
    def part(self) -> tuple[int, int]:
        """(index, count): this process reads part `index` of `count` equal parts of every batch.

        Processes whose devices hold different networks for the same rows of the batch read the
        same part.
        """
        rows = _rows_by_process(self.mesh)
        parts = sorted(set(rows.values()))
        return parts.index(rows[jax.process_index()]), len(parts)

    @property
    def reads_first(self) -> bool:
        """Whether no process with a lower number reads the same part as this one."""
        rows, me = _rows_by_process(self.mesh), jax.process_index()
        return all(rows[p] != rows[me] for p in range(me) if p in rows)

    def put_local(self, tree: PyTree, spec: P) -> PyTree:
        """Makes global arrays from a tree of which each process holds its `part` of the batch."""
        sharding, (_, parts) = self.named(spec), self.part
        axis = list(spec).index(DATA)

        def put(x):
            x = np.asarray(x)
            shape = (*x.shape[:axis], x.shape[axis] * parts, *x.shape[axis + 1 :])
            return jax.make_array_from_process_local_data(sharding, x, shape)

        return jax.tree.map(put, tree)

    def map(
        self, fn: Callable[..., PyTree], in_specs: PyTree, out_specs: PyTree
    ) -> Callable[..., PyTree]:
        """Wraps `fn` in `shard_map`: it runs on each device's part of the arrays."""

        def local(*args):
            with compiler.tracing_for(self.platform):
                return fn(*args)

        return jax.shard_map(local, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs)


@dataclass(frozen=True)
class Unmapped(Sharding):
    """A mesh of one device that applies modules without `shard_map`, for programs to export.

    Such a program names no device, takes batches of any size, and is for `traced_for`: 'cpu',
    'gpu' or 'tpu'.
    """

    traced_for: str = "cpu"

    @property
    def platform(self) -> str:
        """As of `Sharding`."""
        return self.traced_for

    def map(
        self, fn: Callable[..., PyTree], in_specs: PyTree, out_specs: PyTree
    ) -> Callable[..., PyTree]:
        """`fn` itself, inside which the axes of the mesh have one device."""
        del in_specs, out_specs

        def local(*args):
            with compiler.tracing_for(self.traced_for):
                named = fn
                for axis in (DATA, NET):
                    named = jax.vmap(
                        named, in_axes=None, out_axes=None, axis_name=axis, axis_size=1
                    )
                return named(*args)

        return local


def make(
    data: int,
    net: int,
    *,
    num_networks: int,
    batch_size: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Sharding:
    """Makes the mesh data x net over the devices of all processes.

    Args:
      data: number of devices that divide the batch; -1: all that `net` leaves.
      net: number of device groups that divide the networks; must divide `num_networks`.
      num_networks: S.
      batch_size: images per step, which `data` must divide; None: not checked.
      devices: the devices of the mesh; None: all devices of the run.

    Raises:
      ConfigError: the sizes do not fit the devices, S or the batch.
    """
    devices = list(jax.devices() if devices is None else devices)
    check_net(net, num_networks)
    if net > len(devices):
        raise ConfigError(f"mesh.net={net}: must be at most {len(devices)}, the number of devices")
    if data == -1:
        if len(devices) % net:
            both = math.gcd(num_networks, len(devices))
            fits = [n for n in range(1, both + 1) if both % n == 0]
            raise ConfigError(
                f"mesh.net={net}: must divide the {len(devices)} devices with mesh.data=-1: "
                + ", ".join(map(str, fits))
            )
        data = len(devices) // net
    if data < 1:
        raise ConfigError(f"mesh.data={data}: must be -1 (all devices) or at least 1")
    several = jax.process_count() > 1
    if data * net > len(devices) or (several and data * net != len(devices)):
        raise ConfigError(
            f"mesh.data={data}, mesh.net={net}: needs {data * net} devices, "
            f"there are {len(devices)}"
        )
    if batch_size is not None and batch_size % data:
        raise ConfigError(
            f"batch_size={batch_size}: must be divisible by the {data} devices along the batch "
            "(mesh.data)"
        )
    mesh = jax.make_mesh(
        (data, net), (DATA, NET), axis_types=(AxisType.Auto,) * 2, devices=devices[: data * net]
    )
    parts = set(_rows_by_process(mesh).values())
    if len({len(part) for part in parts}) > 1 or sum(map(len, parts)) != data:
        raise ConfigError(
            f"mesh.net={net}: must divide the {jax.local_device_count()} devices of a process, or "
            "be a multiple of them, so that processes read equal parts of a batch"
        )
    return Sharding(mesh)


def check_net(net: int, num_networks: int) -> None:
    """Raises ConfigError unless so many groups of devices can divide the networks."""
    if net < 1 or num_networks % net:
        fits = ", ".join(str(n) for n in range(1, num_networks + 1) if num_networks % n == 0)
        raise ConfigError(f"mesh.net={net}: must divide the {num_networks} networks: {fits}")


def _rows_by_process(mesh: Mesh) -> dict[int, tuple[int, ...]]:
    """Process index -> the positions of its devices along `data`."""
    rows: dict[int, set[int]] = {}
    for row, devices in enumerate(mesh.devices):
        for device in devices:
            rows.setdefault(device.process_index, set()).add(row)
    return {process: tuple(sorted(found)) for process, found in rows.items()}


def first_network(local_networks: int) -> Array:
    """Index among all S networks of this device's first one; for use inside `Sharding.map`."""
    return lax.axis_index(NET) * local_networks


def first_example(local_batch: int) -> Array:
    """Index in the global batch of this device's first example; for use inside `Sharding.map`."""
    return lax.axis_index(DATA) * local_batch


def mean_over_batch(tree: PyTree) -> PyTree:
    """Mean over the devices that divide the batch; for use inside `Sharding.map`."""
    return lax.pmean(tree, DATA)


def fold_in_data(key: Array) -> Array:
    """A key of this device's part of the batch; for use inside `Sharding.map`."""
    return jax.random.fold_in(key, lax.axis_index(DATA))


def same_axes(*arrays: Array) -> tuple[Array, ...]:
    """Casts arrays to vary over the same mesh axes, as `custom_vjp` requires.

    For use inside `Sharding.map`. The cast is outside the `custom_vjp`, so differentiation sums the
    gradient of a replicated operand over the devices.
    """
    varying = [_varying(x) for x in arrays]
    every = frozenset().union(*varying)
    return tuple(
        lax.pcast(x, tuple(sorted(every - own)), to="varying") if every - own else x
        for x, own in zip(arrays, varying, strict=True)
    )


def _varying(x: Array) -> frozenset[str]:
    aval = jax.typeof(x)
    typed = getattr(aval, "mat", None) or getattr(aval, "manual_axis_type", None)  # jax >= 0.12
    return frozenset(typed.varying) if typed is not None else getattr(aval, "vma", frozenset())
