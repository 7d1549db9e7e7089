"""Counts parameters and multiply-adds of networks in their traced programs.

No model needs a formula of its own, which could be wrong. Multiply-adds are counted for
convolutions and matrix products; biases, normalisation and pooling are left out.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxsplit import conv, models

if TYPE_CHECKING:  # config imports methods, which count their costs here
    from jaxsplit.config import Resolved

ALL = "all"  # in `own_costs`: all networks of the stack together


class Cost(NamedTuple):
    """The cost of one network; multiply-adds are counted for one image."""

    params: int
    stats: int  # number of elements of the running statistics
    macs: int
    layers: dict[str, tuple[int, int]]  # outermost layer -> (params, multiply-adds)

    @property
    def groups(self) -> dict[str, tuple[int, int]]:
        """As `layers`, summed by stage: 'stage1' is the sum of all layers stage1_..."""
        groups: dict[str, tuple[int, int]] = {}
        for name, (params, macs) in self.layers.items():
            group = name.split("_")[0]
            before = groups.get(group, (0, 0))
            groups[group] = (before[0] + params, before[1] + macs)
        return groups

    def in_trunk(self, stage: str) -> tuple[int, int]:
        """(params, multiply-adds) of the layers up to `stage`, which networks share as a trunk."""
        shared = [n for layer, n in self.layers.items() if models.in_trunk(layer, stage)]
        return sum(p for p, _ in shared), sum(m for _, m in shared)


def cost(spec: models.Spec, *, num_classes: int, image_shape: tuple[int, int, int]) -> Cost:
    """The cost of the network of a Spec for images of (H, W, C). Traces it, never compiles."""
    return module_cost(models.build(spec, num_classes), image_shape)


def module_cost(module: nn.Module, shape: tuple[int, ...]) -> Cost:
    """The cost of a Linen module for one input of `shape`, which has no batch axis."""
    image = jax.ShapeDtypeStruct((1, *shape), jnp.result_type(float))
    # One trace gives the program and its variables; tracing is the slow part.
    trace = jax.make_jaxpr(
        lambda x: module.init_with_output(jax.random.key(0), x), return_shape=True
    )
    with conv.plain():  # on CPU some convolutions are sums of products, which are not counted
        program, (_, variables) = trace(image)
    macs = Counter()
    _count(program.jaxpr, macs, 1, "")
    params = Counter()
    for path, leaf in jax.tree.leaves_with_path(variables["params"]):
        params[path[0].key] += math.prod(leaf.shape)
    stats = sum(math.prod(x.shape) for x in jax.tree.leaves(variables.get("batch_stats", {})))
    order = [
        *macs,
        *(layer for layer in params if layer not in macs),
    ]  # in the order of the data flow
    layers = {layer: (params[layer], macs[layer]) for layer in order}
    return Cost(sum(params.values()), stats, sum(macs.values()), layers)


def map_shape(
    spec: models.Spec, image_shape: tuple[int, int, int], name: str = "final"
) -> tuple[int, int, int]:
    """(h, w, C) of the named feature map of a Spec's network for an image of (H, W, C)."""
    module = models.build(spec, 1)
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.result_type(float))
    key = jax.random.key(0)
    (_, features), _ = jax.eval_shape(lambda x: module.init_with_output(key, x), image)
    return features[name].shape[1:]


def _count(jaxpr, macs: Counter, times: int, scope: str) -> None:
    """Adds the multiply-adds of a jaxpr to `macs`, by the name of the outermost module."""
    for eqn in jaxpr.eqns:
        stack = f"{scope}/{eqn.source_info.name_stack}"
        if eqn.primitive.name == "conv_general_dilated":
            kernel, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
            spec = eqn.params["dimension_numbers"].rhs_spec
            window = math.prod(kernel[d] for d in spec[1:])  # input channels / groups, h, w
            macs[_module(stack)] += times * math.prod(out) * window
        elif eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[d] for d in contract)
            macs[_module(stack)] += times * math.prod(eqn.outvars[0].aval.shape) * depth
        length = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        for value in eqn.params.values():
            for sub in value if isinstance(value, tuple | list) else (value,):
                sub = getattr(sub, "jaxpr", sub)
                if hasattr(sub, "eqns"):
                    _count(sub, macs, times * length, stack)


def _module(stack: str) -> str:
    """The outermost named module in a name stack such as 'ResNet/stage1_block1/conv1'."""
    names = [part for part in stack.split("/") if part and "(" not in part]
    return names[1] if len(names) > 1 else "other"


@functools.lru_cache(maxsize=8)
def _cost(spec: models.Spec, num_classes: int, image_shape: tuple[int, int, int]) -> Cost:
    """`cost`, cached: a run asks for the same costs at its start and at its end."""
    return cost(spec, num_classes=num_classes, image_shape=image_shape)


def stack_cost(
    arch: str,
    divided_in: int,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    spec: models.Spec | None = None,
    heads: int = 1,
) -> tuple[Cost, Cost]:
    """Costs of one of the `divided_in` networks that replace `arch`, and of `arch` itself.

    Args:
      arch: the undivided network.
      divided_in: number of networks that would replace it.
      num_classes, image_shape: facts of the data set.
      spec: of one network, where a method has a division of its own.
      heads: images that the network sees side by side; it has as many outputs.
    """
    height, width, channels = image_shape
    one, whole = (
        _cost(each, h * num_classes, (height, width, h * channels))
        for each, h in (
            (spec or models.divided(arch, divided_in), heads),
            (models.divided(arch, 1), 1),
        )
    )
    return one, whole


def config_costs(
    config: Any,
    resolved: "Resolved",
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
) -> tuple[Cost, Cost]:
    """`stack_cost` of a config: of one of its networks, and of the undivided network."""
    return stack_cost(
        config.arch,
        resolved.divided_in,
        num_classes=num_classes,
        image_shape=image_shape,
        spec=resolved.spec,
        heads=resolved.heads,
    )


class Networks(NamedTuple):
    """The networks of a run, with which a method counts the costs of its answers."""

    config: Any  # the whole ConfigDict
    num_networks: int  # S
    spec: Any  # the Spec of one network
    trunk: str  # the last stage that the networks share; '': none
    small: Cost  # the cost of one network
    every: tuple[int, int]  # (parameters, multiply-adds) of all networks; the trunk counts once
    num_classes: int
    image_shape: tuple[int, int, int]

    def and_module(self, module: nn.Module, *shape: int) -> tuple[int, int]:
        """`every` plus the cost of a Linen module for one input of `shape`, without batch axis."""
        more = module_cost(module, shape)
        return self.every[0] + more.params, self.every[1] + more.macs


def own_costs(
    config: Any,
    resolved: "Resolved",
    small: Cost,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
) -> dict[str, tuple[int, int]]:
    """(parameters, multiply-adds) of all networks, and of each answer with a cost of its own.

    Args:
      config: the config of the experiment.
      resolved: what `config.resolve` makes of it.
      small: the cost of one network.
      num_classes: K.
      image_shape: (H, W, C).

    Returns:
      name -> cost. `ALL` stands for all networks, with what they share counted once. The other
      names are answers that need further modules, or fewer networks; the method's Entry counts
      them, and `ALL` where networks share more than a trunk.
    """
    s, (params, macs) = resolved.num_networks, small.in_trunk(resolved.trunk)
    every = (s * small.params - (s - 1) * params, s * small.macs - (s - 1) * macs)
    networks = Networks(
        config, s, resolved.spec, resolved.trunk, small, every, num_classes, image_shape
    )
    return {ALL: every, **resolved.entry.costs(networks)}


def of_answer(answer: str, small: Cost, named: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    """(params, macs) of an answer: a network, all of them, or what `own_costs` names."""
    one = answer.startswith("net")
    return named.get(answer, (small.params, small.macs) if one else named[ALL])


def traced(function: Callable[..., Any], *arguments: Any) -> int:
    """The multiply-adds of a function of arrays; traces it, never compiles.

    `arguments`: trees of arrays or of `jax.ShapeDtypeStruct`s.
    """
    with conv.plain():  # on CPU some convolutions are sums of products, which are not counted
        program = jax.make_jaxpr(function)(*arguments)
    macs: Counter = Counter()
    _count(program.jaxpr, macs, 1, "")
    return sum(macs.values())
