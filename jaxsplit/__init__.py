"""jaxsplit: one large classifier divided into S small ones, trained together (JAX)."""

__version__ = "0.1.0"
