"""BatchEnsemble: S networks that share every kernel and differ by rank-one factors.

Wen et al. 2020, "BatchEnsemble: An Alternative Approach to Efficient Ensemble and Lifelong
Learning" (arXiv 2002.06715), Eqs. (1), (4) and (5). Network i has the kernels W o F_i,
F_i = r_i s_i^T, so that a convolution or dense layer of it is

  y = ((x o r_i) W) o s_i + b_i

with r_i over the input channels and s_i over the output channels. Factors multiply here the kernel
instead of the maps, which is the same: each network is a plain one, and can be taken out.

As in the authors' code (uncertainty-baselines, `wide_resnet_batchensemble`) all layers have
factors, the classifier too; biases belong to a network; BatchNorm is shared, with statistics over
the maps of all networks; the loss is the mean over the networks; factors start at N(1, 0.5), do not
decay, and learn at half the rate. The authors' rate for biases is halved, too; here it is not. They
cut the batch by S so that a step costs the same; here it has `batch_size` images.

`config.divide=False` is the paper's ensemble: about the parameters of one `arch`, S times its
multiply-adds. With `config.divide` the networks are small, and cost together about one `arch`.
"""

import dataclasses
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxsplit import models
from jaxsplit.costs import ALL, Networks
from jaxsplit.errors import ConfigError
from jaxsplit.methods.base import Method, over_stack
from jaxsplit.methods.entry import Entry
from jaxsplit.models.layers import Conv
from jaxsplit.models.tokens import Dense, Patches
from jaxsplit.section import Section
from jaxsplit.stack import Stack, Tying

IN, OUT = "factor_in", "factor_out"  # the arrays r_i and s_i beside a kernel
FACTORS = "factors"  # label of their optimizer
STARTS = ("normal", "signs")
NORMS = ("shared", "own")
LAYERS = (Conv, Dense, Patches, nn.Conv, nn.Dense)  # whose input and output channels get factors


def make(stack: Stack, **fields: Any) -> Method:
    """Mean of the networks' cross-entropies.

    Args:
      stack: S networks with the tying of `tie`. Kernels lie in the part `trunk`.
      **fields: label_loss, ensemble (see `over_stack`).
    """
    s = stack.num_networks
    method = over_stack(stack, group=_group, label_weight=1 / s, **fields)

    def loss(*args: Any):
        total, (stats, metrics) = method.loss(*args)
        return total, (stats, metrics | {"loss": s * total})  # as of other methods, the sum

    return method._replace(loss=loss)


def _group(path: tuple[str, ...]) -> str:
    return FACTORS if path[-1] in (IN, OUT) else ""


def tie(*, start: str = "normal", deviation: float = 0.5, norm: str = "shared") -> Tying:
    """What the networks share, and how their factors start.

    Args:
      start: 'normal': N(1, deviation); 'signs': 1 or -1 with equal probability.
      deviation: standard deviation.
      norm: 'shared': norms (and learned positions, class tokens, layer scales) are one layer of all
        networks; 'own': each network has its own.
    """
    draw = _Draw(start, deviation)

    def shared(path: tuple[str, ...], names: frozenset[str]) -> bool:
        if IN in names:  # of a convolution or dense layer
            return path[-1] == "kernel"
        return norm == "shared"

    return Tying(shared, draw, plain, joint_norm=norm == "shared")


def plain(variables: dict) -> dict:
    """Variables of one network: every kernel W with factors r, s becomes W o (r s^T)."""
    if IN not in variables:
        return {k: plain(v) if isinstance(v, dict) else v for k, v in variables.items()}
    rest = {k: v for k, v in variables.items() if k not in (IN, OUT)}
    return rest | {"kernel": times(variables["kernel"], variables[IN], variables[OUT])}


def times(kernel: Array, r: Array, s: Array) -> Array:
    """W o (r s^T): kernel float[..., C / groups, F], r float[C], s float[F] -> like the kernel.

    In a grouped convolution an output channel has the factors of the input channels of its group.
    """
    inputs, outputs = kernel.shape[-2:]
    groups = r.shape[0] // inputs
    by_output = jnp.repeat(r.reshape(groups, inputs), outputs // groups, axis=0)  # [F, C / groups]
    factors = by_output.T * s.reshape(1, -1)
    return kernel * factors.reshape((1,) * (kernel.ndim - 2) + factors.shape)


@dataclasses.dataclass(frozen=True)
class _Draw:
    """Adds the factors of one network to its variables: `Tying.draw`."""

    start: str
    deviation: float

    def __call__(self, module: nn.Module, variables: dict, image: Array, key: Array) -> dict:
        channels = _input_channels(module, image)
        params = self._with_factors(variables["params"], (), channels, key)
        return variables | {"params": params}

    def _with_factors(self, tree: dict, path: tuple[str, ...], channels: dict, key: Array) -> dict:
        if "kernel" not in tree:
            return {
                k: self._with_factors(v, (*path, k), channels, key) if isinstance(v, dict) else v
                for k, v in tree.items()
            }
        if path not in channels:
            raise ConfigError(
                f"method: layer {'/'.join(path)} is no convolution, dense layer or cut into "
                "patches: it has no input and output channels to give factors to"
            )
        kernel = tree["kernel"]
        key = jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))
        r, s = jax.random.split(key)
        shapes = {IN: (r, channels[path]), OUT: (s, kernel.shape[-1])}
        return tree | {name: self._factor(k, n, kernel.dtype) for name, (k, n) in shapes.items()}

    def _factor(self, key: Array, size: int, dtype: Any) -> Array:
        if self.start == "signs":
            return jax.random.rademacher(key, (size,), dtype)
        return 1 + self.deviation * jax.random.normal(key, (size,), dtype)


def _input_channels(module: nn.Module, image: Array) -> dict[tuple[str, ...], int]:
    """Path of each convolution and dense layer -> channels of its input."""
    found = {}

    def note(call, args, kwargs, context):
        if isinstance(context.module, LAYERS):
            if context.method_name == "__call__":
                found[context.module.path] = args[0].shape[-1]
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(lambda x: module.init(jax.random.key(0), x), image)
    return found


# ---- What `config.method='batch_ensemble'` stands for


def _tying(config) -> Tying:
    its = config.batch_ensemble
    return tie(start=its.start, deviation=its.deviation, norm=its.norm)


def _check(section: Section) -> None:
    section.one_of("start", STARTS)
    section.one_of("norm", NORMS)
    section.at_least_zero("deviation", "rate")


def _costs(networks: Networks) -> dict[str, tuple[int, int]]:
    """Kernels and shared layers count once, factors and biases S times."""
    tying, s = _tying(networks.config), networks.num_networks
    module = models.build(networks.spec, networks.num_classes)
    image = jnp.zeros((1, *networks.image_shape))

    def init(key: Array) -> dict:
        return tying.draw(module, module.init(key, image), image, key)

    def count(tree: dict, path: tuple[str, ...]) -> int:
        names = frozenset(tree)
        return sum(
            count(x, (*path, k))
            if isinstance(x, dict)
            else math.prod(x.shape) * (1 if tying.shared((*path, k), names) else s)
            for k, x in tree.items()
        )

    params = count(jax.eval_shape(init, jax.random.key(0))["params"], ())
    return {ALL: (params, networks.every[1])}


ENTRY = Entry(
    lambda config, plan, stack, **fields: make(stack, **fields),
    trunk="never",
    labels_only=True,
    optimizers=lambda config: {FACTORS: dict(lr=config.batch_ensemble.rate * config.optim.lr)},
    fields={
        "start": "normal",  # normal | signs: how the factors start
        "deviation": 0.5,  # of normal factors
        "rate": 0.5,  # learning rate of the factors / optim.lr
        "norm": "shared",  # shared | own: whether BatchNorm is one layer of all networks
    },
    check=_check,
    fixed=("norm",),
    tying=_tying,
    costs=_costs,
    # The published networks share nothing.
    as_published=lambda config: False,
)
