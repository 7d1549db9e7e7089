"""Decay by path, optimizers and clipping against the reference's numbers and against numpy."""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from configs import common
from jaxsplit import optim, sharding
from jaxsplit.errors import ConfigError
from tests.support.paths import GOLDEN


@pytest.mark.parametrize("name", ["lr_schedules.json", "optimizers.npz", "parameter_groups.json"])
def test_copies_are_the_reference(parity, name):
    assert (GOLDEN / name).read_bytes() == (parity / name).read_bytes()


# ---- weight decay

PARAMS = {  # stacked: a BatchNorm scale has two axes
    "conv": {"kernel": jnp.ones((4, 3, 3, 2, 2))},
    "bn": {"scale": jnp.ones((4, 2)), "bias": jnp.ones((4, 2))},
    "head": {"kernel": jnp.ones((4, 2, 5)), "bias": jnp.ones((4, 5))},
}


TOKENS = {  # of a vision transformer, and a block with LayerScale
    "positions": jnp.ones((4, 1, 5, 2)),
    "class_token": jnp.ones((4, 1, 1, 2)),
    "stage1_block1": {
        "norm1": {"scale": jnp.ones((4, 2)), "bias": jnp.ones((4, 2))},
        "qkv": {"kernel": jnp.ones((4, 2, 6)), "bias": jnp.ones((4, 6))},
        "scale1": {"layer_scale": jnp.ones((4, 2))},
    },
}


@pytest.mark.parametrize("decay_norm", [True, False])
@pytest.mark.parametrize("decay_bias", [True, False])
def test_tokens_positions_and_layer_scales_never_decay(decay_norm, decay_bias):
    assert optim.decay_mask(TOKENS, decay_norm=decay_norm, decay_bias=decay_bias) == {
        "positions": False,
        "class_token": False,
        "stage1_block1": {
            "norm1": {"scale": decay_norm, "bias": decay_bias},
            "qkv": {"kernel": True, "bias": decay_bias},
            "scale1": {"layer_scale": False},
        },
    }


@pytest.mark.parametrize("decay_norm", [True, False])
def test_decay_mask_goes_by_name(decay_norm):
    assert optim.decay_mask(PARAMS, decay_norm=decay_norm) == {
        "conv": {"kernel": True},
        "bn": {"scale": decay_norm, "bias": False},
        "head": {"kernel": True, "bias": False},
    }


def test_decay_mask_takes_shapes():
    shapes = jax.eval_shape(lambda: PARAMS)
    assert optim.decay_mask(shapes, decay_norm=True) == optim.decay_mask(PARAMS, decay_norm=True)


def test_decay_mask_rejects_a_leaf_that_no_rule_covers():
    with pytest.raises(ValueError, match="'block/attention/temperature' is not named one of"):
        optim.decay_mask({"block": {"attention": {"temperature": 1.0}}}, decay_norm=True)


# Row -> pattern of the modules (besides normalisation) that have a bias there.
BIASED = re.compile(r"(^|[._])(conv|fc\d?|linear\d?|last_linear|classifier|se_reduce|se_expand)")
UNDECAYED_NORMS = ("cifar100_densenet190_s16", "cifar100_efficientnetb0_s4")


def translated(row: dict) -> tuple[dict, dict[str, tuple[str, str]]]:
    """A synthetic parameter tree of the names in a row, and name -> its path in the tree."""
    names = [*row["not_decayed_names"], *row["decayed_names_sample"]]
    with_bias = {name[: -len(".bias")] for name in names if name.endswith(".bias")}
    norms = {m for m in with_bias if not BIASED.search(m.rsplit(".", 1)[-1])}
    assert len(norms) == row["bn_weights_total"]  # the translation knows every normalisation
    names += [f"{norm}.weight" for norm in norms]
    paths = {}
    for name in names:
        module, leaf = name.rsplit(".", 1)
        paths[name] = (
            module,
            "bias" if leaf == "bias" else "scale" if module in norms else "kernel",
        )
    tree = {}
    for module, leaf in paths.values():
        tree.setdefault(module, {})[leaf] = 0.0
    return tree, paths


def test_decay_mask_decides_as_the_reference():
    rows = json.loads((GOLDEN / "parameter_groups.json").read_text())
    assert set(UNDECAYED_NORMS) < set(rows) and len(rows) == 10
    for key, row in rows.items():
        tree, paths = translated(row)
        mask = optim.decay_mask(tree, decay_norm=key not in UNDECAYED_NORMS)
        undecayed = {name for name, (module, leaf) in paths.items() if not mask[module][leaf]}
        assert undecayed == set(row["not_decayed_names"]), key
        assert len(undecayed) == row["not_decayed_count"], key


@pytest.mark.parametrize(
    ("networks", "want"), [(1, 1e-4), (2, 6.065306597e-5), (4, 4.723665527e-5), (8, 4.168620197e-5)]
)
def test_divided_weight_decay_is_equation_6(networks, want):
    assert optim.divided_weight_decay(1e-4, networks) == pytest.approx(want, rel=1e-9)


def test_divided_weight_decay_equals_the_reference(parity):
    records = json.loads((parity / "reference_models.json").read_text())["splitnet"]
    for record in records:
        got = optim.divided_weight_decay(1.0, record["split_factor"])
        assert got == pytest.approx(record["wd_multiplier_eq6"], rel=1e-12)


# ---- Optimizers

ALL, ONLY_W = {"w": True, "b": True}, {"w": True, "b": False}
SGD = dict(momentum=0.9)
RMS = dict(alpha=0.9, momentum=0.9)
TF = dict(RMS, eps=1e-3)
# Row of optimizers.npz -> (factory, its fields).
ROWS = {
    "sgd_nesterov_wd1e-2_groups_b_nodecay": (
        optim.sgd,
        dict(SGD, nesterov=True, weight_decay=1e-2, mask=ONLY_W),
    ),
    "sgd_nesterov_wd1e-2_all": (optim.sgd, dict(SGD, nesterov=True, weight_decay=1e-2, mask=ALL)),
    "sgd_no_nesterov_wd1e-2_all": (
        optim.sgd,
        dict(SGD, nesterov=False, weight_decay=1e-2, mask=ALL),
    ),
    "rmsprop_tf_wd1e-5": (optim.rmsprop_tf, dict(TF, weight_decay=1e-5, mask=ALL)),
    "rmsprop_tf_wd1e-2": (optim.rmsprop_tf, dict(TF, weight_decay=1e-2, mask=ALL)),
    "rmsprop_tf_wd1e-2_groups_b_nodecay": (
        optim.rmsprop_tf,
        dict(TF, weight_decay=1e-2, mask=ONLY_W),
    ),
    "rmsprop_tf_no_momentum": (
        optim.rmsprop_tf,
        dict(TF, momentum=0.0, weight_decay=1e-2, mask=ALL),
    ),
    "rmsprop_tf_centered": (
        optim.rmsprop_tf,
        dict(TF, centered=True, weight_decay=1e-2, mask=ALL),
    ),
    "torch_rmsprop_wd1e-2": (optim.rmsprop, dict(RMS, eps=1e-8, weight_decay=1e-2, mask=ALL)),
    "adamw_eps1e-4_wd1e-2": (optim.adamw, dict(eps=1e-4, weight_decay=1e-2, mask=ALL)),
    "adam_l2_wd1e-2_ffsd": (optim.adam, dict(weight_decay=1e-2, mask=ALL)),
}


def test_every_row_of_the_reference_is_compared():
    data = np.load(GOLDEN / "optimizers.npz")
    assert ROWS.keys() == {name.split("/")[0] for name in data.files} - {"problem"}


def run(tx, params: dict, grads: list[dict]) -> list[dict]:
    """The parameters after every step."""

    @jax.jit
    def update(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state, after = tx.init(params), []
    for each in grads:
        params, state = update(params, state, each)
        after.append(params)
    return after


@pytest.mark.parametrize(
    ("dtype", "suffix", "tolerance"), [("float32", "", 1e-6), ("float64", "_f64", 1e-12)]
)
@pytest.mark.parametrize("row", ROWS)
def test_optimizers_equal_torch(row, dtype, suffix, tolerance):
    """The rate changes at every step."""
    data = np.load(GOLDEN / "optimizers.npz")
    factory, fields = ROWS[row]
    with jax.enable_x64(dtype == "float64"):
        rates = jnp.asarray(data["problem/lr_per_step"], dtype)
        params = {k: jnp.asarray(data[f"problem/param/{k}"], dtype) for k in "wb"}
        grads = [
            {k: jnp.asarray(data[f"problem/grads_per_step/{k}"][i], dtype) for k in "wb"}
            for i in range(6)
        ]
        after = run(factory(lambda i: rates[i], **fields), params, grads)
    for i, got in enumerate(after, start=1):
        for k in "wb":
            assert got[k].dtype == dtype
            want = data[f"{row}/step{i}/{k}{suffix}"]
            np.testing.assert_allclose(got[k], want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_equals_its_equations(momentum, nesterov):
    if nesterov and not momentum:
        with pytest.raises(ConfigError, match="optim.nesterov"):
            optim.sgd(lambda i: 0.1, momentum=0.0, nesterov=True, weight_decay=0.0, mask={})
        return
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(3, 2)), rng.normal(size=3)
    grads = [{"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=3)} for _ in range(4)]
    rates = jnp.asarray([0.1, 0.4, 0.02, 0.3])
    tx = optim.sgd(
        lambda i: rates[i],
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=0.1,
        mask={"kernel": True, "bias": False},
    )
    cast = [jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), g) for g in grads]
    start = {"kernel": jnp.asarray(w, jnp.float32), "bias": jnp.asarray(b, jnp.float32)}
    after = run(tx, start, cast)
    velocity = {"kernel": 0.0, "bias": 0.0}
    for i, (each, got) in enumerate(zip(grads, after, strict=True)):
        lr = float(rates[i])
        decayed = {"kernel": each["kernel"] + 0.1 * w, "bias": each["bias"]}
        velocity = {k: momentum * velocity[k] + decayed[k] for k in decayed}
        move = {k: decayed[k] + momentum * v if nesterov else v for k, v in velocity.items()}
        w, b = w - lr * move["kernel"], b - lr * move["bias"]
        np.testing.assert_allclose(got["kernel"], w, rtol=0, atol=1e-6)
        np.testing.assert_allclose(got["bias"], b, rtol=0, atol=1e-6)


def optim_config(**changes) -> ConfigDict:
    config = common.get_config().optim
    config.momentum, config.nesterov, config.weight_decay = 0.0, False, 0.5
    config.update(changes)
    return config


@pytest.mark.parametrize("decay_norm", [True, False])
@pytest.mark.parametrize("divide", [True, False])
def test_build_decays_what_the_config_says(decay_norm, divide):
    config = optim_config(decay_norm=decay_norm, divide_weight_decay=divide)
    tx = optim.build(config, lambda i: 0.1, PARAMS, num_networks=4)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    (after,) = run(tx, PARAMS, [zeros])
    kept = 1 - 0.1 * 0.5 * (math.exp(1 / 4 - 1) if divide else 1)
    np.testing.assert_allclose(after["conv"]["kernel"], kept, rtol=1e-6)
    np.testing.assert_allclose(after["head"]["kernel"], kept, rtol=1e-6)
    np.testing.assert_allclose(after["bn"]["scale"], kept if decay_norm else 1, rtol=1e-6)
    assert (after["bn"]["bias"] == 1).all() and (after["head"]["bias"] == 1).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(name="lamb"),
            "optim.name='lamb': must be one of sgd, adam, adamw, rmsprop, rmsprop_tf",
        ),
        (dict(weight_decay=-1.0), "optim.weight_decay=-1.0"),
        (dict(momentum=1.0), "optim.momentum=1.0"),
        (dict(nesterov=True), "optim.nesterov=True"),
        (dict(clip_norm=-1.0), "optim.clip_norm=-1.0: must be 0"),
        (dict(name="adamw", beta1=1.0), r"optim.beta1=1.0: must be in \[0, 1\)"),
        (dict(name="adam", beta2=-0.1), "optim.beta2=-0.1"),
        (dict(name="adam", eps=0.0), "optim.eps=0.0: must be above 0"),
        (dict(name="rmsprop", alpha=1.5), "optim.alpha=1.5"),
        (dict(name="rmsprop_tf", eps=-1.0), "optim.eps=-1.0"),
        (dict(name="rmsprop_tf", momentum=1.0), "optim.momentum=1.0"),
    ],
)
def test_build_errors_name_the_field(changes, message):
    with pytest.raises(ConfigError, match=message):
        optim.build(optim_config(**changes), lambda i: 0.1, PARAMS, num_networks=1)


OWN = {  # optimizer -> (fields that are its own, its factory)
    "sgd": (dict(momentum=0.8, nesterov=True), optim.sgd),
    "adam": (dict(beta1=0.7, beta2=0.8, eps=1e-2), optim.adam),
    "adamw": (dict(beta1=0.7, beta2=0.8, eps=1e-2), optim.adamw),
    "rmsprop": (dict(alpha=0.7, eps=1e-2, momentum=0.8, centered=True), optim.rmsprop),
    "rmsprop_tf": (dict(alpha=0.7, eps=1e-2, momentum=0.8, centered=True), optim.rmsprop_tf),
}


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_fields_of_a_config_reach_the_optimizer(name):
    """And all that it depends on is its own: other fields may be anything."""
    fields, factory = OWN[name]
    every = dict(momentum=0.3, beta1=0.1, beta2=0.2, alpha=0.4, eps=0.5)
    config = optim_config(**{**every, **fields, "name": name})
    mask = optim.decay_mask(PARAMS, decay_norm=True)
    rng = np.random.default_rng(0)
    grads = [
        jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), PARAMS)
        for _ in range(3)
    ]
    got = run(optim.build(config, lambda i: 0.1, PARAMS, num_networks=4), PARAMS, grads)
    want = run(factory(lambda i: 0.1, weight_decay=0.5, mask=mask, **fields), PARAMS, grads)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["rmsprop", "rmsprop_tf"])
def test_a_steady_gradient_has_no_negative_variance(name):
    config = optim_config(name=name, alpha=0.9, eps=1e-8, centered=True, momentum=0.0)
    params = {"kernel": jnp.ones(64)}
    optimizer = optim.build(config, lambda i: 1e-3, params, num_networks=1)
    grads = {"kernel": jnp.linspace(1.0, 2.0, 64)}

    def step(carry, _):
        updates, state = optimizer.update(grads, carry[1], params)
        return (updates, state), jnp.isfinite(updates["kernel"]).all()

    _, finite = jax.lax.scan(step, (grads, optimizer.init(params)), length=300)
    assert finite.all()


# ---- Clipping


def gradients(seed: int = 0) -> dict:
    """Of a stack of four networks, the third small, and of another module."""
    rng = np.random.default_rng(seed)

    def like(x):
        scale = jnp.asarray([3.0, 1.0, 1e-3, 2.0]).reshape(4, *[1] * (x.ndim - 1))
        return jnp.asarray(rng.normal(size=x.shape), jnp.float32) * scale

    return {
        "stack": jax.tree.map(like, PARAMS),
        "fusion": {"kernel": jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)},
    }


def test_each_network_is_clipped_as_if_alone():
    grads, max_norm = gradients(), 2.5
    tx, alone = optim.clip_by_network_norm(max_norm), optax.clip_by_global_norm(max_norm)
    got, _ = jax.jit(tx.update)(grads, tx.init(grads))
    norms = []
    for i in range(4):
        of_network = jax.tree.map(lambda x, i=i: x[i], grads["stack"])
        want, _ = alone.update(of_network, alone.init(of_network))
        norms.append(float(optax.tree.norm(of_network)))
        for a, b in zip(jax.tree.leaves(got["stack"]), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-6)
            if norms[i] < max_norm:  # to the last bit
                np.testing.assert_array_equal(a[i], b)
    assert min(norms) < max_norm < max(norms)  # the others do not make it larger
    want, _ = alone.update(grads["fusion"], alone.init(grads["fusion"]))
    assert optax.tree.norm(grads["fusion"]) > max_norm
    np.testing.assert_allclose(got["fusion"]["kernel"], want["kernel"], rtol=1e-6)


def test_clipping_is_the_same_with_networks_on_several_devices():
    grads = gradients()
    tx = optim.clip_by_network_norm(2.5)
    want, _ = jax.jit(tx.update)(grads, tx.init(grads))
    mesh = sharding.make(2, 4, num_networks=4)
    sharded = {
        "stack": mesh.put(grads["stack"], mesh.networks),
        "fusion": mesh.put(grads["fusion"], mesh.replicated),
    }
    compiled = jax.jit(lambda g: tx.update(g, tx.init(g))[0]).lower(sharded).compile()
    got = compiled(sharded)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    # A network's norm needs nothing of another device.
    assert not re.search("all-reduce|all-gather|collective", compiled.as_text())


def test_a_zero_gradient_stays_zero_and_what_is_not_finite_shows():
    tx = optim.clip_by_network_norm(1.0)
    zero = {"stack": jax.tree.map(jnp.zeros_like, PARAMS)}
    got, _ = tx.update(zero, tx.init(zero))
    assert not any(jnp.any(x) for x in jax.tree.leaves(got))
    for bad in (jnp.nan, jnp.inf):
        grads = {"stack": {"head": {"kernel": jnp.ones((2, 3)).at[1, 1].set(bad)}}}
        got, _ = tx.update(grads, tx.init(grads))
        kernel = got["stack"]["head"]["kernel"]
        assert jnp.isfinite(kernel[0]).all() and not jnp.isfinite(kernel[1]).all()


def test_build_clips_the_gradient_before_the_decay():
    params = {"stack": {"head": {"kernel": jnp.ones((2, 3))}}}
    grads = {"stack": {"head": {"kernel": jnp.asarray([[3.0, 4, 0], [0.3, 0.4, 0]])}}}
    config = optim_config(clip_norm=1.0)
    (after,) = run(optim.build(config, lambda i: 0.1, params, num_networks=2), params, [grads])
    clipped = np.asarray([[0.6, 0.8, 0], [0.3, 0.4, 0]])
    np.testing.assert_allclose(
        after["stack"]["head"]["kernel"], 1 - 0.1 * (clipped + 0.5), rtol=1e-6
    )


def test_without_clipping_the_state_is_as_before():
    """So that checkpoints of runs before it can be restored."""
    structure = [
        jax.tree.structure(optim.build(optim_config(**c), lambda i: 0.1, PARAMS, 4).init(PARAMS))
        for c in (dict(momentum=0.9), dict(momentum=0.9, clip_norm=1.0))
    ]
    mask = optim.decay_mask(PARAMS, decay_norm=True)
    plain = optim.sgd(lambda i: 0.1, momentum=0.9, nesterov=False, weight_decay=0.5, mask=mask)
    assert structure[0] == jax.tree.structure(plain.init(PARAMS)) != structure[1]


# ---- Parts that are optimised differently

GROUPED = {"stack": {"conv": {"kernel": jnp.ones((2, 3))}}, "aux": {"conv": {"bias": jnp.ones(3)}}}


@pytest.mark.parametrize("divide", [True, False])
def test_groups_have_their_own_optimizer(divide):
    config = optim_config(momentum=0.9, nesterov=True, decay_bias=True, divide_weight_decay=divide)
    groups = {"other": dict(name="adam", lr=1e-3, weight_decay=0.25)}
    rates = [0.1, 0.01]
    tx = optim.build(
        config,
        lambda step: jnp.asarray(rates)[step],
        GROUPED,
        4,
        group=lambda path: "other" if path[0] == "aux" else "",
        groups=groups,
    )
    grads = [jax.tree.map(lambda x, i=i: (i + 1) * x, GROUPED) for i in range(2)]
    got = run(tx, GROUPED, grads)
    factor = math.exp(1 / 4 - 1) if divide else 1
    mask = optim.decay_mask(GROUPED, decay_norm=True, decay_bias=True)
    sgd = optim.sgd(
        lambda step: jnp.asarray(rates)[step],
        momentum=0.9,
        nesterov=True,
        weight_decay=0.5 * factor,
        mask=mask,
    )
    # Its rate, 1e-3 where the others have config.lr, follows the same curve; its decay is as given.
    adam = optim.adam(
        lambda step: 1e-3 / config.lr * jnp.asarray(rates)[step], weight_decay=0.25, mask=mask
    )
    for a, s, d in zip(got, run(sgd, GROUPED, grads), run(adam, GROUPED, grads), strict=True):
        np.testing.assert_allclose(a["stack"]["conv"]["kernel"], s["stack"]["conv"]["kernel"])
        np.testing.assert_allclose(a["aux"]["conv"]["bias"], d["aux"]["conv"]["bias"], rtol=1e-6)


def test_groups_change_what_they_name_only():
    """A group without a decay of its own has that of the config, undivided where it says so."""
    config = optim_config(divide_weight_decay=True)
    tx = optim.build(
        config,
        lambda step: 0.1,
        GROUPED,
        4,
        group=lambda path: path[0],
        groups={"stack": {}, "aux": dict(divide_weight_decay=False, decay_bias=True)},
    )
    (after,) = run(tx, GROUPED, [jax.tree.map(jnp.zeros_like, GROUPED)])
    divided = 1 - 0.1 * 0.5 * math.exp(1 / 4 - 1)
    np.testing.assert_allclose(after["stack"]["conv"]["kernel"], divided, rtol=1e-6)
    np.testing.assert_allclose(after["aux"]["conv"]["bias"], 1 - 0.1 * 0.5, rtol=1e-6)
