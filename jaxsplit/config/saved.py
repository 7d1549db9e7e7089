"""A config file that returns the config of a workdir: --config=jaxsplit/config/saved.py:WORKDIR.

The command line uses it when --config is not given.
"""

from ml_collections import ConfigDict

from jaxsplit import config as config_lib


def get_config(workdir: str) -> ConfigDict:
    return config_lib.load(workdir)
