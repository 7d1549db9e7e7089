"""One undivided network, trained alone: the reference for all other methods."""

from typing import Any

from jaxsplit.methods.base import Method, over_stack
from jaxsplit.methods.entry import Entry
from jaxsplit.stack import Stack


def make(stack: Stack, **fields: Any) -> Method:
    """Cross-entropy of one network; `fields`: label_loss.

    Raises:
      ValueError: the stack has several networks.
    """
    if stack.num_networks != 1:
        raise ValueError(f"single: needs a stack of 1 network; this stack has {stack.num_networks}")
    return over_stack(stack, **fields)


ENTRY = Entry(
    lambda config, plan, stack, **fields: make(stack, **fields),
    answer="net0",
    labels_only=True,
    least=1,
    most=1,
)
