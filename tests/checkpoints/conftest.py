"""Opens checkpoints for a test and closes them with it."""

import pytest

from jaxsplit.checkpoints import store
from tests.support.checkpoints import METRIC


@pytest.fixture
def opened(tmp_path):
    """A function that opens the checkpoints of a workdir; they are closed at the end."""
    made = []

    def open_(workdir=tmp_path, **fields):
        made.append(store.Checkpoints(workdir, best_metric=METRIC, **fields))
        return made[-1]

    yield open_
    for checkpoints in made:
        checkpoints.close()
