"""Checks that the small networks together cost about as much as the network that they replace."""

from typing import Any

from ml_collections import ConfigDict

from jaxsplit import config as config_lib
from jaxsplit import costs
from jaxsplit.errors import ConfigError

WARN = 1.2  # a higher ratio of multiply-adds gets a warning
MOST = 1.5  # a higher ratio needs `divide_anyway`; published divisions reach 1.39


def ratio(
    arch: str,
    divided_in: int,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    spec: Any = None,
) -> float:
    """Multiply-adds of all networks that replace `arch`, divided by those of `arch`.

    `spec`: see `costs.stack_cost`.
    """
    if divided_in == 1:
        return 1.0
    fields = dict(num_classes=num_classes, image_shape=image_shape)
    small, whole = costs.stack_cost(arch, divided_in, spec=spec, **fields)
    return divided_in * small.macs / whole.macs


def check(config: ConfigDict, *, num_classes: int, image_shape: tuple[int, int, int]) -> str:
    """A warning if the networks together cost much more than `arch`, else ''.

    Raises:
      ConfigError: they cost over `MOST` times as much, and `config.divide_anyway` is False.
    """
    resolved = config_lib.resolve(config)
    divided_in = resolved.divided_in
    times = ratio(
        config.arch,
        divided_in,
        num_classes=num_classes,
        image_shape=image_shape,
        spec=resolved.spec,
    )
    field = "divide_in" if config.divide_in else "split"
    cost = f"{divided_in} networks cost {times:.2f} times the multiply-adds of {config.arch}"
    if times > MOST and not config.divide_anyway:
        raise ConfigError(
            f"{field}={divided_in}: must be a division of about the same cost; {cost}, "
            f"at most {MOST} times are allowed unless divide_anyway=True"
        )
    return f"warning: {field}={divided_in}: the {cost}" if times > WARN else ""
