"""S networks of one architecture, on a leading axis of every parameter and statistic.

`lowering` chooses the program that the stack becomes; all choices agree numerically:
  dense     one `vmap`; every convolution is emitted S times (`conv.py`), all else is batched
  unrolled  the whole network is emitted S times; each copy slices its parameters from the stack
  packed    one `vmap`; the S convolutions are one with a block-diagonal kernel (`conv.py`)
  grouped   one `vmap`; XLA's grouped convolutions (slow; kept for comparison)
  auto      the fastest for the platform and S, from the figures of `docs/performance.md`

Networks may share a trunk: their first layers, up to the end of a stage. The trunk has one set of
parameters and statistics without the network axis. If all networks see one view, the trunk is
computed once, because `vmap` does not map over values that do not depend on the network.

A method may tie single arrays of the networks, too; see `Tying`. They lie where the trunk's do.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from jaxsplit import conv, models
from jaxsplit.errors import ConfigError
from jaxsplit.features import Features
from jaxsplit.models.layers import NETWORK
from jaxsplit.sharding import (
    DATA,
    NET,
    Sharding,
    first_example,
    first_network,
    mean_over_batch,
)

if TYPE_CHECKING:  # config imports methods, which import this module
    from jaxsplit.config import Resolved

LOWERINGS = ("auto", "dense", "unrolled", "packed", "grouped")
BATCH_NORMS = ("local", "sync")


def choose_lowering(
    lowering: str, num_networks: int, platform: str, spec: models.Spec | None = None
) -> str:
    """The given lowering, or, for `auto`, the best one for a platform ('cpu', 'gpu', 'tpu').

    `spec`: of each network; None: of a network of convolutions.

    Raises:
      ConfigError: the lowering is unknown.
    """
    if lowering not in LOWERINGS:
        raise ConfigError(f"lowering={lowering!r}: must be one of {', '.join(LOWERINGS)}")
    if lowering != "auto":
        return lowering
    if spec is not None and models.known(spec.arch)[0].products:
        return "dense"  # S products are one batched product, which copies nothing
    # Unrolling saves the slices and concatenations around every convolution, but the program and
    # its compilation time grow with S.
    return "unrolled" if platform == "cpu" and num_networks <= 4 else "dense"


@dataclass(frozen=True)
class Tying:
    """What a method ties between the networks of a stack; the default ties nothing.

    Attributes:
      shared: (path (layer, ..., name) of an array, the names beside it, its own included)
        -> whether all networks share the array.
      draw: (module, its variables, an image [1, H, W, C], key) -> the variables of one network,
        which may have further arrays.
      plain: variables of one network -> those that its module takes.
      joint_norm: whether BatchNorm's statistics are over the maps of all networks together.
    """

    shared: Callable[[tuple[str, ...], frozenset[str]], bool] = lambda path, names: False
    draw: Callable[[nn.Module, Any, Array, Array], dict] = lambda module, variables, *_: variables
    plain: Callable[[dict], dict] = lambda variables: variables
    joint_norm: bool = False


NOTHING = Tying()


@dataclass(frozen=True)
class Stack:
    """S networks of one Spec: `init`, `apply`, `take`.

    Variables are {'params', 'batch_stats'} of {layer: tree of [S, ...] arrays}. Arrays of the
    trunk's layers, and those that `tying` shares, have no network axis.
    """

    module: nn.Module
    spec: Any  # the Spec of each network
    num_networks: int
    sharding: Sharding
    lowering: str = "auto"
    synced: bool = False  # whether BatchNorm computes its statistics over the whole batch
    trunk: str = ""  # the last stage that the networks share
    tying: Tying = NOTHING

    def init(self, key: Array, image_shape: tuple[int, int, int]) -> dict:
        """Variables of S independently initialised networks, for images of (H, W, C).

        Network i does not depend on S or the mesh; the trunk is that of network 0.
        """
        image = jnp.zeros((1, *image_shape))
        # Initialisation computes no statistics, so the module needs no mesh axis.
        module = self.module.clone(axis_name=None)
        keys = _network_keys(key, 0, self.num_networks)

        def draw(key: Array) -> dict:
            return self.tying.draw(module, module.init(key, image), image, key)

        variables = jax.vmap(draw)(keys)
        first = jax.tree.map(lambda x: x[0], self.of_trunk(variables))
        return merge(self.of_networks(variables), first)

    def apply(
        self, variables: dict, images: Array, *, train: bool, key: Array | None = None
    ) -> tuple[Array, dict[str, Array], dict]:
        """Applies all networks to all images.

        Args:
          variables: {'params', 'batch_stats'}, as described in the class.
          images: float[S, B, H, W, C], a view for each network, or float[1, B, H, W, C] for all.
          train: whether BatchNorm normalises by the batch and dropout is on.
          key: random key of dropout; needed in training.

        Returns:
          (logits float[S, B, K], features: name -> float[S, B, h, w, c], new batch_stats). If
          networks see different views or use dropout, the trunk's new statistics are the mean over
          the networks.
        """
        s = self.sharding
        specs = self._by_array(variables, s.replicated, s.networks)
        in_specs = (specs, s.shared_view if images.shape[0] == 1 else s.views, s.replicated)
        local = s.map(
            lambda v, x, k: self._apply_local(v, x, k, train),
            in_specs,
            (s.views, s.views, specs.get("batch_stats", s.networks)),
        )
        key = jax.random.key(0) if key is None else key
        logits, features, stats = local(variables, images, key)
        return logits, dict(features), stats

    def take(self, variables: dict, i: int) -> dict:
        """The variables of network `i` as its module takes them, without the network axis."""
        return self.tying.plain(self._one(variables, i))

    @property
    def shares(self) -> bool:
        """Whether the networks may share arrays."""
        return bool(self.trunk) or self.tying is not NOTHING

    def of_trunk(self, variables: Mapping[str, Mapping[str, Any]]) -> dict:
        """The part of variables {collection: {layer: tree}} that all networks share."""
        return {c: self._part(layers, (), True) for c, layers in variables.items()}

    def of_networks(self, variables: Mapping[str, Mapping[str, Any]]) -> dict:
        """The part of variables {collection: {layer: tree}} that each network has for itself."""
        return {c: self._part(layers, (), False) for c, layers in variables.items()}

    def _is_shared(self, path: tuple[str, ...], names: frozenset[str]) -> bool:
        return models.in_trunk(path[0], self.trunk) or self.tying.shared(path, names)

    def _part(self, tree: Mapping[str, Any], path: tuple[str, ...], shared: bool) -> dict:
        """The arrays of a tree {layer: ...} that are, or are not, shared."""
        names, part = frozenset(tree), {}
        for name, value in tree.items():
            at = (*path, name)
            if isinstance(value, Mapping):
                if inside := self._part(value, at, shared):
                    part[name] = inside
            elif self._is_shared(at, names) == shared:
                part[name] = value
        return part

    def _one(self, variables: dict, i: int) -> dict:
        """What network `i` has for itself, without the network axis, and what all share."""
        own = jax.tree.map(lambda x: x[i], self.of_networks(variables))
        return merge(own, self.of_trunk(variables))

    def _by_array(self, variables: dict, shared, other) -> dict:
        """A tree like the variables: `shared` for arrays that all networks share, else `other`."""
        return merge(
            _like(self.of_trunk(variables), shared), _like(self.of_networks(variables), other)
        )

    def _apply_local(self, variables, images, key, train):
        """Applies this device's networks to its part of the batch."""
        n = jax.tree.leaves(self.of_networks(variables))[0].shape[0]
        first = first_example(images.shape[1])
        example_ids = first + jnp.arange(images.shape[1])
        keys = _network_keys(key, first_network(n), n)
        shared = images.shape[0] == 1

        def one(variables: dict, images: Array, key: Array) -> tuple[Array, Features, Any]:
            variables = self.tying.plain(variables)
            mutable = ["batch_stats"] if train else False
            out = self.module.apply(
                variables, images, train, example_ids, rngs={"dropout": key}, mutable=mutable
            )
            (logits, features), new = out if train else (out, variables)
            return logits, Features(features), new.get("batch_stats", {})

        lowering = choose_lowering(self.lowering, n, self.sharding.platform, self.spec)
        if lowering == "unrolled" and (self.trunk or self.tying.joint_norm):
            # Each copy of the network would compute the trunk again, and only `vmap` has an axis to
            # take statistics over.
            lowering = "dense"
        if lowering == "unrolled":
            outs = [
                one(self._one(variables, i), images[0 if shared else i], keys[i]) for i in range(n)
            ]
            logits, features, stats = jax.tree.map(lambda *x: jnp.stack(x), *outs)
        else:
            axes = self._by_array(variables, None, 0)
            mapped = jax.vmap(one, (axes, None if shared else 0, 0), axis_name=NETWORK)
            images = images[0] if shared else images
            with conv.lowered(lowering):
                logits, features, stats = mapped(variables, images, keys)
        if train and not self.synced:
            stats = mean_over_batch(stats)
        if self.shares:
            own, common = self.of_networks({"": stats}), self.of_trunk({"": stats})
            stats = merge(own, jax.tree.map(_mean_over_networks, common))[""]
        return logits, features, stats


def make(
    spec: models.Spec,
    num_networks: int,
    num_classes: int,
    sharding: Sharding,
    *,
    lowering: str = "auto",
    batch_norm: str = "local",
    dtype: str | None = None,
    remat: str = "",
    trunk: str = "",
    tying: Tying = NOTHING,
) -> Stack:
    """Makes a stack of S networks of the (divided) Spec.

    Args:
      spec: Spec of each network.
      num_networks: S.
      num_classes: number of classes.
      sharding: the mesh that the stack runs on.
      lowering: a name in `LOWERINGS`; see the module's docstring.
      batch_norm: a name in `BATCH_NORMS`: statistics over each device's part of the batch, or
        over the whole batch.
      dtype: dtype of the computation, such as 'bfloat16'; None: the dtype of the images.
      remat: stages to recompute in the backward pass; see `models.remat_stages`.
      trunk: the last stage that the networks share; see `models.trunk_stage`; '': none.
      tying: what else the networks share.

    Raises:
      ConfigError: lowering, batch_norm, a stage of `remat` or the stage of `trunk` is unknown.
    """
    choose_lowering(lowering, num_networks, sharding.platform)
    if batch_norm not in BATCH_NORMS:
        raise ConfigError(f"batch_norm={batch_norm!r}: must be one of {', '.join(BATCH_NORMS)}")
    synced = batch_norm == "sync"
    # None computes in the input's dtype, so float64 stays float64.
    compute = None if dtype is None or dtype == "float32" else jnp.dtype(dtype)
    module = models.build(
        spec,
        num_classes,
        axis_name=DATA if synced else None,
        dtype=compute,
        remat=models.remat_stages(spec, remat),
    )
    if tying.joint_norm:
        module = module.clone(axis_name=(NETWORK, NET, *((DATA,) if synced else ())))
    trunk = models.trunk_stage(spec, trunk)
    return Stack(module, spec, num_networks, sharding, lowering, synced, trunk, tying)


def of_config(
    config: Any, resolved: "Resolved", num_classes: int, sharding: Sharding, remat: str = ""
) -> Stack:
    """The stack of a config, for K classes on a mesh; `remat` as of `make`.

    Raises:
      ConfigError: as of `make`.
    """
    return make(
        resolved.spec,
        resolved.num_networks,
        resolved.heads * num_classes,
        sharding,
        lowering=config.lowering,
        batch_norm=config.batch_norm,
        dtype=config.dtype,
        remat=remat,
        trunk=resolved.trunk,
        tying=resolved.tying,
    )


def merge(*parts: Mapping[str, Any]) -> dict:
    """Joins several trees of dicts, which must have different arrays, such as the parts
    `Stack.of_networks` and `Stack.of_trunk` of variables."""
    joined: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            inside = joined.get(name)
            both = isinstance(value, Mapping) and isinstance(inside, Mapping)
            joined[name] = merge(inside, value) if both else value
    return joined


def _like(tree: Mapping[str, Any], value: Any) -> dict:
    """A tree of dicts like `tree`, with one value for every array."""
    return {k: _like(v, value) if isinstance(v, Mapping) else value for k, v in tree.items()}


def _mean_over_networks(x: Array) -> Array:
    """[n, ...] on every device -> [...], the mean over all networks; inside `Sharding.map`."""
    # Averages differences from the first network, so that the mean of equal numbers is exact.
    return lax.pmean(x[0] + (x - x[:1]).mean(0), NET)


def _network_keys(key: Array, first: int | Array, n: int) -> Array:
    """One key for each network, derived from its index among all S networks."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(n))
