"""Configs: reads, checks and saves them, and derives what follows from them.

A config holds primary values only (`jaxsplit/defaults.py`). `resolve` derives what follows from
them alone; `durations.plan` derives lengths in steps once the size of the data set is known.
"""

from jaxsplit.config.checks import (
    DTYPES,
    ON_CORRUPT,
    VIEWS,
    check,
    check_same_on_all,
    check_types,
)
from jaxsplit.config.derived import (
    PAPER,
    Resolved,
    resolve,
)
from jaxsplit.config.fields import check_field, check_overrides, flags_given, flat, may_be_a_value
from jaxsplit.config.file import NAME as CONFIG_FILE
from jaxsplit.config.file import read as load
from jaxsplit.config.file import write as save
from jaxsplit.config.identity import RUNTIME, check_evaluation, check_identity
from jaxsplit.workdir.folder import prepare_workdir

__all__ = [
    "CONFIG_FILE",
    "DTYPES",
    "ON_CORRUPT",
    "PAPER",
    "RUNTIME",
    "Resolved",
    "VIEWS",
    "check",
    "check_evaluation",
    "check_field",
    "check_identity",
    "check_overrides",
    "check_same_on_all",
    "check_types",
    "flags_given",
    "may_be_a_value",
    "flat",
    "load",
    "prepare_workdir",
    "resolve",
    "save",
]
