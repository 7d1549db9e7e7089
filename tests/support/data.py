"""What the tests of data sets share: configs, batches, small images, messages."""

import itertools

import pytest

from configs.common import get_config
from jaxsplit.errors import ConfigError
from tests.support.tfds import picture


def data_config(name, folder="unused", **fields):
    made = get_config().data
    made.update(name=name, dir=str(folder), **fields)
    return made


def take(feed, start, count):
    batches = feed.batches(start)
    out = list(itertools.islice(batches, count))
    batches.close()
    return out


def tiny(n, height=20, width=20, channels=3, first=0, classes=5):
    return [(picture(first + i, height, width, channels), (first + i) % classes) for i in range(n)]


def message_of(make):
    with pytest.raises(ConfigError) as caught:
        make()
    assert "\n" not in str(caught.value)
    return str(caught.value)
