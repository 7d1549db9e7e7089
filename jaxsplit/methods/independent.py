"""S networks that exchange nothing: a plain ensemble, the baseline of every other method."""

from typing import Any

from jaxsplit.methods.base import Method, over_stack
from jaxsplit.methods.entry import Entry
from jaxsplit.stack import Stack


def make(stack: Stack, **fields: Any) -> Method:
    """Cross-entropy summed over networks; `fields`: label_loss, ensemble."""
    return over_stack(stack, **fields)


ENTRY = Entry(
    lambda config, plan, stack, **fields: make(stack, **fields),
    views="different",
    labels_only=True,
)
