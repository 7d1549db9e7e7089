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
from jaxsplit.losses import CROSS_ENTROPY, LabelLoss
from jaxsplit.sharding import first_example, mean_over_batch
from jaxsplit.stack import Stack, merge


class Method(NamedTuple):
    """A way of training several networks: pure functions over a tree of variables.

    Variables are {'params': {part: ...}, 'batch_stats': {part: ...}}. Arrays of the part `stack`
    have a leading network axis; those of other parts (a trunk, a leader, auxiliary modules) have
    none. A batch is a dict with `views`, float[S, B, H, W, C], or float[1, B, H, W, C] for all
    networks, and `labels`, int[B]. A batch of mixed images also has `partner`, int[B], the labels
    of the images mixed in, and the scalar `lam`, the share of `labels`.
    """

    init: Callable[[Array, tuple[int, int, int]], dict]
    """(key, (H, W, C)) -> variables."""
    loss: Callable[[dict, dict, Array, Array], tuple[Array, tuple[dict, dict[str, Array]]]]
    """(variables, batch, key, progress) -> (scalar, (new batch_stats, metrics)). `progress` counts
    the steps done. A metric is a scalar, or float[S] with one value per network."""
    predict: Callable[[dict, Array], dict[str, Array]]
    """(variables, images float[B, H, W, C]) -> {name: logits float[B, K]}; net0 ... come first."""
    group: Callable[[tuple[str, ...]], str]
    """Path of a parameter -> label of the optimizer that trains it; '' is that of the config."""
    answer: str
    """The method's answer: a name in the result of `predict`. It selects the best checkpoint."""
    after: Callable[[dict, Array, Array], dict] | None = None
    """(new variables, key of the step, steps done) -> the variables that a step ends with; None:
    as the optimizer leaves them."""


@dataclass
class Pass:
    """One forward pass of the stack, with access to auxiliary modules.

    Attributes:
      stack: the networks.
      train: True in training, False in prediction.
      logits: float[S, B, K].
      features: name -> float[S, B, h, w, c], in the order of computation; the last is `final`.
      batch: see `Method`; in prediction it is {'views': float[1, B, H, W, C]}.
      progress: number of steps done; 0 in prediction.
      key: random key of the auxiliary modules.
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
    ) -> Any:
        """Applies a module without a network axis; each device applies it to its part of the batch.

        Args:
          part: name of the module's variables.
          make: (axis_name=, dtype=) -> module, which is called as module(*inputs, train=).
          *inputs: arrays [B, ...].

        Returns:
          The module's outputs, a tree of [B, ...]. In training, `new_stats` keeps its new
          statistics, which the loss returns.
        """
        return self._apply(part, make, inputs, self.train, False)

    def apply_frozen(self, part: str, make: Callable[..., nn.Module], *inputs: Array) -> Any:
        """As `apply_module`, with running statistics and without a gradient of the parameters."""
        return self._apply(part, make, inputs, False, True)

    def network(self, part: str, make: Callable[..., nn.Module], images: Array) -> Any:
        """As `apply_module`, for a backbone: images [B, H, W, C] -> (logits [B, K], features)."""
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
    """A dry run that initialises auxiliary modules and puts their variables into `variables`.

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
    label_loss: LabelLoss = CROSS_ENTROPY,
    label_weight: float = 1.0,
    trunk_gradient: float = 1.0,
    ensemble: str = "mean_logits",
) -> Method:
    """A method whose loss is the networks' summed loss on labels, plus what they exchange.

    Args:
      stack: the networks.
      exchange: (training pass) -> metrics; the scalar metric `exchange` is added to the loss.
      answers: (prediction pass) -> more named logits float[B, K]. It may only apply auxiliary
        modules that `exchange` applies too.
      answer: name of the method's answer; '' means the ensemble, or the only network.
      group: see `Method`.
      label_loss: the loss on labels.
      label_weight: its weight in the loss.
      trunk_gradient: factor that multiplies the gradient of the stack's trunk.
      ensemble: how the networks' logits are combined, a name in `losses.ENSEMBLES`.
    """
    trained = _Trained(
        stack,
        exchange,
        answers,
        label_loss=label_loss,
        label_weight=label_weight,
        trunk_gradient=trunk_gradient,
        ensemble=ensemble,
    )
    default = "ensemble" if trained.several else "net0"
    return Method(trained.init, trained.loss, trained.predict, group, answer or default)


@dataclasses.dataclass(frozen=True)
class _Trained:
    """A stack and how to train it; `over_stack` describes the fields."""

    stack: Stack
    exchange: Callable[[Pass], dict[str, Array]] | None
    answers: Callable[[Pass], dict[str, Array]] | None
    label_loss: LabelLoss
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
        by_network = self.label_loss(logits, batch)
        total = self.label_weight * by_network.sum()
        metrics = {self.label_loss.metric: by_network, "top1": top1(logits, batch["labels"])}
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
        """Sorts the stack's layers into parts: `stack` and, if networks share arrays, `trunk`."""
        stack = self.stack
        if not stack.shares:
            return {"stack": layers}
        own, trunk = (of({"": layers})[""] for of in (stack.of_networks, stack.of_trunk))
        return {"stack": own, "trunk": trunk}

    def _scale_trunk_gradient(self, variables: dict) -> dict:
        """Returns the same values and multiplies the trunk's gradient by `trunk_gradient`."""
        factor = self.trunk_gradient
        if factor == 1 or not self.stack.trunk:
            return variables
        params = variables["params"]
        trunk = jax.tree.map(lambda x: scale_gradient(x, factor), params["trunk"])
        return variables | {"params": params | {"trunk": trunk}}


def _join(variables: dict) -> dict:
    """Joins the stack's parts to one tree per collection: the inverse of `_Trained._split`."""
    return {c: merge(tree["stack"], tree.get("trunk", {})) for c, tree in variables.items()}


def scale_gradient(x: Array, factor: float) -> Array:
    """Returns `x` unchanged and multiplies its gradient by `factor`."""
    fixed = jax.lax.stop_gradient(x)
    return fixed + factor * (x - fixed)  # x - fixed is zero: the value stays exact


def top1(logits: Array, labels: Array) -> Array:
    """Top-1 accuracy of every network, float[S]; logits float[S, B, K], labels int[B]."""
    hit = logits.argmax(-1) == labels[None]
    return hit.astype(jnp.float32).mean(-1)
