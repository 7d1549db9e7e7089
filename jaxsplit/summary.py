"""Parameters and multiply-adds of an architecture, divided and undivided.

Multiply-adds are counted in the traced program, so that no formula per model can go wrong: those of
convolutions and matrix products, without biases, normalisation and pooling.

python -m jaxsplit.summary --all          all architectures, divided in 1, 2 and 4
python -m jaxsplit.summary --arch=NAME    some of them; NAME can be given again
"""

import argparse
import functools
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxsplit import conv, models
from jaxsplit.errors import ConfigError
from jaxsplit.models import fusion

ALL = "all"  # the networks of a stack together, in `own_costs`
SPLITS = (1, 2, 4)  # of the table of all architectures


class Cost(NamedTuple):
    """Of one network; multiply-adds of one image."""

    params: int
    stats: int  # elements of running statistics
    macs: int
    layers: dict[str, tuple[int, int]]  # outermost layer -> (params, multiply-adds)

    @property
    def groups(self) -> dict[str, tuple[int, int]]:
        """As `layers`, by stage: 'stage1' is all that is called stage1_..."""
        groups: dict[str, tuple[int, int]] = {}
        for name, (params, macs) in self.layers.items():
            group = name.split("_")[0]
            before = groups.get(group, (0, 0))
            groups[group] = (before[0] + params, before[1] + macs)
        return groups

    def in_trunk(self, stage: str) -> tuple[int, int]:
        """(params, multiply-adds) of the layers that networks share up to a stage."""
        shared = [n for layer, n in self.layers.items() if models.in_trunk(layer, stage)]
        return sum(p for p, _ in shared), sum(m for _, m in shared)


def cost(spec, *, num_classes: int, image_shape: tuple[int, int, int]) -> Cost:
    """Cost of the network of a Spec for images of (H, W, C); traces, never compiles."""
    return module_cost(models.build(spec, num_classes), image_shape)


def module_cost(module: nn.Module, shape: tuple[int, ...]) -> Cost:
    """Cost of a Linen module for one input of `shape`, without a batch axis."""
    image = jax.ShapeDtypeStruct((1, *shape), jnp.result_type(float))
    # One trace gives the program and what it makes; tracing is what takes the time.
    trace = jax.make_jaxpr(
        lambda x: module.init_with_output(jax.random.key(0), x), return_shape=True
    )
    with conv.lowered("grouped"):  # plain convolutions, on every backend
        program, (_, variables) = trace(image)
    macs = Counter()
    _count(program.jaxpr, macs, 1, "")
    params = Counter()
    for path, leaf in jax.tree.leaves_with_path(variables["params"]):
        params[path[0].key] += math.prod(leaf.shape)
    stats = sum(math.prod(x.shape) for x in jax.tree.leaves(variables.get("batch_stats", {})))
    order = [*macs, *(layer for layer in params if layer not in macs)]  # as the data flows
    layers = {layer: (params[layer], macs[layer]) for layer in order}
    return Cost(sum(params.values()), stats, sum(macs.values()), layers)


def map_shape(spec, image_shape: tuple[int, int, int], name: str = "final") -> tuple[int, int, int]:
    """(h, w, C) of features of the network of a Spec for an image of (H, W, C)."""
    module = models.build(spec, 1)
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.result_type(float))
    key = jax.random.key(0)
    (_, features), _ = jax.eval_shape(lambda x: module.init_with_output(key, x), image)
    return features[name].shape[1:]


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


@functools.lru_cache(maxsize=8)
def _cost(arch: str, divided_in: int, num_classes: int, image_shape: tuple[int, ...]) -> Cost:
    """A run asks for the same ones at its start and at its end."""
    return cost(models.divided(arch, divided_in), num_classes=num_classes, image_shape=image_shape)


def stack_cost(
    arch: str, divided_in: int, *, num_classes: int, image_shape: tuple[int, int, int]
) -> tuple[Cost, Cost]:
    """(one of the networks that `arch` is divided in, the undivided network)."""
    return tuple(_cost(arch, n, num_classes, tuple(image_shape)) for n in (divided_in, 1))


def title(config) -> str:
    """'resnet110 divided in 2', '2 x resnet110' (wholes), '1 of resnet110 divided in 2'."""
    s, n = config.split, config.divide_in
    if not config.divide or n == 1 or s == 1 == (n or s):
        return config.arch if s == 1 else f"{s} x {config.arch}"
    if n in (0, s):
        return f"{config.arch} divided in {s}"
    return f"{s} of {config.arch} divided in {n}"


def own_costs(config, small: Cost, **fields) -> dict[str, tuple[int, int]]:
    """(parameters, multiply-adds) of what a config's networks answer together, by name of it.

    Args:
      config: which method, how many networks, what they share.
      small: one of the networks.
      **fields: num_classes, image_shape.

    Returns:
      `ALL`, the networks with what they share counted once, and the answers that are given by other
      modules as well, or by fewer networks.
    """
    from jaxsplit import config as config_lib
    from jaxsplit.methods.one import Gate

    s, spec, shape = config.split, config_lib.spec(config), fields["image_shape"]
    trunk = config_lib.trunk(config)
    params, macs = small.in_trunk(trunk)
    every = (s * small.params - (s - 1) * params, s * small.macs - (s - 1) * macs)

    def and_module(module: nn.Module, *shape: int) -> tuple[int, int]:
        more = module_cost(module, shape)
        return every[0] + more.params, every[1] + more.macs

    costs = {ALL: every}
    if config.method == "okddip":
        costs["leader"] = (small.params, small.macs)
    if config.method == "one":
        costs["gated"] = and_module(Gate(s), map_shape(spec, shape, trunk)[-1])
    if config.method == "ffsd":
        its = models.divided(config.ffsd.leader, 1) if config.ffsd.leader else spec
        leader = cost(its, **fields) if config.ffsd.leader else small
        costs["leader"] = (leader.params, leader.macs)
        h, w, c = map_shape(spec, shape)
        module = fusion.Fusion(map_shape(its, shape)[-1], fields["num_classes"])
        costs["fusion"] = and_module(module, h, w, s * c)
    return costs


def table(config, **fields) -> str:
    """Text: parameters and multiply-adds per layer group and of the whole, and undivided.

    Args:
      config: says which networks.
      **fields: num_classes, image_shape.
    """
    from jaxsplit import config as config_lib

    small, large = stack_cost(config.arch, config_lib.divided_in(config), **fields)
    costs = own_costs(config, small, **fields)
    params, macs = every = costs.pop(ALL)
    rows = {
        **small.groups,
        "one network": (small.params, small.macs),
        f"all {config.split}": every,
        **costs,
        "undivided": (large.params, large.macs),
    }
    lines = [f"{title(config)}, one network", f"{'':14} {'parameters':>12} {'mult-adds':>15}"]
    lines += [f"{name:14} {p:12,} {m:15,}" for name, (p, m) in rows.items()]
    lines.append(f"{'ratio':14} {params / large.params:12.3f} {macs / large.macs:15.3f}")
    if trunk := config_lib.trunk(config):
        lines.append(f"the networks share all up to {trunk}, which is counted once in `all`")
    return "\n".join(lines)


def of_config(config) -> str:
    """`table` of what a config would train, for the images of its data set; `curves` below it.

    Raises:
      ConfigError: a wrong value.
    """
    from jaxsplit import config as config_lib
    from jaxsplit import curves, data

    config = config_lib.check(config)
    source = data.source(config.data)
    height, width, channels = source.image_shape
    shape = (config.data.image_size or height, config.data.image_size or width, channels)
    costs = table(config, num_classes=source.num_classes, image_shape=shape)
    return f"{costs}\n\n{curves.of_config(config)}"


def architectures() -> list[str]:
    """Every architecture by its name; of those with free numbers the reference's."""
    return [arch for family in models.FAMILIES.values() for arch in family.specs]


_ROW = "{:28} {:>2} {:>6} {:>7} {:>13} {:>15} {:>13} {:>15} {:>7} {:>7}"


def rows(archs: Sequence[str]) -> Iterator[str]:
    """Lines of the table of some architectures at every S of `SPLITS` that they have.

    Those made for images of at most 64 pixels are counted with 100 classes, others with 1000.

    Raises:
      ConfigError: an unknown architecture; before the first line.
    """
    specs = [models.known(arch)[1] for arch in archs]
    yield _ROW.format("", "", "", "", "one network", "", "all S", "", "ratio", "")
    counts = ("parameters", "mult-adds")
    yield _ROW.format("", "S", "pixels", "classes", *counts, *counts, "param.", "m-adds")
    for spec in specs:
        size = spec.image_size
        fields = dict(num_classes=100 if size <= 64 else 1000, image_shape=(size, size, 3))
        whole = cost(models.divided(spec.arch, 1), **fields)
        for s in SPLITS:
            if s not in spec.splits:
                continue
            one = whole if s == 1 else cost(models.divided(spec.arch, s), **fields)
            yield _ROW.format(
                spec.arch,
                s,
                size,
                fields["num_classes"],
                f"{one.params:,}",
                f"{one.macs:,}",
                f"{s * one.params:,}",
                f"{s * one.macs:,}",
                f"{s * one.params / whole.params:.3f}",
                f"{s * one.macs / whole.macs:.3f}",
            )


def main(argv: Sequence[str]) -> int:
    """The command line; each line is printed as soon as it is known."""
    parser = argparse.ArgumentParser(prog="python -m jaxsplit.summary", description="Size and cost")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--all", action="store_true", help="every architecture, in some minutes")
    which.add_argument("--arch", action="append", metavar="NAME", help="one; can be given again")
    flags = parser.parse_args(argv)
    try:
        for line in rows(architectures() if flags.all else flags.arch):
            print(line.rstrip(), flush=True)
    except ConfigError as error:
        print("error:", error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
