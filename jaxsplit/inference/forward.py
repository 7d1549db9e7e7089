"""Compiled forward passes of restored networks, over batches padded to powers of two."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax import Array

from jaxsplit import compiler
from jaxsplit.inference.restore import Restored


class Forward:
    """Applies networks to batches; compiles once for each set of names and padded batch size.

    Args:
      restored: the networks.
    """

    def __init__(self, restored: Restored) -> None:
        self.restored = restored
        self.answers = restored.answers()
        self._index = {
            name: single.index
            for name, single in restored.singles.items()
            if single.part == "stack"
        }
        self._programs: dict[tuple[str, ...], Callable[[Array], dict[str, Array]]] = {}
        self._options = compiler.options(restored.sharding.platform)
        # One program for any network alone: what differs are its variables.
        self._of_stack = jax.jit(restored.predict_stack, compiler_options=self._options)

    def padded(self, count: int) -> int:
        """The rows of a batch of `count` images: a power of two on each device."""
        devices = self.restored.sharding.data_devices
        return devices * (1 << max(0, (-(-count // devices) - 1).bit_length()))

    def pieces(self, count: int, limit: int) -> list[int]:
        """`count` images as batches of at most `limit` of which padding is at most a quarter.

        Few are not worth a second batch, so that up to eight a device are one.
        """
        found, devices = [], self.restored.sharding.data_devices
        while count:
            rows = self.padded(count)
            if rows > limit or (rows > 8 * devices and rows - count > rows // 4):
                found.append(min(limit, rows // 2))
            else:
                found.append(count)
            count -= found[-1]
        return found

    def put(self, images: np.ndarray) -> Array:
        """uint8[b, H, W, C] on the devices, padded with black images."""
        rows = self.padded(len(images))
        if rows > len(images):
            black = np.zeros((rows - len(images), *images.shape[1:]), np.uint8)
            images = np.concatenate([images, black])
        mesh = self.restored.sharding
        return mesh.put_local(images, mesh.batch)

    def __call__(self, images: Array, names: Sequence[str]) -> dict[str, Array]:
        """uint8[B, H, W, C] as `put` makes it -> name -> logits float[B, K]; waits for nothing.

        If all names are networks of the stack, no other is computed.
        """
        key = tuple(names)
        if key not in self._programs:
            self._programs[key] = self._program(key)
        return self._programs[key](images)

    def cascaded(
        self, images: np.ndarray, names: Sequence[str], limit: int
    ) -> Callable[[int, np.ndarray | None], np.ndarray]:
        """`run` of `cascade.compact`: one network on what is left of uint8[N, H, W, C].

        `limit`: images at once at most.
        """
        left = images

        def run(k: int, rows: np.ndarray | None) -> np.ndarray:
            nonlocal left
            left = left if rows is None else left[rows]
            at, parts = 0, []
            for size in self.pieces(len(left), limit):
                logits = self(self.put(left[at : at + size]), names[k : k + 1])[names[k]]
                parts.append((logits, size))
                at += size
            return np.concatenate([np.asarray(logits)[:size] for logits, size in parts])

        return run

    def _program(self, names: tuple[str, ...]) -> Callable[[Array], dict[str, Array]]:
        restored, index = self.restored, self._index
        everything = set(self.answers) <= set(names)
        if not everything and all(name in index for name in names):
            layers = restored.take([index[name] for name in names])

            def of_stack(images: Array) -> dict[str, Array]:
                return dict(zip(names, self._of_stack(layers, images), strict=True))

            return of_stack

        def of_all(variables: dict, images: Array) -> dict[str, Array]:
            named = restored.predict(variables, images)
            return {name: named[name] for name in names}

        every = jax.jit(of_all, compiler_options=self._options)
        return lambda images: every(restored.variables, images)
