"""expected: the costs of a run before it starts, and its pace."""

import pytest

from jaxsplit import config as config_lib
from jaxsplit import costs, expected
from jaxsplit.compare.grid import Cost
from jaxsplit.errors import ConfigError
from tests.support.runs import one_network, tiny

KNOWN = dict(num_classes=10, image_shape=(8, 8, 3))


def networks(config) -> tuple[costs.Cost, dict]:
    resolved = config_lib.resolve(config)
    small = costs.cost(resolved.spec, **KNOWN)
    return small, costs.own_costs(config, resolved, small, **KNOWN)


def test_one_network():
    small, _ = networks(one_network())
    assert expected.cost(one_network()) == Cost(small.params, small.macs, small.macs)


def test_an_ensemble_deploys_all_that_trains():
    small, named = networks(tiny())
    params, macs = named[costs.ALL]
    assert expected.cost(tiny()) == Cost(params, macs, macs) == Cost(2 * small.params, macs, macs)
    assert macs == 2 * small.macs


def test_one_of_several_is_deployed():
    config = tiny(method="dml", divide=False)
    whole, _ = networks(config)
    assert expected.cost(config) == Cost(whole.params, whole.macs, 2 * whole.macs)


def test_all_that_trains_with_a_leader():
    """Students, leader, fusion module, and the trans-fusion and self-distillation modules."""
    config = tiny(method="ffsd", divide=False)
    whole, named = networks(config)
    found = expected.cost(config)
    assert (found.params, found.macs) == named["leader"] == (whole.params, whole.macs)
    modules = found.train_macs - named["fusion"][1] - named["leader"][1]
    # WRN-10-1's maps at 8x8, 4x4 and 2x2 pixels have 16, 32 and 64 channels.
    assert modules == TRANS_FUSION + 2 * SELF_DISTILLATION


# A depthwise 3x3 and a pointwise convolution, twice: 64 -> 64 -> 128 channels on 2x2 pixels.
TRANS_FUSION = 0
SELF_DISTILLATION = 0


def test_a_shared_trunk_counts_once_if_all_see_one_view():
    config = tiny(method="one")
    _, named = networks(config)
    assert expected.cost(config).train_macs == named["gated"][1]
    different = tiny(method="one", views="different")
    assert expected.cost(different).train_macs > named["gated"][1]


def test_what_a_run_would_refuse():
    with pytest.raises(ConfigError, match="stop.metric='test/leader/nll'"):
        expected.cost(tiny(stop__metric="test/leader/nll", stop__patience=3))


def test_pace():
    found = expected.pace(tiny(duration="1 epochs"))
    assert found.steps == expected.steps(tiny(duration="1 epochs")) == 2048 // 16
    assert found.step > 0 and found.compilation > 0
