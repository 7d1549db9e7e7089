"""Parameters and multiply-adds of an architecture, divided and undivided.

Multiply-adds are counted in the traced program, so that no formula per model can go wrong: those of
convolutions and matrix products, without biases, normalisation and pooling.
"""

import math
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsplit import models


class Cost(NamedTuple):
    """Of one network; multiply-adds of one image."""

    params: int
    stats: int  # elements of running statistics
    macs: int
    groups: dict[str, tuple[int, int]]  # layer group -> (params, multiply-adds)


def cost(spec, *, num_classes: int, image_shape: tuple[int, int, int]) -> Cost:
    """Cost of the network of a Spec for images of (H, W, C); traces, never compiles."""
    module = models.build(spec, num_classes)
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.result_type(float))
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), image)
    program = jax.make_jaxpr(lambda v, x: module.apply(v, x)[0])(variables, image)
    macs = Counter()
    _count(program.jaxpr, macs, 1, "")
    params = Counter()
    for path, leaf in jax.tree.leaves_with_path(variables["params"]):
        params[_group(path[0].key)] += math.prod(leaf.shape)
    stats = sum(math.prod(x.shape) for x in jax.tree.leaves(variables.get("batch_stats", {})))
    by_module = Counter()
    for name, n in macs.items():
        by_module[_group(name)] += n
    assert by_module.keys() <= params.keys(), f"multiply-adds outside of any layer: {by_module}"
    order = [*by_module, *(g for g in params if g not in by_module)]  # as the data flows
    groups = {g: (params[g], by_module[g]) for g in order}
    return Cost(sum(params.values()), stats, sum(macs.values()), groups)


def _group(name: str) -> str:
    """'stage1_block2' -> 'stage1'."""
    return name.split("_")[0]


def _count(jaxpr, macs: Counter, times: int, scope: str) -> None:
    """Adds the multiply-adds of a jaxpr to `macs`, by name of the outermost module."""
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


def stack_cost(arch: str, num_networks: int, **kwargs) -> tuple[Cost, Cost]:
    """(one of the S divided networks, the undivided network)."""
    return (
        cost(models.divided(arch, num_networks), **kwargs),
        cost(models.divided(arch, 1), **kwargs),
    )


def table(arch: str, num_networks: int, **kwargs) -> str:
    """Text: parameters and multiply-adds per layer group and of the whole, and undivided."""
    small, large = stack_cost(arch, num_networks, **kwargs)
    s = num_networks
    head = f"{'':14} {'parameters':>12} {'mult-adds':>15}"
    lines = [f"{arch} divided in {s}, one network", head]
    lines += [f"{g:14} {p:12,} {m:15,}" for g, (p, m) in small.groups.items()]
    lines += [
        f"{'one network':14} {small.params:12,} {small.macs:15,}",
        f"{f'all {s}':14} {s * small.params:12,} {s * small.macs:15,}",
        f"{'undivided':14} {large.params:12,} {large.macs:15,}",
        f"{'ratio':14} {s * small.params / large.params:12.3f} {s * small.macs / large.macs:15.3f}",
    ]
    return "\n".join(lines)


def of_config(config) -> str:
    """`table` of what a config would train, for the images of its data set.

    Raises:
      ConfigError: a wrong value.
    """
    from jaxsplit import config as config_lib
    from jaxsplit import data

    config_lib.check(config)
    source = data.DATASETS[config.data.name]
    height, width, channels = source.image_shape
    shape = (config.data.image_size or height, config.data.image_size or width, channels)
    return table(config.arch, config.split, num_classes=source.num_classes, image_shape=shape)
