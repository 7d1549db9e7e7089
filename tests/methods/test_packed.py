"""Packed-Ensembles: parameters of the paper, groups of one convolution, and what is refused."""

import dataclasses
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxsplit import config as config_lib
from jaxsplit import conv, costs, experiment, loop, models
from jaxsplit.errors import ConfigError
from jaxsplit.models import resnet, subgroups
from jaxsplit.models.layers import Conv
from jaxsplit.weights import extract
from tests.support.nets import registered
from tests.support.runs import tiny

# As the paper's networks for CIFAR; jaxsplit's ResNet-18 and 50 are ResNets-D for ImageNet.
CIFAR = dict(stem=(64,), stem_pool="none", shortcut="strided")


def parameters(spec, classes=10) -> int:
    module = models.build(spec, classes)
    image = jnp.zeros((1, 32, 32, 3))
    made = jax.eval_shape(lambda: module.init(jax.random.key(0), image)["params"])
    return sum(math.prod(x.shape) for x in jax.tree.leaves(made))


def member(undivided, alpha, members, gamma):
    spec = resnet.pack(undivided, alpha / members)
    return subgroups.Member(spec, subgroups.Subgroups(gamma, whole=resnet.whole(undivided)))


@pytest.mark.parametrize(  # in millions: the paper's table for CIFAR-10, alpha 2, M 4, gamma 2
    ("arch", "undivided", "packed", "table"),
    [
        ("resnet18", 11_173_962, 8_175_784, 8.18),
        pytest.param("resnet50", 23_520_842, 14_552_232, 14.55, marks=pytest.mark.slow),
    ],
)
def test_parameters_of_the_papers_resnets(arch, undivided, packed, table):
    """To the last one as in the authors' code."""
    spec = dataclasses.replace(models.known(arch)[1], **CIFAR)
    assert parameters(spec) == undivided
    assert 4 * parameters(member(spec, 2, 4, 2)) == packed
    assert round(packed / 1e6, 2) == table


def test_parameters_of_the_papers_wide_resnet():
    """The paper's shortcuts have a bias instead of BatchNorm; its stem has a bias."""
    spec = models.packed("wide_resnet28_10", 2 / 4, gamma=2)
    shortcuts, stem = 2 * (160 + 320 + 640), 2 * 16
    authors = 4 * parameters(spec) - 2 * shortcuts + shortcuts + stem
    assert authors == 19_354_280
    assert round(authors / 1e6, 2) == 19.35


@pytest.mark.parametrize(
    ("channels", "features", "groups", "gamma"),
    [
        (128, 128, 1, 2),  # 64 in each group
        (126, 128, 1, 1),  # 63 would be too few
        (384, 384, 1, 4),
        (320, 320, 1, 4),  # 80 each
        (256, 100, 1, 4),
        (256, 102, 1, 2),  # 4 does not divide the features, 3 not the channels
        (256, 256, 4, 1),  # each of its own groups has 64 already
        (512, 512, 4, 2),
    ],
)
def test_least_channels_of_a_group(channels, features, groups, gamma):
    assert subgroups.Subgroups(4, 64).of("conv2", channels, features, groups) == gamma
    named = subgroups.Subgroups(4, 64, whole=("conv2",))
    assert named.of("conv2", channels, features, groups) == 1


@pytest.mark.parametrize("lowering", conv.LOWERINGS)
@pytest.mark.parametrize("first", [True, False])
def test_a_stack_is_one_grouped_convolution(lowering, first):
    """Channels side by side, members * gamma groups; the first layer's members share the image."""
    members, gamma, c, f = 3, 2, 4, 6
    rng = np.random.default_rng(0)

    layer = subgroups.applied(Conv(f, 3, 2), subgroups.Subgroups(gamma, least=1))
    inputs = 3 if first else c
    cut = 1 if first else gamma  # an image of 3 channels cannot be halved
    kernels = rng.normal(size=(members, 3, 3, inputs // cut, f)).astype(np.float32)
    shape = (5, 8, 8, inputs) if first else (members, 5, 8, 8, inputs)
    x = rng.normal(size=shape).astype(np.float32)
    drawn = jax.eval_shape(lambda: layer.init(jax.random.key(0), x if first else x[0]))
    assert drawn["params"]["kernel"].shape == kernels.shape[1:]

    apply = jax.vmap(
        lambda k, x: layer.apply({"params": {"kernel": k}}, x), (0, None if first else 0)
    )
    with conv.lowered(lowering):
        got = jax.jit(apply)(kernels, x)

    side_by_side = x if first else np.concatenate(x, -1)
    one = lax.conv_general_dilated(
        side_by_side,
        np.concatenate(kernels, -1),
        (2, 2),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=1 if first else members * gamma,
    )
    np.testing.assert_allclose(np.concatenate(got, -1), one, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def arch():
    with registered("tiny_packed") as name:
        yield name


@pytest.fixture(scope="module")
def config(arch):
    fields = dict(packed__least_channels=1, packed__alpha=1.0, lowering="dense")
    return tiny(arch=arch, method="packed", **fields)


def test_costs_by_hand(config):
    """Half of 8 channels: stem 3 -> 4, two convolutions in two groups of 2 each, head 4 -> 10."""
    exp = experiment.build(config)
    fields = dict(num_classes=10, image_shape=(8, 8, 3))
    small, _ = costs.stack_cost(config.arch, 2, spec=exp.resolved.spec, **fields)
    assert small.macs == 64 * (9 * 3 * 4 + 2 * 9 * 2 * 4) + 4 * 10
    assert small.layers["stage1_block1"] == (2 * 9 * 2 * 4 + 2 * 2 * 4, 64 * 2 * 9 * 2 * 4)
    norms, head = 3 * 2 * 4, 4 * 10 + 10
    assert small.params == 9 * 3 * 4 + 2 * 9 * 2 * 4 + norms + head
    every = costs.own_costs(config, exp.resolved, small, **fields)
    assert every == {costs.ALL: (2 * small.params, 2 * small.macs)}
    assert pickle.loads(pickle.dumps(exp.resolved.spec)) == exp.resolved.spec
    assert models.remat_stages(exp.resolved.spec, "all") == ("stage1",)
    assert models.trunk_stage(exp.resolved.spec, "stage1") == "stage1"


@pytest.mark.slow
def test_recomputed_blocks_have_the_same_gradients(config):
    spec = config_lib.resolve(config).spec
    plain, remat = (models.build(spec, 10, remat=stages) for stages in ((), ("stage1",)))
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    variables = jax.jit(plain.init)(jax.random.key(1), x)

    def gradient(module):
        def loss(params):
            whole = variables | {"params": params}
            out, _ = module.apply(whole, x, True, mutable=["batch_stats"])
            return jnp.square(out[0]).sum()

        return jax.jit(jax.grad(loss))(variables["params"])

    for a, b in zip(*(jax.tree.leaves(gradient(m)) for m in (plain, remat)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_member_alone_is_a_member(config, tmp_path):
    """Its config describes one of two members; it answers as in the run."""
    run = tmp_path / "run"
    results = loop.train_and_evaluate(config, run)
    extract.alone(config, run, "net1", tmp_path / "net1")
    own = config_lib.load(tmp_path / "net1")
    assert (own.method, own.split, own.divide_in) == ("packed", 1, 2)
    assert config_lib.resolve(own).spec == config_lib.resolve(config).spec
    alone = loop.evaluate_checkpoint(own, tmp_path / "net1")
    assert alone["test/net0/nll"] == pytest.approx(results["test/net1/nll"], rel=1e-5)


# ---- All families


ARCHS = {
    "resnet20": "",
    "wide_resnet10_2": "",
    "densenet40_12": "slow",
    "resnext29_8x64d": "slow",
    "se_resnet50": "slow",
    "resnest101": "slow",
    "resnexst50_4x16d": "slow",
    "efficientnetb0": "slow",
    "googlenet": "slow",
    "shake_resnet26_2x32d": "slow",
    "pyramidnet164": "slow",
    "ffsd_wide_resnet16_2": "slow",
    "vit_ti4": "",
    "convnext_atto": "slow",
}


@pytest.mark.parametrize(
    "arch", [pytest.param(a, marks=[pytest.mark.slow] if m else []) for a, m in ARCHS.items()]
)
def test_every_family_can_be_packed(arch):
    """With alpha = 2 four members cost about half with two subgroups, and about one without."""
    whole = models.divided(arch, 1)
    fields = dict(num_classes=10, image_shape=(whole.image_size, whole.image_size, 3))
    macs = costs.cost(whole, **fields).macs
    plain, cut = (
        costs.cost(models.packed(arch, 2 / 4, gamma=gamma, least=1), **fields).macs
        for gamma in (1, 2)
    )
    # The cost of depthwise convolutions and of attention grows with the width, not with its square.
    most = 1.2 if arch.startswith(("efficientnet", "vit", "convnext")) else 1.1
    assert 0.6 < 4 * plain / macs < most
    assert cut < 0.9 * plain


def test_every_family_has_a_rule():
    families = {models.known(arch)[0].build.__module__ for arch in ARCHS}
    assert all(family.pack is not None for family in models.FAMILIES.values())
    assert families == {family.build.__module__ for family in models.FAMILIES.values()}


# ---- Bad input


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"packed.alpha": 0.0}, "^packed.alpha=0.0: must be above 0$"),
        ({"packed.alpha": 3.0}, "^packed.alpha=3.0: must be at most 2, the number of members; th"),
        ({"packed.gamma": 0}, "^packed.gamma=0: must be at least 1$"),
        ({"packed.least_channels": 0}, "^packed.least_channels=0: must be at least 1$"),
        ({"divide": False}, "^divide=False: must be True with method='packed', which divides arch"),
        ({"arch": "resnext50_32x4d", "split": 64}, "cannot be packed; its groups would be too na"),
    ],
)
def test_wrong_values(fields, message):
    config = tiny(method="packed")
    config.update_from_flattened_dict(fields)
    with pytest.raises(ConfigError, match=message):
        config_lib.check(config)


def test_a_backbone_without_a_rule(monkeypatch):
    spec = dataclasses.replace(models.divided("wide_resnet10_1", 1), arch="mine", splits=(1,))
    monkeypatch.setattr(models, "FAMILIES", dict(models.FAMILIES))
    models.register(spec, lambda spec, s: spec, resnet.build)
    with pytest.raises(ConfigError, match="^arch='mine': cannot be packed; its family has no rule"):
        config_lib.check(tiny(method="packed", arch="mine"))
