"""The feature maps of a network by name, in the order in which the network computes them."""

from collections.abc import Iterable
from typing import Any

import jax


@jax.tree_util.register_pytree_with_keys_class
class Features(dict[str, Any]):
    """A dict that keeps its order in JAX's transformations, which sort the keys of a plain dict.

    As a pytree, its values are the children; its names, in order, are part of the structure.
    """

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], tuple[str, ...]]:
        """((key, value), ...), names."""
        return tuple((jax.tree_util.DictKey(k), v) for k, v in self.items()), tuple(self)

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[str, ...]]:
        """values, names."""
        return tuple(self.values()), tuple(self)

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], maps: Iterable[Any]) -> "Features":
        """Makes the dict from its names and as many values."""
        return cls(zip(names, maps, strict=True))
