"""Distillation losses: values by hand in numpy, directions of gradients, extreme logits."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from jaxsplit import losses
from jaxsplit.errors import ConfigError
from jaxsplit.losses import distill
from jaxsplit.methods import cotrain
from tests.support.samples import first

S, B, K = 3, 4, 5
LABELS = np.array([0, 3, 4, 3])
FIELDS = {"kl": (), "dkd": (("alpha", 0.7), ("beta", 3.0)), "dist": (("beta", 0.5), ("gamma", 2.0))}


def logits_of(seed, scale=2.0, networks=S, batch=B):
    return (scale * np.random.default_rng(seed).normal(size=(networks, batch, K))).astype("float32")


def softmax(z):
    e = np.exp(np.float64(z) - np.max(z, -1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl_of(p, q):
    return (p * np.log(p / q)).sum(-1)


# ---- By hand: of one student and one teacher, [B, K] each


def kl_by_hand(student, teacher, t):
    return t**2 * kl_of(softmax(teacher / t), softmax(student / t)).mean()


def dkd_by_hand(student, teacher, t, alpha=0.7, beta=3.0):
    total = 0.0
    for z, y, label in zip(student, teacher, LABELS, strict=False):
        q, p = softmax(z / t), softmax(y / t)
        two_p, two_q = (np.array([x[label], 1 - x[label]]) for x in (p, q))
        rest_p, rest_q = (np.delete(x, label) / (1 - x[label]) for x in (p, q))
        total += alpha * kl_of(two_p, two_q) + beta * kl_of(rest_p, rest_q)
    return t**2 * total / len(student)


def dist_by_hand(student, teacher, t, beta=0.5, gamma=2.0):
    q, p = softmax(student / t), softmax(teacher / t)
    rows = [np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)]
    columns = [np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)]
    return t**2 * (beta * (1 - np.mean(rows)) + gamma * (1 - np.mean(columns)))


BY_HAND = {"kl": kl_by_hand, "dkd": dkd_by_hand, "dist": dist_by_hand}


def standardized(z):
    return (z - z.mean(-1, keepdims=True)) / z.std(-1, keepdims=True)


def loss_of(name, temperature=2.0, **fields):
    return distill.Distill(name, temperature, fields=FIELDS[name], **fields)


# Compiled as a whole: eager, each operation is compiled alone, which takes several times as long.
value = jax.jit(lambda loss, z, y, labels=LABELS: loss(z, y, labels), static_argnums=0)
pairwise = jax.jit(lambda loss, z: loss.pairwise(z, LABELS), static_argnums=0)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("name", first(2, distill.LOSSES))
def test_values(name, temperature, standardize):
    student, teacher = logits_of(0), logits_of(1)
    loss = loss_of(name, temperature, weight=0.25, standardize=standardize)
    got, got_shared = value(loss, student, teacher), value(loss, student, teacher[:1])
    if standardize:
        student, teacher = standardized(student), standardized(teacher)
    by_hand = BY_HAND[name]
    want = [0.25 * by_hand(z, y, temperature) for z, y in zip(student, teacher, strict=True)]
    shared = [0.25 * by_hand(z, teacher[0], temperature) for z in student]
    assert got.shape == (S,) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=2e-5)
    np.testing.assert_allclose(got_shared, shared, rtol=2e-5)


def test_dkd_with_the_teachers_weights_is_kl():
    """Eq. (6): KL = TCKD + (1 - p_label) NCKD."""
    student, teacher = logits_of(0, batch=1), logits_of(1, batch=1)
    others = 1 - softmax(teacher)[:, 0, LABELS[0]]
    for i in range(S):
        z, y = student[i : i + 1], teacher[i : i + 1]
        got = jax.jit(distill.dkd)(z, y, LABELS[:1], 1.0, alpha=1.0, beta=others[i])
        np.testing.assert_allclose(got, jax.jit(distill.kl)(z, y, LABELS[:1]), rtol=1e-5)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("name", first(1, distill.LOSSES))
def test_pairwise_is_the_mean_over_the_others(name, standardize):
    z = logits_of(0, networks=4)
    loss = loss_of(name, weight=0.5, standardize=standardize)
    got = pairwise(loss, z)
    for i in range(4):
        pairs = [value(loss, z[i : i + 1], z[j : j + 1])[0] for j in range(4) if j != i]
        np.testing.assert_allclose(got[i], np.mean(pairs), rtol=1e-5)
    np.testing.assert_array_equal(pairwise(loss, z[:1]), [0.0])


def test_pairwise_kl_is_that_of_co_training():
    z = logits_of(0)
    got = pairwise(distill.Distill("kl", 1.0), z).sum()
    np.testing.assert_allclose(got, jax.jit(losses.pairwise_kl)(z), rtol=1e-6)


@pytest.mark.parametrize("name", first(1, distill.LOSSES))
def test_gradients_flow_into_the_student(name):
    """And into the teacher only where it is asked for; in pairs into the student's own logits."""
    student, teacher = logits_of(0), logits_of(1)
    loss = loss_of(name, standardize=True)

    def of(detach):
        def total(z, y):
            return loss(z, y, LABELS, detach=detach).sum()

        return jax.jit(jax.grad(total, argnums=(0, 1)))(student, teacher)

    wanted = of(True)
    assert np.abs(wanted[0]).min() > 0 and not wanted[1].any()
    free = of(False)
    np.testing.assert_allclose(free[0], wanted[0], rtol=1e-5, atol=1e-7)  # of another program
    assert np.abs(free[1]).max() > 1e-3
    jacobian = jax.jit(jax.jacobian(lambda z: loss.pairwise(z, LABELS)))(student)
    for i in range(S):
        assert np.abs(jacobian[i, i]).max() > 1e-3
        assert not jacobian[i, np.arange(S) != i].any()


@pytest.mark.parametrize("name", distill.LOSSES)
def test_a_step_along_the_gradient_brings_student_to_teacher(name):
    student, teacher = jnp.asarray(logits_of(0)), jnp.asarray(logits_of(1))
    loss = loss_of(name)
    step = jax.jit(lambda z: z - 0.3 * jax.grad(lambda z: loss(z, teacher, LABELS).sum())(z))
    for _ in range(300):
        student = step(student)
    assert (value(loss, student, teacher) < 0.1 * value(loss, logits_of(0), teacher)).all()
    # Of equal networks all losses are 0.
    np.testing.assert_allclose(value(loss, teacher, teacher), 0, atol=1e-4)


EXTREME = {
    "huge": np.sign(logits_of(0)) * 60,
    "sure": 60 * np.eye(K, dtype="float32")[np.array([[0, 3, 4, 3]] * S)],
    "sure and wrong": 60 * np.eye(K, dtype="float32")[np.array([[1, 2, 0, 0]] * S)],
    "equal": np.full((S, B, K), 7.0, "float32"),
    "zero": np.zeros((S, B, K), "float32"),
    "one example": logits_of(0, batch=1),
    "one equal example": np.zeros((S, 1, K), "float32"),
}


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("name", first(2, distill.LOSSES))
def test_finite(name, standardize):
    """Values and gradients, into student and teacher, each of the two the extreme one."""
    loss = loss_of(name, standardize=standardize)

    @jax.jit
    def values(z, y, labels):
        def total(z, y):
            return loss(z, y, labels, detach=False).sum() + loss.pairwise(z, labels).sum()

        return jax.value_and_grad(total, (0, 1))(z, y)

    for case, extreme in EXTREME.items():
        usual, labels = logits_of(5, batch=extreme.shape[1]), LABELS[: extreme.shape[1]]
        for pair in ((extreme, usual), (usual, extreme), (extreme, -extreme), (extreme, extreme)):
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(values(*pair, labels))), case


@pytest.mark.parametrize("name", distill.LOSSES)
def test_bfloat16_is_widened(name):
    student, teacher = (jnp.asarray(logits_of(i), jnp.bfloat16) for i in (0, 1))
    loss = loss_of(name, standardize=True)
    got = value(loss, student, teacher)
    assert got.dtype == pairwise(loss, student).dtype == jnp.float32
    want = value(loss, student.astype(jnp.float32), teacher.astype(jnp.float32))
    np.testing.assert_array_equal(got, want)


def test_examples():
    failed, tried = doctest.testmod(distill)
    assert (failed, tried) == (0, 2)


# ---- Of a config


def config_of(**fields):
    config = common.get_config().distill
    config.update(fields)
    return config


def test_make():
    assert distill.make(config_of(), 3.0) == distill.Distill("kl", 3.0)
    made = distill.make(config_of(loss="dkd", temperature=4.0, weight=0.5, dkd_beta=2.0), 3.0)
    assert made == distill.Distill("dkd", 4.0, 0.5, False, (("alpha", 1.0), ("beta", 2.0)))
    made = distill.make(config_of(loss="dist", standardize=True, dist_gamma=0.0), 1.0)
    assert made == distill.Distill("dist", 1.0, 1.0, True, (("beta", 1.0), ("gamma", 0.0)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(loss="l2"), r"^distill.loss='l2': must be one of kl, dkd, dist$"),
        (dict(weight=-1.0), r"^distill.weight=-1.0: must be 0 or more$"),
        (dict(temperature=-2.0), r"^distill.temperature=-2.0: must be 'paper' or above 0$"),
        (dict(temperature=0), r"^distill.temperature=0: must be 'paper' or above 0$"),
        (dict(dkd_beta=-2.0), r"^distill.dkd_beta=-2.0: must be 0 or more$"),
    ],
)
def test_wrong_values(fields, message):
    with pytest.raises(ConfigError, match=message):
        distill.make(config_of(**fields), 1.0)


# ---- Co-training's other losses


def to_each(distance):
    def total(p):
        pairs = [distance(p[i], p[j]) for i in range(S) for j in range(S) if i != j]
        return sum(pairs) / (S - 1)

    return total


def to_mean(distance):
    return lambda p: sum(distance(p[i], np.delete(p, i, 0).mean(0)) for i in range(S))


COTRAIN = {
    "kl_mean": to_mean(lambda q, p: kl_of(p, q).mean()),
    "mse": to_each(lambda q, p: ((q - p) ** 2).mean()),
    "mse_mean": to_mean(lambda q, p: ((q - p) ** 2).mean()),
    "smooth_l1": to_each(lambda q, p: 0.5 * ((q - p) ** 2).mean()),
    "smooth_l1_mean": to_mean(lambda q, p: 0.5 * ((q - p) ** 2).mean()),
}


def test_co_training_has_them_all():
    assert cotrain.LOSSES.keys() == {"js", "kl", "distill", *COTRAIN}


@pytest.mark.parametrize("name", COTRAIN)
def test_values_in_co_training(name):
    z = logits_of(0)
    loss = jax.jit(cotrain.LOSSES[name])
    np.testing.assert_allclose(loss(z), COTRAIN[name](softmax(z)), rtol=1e-5)
    assert loss(z[:1]) == 0
    assert loss(jnp.asarray(z, jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("name", COTRAIN)
def test_targets_in_co_training_are_detached(name):
    """Moving one network changes the loss of the others, of which its gradient knows nothing."""
    z = logits_of(0)
    got = jax.jit(jax.grad(cotrain.LOSSES[name]))(z)

    def own(x, i):
        """What network i contributes, as a function of its own logits [B, K]."""
        q, others = softmax(x), np.delete(softmax(z), i, 0)
        targets = [others.mean(0)] if name.endswith("mean") else others
        if name == "kl_mean":
            return np.mean([kl_of(t, q).mean() for t in targets])
        half = 0.5 if name.startswith("smooth") else 1.0
        return half * np.mean([((q - t) ** 2).mean() for t in targets])

    for i in range(S):
        for b, k in ((0, 0), (2, 3)):
            moved = np.float64(z[i])
            step = np.zeros((B, K))
            step[b, k] = 1e-4
            slope = (own(moved + step, i) - own(moved - step, i)) / 2e-4
            np.testing.assert_allclose(got[i, b, k], slope, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", COTRAIN)
def test_finite_in_co_training(name):
    values = jax.jit(jax.value_and_grad(cotrain.LOSSES[name]))
    for case, extreme in EXTREME.items():
        assert all(np.isfinite(x).all() for x in values(extreme)), case
