"""The fields of a config by their dotted names, and the sentences that refuse wrong values.

Below `config` and `methods`: both check fields with it.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from jaxsplit.errors import ConfigError, short

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def flat(config: "ConfigDict", prefix: str = "") -> Iterator[tuple[str, Any]]:
    """('optim.lr', 0.1), ... of all fields; a list is the same as a tuple."""
    from ml_collections import ConfigDict  # the core is imported without it

    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, tuple(value) if isinstance(value, list) else value


class Section:
    """Fields to check: of a whole config, or of one of its groups.

    Attributes:
      config: the whole config.
      group: name of the group whose fields are named without it; '' for all fields.
      given: name -> value of the fields.
    """

    def __init__(self, config: "ConfigDict", group: str = ""):
        self.config, self.group = config, group
        self.given: dict[str, Any] = dict(flat(config[group] if group else config))

    def need(self, field: str, allowed: str, fine: bool) -> None:
        """Raises ConfigError, which says what is allowed, unless a field is fine."""
        if not fine:
            name = f"{self.group}.{field}" if self.group else field
            raise ConfigError(f"{name}={short(self.given[field])}: must be {allowed}")

    def one_of(self, field: str, names: Iterable[Any]) -> None:
        """Raises ConfigError unless the value of a field is one of some names."""
        self.need(field, f"one of {', '.join(names)}", self.given[field] in names)

    def at_least_zero(self, *fields: str) -> None:
        """Raises ConfigError for the first of some fields that is negative."""
        for field in fields:
            self.need(field, "0 or more", self.given[field] >= 0)
