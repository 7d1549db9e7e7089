"""Optimizers, weight decay by parameter path, and clipping per network.

Parameters are distinguished by the name of their leaf, never by `ndim`: in a stack of networks
every leaf has a leading network axis. Learning rates come from `schedules`.
"""

import functools
import math
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxsplit import layer_decay, scale_by
from jaxsplit.errors import ConfigError
from jaxsplit.schedules import Schedule

if TYPE_CHECKING:
    from ml_collections import ConfigDict

PyTree = Any
STACK = "stack"  # the part of the parameters whose leaves have a network axis: [S, ...]
# Leaves that never decay, as in timm: position embeddings, the class token, and the factors by
# which a residual block multiplies its output (LayerScale, arXiv 2103.17239).
NEVER_DECAY = ("positions", "class_token", "layer_scale")


def decay_mask(params: PyTree, *, decay_norm: bool, decay_bias: bool = False) -> PyTree:
    """A mask of the parameters that decay, by the names of their leaves.

    Args:
        params: nested dicts of arrays or shapes, with or without a network axis.
        decay_norm: whether the scales of BatchNorm and LayerNorm decay.
        decay_bias: whether biases decay.

    Returns:
        A tree of bool like `params`: `kernel` True, `bias` `decay_bias`, `scale` `decay_norm`, and
        False for the names in `NEVER_DECAY` and factors of a kernel, `factor_...`.

    Raises:
        ValueError: a leaf has another name.
    """
    decays = {"kernel": True, "bias": decay_bias, "scale": decay_norm}
    decays |= dict.fromkeys(NEVER_DECAY, False)

    def decide(path: tuple, _: Any) -> bool:
        full = jax.tree_util.keystr(path, simple=True, separator="/")
        name = full.rsplit("/", 1)[-1]
        if name.startswith("factor_"):
            return False
        if name not in decays:
            raise ValueError(
                f"decay_mask: parameter {full!r} is not named one of {', '.join(decays)}"
            )
        return decays[name]

    return jax.tree_util.tree_map_with_path(decide, params)


def divided_weight_decay(weight_decay: float, num_networks: int) -> float:
    """Weight decay of each of S divided networks: wd * exp(1 / S - 1), Eq. (6) of arXiv 2011.14660.

    Smaller networks overfit less and need less decay. S = 1 leaves `weight_decay` unchanged.
    """
    return weight_decay * math.exp(1 / num_networks - 1)


def clip_by_network_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales the gradient of every network whose norm over all its leaves exceeds `max_norm`.

    Each network of the part `stack` has its own norm, so networks do not affect each other. Every
    other part has one norm. A gradient above the limit is multiplied by `max_norm` / norm.

    Args:
        max_norm: above 0.
    """

    def clip(part: str, tree: PyTree) -> PyTree:
        leaves = jax.tree.leaves(tree)
        first = 1 if part == STACK else 0
        square = sum(jnp.square(x).sum(tuple(range(first, x.ndim))) for x in leaves)
        scale = max_norm / jnp.maximum(jnp.sqrt(square), max_norm)  # [S] or []; NaN stays NaN

        def scaled(x: jax.Array) -> jax.Array:
            return x * scale.reshape(scale.shape + (1,) * (x.ndim - first)).astype(x.dtype)

        return jax.tree.map(scaled, tree)

    def clipped(updates: PyTree, params: PyTree | None) -> PyTree:
        return {part: clip(part, tree) for part, tree in updates.items()}

    return optax.stateless(clipped)


def sgd(
    lr_schedule: Schedule,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    mask: PyTree,
) -> optax.GradientTransformation:
    """Stochastic gradient descent as PyTorch defines it.

    g' = g + weight_decay * w where `mask`; v = momentum * v + g'; then
    w -= lr * (g' + momentum * v with `nesterov`, else v). The learning rate is not part of v.

    Args:
        lr_schedule: step -> learning rate.
        momentum: in [0, 1); 0 keeps no buffer.
        nesterov: whether to use Nesterov momentum; needs a momentum above 0.
        weight_decay: coefficient of the L2 term in the gradient.
        mask: tree of bool like the parameters, or a function from parameters to such a tree.

    Returns:
        An optax transformation; its `update` needs `params`.

    Raises:
        ConfigError: momentum out of range, or Nesterov without it.
    """
    scale_by.in_unit("momentum", momentum)
    if nesterov and not momentum:
        raise ConfigError("optim.nesterov=True: needs an optim.momentum above 0")
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=mask),
        _trace(momentum, nesterov),
        optax.scale_by_learning_rate(lr_schedule),
    )


def adam(
    lr_schedule: Schedule,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float,
    mask: PyTree,
) -> optax.GradientTransformation:
    """Adam (arXiv 1412.6980) as PyTorch defines it: the decay is an L2 term in the gradient.

    Args:
        lr_schedule: step -> learning rate.
        beta1, beta2: decay of the averages of the gradient and of its square, in [0, 1).
        eps: added to the root of the average square; above 0.
        weight_decay: coefficient of the L2 term.
        mask: tree of bool like the parameters, or a function from parameters to such a tree.

    Raises:
        ConfigError: a value is out of range.
    """
    decay = optax.add_decayed_weights(weight_decay, mask=mask)
    scale = scale_by.by_adam(beta1, beta2, eps)
    return optax.chain(decay, scale, optax.scale_by_learning_rate(lr_schedule))


def adamw(
    lr_schedule: Schedule,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float,
    mask: PyTree,
) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101): Adam with decoupled decay, w -= lr * weight_decay * w.

    Arguments and errors as of `adam`.
    """
    decay = optax.add_decayed_weights(weight_decay, mask=mask)
    scale = scale_by.by_adam(beta1, beta2, eps)
    return optax.chain(scale, decay, optax.scale_by_learning_rate(lr_schedule))


def rmsprop(
    lr_schedule: Schedule,
    *,
    alpha: float = 0.9,
    eps: float = 1e-8,
    momentum: float = 0.0,
    centered: bool = False,
    weight_decay: float,
    mask: PyTree,
) -> optax.GradientTransformation:
    """RMSprop as PyTorch defines it.

    g' = g + weight_decay * w where `mask`; s = alpha * s + (1 - alpha) * g'^2 from s = 0;
    v = momentum * v + g' / (sqrt(s) + eps); w -= lr * v.

    Args:
        lr_schedule: step -> learning rate.
        alpha: decay of the average of squares, in [0, 1).
        eps: above 0.
        momentum: in [0, 1); 0 keeps no buffer.
        centered: whether the square of the average gradient is subtracted from s.
        weight_decay: coefficient of the L2 term in the gradient.
        mask: tree of bool like the parameters, or a function from parameters to such a tree.

    Raises:
        ConfigError: a value is out of range.
    """
    scale = scale_by.by_rms(alpha, eps, centered, initial_scale=0.0, eps_in_sqrt=False)
    scale_by.in_unit("momentum", momentum)
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=mask),
        scale,
        _trace(momentum),
        optax.scale_by_learning_rate(lr_schedule),
    )


def rmsprop_tf(
    lr_schedule: Schedule,
    *,
    alpha: float = 0.9,
    eps: float = 1e-8,
    momentum: float = 0.0,
    centered: bool = False,
    weight_decay: float,
    mask: PyTree,
) -> optax.GradientTransformation:
    """RMSprop as TensorFlow 1 defines it; EfficientNet was trained with it.

    As `rmsprop`, but s starts at 1, eps is inside the root, and the learning rate is part of the
    momentum: v = momentum * v + lr * g' / sqrt(s + eps); w -= v. Arguments as of `rmsprop`.

    Raises:
        ConfigError: a value is out of range.
    """
    scale = scale_by.by_rms(alpha, eps, centered, initial_scale=1.0, eps_in_sqrt=True)
    scale_by.in_unit("momentum", momentum)
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=mask),
        scale,
        optax.scale_by_learning_rate(lr_schedule),
        _trace(momentum),
    )


def _trace(momentum: float, nesterov: bool = False) -> optax.GradientTransformation:
    return optax.trace(momentum, nesterov=nesterov) if momentum else optax.identity()


# name -> (factory, the fields of config.optim that it takes)
OPTIMIZERS: dict[str, tuple[Callable[..., optax.GradientTransformation], tuple[str, ...]]] = {
    "sgd": (sgd, ("momentum", "nesterov")),
    "adam": (adam, ("beta1", "beta2", "eps")),
    "adamw": (adamw, ("beta1", "beta2", "eps")),
    "rmsprop": (rmsprop, ("alpha", "eps", "momentum", "centered")),
    "rmsprop_tf": (rmsprop_tf, ("alpha", "eps", "momentum", "centered")),
}


def build(
    optim_config: "ConfigDict",
    lr_schedule: Schedule,
    params: PyTree,
    num_networks: int,
    *,
    group: Callable[[tuple[str, ...]], str] | None = None,
    groups: Mapping[str, Mapping[str, Any]] | None = None,
) -> optax.GradientTransformation:
    """Makes the optimizer that `config.optim` describes, behind gradient clipping if there is any.

    `optim.layer_decay` lowers the rates of the first layers, in all groups; see `layer_decay.py`.

    Args:
        optim_config: `config.optim`; its fields are read as attributes.
        lr_schedule: step -> learning rate, already scaled to the batch size.
        params: {part: ...} of arrays or shapes; only their paths matter.
        num_networks: S where networks are divided, for Eq. (6); else 1.
        group: path of a parameter -> label; needed with `groups`.
        groups: label -> fields of `config.optim` that differ for the parameters of that label. A
            weight decay given here is not divided; a learning rate given here follows the shape of
            `lr_schedule`.

    Raises:
        ConfigError: unknown `optim.name`, a value out of range, or layers whose order is unknown.
        ValueError: a parameter that no decay rule covers.
    """
    fields = {field: getattr(optim_config, field) for field in _FIELDS}
    _check(fields)
    decay_mask(params, decay_norm=True)  # raises if a parameter has no rule
    make = functools.partial(_of_group, optim_config, lr_schedule, num_networks)
    optimizer = make({})
    if groups:
        if group is None:
            raise ValueError("groups: needs `group`")
        labels = jax.tree.map_with_path(lambda path, _: group(tuple(p.key for p in path)), params)
        parts: dict[Hashable, optax.GradientTransformation] = {"": optimizer}
        parts |= {label: make(changes) for label, changes in groups.items()}
        optimizer = optax.partition(parts, labels)
    if params and fields["layer_decay"] != 1:
        by = layer_decay.factors(params, fields["layer_decay"])
        optimizer = layer_decay.scaled(optimizer, by)
    if not fields["clip_norm"]:
        return optimizer
    # Only the gradient of the loss is clipped: an L2 term is added to it afterwards.
    return optax.chain(clip_by_network_norm(fields["clip_norm"]), optimizer)


def _of_group(
    optim_config: "ConfigDict", lr_schedule: Schedule, num_networks: int, changes: Mapping[str, Any]
) -> optax.GradientTransformation:
    """The optimizer of `config.optim` with some of its fields changed; no clipping."""
    fields = {field: getattr(optim_config, field) for field in _FIELDS} | dict(changes)
    weight_decay, rate = fields["weight_decay"], lr_schedule
    if fields["divide_weight_decay"] and "weight_decay" not in changes:
        weight_decay = divided_weight_decay(weight_decay, num_networks)
    if "lr" in changes:
        share = changes["lr"] / optim_config.lr

        def rate(step: ArrayLike) -> jax.Array:
            return share * lr_schedule(step)

    factory, names = OPTIMIZERS[fields["name"]]
    return factory(
        rate,
        weight_decay=weight_decay,
        mask=functools.partial(
            decay_mask, decay_norm=fields["decay_norm"], decay_bias=fields["decay_bias"]
        ),
        **{field: fields[field] for field in names},
    )


_FIELDS = ("name", "weight_decay", "divide_weight_decay", "decay_norm", "decay_bias", "clip_norm")
_FIELDS += ("layer_decay", "momentum", "nesterov", "beta1", "beta2", "eps", "alpha", "centered")


def _check(fields: Mapping[str, Any]) -> None:
    if fields["name"] not in OPTIMIZERS:
        raise ConfigError(f"optim.name={fields['name']!r}: must be one of {', '.join(OPTIMIZERS)}")
    if fields["weight_decay"] < 0:
        raise ConfigError(f"optim.weight_decay={fields['weight_decay']}: must be 0 or more")
    layer_decay.check(fields["layer_decay"])
    if fields["clip_norm"] < 0:
        raise ConfigError(f"optim.clip_norm={fields['clip_norm']}: must be 0 (no clipping) or more")
