"""expected: the costs of a run before it starts, and its pace."""

import pytest

from jaxsplit import config as config_lib
from jaxsplit import costs, expected
from jaxsplit.compare.grid import Cost
from jaxsplit.errors import ConfigError
from jaxsplit.models import fusion
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


@pytest.mark.parametrize("lowering", ["dense", "packed", "grouped"])
def test_the_lowering_changes_no_count(lowering):
    _, named = networks(tiny())
    assert expected.cost(tiny(lowering=lowering)).train_macs == named[costs.ALL][1]


@pytest.mark.parametrize("arch", ["convnext_atto_p1", "efficientnetb0_cifar"])
def test_depthwise_convolutions_count_in_training(arch):
    """On CPU a network computes them as sums of products, in training and in use."""
    found = expected.cost(tiny(arch=arch, lowering="dense"))
    assert found.train_macs == found.macs


def test_one_of_several_is_deployed():
    config = tiny(method="dml", divide=False)
    whole, _ = networks(config)
    assert expected.cost(config) == Cost(whole.params, whole.macs, 2 * whole.macs, 2 * whole.macs)


def test_what_a_step_does_once_is_not_of_an_image():
    """OKDPH trains S students and their hybrid, whose weights it mixes once a step."""
    config = tiny(method="okdph", divide=False, split=2)
    whole, _ = networks(config)
    assert expected.cost(config).train_macs == 3 * whole.macs


def test_all_that_trains_with_a_leader():
    """Students, leader, fusion module, and the trans-fusion and self-distillation modules."""
    config = tiny(arch="wide_resnet10_1", method="ffsd", divide=False)
    whole, named = networks(config)
    found = expected.cost(config)
    assert (found.params, found.macs) == named["leader"] == (whole.params, whole.macs)
    # The last map of WRN-10-1 is 2x2x64. A depthwise 3x3 and a 1x1 convolution to both students'.
    trans_fusion = 4 * (9 * 64 + 64 * 128)
    # From it 4x4x32, then 8x8x16, by transposed 4x4 convolutions, of which an output sees 2x2.
    module = costs.module_cost(fusion.SelfDistillation((32, 16)), (2, 2, 64)).macs
    # A module of the second student and one of the leader; each teaches and learns.
    modules = trans_fusion + 2 * 2 * module
    assert found.train_macs == named["fusion"][1] + named["leader"][1] + modules


def test_a_shared_trunk_counts_once_if_all_see_one_view():
    config = tiny(arch="wide_resnet10_1", method="one")
    _, named = networks(config)
    assert expected.cost(config).train_macs == named["gated"][1]
    different = tiny(arch="wide_resnet10_1", method="one", views="different")
    assert expected.cost(different).train_macs > named["gated"][1]


def test_what_a_run_would_refuse():
    with pytest.raises(ConfigError, match="stop.metric='test/leader/nll'"):
        expected.cost(tiny(stop__metric="test/leader/nll", stop__patience=3))


@pytest.mark.slow
def test_pace():
    config = one_network(duration="1 epochs")
    found = expected.pace(config)
    assert found.steps == expected.steps(config) == 2048 // 16
    assert found.step > 0 and found.compilation > 0


def test_steps_need_no_teacher():
    """A grid counts the steps of a run whose teacher is not trained yet, and changes no config."""
    config = one_network(method="distill_from")
    assert expected.steps(config) == expected.steps(one_network()) > 0
    assert config.method == "distill_from"
