"""Errors that a user can act on: one line, without a traceback in the command line tool."""


class ConfigError(ValueError):
    """A wrong value in a config, flag or workdir: names the field, the value, what is allowed."""


class NonFiniteLossError(FloatingPointError):
    """The loss became NaN or infinite: names the step and the last good checkpoint."""
