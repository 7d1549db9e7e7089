"""The defaults of `jaxsplit/defaults.py`, under the old name that config files may import."""

from jaxsplit.defaults import get_config

__all__ = ["get_config"]
