"""Checks the fields of a config, by dotted names; errors name the field, its value and the rule.

`config` and `methods` both use this module, so it imports neither.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from jaxsplit.errors import ConfigError, short

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def flat(config: "ConfigDict", prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All fields as (dotted name, value), such as ('optim.lr', 0.1); lists become tuples."""
    from ml_collections import ConfigDict  # imported here: the core modules do without it

    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, tuple(value) if isinstance(value, list) else value


class Section:
    """The fields of a whole config, or of one of its groups, and checks of their values.

    Attributes:
      config: the whole config.
      group: name of the group, which field names omit; '': all fields, by their full names.
      given: field name -> value.
    """

    def __init__(self, config: "ConfigDict", group: str = ""):
        self.config, self.group = config, group
        self.given: dict[str, Any] = dict(flat(config[group] if group else config))

    def need(self, field: str, allowed: str, fine: bool) -> None:
        """Raises ConfigError, which says what is `allowed`, unless a field is `fine`."""
        if not fine:
            name = f"{self.group}.{field}" if self.group else field
            raise ConfigError(f"{name}={short(self.given[field])}: must be {allowed}")

    def one_of(self, field: str, names: Iterable[Any]) -> None:
        """Raises ConfigError unless the value of a field is one of `names`."""
        self.need(field, f"one of {', '.join(names)}", self.given[field] in names)

    def at_least_zero(self, *fields: str) -> None:
        """Raises ConfigError for the first of `fields` that is negative."""
        for field in fields:
            self.need(field, "0 or more", self.given[field] >= 0)
