"""The defaults of every field, `jaxsplit/defaults.py`, under the name that config files know."""

from jaxsplit.defaults import get_config

__all__ = ["get_config"]
