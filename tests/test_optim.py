"""Schedules, decay by path and SGD against the reference's numbers and against numpy."""

import json
import math
import pathlib
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsplit import optim
from jaxsplit.errors import ConfigError

GOLDEN = pathlib.Path(__file__).parent / "golden"  # copies of the reference's numbers


@pytest.mark.parametrize("name", ["lr_schedules.json", "optimizers.npz", "parameter_groups.json"])
def test_copies_are_the_reference(parity, name):
    assert (GOLDEN / name).read_bytes() == (parity / name).read_bytes()


# ---- schedules

CIFAR = dict(lr=0.1, warmup_steps=20 * 390, warmup_lr=5e-3, end_lr=1e-4)
# (schedule, its fields) -> {step: rate}; 390 steps an epoch, numbers of the reference.
GOLDEN_RATES = [
    (
        "cosine",
        dict(CIFAR, total_steps=300 * 390),
        {
            0: 0.005,
            1: 0.005012179487179487,
            195: 0.0073750000000000005,
            389: 0.009737820512820513,
            79 * 390 + 195: 0.08926584654403724,
            79 * 390 + 389: 0.08909247097122636,
            80 * 390: 0.0890915741234015,
            300 * 390: 0.0001,
        },
    ),
    (
        "cosine",
        dict(lr=0.1, total_steps=300 * 390, end_lr=1e-4),
        {0: 0.1, 1: 0.09999999998197531, 195: 0.09999931461237134, 80 * 390: 0.08345653031794292},
    ),
    (
        "cosine",
        dict(lr=0.2, total_steps=1800 * 390, warmup_steps=-390, end_lr=1e-4),
        {0: 0.1999998478604197, 389: 0.1999993930015445, 89 * 390: 0.19877019807409044},
    ),
    (
        "step",
        dict(CIFAR, milestones_steps=(100 * 390, 225 * 390), factor=0.1),
        {1: 0.005012179487179487, 79 * 390: 0.1, 300 * 390: 0.001},
    ),
]
MODES = {"cos": "cosine", "step": "step"}


def assert_rates(schedule, points: dict[int, float]) -> None:
    """Every rate within 1e-6 of itself: at float32 no more than its last digits."""
    steps = np.asarray(list(points), np.int32)
    rates = jax.jit(jax.vmap(schedule))(steps)
    assert rates.dtype == jnp.float32
    np.testing.assert_allclose(rates, list(points.values()), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("name", "fields", "points"), GOLDEN_RATES)
def test_schedules_have_the_golden_rates(name, fields, points):
    assert_rates(optim.schedule(name, **fields), points)


def reference_schedule(mode: str, constructor: dict):
    """Our schedule for the arguments of the reference's; its defaults where they are left out."""
    get = {
        "init_lr": 0.1,
        "num_epochs": 100,
        "iters_per_epoch": 300,
        "slow_start_epochs": 0,
        "slow_start_lr": 0.0,
        "end_lr": 1e-3,
        **constructor,
    }
    per_epoch = get["iters_per_epoch"]
    total = get["num_epochs"] * per_epoch
    fields = dict(
        lr=get["init_lr"],
        warmup_steps=get["slow_start_epochs"] * per_epoch,
        warmup_lr=get["slow_start_lr"],
        end_lr=get["end_lr"],
    )
    if mode == "cos":
        return optim.cosine(total_steps=total, **fields), per_epoch
    every = get.get("lr_step")
    milestones = get["lr_milestones"] or range(every, get["num_epochs"] + 1, every)
    steps = [epoch * per_epoch for epoch in milestones]
    factor = get["lr_step_multiplier"]
    return optim.step(milestones_steps=steps, factor=factor, **fields), per_epoch


def test_schedules_equal_the_reference_at_every_point():
    configs = json.loads((GOLDEN / "lr_schedules.json").read_text())["splitnet"]
    compared = 0
    for config in configs.values():
        if not isinstance(config, dict) or "points" not in config:
            continue
        mode = config["constructor"]["mode"]
        if mode not in MODES:
            continue
        schedule, per_epoch = reference_schedule(mode, config["constructor"])
        points = {epoch * per_epoch + i: lr for epoch, i, lr in config["points"]}
        assert_rates(schedule, points)
        compared += len(points)
    assert compared > 1500


def test_long_cosine_is_exact_in_float32():
    # 1800 epochs of 390 steps: every 97th step and the last ones, against float64.
    total, warmup = 1800 * 390, 60 * 390
    schedule = optim.cosine(lr=0.1, total_steps=total, warmup_steps=warmup, warmup_lr=5e-3)
    steps = np.concatenate([np.arange(warmup + 1, total, 97), np.arange(total - 50, total)])
    want = 0.1 * np.cos(np.pi / 2 * (steps - warmup) / (total - warmup)) ** 2
    assert_rates(schedule, dict(zip(steps.tolist(), want.tolist(), strict=True)))


@pytest.mark.parametrize(
    ("factory", "fields"),
    [
        (optim.cosine, dict(total_steps=50)),
        (optim.step, dict(milestones_steps=(20, 30), factor=0.5)),
    ],
)
def test_schedules_are_float32_also_with_x64_and_traced(factory, fields):
    schedule = factory(lr=0.3, warmup_steps=10, warmup_lr=0.1, end_lr=0.01, **fields)
    with jax.enable_x64(True):
        wide = [schedule(i) for i in (0, 5, 10, 11, 25, 49)]
        traced = [jax.jit(schedule)(i) for i in (0, 5, 10, 11, 25, 49)]
    assert {x.dtype for x in wide + traced} == {jnp.dtype("float32")}
    np.testing.assert_allclose(wide, traced, rtol=1e-6)


def test_step_drops_exactly_at_its_milestones_and_is_floored():
    schedule = optim.step(lr=1.0, milestones_steps=(3, 5), factor=0.1, end_lr=0.05)
    np.testing.assert_allclose(
        [schedule(i) for i in range(7)], [1, 1, 1, 0.1, 0.1, 0.05, 0.05], rtol=1e-6
    )
    constant = optim.step(lr=0.7, milestones_steps=(), factor=0.1)
    np.testing.assert_allclose([constant(0), constant(10**6)], 0.7, rtol=1e-6)


def test_warmup_is_floored_by_end_lr():
    schedule = optim.cosine(lr=1.0, total_steps=100, warmup_steps=10, warmup_lr=0.0, end_lr=0.25)
    np.testing.assert_allclose(
        [schedule(i) for i in (0, 1, 2, 3, 10)], [0.25, 0.25, 0.25, 0.3, 1.0], rtol=1e-6
    )


def test_a_run_that_is_all_warmup_ends_at_lr():
    schedule = optim.cosine(lr=0.4, total_steps=4, warmup_steps=4)
    np.testing.assert_allclose([schedule(i) for i in range(5)], [0, 0.1, 0.2, 0.3, 0.4], rtol=1e-6)


def test_schedule_errors_name_the_field():
    with pytest.raises(ConfigError, match="schedule.name='poly': .* cosine, step"):
        optim.schedule("poly", lr=0.1)
    with pytest.raises(ConfigError, match="schedule.warmup='11 steps': .* 10 steps"):
        optim.cosine(lr=0.1, total_steps=10, warmup_steps=11)
    with pytest.raises(ConfigError, match=r"schedule.milestones=\[5, 3\]"):
        optim.step(lr=0.1, milestones_steps=(5, 3), factor=0.1)
    with pytest.raises(ConfigError, match="schedule.factor=0"):
        optim.step(lr=0.1, milestones_steps=(3,), factor=0)


# ---- weight decay

PARAMS = {  # stacked: a BatchNorm scale has two axes
    "conv": {"kernel": jnp.ones((4, 3, 3, 2, 2))},
    "bn": {"scale": jnp.ones((4, 2)), "bias": jnp.ones((4, 2))},
    "head": {"kernel": jnp.ones((4, 2, 5)), "bias": jnp.ones((4, 5))},
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


# ---- SGD

SGD_ROWS = {
    "sgd_nesterov_wd1e-2_groups_b_nodecay": dict(nesterov=True, mask={"w": True, "b": False}),
    "sgd_nesterov_wd1e-2_all": dict(nesterov=True, mask={"w": True, "b": True}),
    "sgd_no_nesterov_wd1e-2_all": dict(nesterov=False, mask={"w": True, "b": True}),
}


def run_sgd(tx, params: dict, grads: list[dict]) -> list[dict]:
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
@pytest.mark.parametrize("row", SGD_ROWS)
def test_sgd_equals_torch(row, dtype, suffix, tolerance):
    data = np.load(GOLDEN / "optimizers.npz")
    with jax.enable_x64(dtype == "float64"):
        rates = jnp.asarray(data["problem/lr_per_step"], dtype)
        params = {k: jnp.asarray(data[f"problem/param/{k}"], dtype) for k in "wb"}
        grads = [
            {k: jnp.asarray(data[f"problem/grads_per_step/{k}"][i], dtype) for k in "wb"}
            for i in range(6)
        ]
        tx = optim.sgd(lambda i: rates[i], momentum=0.9, weight_decay=1e-2, **SGD_ROWS[row])
        after = run_sgd(tx, params, grads)
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
    after = run_sgd(tx, start, cast)
    velocity = {"kernel": 0.0, "bias": 0.0}
    for i, (each, got) in enumerate(zip(grads, after, strict=True)):
        lr = float(rates[i])
        decayed = {"kernel": each["kernel"] + 0.1 * w, "bias": each["bias"]}
        velocity = {k: momentum * velocity[k] + decayed[k] for k in decayed}
        move = {k: decayed[k] + momentum * v if nesterov else v for k, v in velocity.items()}
        w, b = w - lr * move["kernel"], b - lr * move["bias"]
        np.testing.assert_allclose(got["kernel"], w, rtol=0, atol=1e-6)
        np.testing.assert_allclose(got["bias"], b, rtol=0, atol=1e-6)


def optim_config(**changes) -> SimpleNamespace:
    fields = dict(
        name="sgd",
        momentum=0.0,
        nesterov=False,
        weight_decay=0.5,
        decay_norm=True,
        divide_weight_decay=False,
    )
    return SimpleNamespace(**{**fields, **changes})


@pytest.mark.parametrize("decay_norm", [True, False])
@pytest.mark.parametrize("divide", [True, False])
def test_build_decays_what_the_config_says(decay_norm, divide):
    config = optim_config(decay_norm=decay_norm, divide_weight_decay=divide)
    tx = optim.build(config, lambda i: 0.1, PARAMS, num_networks=4)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    (after,) = run_sgd(tx, PARAMS, [zeros])
    kept = 1 - 0.1 * 0.5 * (math.exp(1 / 4 - 1) if divide else 1)
    np.testing.assert_allclose(after["conv"]["kernel"], kept, rtol=1e-6)
    np.testing.assert_allclose(after["head"]["kernel"], kept, rtol=1e-6)
    np.testing.assert_allclose(after["bn"]["scale"], kept if decay_norm else 1, rtol=1e-6)
    assert (after["bn"]["bias"] == 1).all() and (after["head"]["bias"] == 1).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(name="adam"), "optim.name='adam': must be one of sgd"),
        (dict(weight_decay=-1.0), "optim.weight_decay=-1.0"),
        (dict(momentum=1.0), "optim.momentum=1.0"),
        (dict(nesterov=True), "optim.nesterov=True"),
    ],
)
def test_build_errors_name_the_field(changes, message):
    with pytest.raises(ConfigError, match=message):
        optim.build(optim_config(**changes), lambda i: 0.1, PARAMS, num_networks=1)
