"""Tables of parameters and multiply-adds, of what a config trains and of all architectures.

python -m jaxsplit.summary --all          all architectures, divided in 1, 2 and 4
python -m jaxsplit.summary --arch=NAME    some of them; NAME can be given again
"""

from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxsplit import models
from jaxsplit.costs import ALL, cost, own_costs, stack_cost

SPLITS = (1, 2, 4)  # of the table of all architectures


def title(config: ConfigDict) -> str:
    """'resnet110 divided in 2', '2 x resnet110' (wholes), '1 of resnet110 divided in 2'."""
    s, n = config.split, config.divide_in
    if not config.divide or n == 1 or s == 1 == (n or s):
        return config.arch if s == 1 else f"{s} x {config.arch}"
    if n in (0, s):
        return f"{config.arch} divided in {s}"
    return f"{s} of {config.arch} divided in {n}"


def table(config: ConfigDict, **fields: Any) -> str:
    """Text: parameters and multiply-adds per layer group and of the whole, and undivided.

    Args:
      config: says which networks.
      **fields: num_classes, image_shape.
    """
    from jaxsplit import config as config_lib

    resolved = config_lib.resolve(config)
    small, large = stack_cost(config.arch, resolved.divided_in, **fields)
    costs = own_costs(config, resolved, small, **fields)
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
    if resolved.trunk:
        shared = f"the networks share all up to {resolved.trunk}"
        lines.append(f"{shared}, which is counted once in `all`")
    return "\n".join(lines)


def of_config(config: ConfigDict) -> str:
    """`table` of what a config would train, for the images of its data set; `curves` below it.

    Raises:
      ConfigError: a wrong value.
    """
    from jaxsplit import config as config_lib
    from jaxsplit import data
    from jaxsplit.report import curves

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
