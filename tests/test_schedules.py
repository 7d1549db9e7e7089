"""Schedules against the reference's numbers and their own equations."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from jaxsplit import config as config_lib
from jaxsplit import durations, schedules
from jaxsplit.errors import ConfigError
from tests.support.paths import GOLDEN

FILE = GOLDEN / "lr_schedules.json"  # the reference's


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


def assert_rates(schedule, points: dict[int, float]) -> None:
    """Every rate within 1e-6 of itself: at float32 no more than its last digits."""
    steps = np.asarray(list(points), np.int32)
    rates = jax.jit(jax.vmap(schedule))(steps)
    assert rates.dtype == jnp.float32
    np.testing.assert_allclose(rates, list(points.values()), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("name", "fields", "points"), GOLDEN_RATES)
def test_schedules_have_the_golden_rates(name, fields, points):
    assert_rates(schedules.make(name, **fields), points)


DEFAULTS = {  # of the reference's class
    "init_lr": 0.1,
    "num_epochs": 100,
    "iters_per_epoch": 300,
    "slow_start_epochs": 0,
    "slow_start_lr": 0.0,
    "end_lr": 1e-3,
}


def reference_schedule(constructor: dict):
    """Our schedule for the arguments of the reference's."""
    get = {**DEFAULTS, **constructor}
    per_epoch = get["iters_per_epoch"]
    total = get["num_epochs"] * per_epoch
    fields = dict(
        lr=get["init_lr"],
        warmup_steps=get["slow_start_epochs"] * per_epoch,
        warmup_lr=get["slow_start_lr"],
        end_lr=get["end_lr"],
    )
    mode = get["mode"]
    if mode == "cos":
        return schedules.cosine(total_steps=total, **fields)
    if mode == "poly":
        return schedules.polynomial(total_steps=total, **fields)
    if mode == "HTD":
        return schedules.htd(total_steps=total, **fields)
    if mode == "exponential":
        return schedules.exponential(
            total_steps=total + per_epoch,  # the reference runs an epoch more
            factor=get["decay_factor"],
            every_steps=get["decay_epochs"] * per_epoch,
            staircase=get["staircase"],
            **fields,
        )
    every = get.get("lr_step")
    milestones = get["lr_milestones"] or range(every, get["num_epochs"] + 1, every)
    steps = [epoch * per_epoch for epoch in milestones]
    return schedules.step(milestones_steps=steps, factor=get["lr_step_multiplier"], **fields)


# What the file holds besides curves: multipliers of parameter groups (the reference's own training
# has none), and the rate and momentum that other batch sizes get.
NO_CURVES = {"group_multiplier_10_epoch50_iter5", "scale_lr_and_momentum"}


def curves_of_the_reference() -> dict[str, dict]:
    return {
        name: curve
        for name, curve in json.loads(FILE.read_text())["splitnet"].items()
        if name not in NO_CURVES
    }


def steps_of(curve: dict) -> tuple[dict[int, float], list[int]]:
    """{step: rate}, and the steps at which the reference fails, with a complex number."""
    per_epoch = curve["constructor"].get("iters_per_epoch", DEFAULTS["iters_per_epoch"])
    points = {epoch * per_epoch + i: lr for epoch, i, lr in curve["points"]}
    failed = [step for step, lr in points.items() if isinstance(lr, str)]
    assert all("complex" in points[step] for step in failed)
    return {s: lr for s, lr in points.items() if s not in failed}, failed


@pytest.mark.parametrize("name", curves_of_the_reference())
def test_schedules_equal_the_reference_at_every_point(name):
    curve = curves_of_the_reference()[name]
    schedule = reference_schedule(curve["constructor"])
    points, failed = steps_of(curve)
    assert len(points) > 40
    assert_rates(schedule, points)
    # The one deliberate difference: after the end of a run a polynomial stays at its end.
    assert bool(failed) == (curve["constructor"]["mode"] == "poly")
    assert_rates(schedule, dict.fromkeys(failed, curve["constructor"].get("end_lr")))


def test_all_of_the_reference_is_compared():
    every = json.loads(FILE.read_text())["splitnet"]
    curves = curves_of_the_reference()
    assert every.keys() - curves.keys() == NO_CURVES
    assert {c["constructor"]["mode"] for c in curves.values()} == {
        "cos",
        "step",
        "poly",
        "HTD",
        "exponential",
    }
    multiplied = every["group_multiplier_10_epoch50_iter5"]
    schedule = reference_schedule(multiplied["constructor"])
    (rate,) = multiplied["lr_of_groups_by_number_of_groups"]["1"]
    assert_rates(schedule, {50 * 390 + 5: rate})


def test_rates_scale_with_the_batch_as_the_reference():
    """Of the momentum, which the reference changes too, a config says what it is."""
    rows = json.loads(FILE.read_text())["splitnet"]["scale_lr_and_momentum"]
    for row in rows:
        config = common.get_config()
        config.batch_size, config.optim.lr = row["batch_size"], row["lr_in"]
        config.optim.base_batch_size = 256 if row["dataset"] == "imagenet" else 128
        config.schedule.warmup = "0 steps"
        rate = durations.plan(config, 100).schedule(config)(0)
        np.testing.assert_allclose(rate, row["lr_out"], rtol=1e-6)


def test_ffsd_schedules_equal_the_reference():
    """Its epochs are counted from 1 on CIFAR; its warm-up begins with the first step's share."""
    rows = json.loads(FILE.read_text())["ffsd"]
    assert rows.keys() == {"cifar_step_default", "cifar_step_sd_adam", "cifar_cosine"} | {
        "imagenet_step"
    }
    for name, lr in (("cifar_step_default", 0.1), ("cifar_step_sd_adam", 1e-3)):
        schedule = schedules.step(lr=lr, milestones_steps=(150, 225), factor=0.1)
        assert_rates(schedule, {epoch - 1: rate for epoch, rate in rows[name]["points"]})
    schedule = schedules.cosine(lr=0.1, total_steps=300)
    assert_rates(schedule, {epoch - 1: rate for epoch, rate in rows["cifar_cosine"]["points"]})

    n = rows["imagenet_step"]["len_epoch"]
    schedule = schedules.step(
        lr=0.1,
        milestones_steps=[epoch * n for epoch in (30, 60, 80)],
        factor=0.1,
        warmup_steps=5 * n - 1,
        warmup_lr=0.1 / (5 * n),
    )
    # Step n of an epoch of n steps is the first of the next; no loop comes there.
    points = {e * n + i: lr for e, i, lr in rows["imagenet_step"]["points"] if i < n}
    assert len(points) == 68
    assert_rates(schedule, points)


def test_long_cosine_is_exact_in_float32():
    # 1800 epochs of 390 steps: every 97th step and the last ones, against float64.
    total, warmup = 1800 * 390, 60 * 390
    schedule = schedules.cosine(lr=0.1, total_steps=total, warmup_steps=warmup, warmup_lr=5e-3)
    steps = np.concatenate([np.arange(warmup + 1, total, 97), np.arange(total - 50, total)])
    want = 0.1 * np.cos(np.pi / 2 * (steps - warmup) / (total - warmup)) ** 2
    assert_rates(schedule, dict(zip(steps.tolist(), want.tolist(), strict=True)))


@pytest.mark.parametrize("staircase", [True, False])
def test_exponential_by_its_equation(staircase):
    """Also where 0.8 epochs are no whole number of steps, up to the last step of a long run."""
    every, warmup = 0.8 * 5004, 5 * 5004
    schedule = schedules.exponential(
        lr=0.256,
        total_steps=450 * 5004,
        every_steps=every,
        staircase=staircase,
        warmup_steps=warmup,
    )
    around = [warmup + int(k * every) + d for k in (1, 2, 7, 104, 105, 500) for d in (-1, 0, 1, 2)]
    steps = np.asarray([*around, *range(warmup, 450 * 5004, 9973)])
    exponent = (steps - warmup) / every
    want = 0.256 * 0.97 ** (np.floor(exponent) if staircase else exponent)
    assert_rates(schedule, dict(zip(steps.tolist(), want.tolist(), strict=True)))


@pytest.mark.parametrize("power", [0.9, 1.0, 2.0])
def test_polynomial_by_its_equation(power):
    schedule = schedules.polynomial(lr=0.3, total_steps=90, power=power, warmup_steps=10)
    assert_rates(schedule, {s: 0.3 * (1 - (s - 10) / 80) ** power for s in range(10, 90)})
    assert float(schedule(90)) == float(schedule(1000)) == 0.0


def test_htd_by_its_equation():
    """arXiv 1806.01593, Eq. (2), with other bounds than the usual ones."""
    schedule = schedules.htd(lr=0.3, total_steps=90, lower=-4, upper=2, warmup_steps=10)
    want = {s: 0.15 * (1 - math.tanh(-4 + 6 * (s - 10) / 80)) for s in range(11, 91)}
    assert_rates(schedule, want)


@pytest.mark.parametrize(
    ("factory", "fields"),
    [
        (schedules.cosine, dict(total_steps=50)),
        (schedules.step, dict(milestones_steps=(20, 30), factor=0.5)),
        (schedules.polynomial, dict(total_steps=50)),
        (schedules.htd, dict(total_steps=50)),
        (schedules.exponential, dict(total_steps=50, every_steps=7.5)),
        (schedules.exponential, dict(total_steps=50, every_steps=7.5, staircase=False)),
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
    schedule = schedules.step(lr=1.0, milestones_steps=(3, 5), factor=0.1, end_lr=0.05)
    np.testing.assert_allclose(
        [schedule(i) for i in range(7)], [1, 1, 1, 0.1, 0.1, 0.05, 0.05], rtol=1e-6
    )
    constant = schedules.step(lr=0.7, milestones_steps=(), factor=0.1)
    np.testing.assert_allclose([constant(0), constant(10**6)], 0.7, rtol=1e-6)


def test_warmup_is_floored_by_end_lr():
    schedule = schedules.cosine(
        lr=1.0, total_steps=100, warmup_steps=10, warmup_lr=0.0, end_lr=0.25
    )
    np.testing.assert_allclose(
        [schedule(i) for i in (0, 1, 2, 3, 10)], [0.25, 0.25, 0.25, 0.3, 1.0], rtol=1e-6
    )


def test_a_run_that_is_all_warmup_ends_at_lr():
    schedule = schedules.cosine(lr=0.4, total_steps=4, warmup_steps=4)
    np.testing.assert_allclose([schedule(i) for i in range(5)], [0, 0.1, 0.2, 0.3, 0.4], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("poly", {}, "schedule.name='poly': .* cosine, step, polynomial, htd, exponential"),
        ("step", dict(milestones_steps=(5, 3), factor=0.1), r"schedule.milestones=\[5, 3\]"),
        ("step", dict(milestones_steps=(3,), factor=0), "schedule.factor=0"),
        ("polynomial", dict(total_steps=9, power=0), "schedule.power=0: must be above 0"),
        ("htd", dict(total_steps=9, lower=3, upper=3), "schedule.htd_lower=3: .*htd_upper=3"),
        ("exponential", dict(total_steps=9, every_steps=0.5), "schedule.decay_every='0.5 steps'"),
        ("exponential", dict(total_steps=9, every_steps=2, factor=1.1), "decay_factor=1.1"),
    ],
)
def test_errors_name_the_field(name, fields, message):
    with pytest.raises(ConfigError, match=message):
        schedules.make(name, lr=0.1, **fields)


@pytest.mark.parametrize("name", ["cosine", "polynomial", "htd", "exponential"])
def test_a_warmup_longer_than_the_run_is_an_error(name):
    fields = dict(every_steps=5) if name == "exponential" else {}
    with pytest.raises(ConfigError, match="schedule.warmup='11 steps': .* 10 steps"):
        schedules.make(name, lr=0.1, total_steps=10, warmup_steps=11, **fields)


# ---- from a config


def curve(name: str, steps_per_epoch: int, steps, **fields) -> list[float]:
    config = common.get_config()
    config.duration, config.optim.lr, config.schedule.name = "10 epochs", 1.0, name
    config.schedule.update(dict(warmup="1 epochs", end_lr=0.0) | fields)
    schedule = durations.plan(config, steps_per_epoch).schedule(config)
    return [float(schedule(s)) for s in steps]


def test_fields_of_a_config_reach_the_schedule():
    steps = (10, 50, 55)
    got = curve("polynomial", 10, steps, power=2.0)
    np.testing.assert_allclose(got, [1, (5 / 9) ** 2, (4.5 / 9) ** 2], rtol=1e-6)
    got = curve("htd", 10, steps, htd_lower=-2.0, htd_upper=1.0)
    want = [(1 - math.tanh(-2 + 3 * (s - 10) / 90)) / 2 for s in steps]
    np.testing.assert_allclose(got[1:], want[1:], rtol=1e-6)
    fields = dict(decay_factor=0.5, decay_every="1.25 epochs")
    got = curve("exponential", 10, steps, **fields)
    np.testing.assert_allclose(got, [1, 0.5**3, 0.5**3], rtol=1e-6)
    got = curve("exponential", 10, steps, staircase=False, **fields)
    np.testing.assert_allclose(got, [1, 0.5 ** (40 / 12.5), 0.5 ** (45 / 12.5)], rtol=1e-6)


@pytest.mark.parametrize("every", ["2 epochs", "20 steps", "20%", "2560 examples"])
def test_decay_every_is_a_duration(every):
    got = curve("exponential", 10, (29, 30), decay_factor=0.5, decay_every=every)
    np.testing.assert_allclose(got, [1, 0.5], rtol=1e-6)


def test_a_decay_of_parts_of_a_step_is_an_error():
    with pytest.raises(ConfigError, match="schedule.decay_every='0.5 steps': .* at least one step"):
        curve("exponential", 10, (0,), decay_every="0.05 epochs")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "exp", "schedule.name='exp': must be one of cosine, step, polynomial, htd, exp"),
        ("power", 0.0, "schedule.power=0.0: must be above 0"),
        ("htd_lower", 4.0, "schedule.htd_lower=4.0: must be below schedule.htd_upper=3.0"),
        ("decay_factor", 0.0, r"schedule.decay_factor=0.0: must be in \(0, 1\]"),
        ("decay_every", "0 epochs", "schedule.decay_every='0 epochs': must be above 0"),
        ("decay_every", "often", "schedule.decay_every='often': must be a number of steps"),
    ],
)
def test_a_wrong_field_is_found_before_the_data(field, value, message):
    config = common.get_config()
    config.schedule[field] = value
    with pytest.raises(ConfigError, match="^" + message):
        config_lib.check(config)
