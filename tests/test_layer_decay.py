"""Layer-wise learning rates: depths by name, and updates of every optimizer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from configs import common
from jaxsplit import experiment, layer_decay, models, optim
from jaxsplit.errors import ConfigError
from tests.support.runs import tiny
from tests.support.samples import every, first


def rate_of(layers: list[str], decay: float = 0.5) -> dict[str, float]:
    return layer_decay.rates(layers, decay)


def test_a_vision_transformer_by_hand():
    """BEiT's rule: D = blocks + 1; the norm behind the blocks counts to the head."""
    layers = ["class_token", "positions", "stem_patches"]
    layers += [f"stage1_block{j}" for j in range(1, 13)] + ["final_norm", "head"]
    got = rate_of(layers, 0.75)
    assert got["class_token"] == got["positions"] == got["stem_patches"] == 0.75**13
    blocks = [got[f"stage1_block{j}"] for j in range(1, 13)]
    assert blocks == [0.75 ** (13 - j) for j in range(1, 13)]
    assert got["final_norm"] == got["head"] == 1


def test_stages_transitions_and_other_words():
    """A transition belongs to the stage behind it, a layer without number to the first block."""
    layers = "head stage2_block1 stage1_block10 stage1_block2 stage1_transition stem_conv".split()
    layers += ["stage2_down", "stage3_layer1", "stage3_layer2", "final_bn"]
    assert rate_of(layers) == {
        "head": 1,
        "final_bn": 1,
        "stage3_layer2": 1 / 2,
        "stage3_layer1": 1 / 4,
        "stage2_block1": 1 / 8,
        "stage2_down": 1 / 8,
        "stage1_transition": 1 / 8,
        "stage1_block10": 1 / 16,
        "stage1_block2": 1 / 32,
        "stem_conv": 1 / 64,
    }


@pytest.mark.parametrize("family", every(3, sorted(models.FAMILIES)))
def test_rates_rise_in_the_order_of_computation(family):
    """In every family: from the images to the head, from each block to the next."""
    spec = models.divided(next(iter(models.FAMILIES[family].specs)), 1)
    fields = [f.name for f in dataclasses.fields(spec) if f.name in ("blocks", "layers")]
    for field in fields:  # two in each stage, where a field says how many
        if isinstance(given := getattr(spec, field), tuple):
            spec = dataclasses.replace(spec, **{field: (2,) * len(given)})
    module, called = models.build(spec, 10), []

    def note(call, args, kwargs, context):
        if len(context.module.path) == 1:
            called.append(context.module.path[0])
        return call(*args, **kwargs)

    image = jnp.zeros((1, spec.image_size, spec.image_size, 3))
    with nn.intercept_methods(note):
        params = jax.eval_shape(lambda: module.init(jax.random.key(0), image))["params"]
    got = rate_of(list(params), 0.5)
    order = [got[layer] for layer in called if layer in got]
    assert order == sorted(order) and got["head"] == 1
    blocks = sum(layer.startswith("stage") and layer[-1].isdigit() for layer in got)
    assert order[0] == 0.5 ** (blocks + 1)


# ---- Updates

ONES = jnp.ones((2, 3))  # one shape for all: eager operations compile once
PARAMS = {
    "stack": {
        "stage2_block1": {"conv": {"kernel": 4 * ONES}},
        "head": {"kernel": 2 * ONES, "bias": ONES},
    },
    "trunk": {"stem_conv": {"kernel": 8 * ONES}, "stage1_block1": {"bn": {"scale": ONES}}},
    "gate": {"dense": {"kernel": ONES}},
    "leader": {"stem_conv": {"kernel": ONES}, "stage1_block1": {"bias": ONES}},
}
FACTORS = {
    "stack": {"stage2_block1": 1 / 2, "head": 1},
    "trunk": {"stem_conv": 1 / 8, "stage1_block1": 1 / 4},
    "gate": {"dense": 1},
    "leader": {"stem_conv": 1 / 4, "stage1_block1": 1 / 2},
}


def optim_config(**changes) -> ConfigDict:
    config = common.get_config().optim
    config.update(dict(momentum=0.0, nesterov=False, weight_decay=0.0) | changes)
    return config


def updates(config: ConfigDict, steps: int = 3, **fields) -> list:
    """The updates of some steps with random gradients and rates, each from the same parameters."""
    rates, rng = jnp.asarray([0.5, 2.0, 0.25]), np.random.default_rng(0)
    tx = optim.build(config, lambda i: rates[i], PARAMS, 2, **fields)
    state, made = tx.init(PARAMS), []
    for _ in range(steps):
        grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), PARAMS)
        out, state = tx.update(grads, state, PARAMS)
        made.append(out)
    return made


def assert_multiplied(with_decay: list, without: list) -> None:
    for got, want in zip(with_decay, without, strict=True):
        for part, layers in FACTORS.items():
            for layer, factor in layers.items():
                for a, b in zip(
                    jax.tree.leaves(got[part][layer]),
                    jax.tree.leaves(want[part][layer]),
                    strict=True,
                ):
                    assert a.dtype == b.dtype
                    np.testing.assert_array_equal(a, factor * b)  # powers of two: exact


def test_factors_of_a_stack_its_trunk_and_other_parts():
    got = layer_decay.factors(PARAMS, 0.5)
    assert jax.tree.structure(got) == jax.tree.structure(PARAMS)
    for part, layers in FACTORS.items():
        for layer, factor in layers.items():
            assert set(jax.tree.leaves(got[part][layer])) == {factor}


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_every_update_is_multiplied_as_if_the_rate_were(name):
    """Decoupled decay, momentum that holds the rate (rmsprop_tf), clipping and all."""
    fields = dict(name=name, weight_decay=0.125, momentum=0.5, clip_norm=1.0)
    off = updates(optim_config(**fields))
    assert_multiplied(updates(optim_config(**fields, layer_decay=0.5)), off)


def test_groups_are_multiplied_too():
    groups = dict(
        group=lambda path: "own" if path[0] in ("gate", "leader") else "",
        groups={"own": dict(name="adam", lr=1e-3)},
    )
    off = updates(optim_config(), **groups)
    assert_multiplied(updates(optim_config(layer_decay=0.5), **groups), off)


def test_adamw_by_hand():
    """Gradients of zero leave the decoupled decay alone: w -= lr * factor * decay * w."""
    config = optim_config(name="adamw", weight_decay=0.5, layer_decay=0.5)
    tx = optim.build(config, lambda i: 0.25, PARAMS, 2)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    got, _ = tx.update(zeros, tx.init(PARAMS), PARAMS)
    after = optax.apply_updates(PARAMS, got)
    assert (after["trunk"]["stem_conv"]["kernel"] == 8 - 0.25 / 8 * 0.5 * 8).all()
    assert (after["stack"]["stage2_block1"]["conv"]["kernel"] == 4 - 0.25 / 2 * 0.5 * 4).all()
    assert (after["stack"]["head"]["kernel"] == 2 - 0.25 * 0.5 * 2).all()
    assert (after["stack"]["head"]["bias"] == 1).all()


def test_off_changes_nothing_and_the_state_never():
    """So that a run resumes with another layer_decay, and old checkpoints restore."""
    built = [
        optim.build(optim_config(momentum=0.9, layer_decay=decay), lambda i: 0.1, PARAMS, 2)
        for decay in (1.0, 0.5)
    ]
    off, on = (jax.tree.structure(tx.init(PARAMS)) for tx in built)
    assert off == on


# ---- Configs


@pytest.mark.parametrize("value", [0.0, -0.5, 1.5])
def test_values_out_of_range(value):
    with pytest.raises(ConfigError, match=rf"^optim.layer_decay={value}: must be in \(0, 1\]"):
        optim.build(optim_config(layer_decay=value), lambda i: 0.1, {}, 1)


def test_a_network_without_stages_is_refused():
    params = {"stack": {"conv1": {"kernel": jnp.ones(3)}, "head": {"bias": jnp.ones(3)}}}
    line = "^optim.layer_decay=0.5: must be 1 .off. for networks without layers .* conv1, head$"
    with pytest.raises(ConfigError, match=line):
        optim.build(optim_config(layer_decay=0.5), lambda i: 0.1, params, 1)


@pytest.mark.parametrize("method", first(1, ["ffsd", "okddip", "batch_ensemble"]))
def test_parameters_of_methods(method):
    """Shared arrays learn as in a network; modules on top of networks as a head."""
    optimizers = []
    for decay in (1.0, 0.5):
        config = tiny(arch="wide_resnet10_1", method=method, split=4, optim__layer_decay=decay)
        exp = experiment.build(config)
        optimizers.append(exp.optimizer)
    params = jax.tree.map(lambda _: ONES, exp.state_shapes().params)
    plain, scaled = (tx.update(params, tx.init(params), params)[0] for tx in optimizers)
    want = {"stem": 1 / 16, "stage1": 1 / 8, "stage2": 1 / 4, "stage3": 1 / 2}
    for path, x in jax.tree.leaves_with_path(scaled):
        part, layer = path[0].key, path[1].key
        of_network = part in ("stack", "trunk", "leader")
        factor = want.get(layer.split("_")[0], 1) if of_network else 1
        np.testing.assert_array_equal(x, factor * value_at(plain, path))
    assert len(params) > 1


def value_at(tree, path):
    for key in path:
        tree = tree[key.key]
    return tree
