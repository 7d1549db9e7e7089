"""jaxsplit: one large classifier divided into S small ones, trained together (JAX).

`jaxsplit.load(workdir)` gives the networks of a run as a function from images to probabilities.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jaxsplit.inference.predictor import load as load


def __getattr__(name: str) -> Any:
    if name == "load":  # not before: it takes seconds to import jax
        from jaxsplit.inference.predictor import load

        return load
    raise AttributeError(f"module 'jaxsplit' has no attribute {name!r}")
