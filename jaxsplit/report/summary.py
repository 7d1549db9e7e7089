"""Tables of parameters and multiply-adds of a config's networks, or of architectures.

jaxsplit summary --config=NAME  the networks that a config trains
jaxsplit summary --arch=NAME    an architecture divided in 1, 2 and 4; --arch can be repeated
jaxsplit summary --all          all architectures
"""

from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxsplit import methods, models
from jaxsplit.costs import ALL, config_costs, cost, own_costs

SPLITS = (1, 2, 4)  # the numbers S in the table of architectures


def title(config: ConfigDict) -> str:
    """The networks in words: 'resnet110 divided in 2', or '2 x resnet110' if they are whole."""
    method = methods.METHODS.get(config.method)
    heads = method.heads(config) if method else 1
    s, n = config.split // heads, config.divide_in
    several = f" with {heads} inputs and outputs" if heads > 1 else ""
    if not config.divide or n == 1 or s == 1 == (n or s):
        return (config.arch if s == 1 else f"{s} x {config.arch}") + several
    if n in (0, s):
        return f"{config.arch} divided in {s}"
    return f"{s} of {config.arch} divided in {n}{several}"


def table(config: ConfigDict, **fields: Any) -> str:
    """Text with the costs of each stage, of one network, of all, and of the undivided network.

    Args:
      config: the config of the networks.
      **fields: num_classes and image_shape, as of `costs.cost`.
    """
    from jaxsplit import config as config_lib

    resolved = config_lib.resolve(config)
    small, large = config_costs(config, resolved, **fields)
    costs = own_costs(config, resolved, small, **fields)
    params, macs = every = costs.pop(ALL)
    rows = {
        **small.groups,
        "one network": (small.params, small.macs),
        f"all {resolved.num_networks}": every,
        **costs,
        "undivided": (large.params, large.macs),
    }
    lines = [f"{title(config)}, one network", f"{'':14} {'parameters':>12} {'mult-adds':>15}"]
    lines += [f"{name:14} {p:12,} {m:15,}" for name, (p, m) in rows.items()]
    lines.append(f"{'ratio':14} {params / large.params:12.3f} {macs / large.macs:15.3f}")
    if resolved.trunk:
        shared = f"the networks share the layers up to {resolved.trunk}"
        lines.append(f"{shared}, which count once in `all`")
    return "\n".join(lines)


def of_config(config: ConfigDict) -> str:
    """`table` of the networks of a config, for the images of its data set, and its `curves`.

    Raises:
      ConfigError: a field has a wrong value.
    """
    from jaxsplit import config as config_lib
    from jaxsplit import data, teacher
    from jaxsplit.report import curves

    config = config_lib.check(config)
    source = data.source(config.data)
    height, width, channels = source.image_shape
    shape = (config.data.image_size or height, config.data.image_size or width, channels)
    costs = table(config, num_classes=source.num_classes, image_shape=shape)
    if taught := teacher.cost(config):
        costs += (
            f"\nteacher, in training only: {taught.answer}, {taught.params:,} parameters, "
            f"{taught.macs:,} mult-adds for each view"
        )
    return f"{costs}\n\n{curves.of_config(config)}"


def architectures() -> list[str]:
    """The names of all architectures; of families with free numbers, those of the original code."""
    return [arch for family in models.FAMILIES.values() for arch in family.specs]


_ROW = "{:28} {:>2} {:>6} {:>7} {:>13} {:>15} {:>13} {:>15} {:>7} {:>7}"


def rows(archs: Sequence[str]) -> Iterator[str]:
    """The lines of a table of architectures, each at every S of `SPLITS` that divides it.

    Architectures for images of at most 64 pixels are counted with 100 classes, others with 1000.

    Raises:
      ConfigError: an architecture is unknown; raised before the first line.
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
