"""Losses on labels by hand in float64; tests/losses/test_logits.py compares the cross-entropy."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsplit import experiment, losses, methods
from jaxsplit.losses import LabelLoss, labels
from tests.support.nets import registered
from tests.support.runs import tiny
from tests.support.samples import every

S, B, K = 3, 4, 5
LABELS, PARTNER = np.array([0, 3, 4, 3]), np.array([3, 3, 0, 1])
Z = 3 * np.random.default_rng(0).normal(size=(S, B, K))
MIXED = {"partner": PARTNER, "lam": 0.3}


def target_of(smoothing: float, mixed: bool, threshold: float = 1.0) -> np.ndarray:
    hot = np.eye(K)[LABELS]
    if mixed:
        hot = 0.3 * hot + 0.7 * np.eye(K)[PARTNER]
    t = (1 - smoothing) * hot + smoothing / K
    return t if threshold == 1 else (t > threshold).astype(float)


def by_hand(t: np.ndarray) -> np.ndarray:
    """Binary cross-entropy of every element, [S, B, K]."""
    p = 1 / (1 + np.exp(-Z))
    return -(t * np.log(p) + (1 - t) * np.log(1 - p))


@pytest.mark.parametrize(
    ("smoothing", "mixed", "threshold"),
    [(0.0, False, 1), (0.1, False, 1), (0.1, True, 1), (0.0, True, 0.5), (0.0, True, 0.0)],
)
def test_binary_cross_entropy_by_hand(smoothing, mixed, threshold):
    """Its value, the mean over all elements, and its gradient (sigmoid - t) / B."""
    t = target_of(smoothing, mixed, threshold)
    batch = {"labels": LABELS} | (MIXED if mixed else {})
    of = {name: LabelLoss(name, smoothing, threshold) for name in ("bce", "bce_sum")}
    with jax.enable_x64(True):
        got = {name: np.asarray(loss(jnp.asarray(Z), batch)) for name, loss in of.items()}
        grad = jax.grad(lambda z: of["bce_sum"](z, batch).sum())(jnp.asarray(Z))
    np.testing.assert_allclose(got["bce"], by_hand(t).mean((1, 2)), rtol=1e-12)
    np.testing.assert_allclose(got["bce_sum"], by_hand(t).sum(2).mean(1), rtol=1e-12)
    np.testing.assert_allclose(grad, (1 / (1 + np.exp(-Z)) - t) / B, atol=1e-14)


def test_both_labels_of_mixed_images_are_targets():
    """Where image and partner have one label, it is one target."""
    assert target_of(0, True, 0.0).sum(1).tolist() == [2, 1, 2, 2]


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_extreme_logits_stay_finite(scale):
    z = jnp.asarray(scale * np.sign(Z), jnp.float32)

    def total(z):
        return losses.binary_cross_entropy(z, LABELS, label_smoothing=0.1).sum()

    value, grad = jax.value_and_grad(total)(z)
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_small_losses_keep_their_digits():
    """A sum of large numbers that cancel would give 0 here."""
    z = jnp.asarray([[[20.0, -20.0]]], jnp.float32)
    got = losses.binary_cross_entropy(z, np.array([0]))
    np.testing.assert_allclose(got, 2 * np.log1p(np.exp(-20.0)), rtol=1e-5)


def test_bfloat16_is_widened():
    got = LabelLoss("bce")(jnp.ones((S, B, K), jnp.bfloat16), {"labels": LABELS})
    assert got.dtype == jnp.float32 and got.shape == (S,)


def test_the_default_is_cross_entropy():
    batch = {"labels": LABELS} | MIXED
    got = LabelLoss(smoothing=0.1)(jnp.asarray(Z, jnp.float32), batch)
    z = Z - np.log(np.exp(Z).sum(-1, keepdims=True))
    np.testing.assert_allclose(got, -(target_of(0.1, True) * z).sum(-1).mean(-1), rtol=1e-5)


def test_partner_and_lam_come_together():
    with pytest.raises(ValueError, match="partner and lam"):
        losses.binary_cross_entropy(jnp.zeros((1, B, K)), LABELS, lam=0.5)


def test_examples_of_docstrings():
    assert doctest.testmod(labels).failed == 0 < doctest.testmod(labels).attempted


# ---- Methods


@pytest.fixture(scope="module")
def arch():
    with registered("tiny_labels", blocks=(1, 1), splits=(1, 2, 3)) as name:
        yield name


def config_of(arch: str, method: str):
    entry = methods.METHODS[method]
    own = {f"{method}.{entry.teacher[0]}": "runs/teacher"} if entry.teacher else {}
    split = min(max(2, entry.least), entry.most or 9)
    return tiny(arch=arch, method=method, split=split, label_loss="bce_sum", **own)


@pytest.mark.parametrize("method", every(3, methods.METHODS))
def test_every_method_takes_the_loss_of_the_config(arch, method):
    """No loss on labels is a cross-entropy any more: of no network, module or leader."""
    config = config_of(arch, method)
    exp = experiment.build_for_evaluation(config)
    key, shape, classes = jax.random.key(0), exp.dataset.image_shape, exp.dataset.num_classes
    batch = {"views": jnp.zeros((exp.resolved.num_views, 4, *shape)), "labels": LABELS}
    batch |= MIXED | {"teacher": jnp.zeros((4, 1, classes))}

    def loss():
        return exp.method.loss(exp.method.init(key, shape), batch, key, 0)

    _, (_, metrics) = jax.eval_shape(loss)
    named = [name for name in metrics if name.split("/")[-1] in ("bce", "cross_entropy")]
    assert "bce" in named and not any("cross_entropy" in name for name in named)
