"""The config of an existing workdir: --config=jaxsplit/config/saved.py:WORKDIR.

The command line does that itself where --config is left out.
"""

from ml_collections import ConfigDict

from jaxsplit import config as config_lib


def get_config(workdir: str) -> ConfigDict:
    return config_lib.load(workdir)
