"""Backbones so small that they compile in a second."""

import contextlib
import dataclasses
from collections.abc import Iterator

import pytest

from jaxsplit import models
from jaxsplit.models import resnet

# Every test can name it; programs that a test starts cannot.
SMALLEST = "one_block"


@contextlib.contextmanager
def registered(arch: str, **fields) -> Iterator[str]:
    """The name of a residual network with one block of 8 channels, while the context lasts."""
    small = dict(blocks=(1,), width=8, stem=(8,), splits=(1,)) | fields
    spec = dataclasses.replace(models.divided("wide_resnet10_1", 1), arch=arch, **small)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "FAMILIES", dict(models.FAMILIES))
        stages = len(spec.blocks)
        models.register(
            spec, lambda spec, s: spec, resnet.build, num_stages=stages, pack=resnet.pack
        )
        yield arch
