"""What a method is, and what all methods over one stack share."""

import dataclasses
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxsplit import losses
from jaxsplit.features import Features
from jaxsplit.sharding import first_example, mean_over_batch
from jaxsplit.stack import Stack


class Method(NamedTuple):
    """A way of training several networks: pure functions over a tree of variables.

    Variables are {'params': {part: ...}, 'batch_stats': {part: ...}}; the part `stack` carries a
    leading network axis, others (a trunk, a leader, auxiliary modules) carry none. A batch is a
    dict with `views` float[S, B, H, W, C] (or [1, B, ...] for all), `labels` int[B] and, when
    mixed, `partner` int[B] and `lam`.
    """

    init: Callable[[Array, tuple[int, int, int]], dict]
    """(key, (H, W, C)) -> variables."""
    loss: Callable[[dict, dict, Array, Array], tuple[Array, tuple[dict, dict[str, Array]]]]
    """(variables, batch, key, progress) -> (scalar, (new batch_stats, metrics)); `progress` counts
    the steps done; metrics are scalars, or float[S] with one value a network."""
    predict: Callable[[dict, Array], dict[str, Array]]
    """(variables, images float[B, H, W, C]) -> name -> logits float[B, K]; net0 ... first."""
    group: Callable[[tuple[str, ...]], str]
    """Path of a parameter -> label of its optimizer, for methods that train parts differently."""
    answer: str
    """The name in `predict` that is the method's answer; `best` is chosen on it."""


@dataclass
class Pass:
    """One pass of the stack over a batch: what it gave, and the modules that a method has beside.

    Attributes:
      stack: the networks.
      train: of this pass; False in prediction.
      logits: float[S, B, K].
      features: name -> float[S, B, h, w, c], in order, the last of them `final`.
      batch: as of `Method`; in prediction {'views': float[1, B, H, W, C]}.
      progress: steps done; 0 in prediction.
    """

    stack: Stack
    train: bool
    logits: Array
    features: dict[str, Array]
    batch: dict[str, Array]
    progress: Array | int
    key: Array
    variables: dict[str, dict] = field(default_factory=dict)  # collection -> part -> tree
    new_stats: dict[str, Any] = field(default_factory=dict)  # part -> tree

    def apply_module(
        self,
        part: str,
        make: Callable[..., nn.Module],
        *inputs: Array,
        train: bool | None = None,
        frozen: bool = False,
    ) -> Any:
        """Applies a module that has no network axis, on each device to its part of the batch.

        Args:
          part: name of its variables.
          make: (axis_name=, dtype=) -> module, called as module(*inputs, train).
          *inputs: [B, ...] each.
          train: whether it normalises by the batch; None: as this pass.
          frozen: no gradient flows into its parameters.

        Returns:
          Its outputs, a tree of [B, ...]. In training its new statistics are kept for the loss.
        """
        return self._apply(part, make, inputs, self.train if train is None else train, frozen)

    def network(self, part: str, make: Callable[..., nn.Module], images: Array) -> Any:
        """As `apply_module` for a backbone: images [B, H, W, C] -> (logits [B, K], features)."""
        logits, features = self._apply(part, make, (images,), self.train, False, backbone=True)
        return logits, dict(features)

    def _module(self, make: Callable[..., nn.Module]) -> nn.Module:
        own = self.stack.module
        return make(axis_name=own.axis_name, dtype=own.dtype)

    def _apply(self, part, make, inputs, train, frozen, *, backbone: bool = False):
        module, s = self._module(make), self.stack.sharding
        variables = {c: tree[part] for c, tree in self.variables.items() if part in tree}
        if frozen:
            variables = jax.lax.stop_gradient(variables)

        def local(variables, inputs, key):
            more: dict[str, Any] = {}
            if backbone:
                batch = inputs[0].shape[0]
                more["example_ids"] = first_example(batch) + jnp.arange(batch)
            out, new = module.apply(
                variables,
                *inputs,
                train=train,
                rngs={"dropout": key},
                mutable=["batch_stats"] if train else [],
                **more,
            )
            if backbone:
                out = out[0], Features(out[1])
            stats = new.get("batch_stats", {})
            return out, stats if self.stack.synced else mean_over_batch(stats)

        specs = (s.replicated, s.batch, s.replicated), (s.batch, s.replicated)
        out, stats = s.map(local, *specs)(variables, inputs, self._key_of(part))
        if train:
            self.new_stats[part] = stats
        return out

    def _key_of(self, part: str) -> Array:
        return jax.random.fold_in(self.key, zlib.crc32(part.encode()))


class _InitPass(Pass):
    """A dry run that initialises auxiliary modules and leaves their variables in `variables`.

    Every output is zeros of the right shape.
    """

    def _apply(self, part, make, inputs, train, frozen, *, backbone: bool = False):
        module = self._module(make).clone(axis_name=None)
        zeros = [jnp.zeros(x.shape, x.dtype) for x in inputs]

        def run(variables):
            out = module.apply(variables, *zeros)
            return (out[0], Features(out[1])) if backbone else out

        one = [x[:1] for x in zeros]
        drawn = module.init(self._key_of(part), *one)
        for collection in ("params", "batch_stats"):
            self.variables.setdefault(collection, {})[part] = drawn.get(collection, {})
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(run, drawn))


def network_names(logits: dict[str, Array]) -> list[str]:
    """Names in `predict`'s result that stand for single networks of the stack."""
    return [name for name in logits if name.startswith("net")]


def over_stack(
    stack: Stack,
    exchange: Callable[[Pass], dict[str, Array]] | None = None,
    *,
    answers: Callable[[Pass], dict[str, Array]] | None = None,
    answer: str = "",
    group: Callable[[tuple[str, ...]], str] = lambda path: "",
    label_smoothing: float = 0.0,
    label_weight: float = 1.0,
    trunk_gradient: float = 1.0,
    ensemble: str = "mean_logits",
) -> Method:
    """Cross-entropy summed over the networks of a stack, plus what they exchange.

    Args:
      stack: the networks.
      exchange: (a pass in training) -> metrics; their `exchange`, a scalar, is added to the loss.
      answers: (a pass in prediction) -> more named logits float[B, K]. It may apply modules that
        `exchange` applies.
      answer: name of the method's answer; '' means the ensemble, or the only network.
      group: see `Method`; '' names the optimizer of the config.
      label_smoothing: label smoothing of the cross-entropy.
      label_weight: weight of the cross-entropy in the loss.
      trunk_gradient: factor of the gradient that reaches the stack's trunk.
      ensemble: how the networks' logits are combined, a name in `losses.ENSEMBLES`.
    """
    trained = _Trained(
        stack,
        exchange,
        answers,
        label_smoothing=label_smoothing,
        label_weight=label_weight,
        trunk_gradient=trunk_gradient,
        ensemble=ensemble,
    )
    default = "ensemble" if trained.several else "net0"
    return Method(trained.init, trained.loss, trained.predict, group, answer or default)


@dataclasses.dataclass(frozen=True)
class _Trained:
    """A stack and how it is trained; for the fields see `over_stack`."""

    stack: Stack
    exchange: Callable[[Pass], dict[str, Array]] | None
    answers: Callable[[Pass], dict[str, Array]] | None
    label_smoothing: float
    label_weight: float
    trunk_gradient: float
    ensemble: str

    @property
    def several(self) -> bool:
        """Whether the stack has more than one network."""
        return self.stack.num_networks > 1

    def init(self, key: Array, image_shape: tuple[int, int, int]) -> dict:
        """As `Method.init`."""
        stack = self.stack
        variables = stack.init(key, image_shape)
        # A backbone without BatchNorm has no statistics.
        parts = {c: self._split(variables.get(c, {})) for c in ("params", "batch_stats")}
        if self.exchange is None:
            return parts

        def shapes(variables: dict, images: Array) -> tuple[Array, Features]:
            logits, features, _ = stack.apply(variables, images, train=False)
            return logits, Features(features)

        views = jnp.zeros((1, stack.sharding.data_devices, *image_shape))
        made = jax.eval_shape(shapes, variables, views)
        logits, features = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), made)
        batch = {"views": views, "labels": jnp.zeros(views.shape[1], jnp.int32)}
        drawing = _InitPass(stack, True, logits, features, batch, 0, key)
        self.exchange(drawing)
        return {c: tree | drawing.variables.get(c, {}) for c, tree in parts.items()}

    def loss(self, variables: dict, batch: dict, key: Array, progress: Array):
        """As `Method.loss`."""
        stack, variables = self.stack, self._scale_trunk_gradient(variables)
        joined = _join(variables)
        logits, features, stats = stack.apply(joined, batch["views"], train=True, key=key)
        by_network = cross_entropy(logits, batch, self.label_smoothing)
        total = self.label_weight * by_network.sum()
        metrics = {"cross_entropy": by_network, "top1": top1(logits, batch["labels"])}
        if self.several:
            together = losses.ensemble(logits, self.ensemble)[None]
            metrics["ensemble/top1"] = top1(together, batch["labels"])[0]
        new_stats = self._split(stats)
        if self.exchange is not None:
            this = Pass(stack, True, logits, features, batch, progress, key, variables)
            metrics |= self.exchange(this)
            total = total + metrics["exchange"]
            new_stats |= this.new_stats
        return total, (new_stats, metrics | {"loss": total})

    def predict(self, variables: dict, images: Array) -> dict[str, Array]:
        """As `Method.predict`."""
        stack, views = self.stack, images[None]
        logits, features, _ = stack.apply(_join(variables), views, train=False)
        named = {f"net{i}": logits[i] for i in range(stack.num_networks)}
        if self.several:
            named["ensemble"] = losses.ensemble(logits, self.ensemble)
        if self.answers is not None:
            key, batch = jax.random.key(0), {"views": views}
            named |= self.answers(Pass(stack, False, logits, features, batch, 0, key, variables))
        return named

    def _split(self, layers: dict) -> dict:
        """Layers of the stack by part: `stack` and, if the networks share layers, `trunk`."""
        stack = self.stack
        if not stack.trunk:
            return {"stack": layers}
        own, trunk = (of({"": layers})[""] for of in (stack.of_networks, stack.of_trunk))
        return {"stack": own, "trunk": trunk}

    def _scale_trunk_gradient(self, variables: dict) -> dict:
        """The same variables; the gradient of the trunk is multiplied by `trunk_gradient`."""
        factor = self.trunk_gradient
        if factor == 1 or not self.stack.trunk:
            return variables
        params = variables["params"]
        trunk = jax.tree.map(lambda x: scale_gradient(x, factor), params["trunk"])
        return variables | {"params": params | {"trunk": trunk}}


def _join(variables: dict) -> dict:
    """Variables of the stack as one tree a collection: the inverse of `_Trained._split`."""
    return {c: tree["stack"] | tree.get("trunk", {}) for c, tree in variables.items()}


def scale_gradient(x: Array, factor: float) -> Array:
    """Returns `x` unchanged and multiplies its gradient by `factor`."""
    fixed = jax.lax.stop_gradient(x)
    return fixed + factor * (x - fixed)  # x - fixed is zero: the value stays exact


def cross_entropy(logits: Array, batch: dict[str, Array], label_smoothing: float) -> Array:
    """Cross-entropy of every network: logits float[S, B, K] and a batch -> float[S].

    A batch with `partner` and `lam` has mixed labels.
    """
    return losses.cross_entropy(
        logits,
        batch["labels"],
        label_smoothing=label_smoothing,
        partner=batch.get("partner"),
        lam=batch.get("lam"),
    )


def top1(logits: Array, labels: Array) -> Array:
    """Top-1 accuracy of every network, float[S]; logits float[S, B, K], labels int[B]."""
    hit = logits.argmax(-1) == labels[None]
    return hit.astype(jnp.float32).mean(-1)
