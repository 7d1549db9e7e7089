"""OKDPH: the mixture, its loss, its gradient and the moves towards it, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsplit import config as config_lib
from jaxsplit import costs, durations, experiment, models
from jaxsplit.config import advice
from jaxsplit.errors import ConfigError
from jaxsplit.losses import distill
from jaxsplit.methods import okdph
from tests.support.nets import registered
from tests.support.runs import tiny

S = 3


@pytest.fixture(scope="module")
def exp():
    with registered("tiny_okdph") as arch:
        fields = dict(arch=arch, split=S, divide=False, lowering="dense")
        yield experiment.build(tiny(method="okdph", **fields))


@pytest.fixture(scope="module")
def start(exp):
    init = jax.jit(lambda key: exp.method.init(key, exp.dataset.image_shape))
    return init(jax.random.key(0))


@pytest.fixture(scope="module")
def variables(start):
    """Students that differ, with statistics that differ."""
    leaves, tree = jax.tree.flatten(start)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.1 * jax.random.uniform(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, noisy)


def test_coefficients():
    """Uniform over the convex combinations of 3: mean 1 / 3, variance 1 / 18 each."""
    draw = jax.vmap(lambda key: okdph.coefficients("dirichlet", key, S))
    r = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    assert (r >= 0).all()
    np.testing.assert_allclose(r.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(r.mean(0), 1 / 3, atol=0.02)
    np.testing.assert_allclose(r.var(0), 1 / 18, rtol=0.1)
    same = okdph.coefficients("mean", jax.random.key(0), 4)
    np.testing.assert_array_equal(same, np.full(4, 0.25, np.float32))


def test_students_start_equal(start):
    """Mixtures of networks that start at different weights are no networks."""
    assert set(start["params"]) == set(start["batch_stats"]) == {"stack"}
    for x in jax.tree.leaves(start):
        np.testing.assert_array_equal(x, np.broadcast_to(x[:1], x.shape))


def alone(exp, tree, images, train):
    module = models.build(exp.resolved.spec, exp.dataset.num_classes)
    out = module.apply(tree, images, train, mutable=["batch_stats"] if train else False)
    return out[0][0] if train else out[0]


def test_loss_and_gradients_by_hand(exp, variables):
    views = jax.random.normal(jax.random.key(3), (S, 4, *exp.dataset.image_shape))
    labels, key = jnp.array([0, 3, 4, 3]), jax.random.key(5)
    batch = {"views": views, "labels": labels}
    r = okdph.coefficients("dirichlet", key, S)
    t, omega, beta = 4.0, 0.8, 0.8

    def whole(params):
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        value, (_, found) = exp.method.loss(given, batch, key, jnp.int32(0))
        return value, found

    value, found = jax.jit(whole)(variables["params"])

    students = [jax.tree.map(lambda x, i=i: x[i], variables["params"]["stack"]) for i in range(S)]
    mixed = jax.tree.map(lambda *x: sum(a * b for a, b in zip(r, x, strict=True)), *students)

    def cross_entropy(params, view):
        logits = alone(exp, {"params": params}, view, True)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
        return -picked.mean(), logits

    sizes = jax.jit(jax.value_and_grad(cross_entropy, has_aux=True))
    of_hybrid, g_hybrid = sizes(mixed, views[0])
    of_students = [sizes(p, v)[0] for p, v in zip(students, views, strict=True)]
    z = np.stack([np.asarray(logits) for _, logits in of_students])
    mean = (z.sum(0) + np.asarray(of_hybrid[1])) / (S + 1)
    log_p, log_q = jax.nn.log_softmax(mean / t), jax.nn.log_softmax(z / t)
    taught = t**2 * (np.exp(log_p)[None] * (log_p[None] - log_q)).sum(-1).mean(-1)
    ce = np.array([float(value) for value, _ in of_students])
    want = omega * ce.sum() + beta * taught.sum() + (1 - omega) * float(of_hybrid[0])
    np.testing.assert_allclose(found["cross_entropy"], ce, rtol=1e-5)
    np.testing.assert_allclose(found["distill"], beta * taught, rtol=2e-4, atol=1e-7)
    np.testing.assert_allclose(found["hybrid/cross_entropy"], of_hybrid[0], rtol=1e-5)
    np.testing.assert_allclose(value, want, rtol=1e-5)

    # Without the students' own losses, student i has r_i times the hybrid's gradient.
    method = okdph.make(_stack(exp), distill=distill.Distill("kl", t), omega=0.0, beta=0.0)

    def hybrid_only(params):
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        return method.loss(given, batch, key, jnp.int32(0))[0]

    grads = jax.jit(jax.grad(hybrid_only))(variables["params"])["stack"]
    for i in range(S):
        jax.tree.map(
            lambda g, h, i=i: np.testing.assert_allclose(g[i], r[i] * h, rtol=1e-3, atol=2e-5),
            grads,
            g_hybrid,
        )


def _stack(exp):
    return experiment.stack.make(
        exp.resolved.spec, S, exp.dataset.num_classes, exp.sharding, lowering="dense"
    )


def test_moves_towards_the_hybrid(exp, variables):
    """Every second step, by gamma; running statistics move, too."""
    key = jax.random.key(9)
    method = okdph.make(_stack(exp), distill=distill.Distill("kl", 4.0), gamma=0.25, every=2)
    r = np.asarray(okdph.coefficients("dirichlet", key, S), np.float64)
    still = method.after(variables, key, jnp.int32(3))
    moved = method.after(variables, key, jnp.int32(4))
    for x, a, b in zip(*map(jax.tree.leaves, (variables, still, moved)), strict=True):
        np.testing.assert_array_equal(a, x)
        x = np.asarray(x, np.float64)
        want = 0.75 * x + 0.25 * np.tensordot(r, x, 1)[None]
        np.testing.assert_allclose(b, want, rtol=1e-5, atol=1e-6)
    never = okdph.make(_stack(exp), distill=distill.Distill("kl", 4.0), gamma=0.0)
    assert never.after is None


def test_the_answer_is_the_mean_of_the_students(exp, variables):
    images = jax.random.normal(jax.random.key(3), (2, *exp.dataset.image_shape))
    found = jax.jit(exp.method.predict)(variables, images)
    assert set(found) == {"net0", "net1", "net2", "ensemble", "hybrid"}
    mean = {c: jax.tree.map(lambda x: x.mean(0), t["stack"]) for c, t in variables.items()}
    np.testing.assert_allclose(found["hybrid"], alone(exp, mean, images, False), 1e-4, 1e-6)


def test_costs(exp):
    fields = dict(num_classes=10, image_shape=exp.dataset.image_shape)
    one = costs.cost(exp.resolved.spec, **fields)
    found = costs.own_costs(exp.config, exp.resolved, one, **fields)
    assert found == {
        costs.ALL: (S * one.params, S * one.macs),
        "hybrid": (one.params, one.macs),
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"okdph.omega": 1.5}, r"^okdph.omega=1.5: must be in \[0, 1\]$"),
        ({"okdph.gamma": -0.5}, r"^okdph.gamma=-0.5: must be in \[0, 1\]$"),
        ({"okdph.beta": -1.0}, "^okdph.beta=-1.0: must be 0 or more$"),
        ({"okdph.coefficients": "max"}, "^okdph.coefficients='max': must be one of dirichlet, m"),
        ({"okdph.every": "0 steps"}, "^okdph.every='0 steps': must be above 0"),
        ({"split": 1}, "^split=1: must be 2 or more with method='okdph'; one network is"),
    ],
)
def test_wrong_values(fields, message):
    config = tiny(method="okdph")
    config.update_from_flattened_dict(fields)
    with pytest.raises(ConfigError, match=message):
        config_lib.check(config)


def test_advice():
    config = tiny(method="okdph", views="same", okdph__coefficients="mean", okdph__every="9 steps")
    lines = [x for x in advice.lines(config, durations.plan(config, 4)) if "okdph" in x]
    assert [line.split(": ")[1] for line in lines] == [
        "views='same', okdph.coefficients='mean'",
        "okdph.every='9 steps'",
    ]
