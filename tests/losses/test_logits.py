"""Losses against the reference's numbers, against float64 twins and against hand-made values.

The golden file of this folder is a part of the parity file (a test says so); what it leaves out is
compared where the parity folder exists.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsplit import losses
from tests.support.paths import GOLDEN
from tests.support.samples import first

FILE = GOLDEN / "losses.npz"
GOLDEN_CASES = ("S2", "S4", "S2_pm60", "S2_clip40", "S2_min_nan")
PARITY_CASES = ("S3", "S2_identical", "S2_normal60", "S8_C100", "S16_C100")
CASES = [("golden", c) for c in GOLDEN_CASES] + [("parity", c) for c in PARITY_CASES]
# The names are the reference's. Compiled once per shape: eager tests take four times as long.
PAIR_LOSSES = {
    "js_divergence": jax.jit(losses.js_divergence),
    "kl_seperate": jax.jit(losses.pairwise_kl),
}
PAIR_GRADS = {name: jax.jit(jax.value_and_grad(loss)) for name, loss in PAIR_LOSSES.items()}
cross_entropy = jax.jit(losses.cross_entropy, static_argnames="label_smoothing")
ensemble = jax.jit(losses.ensemble, static_argnums=1)
disagreement = jax.jit(losses.pairwise_disagreement)


@pytest.fixture(scope="module")
def read(request):
    """A function from (source, key) to an array of the golden or the parity file."""
    files = {}

    def get(source: str, key: str) -> np.ndarray:
        if source not in files:
            path = FILE
            if source == "parity":
                path = request.getfixturevalue("parity") / "losses.npz"
            files[source] = np.load(path)
        return files[source][f"splitnet/{key}"]

    return get


def close(got, want, tolerance: float) -> None:
    """|got - want| <= tolerance * max(1, |want|), everywhere."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    np.testing.assert_array_less(
        np.abs(got - want), np.broadcast_to(tolerance * np.maximum(1, np.abs(want)), want.shape)
    )


def test_the_golden_file_is_part_of_the_parity_file(parity):
    golden, whole = np.load(FILE), np.load(parity / "losses.npz")
    for key in golden.files:
        np.testing.assert_array_equal(golden[key], whole[key], strict=True)


# ---- co-training losses


@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize(("source", "case"), CASES)
def test_cotrain_losses_equal_the_reference(read, source, case, name):
    root = f"cot/{case}"
    logits = read(source, f"{root}/logits")
    value, grad = PAIR_GRADS[name](jnp.asarray(logits))
    assert value.dtype == grad.dtype == jnp.float32
    close(value, read(source, f"{root}/{name}/loss_f64"), 1e-5)
    close(grad, read(source, f"{root}/{name}/grad_f64"), 1e-5)
    want_value, want_grad = (read(source, f"{root}/{name}/{x}") for x in ("loss", "grad"))
    if np.isfinite(want_value):
        close(value, want_value, 1e-5)
    finite = np.isfinite(want_grad)
    close(np.asarray(grad)[finite], want_grad[finite], 1e-5)

    with jax.enable_x64(True):
        value, grad = PAIR_GRADS[name](jnp.asarray(logits, jnp.float64))
        assert value.dtype == grad.dtype == jnp.float64
        close(value, read(source, f"{root}/{name}/loss_f64"), 1e-12)
        close(grad, read(source, f"{root}/{name}/grad_f64"), 1e-12)


@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize("networks", first(1, [2, 3, 8]))
def test_cotrain_losses_are_finite_for_huge_logits(networks, name):
    rng = np.random.default_rng(0)
    logits = 1e4 * rng.choice([-1.0, 0.0, 1.0], (networks, 64, 5))
    logits[:, 0] = 1e4 * np.eye(5)[0] - 1e4  # all agree: every other class underflows
    value, grad = PAIR_GRADS[name](jnp.asarray(logits, jnp.float32))
    with jax.enable_x64(True):
        value64, grad64 = PAIR_GRADS[name](jnp.asarray(logits))
    assert np.isfinite(value64) and np.isfinite(grad64).all()
    close(value, value64, 1e-5)
    close(grad, grad64, 1e-5)


def numpy_js(p: np.ndarray) -> float:
    """H(mean p) - mean H(p) for one example: p[S, K]."""

    def entropy(q):
        return -(q * np.log(q)).sum(-1)

    return entropy(p.mean(0)) - entropy(p).mean()


@pytest.mark.parametrize("networks", [2, 3, 5])
@pytest.mark.parametrize("batch", first(1, [1, 4]))
@pytest.mark.parametrize("classes", [2, 7])
def test_cotrain_losses_equal_loops_over_pairs(networks, batch, classes):
    rng = np.random.default_rng(networks * 100 + batch * 10 + classes)
    logits = rng.normal(size=(networks, batch, classes))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    js = np.mean([numpy_js(p[:, b]) for b in range(batch)])
    kl = sum(
        (p[j] * np.log(p[j] / p[i])).sum(-1).mean()
        for i, j in itertools.permutations(range(networks), 2)
    ) / (networks - 1)
    logits = jnp.asarray(logits, jnp.float32)
    close(PAIR_LOSSES["js_divergence"](logits), js, 1e-6)
    close(PAIR_LOSSES["kl_seperate"](logits), kl, 1e-5)


def test_js_divergence_by_hand():
    # Two certain networks that contradict each other: log 2. One of p = (3/4, 1/4) and its mirror.
    certain = jnp.asarray([[[50.0, -50.0]], [[-50.0, 50.0]]])
    close(PAIR_LOSSES["js_divergence"](certain), math.log(2), 1e-6)
    leaning = jnp.log(jnp.asarray([[[0.75, 0.25]], [[0.25, 0.75]]]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    close(PAIR_LOSSES["js_divergence"](leaning), math.log(2) - entropy, 1e-6)


def test_pairwise_kl_by_hand():
    # KL(3/4, 1/4 || 1/4, 3/4) = 1/2 log 3 both ways, and their sum over S - 1 = 1.
    leaning = jnp.log(jnp.asarray([[[0.75, 0.25]], [[0.25, 0.75]]]))
    close(PAIR_LOSSES["kl_seperate"](leaning), math.log(3), 1e-6)
    # The gradient for network i is softmax(z_i) - mean of the others' softmax.
    grad = PAIR_GRADS["kl_seperate"](leaning)[1]
    close(grad, np.asarray([[[0.5, -0.5]], [[-0.5, 0.5]]]), 1e-6)


@pytest.mark.parametrize("loss_and_grad", PAIR_GRADS.values())
def test_cotrain_losses_of_one_network_are_zero(loss_and_grad):
    value, grad = loss_and_grad(jnp.asarray([[[3.0, -1.0, 2.0]]]))
    assert value == 0 and not grad.any()


@pytest.mark.parametrize("loss", PAIR_LOSSES.values())
def test_losses_are_computed_in_float32_at_least(loss):
    assert loss(jnp.ones((2, 3, 4), jnp.bfloat16)).dtype == jnp.float32
    labels = jnp.zeros(3, jnp.int32)
    assert cross_entropy(jnp.ones((2, 3, 4), jnp.bfloat16), labels).dtype == jnp.float32


# ---- cross-entropy


@pytest.mark.parametrize(("source", "case"), [("golden", "C10"), ("parity", "C1000")])
def test_label_smoothing_equals_the_reference(read, source, case):
    root = f"label_smoothing/{case}"
    logits, target = read(source, f"{root}/logits"), read(source, f"{root}/target")

    def loss(z):
        return cross_entropy(z[None], jnp.asarray(target), label_smoothing=0.1)[0]

    value, grad = jax.jit(jax.value_and_grad(loss))(jnp.asarray(logits))
    close(value, read(source, f"{root}/loss_mean"), 1e-5)
    close(grad, read(source, f"{root}/grad_mean"), 1e-5)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.85, 1.0])
@pytest.mark.parametrize(("kind", "smoothing"), [("ce", 0.0), ("ls", 0.1)])
def test_mixup_loss_equals_the_reference(read, kind, smoothing, lam):
    logits, y_a, y_b = (read("golden", f"mixup/{x}") for x in ("logits", "y_a", "y_b"))

    def loss(z):
        return cross_entropy(
            z[None], jnp.asarray(y_a), label_smoothing=smoothing, partner=jnp.asarray(y_b), lam=lam
        )[0]

    value, grad = jax.jit(jax.value_and_grad(loss))(jnp.asarray(logits))
    close(value, read("golden", f"mixup/lam{lam}/{kind}_loss"), 1e-5)
    close(grad, read("golden", f"mixup/lam{lam}/{kind}_grad"), 1e-5)


@pytest.mark.parametrize("networks", [1, 3])
@pytest.mark.parametrize("classes", [2, 5])
def test_cross_entropy_by_hand(networks, classes):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(networks, 4, classes))
    labels = rng.integers(classes, size=4)
    want = [
        np.mean([np.log(np.exp(z[b]).sum()) - z[b, labels[b]] for b in range(4)]) for z in logits
    ]
    got = cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
    close(got, np.asarray(want), 1e-6)
    # Equal logits cost log K whatever the target is.
    flat = cross_entropy(
        jnp.zeros((networks, 4, classes)), jnp.asarray(labels), label_smoothing=0.3
    )
    close(flat, np.full(networks, math.log(classes)), 1e-6)


def test_cross_entropy_wants_both_of_partner_and_lam():
    logits, labels = jnp.zeros((1, 2, 3)), jnp.zeros(2, jnp.int32)
    with pytest.raises(ValueError, match="partner and lam"):
        losses.cross_entropy(logits, labels, partner=labels)
    with pytest.raises(ValueError, match="partner and lam"):
        losses.cross_entropy(logits, labels, lam=0.5)


# ---- ensembles


REFERENCE_ENSEMBLES = {
    "mean_logits": ("mean_logits", lambda x: x),
    "max_logits": ("max_logits", lambda x: x),
    "mean_probs": ("mean_softmax", jnp.exp),
    "max_probs": ("max_softmax", jnp.exp),
}


@pytest.mark.parametrize("how", REFERENCE_ENSEMBLES)
def test_ensembles_equal_the_reference(read, how):
    logits = jnp.asarray(read("golden", "ensemble/input_logits"))
    name, undo = REFERENCE_ENSEMBLES[how]
    close(undo(ensemble(logits, how)), read("golden", f"ensemble/{name}"), 1e-5)


def test_every_ensemble_is_compared_with_the_reference():
    assert set(REFERENCE_ENSEMBLES) == set(losses.ENSEMBLES)


def test_ensembles_by_hand():
    p = jnp.asarray([[[0.9, 0.05, 0.05]], [[0.1, 0.5, 0.4]]])
    logits = jnp.log(p) + jnp.asarray([[[2.0]], [[-3.0]]])
    close(jnp.exp(ensemble(logits, "mean_probs")), np.asarray([[0.5, 0.275, 0.225]]), 1e-6)
    close(jnp.exp(ensemble(logits, "max_probs")), np.asarray([[0.9, 0.5, 0.4]]), 1e-6)
    z = jnp.asarray([[[1.0, 4.0]], [[3.0, -2.0]]])
    close(ensemble(z, "mean_logits"), np.asarray([[2.0, 1.0]]), 1e-6)
    close(ensemble(z, "max_logits"), np.asarray([[3.0, 4.0]]), 1e-6)


@pytest.mark.parametrize("how", losses.ENSEMBLES)
def test_ensembles_of_huge_logits_are_finite(how):
    scores = ensemble(jnp.asarray([[[1e4, -1e4, 0.0]], [[1e4, -1e4, 5e3]]]), how)
    assert np.isfinite(scores).all()
    assert scores.argmax(-1).item() == 0


def test_an_unknown_ensemble_names_the_known_ones():
    with pytest.raises(ValueError, match="'median' is not one of mean_logits, mean_probs"):
        losses.ensemble(jnp.zeros((1, 1, 2)), "median")


# ---- the weight of co-training


@pytest.mark.parametrize("warmup", [40, 60, 80])
def test_cotrain_weight_equals_the_reference(read, warmup):
    epochs = read("golden", f"cot_warmup/w{warmup}/epoch")
    weights = jax.jit(jax.vmap(lambda e: losses.cotrain_weight(e, warmup)))(jnp.asarray(epochs))
    close(weights, read("golden", f"cot_warmup/w{warmup}/weight"), 1e-6)


@pytest.mark.parametrize(
    ("progress", "warmup", "want"),
    [(0, 40, 0.005), (0.2, 40, 0.005), (20, 40, 0.25), (40, 40, 0.5), (99, 40, 0.5), (0, 0, 0.5)],
)
def test_cotrain_weight_by_hand(progress, warmup, want):
    close(losses.cotrain_weight(progress, warmup), want, 1e-7)
    close(jax.jit(losses.cotrain_weight)(progress, warmup), want, 1e-7)


def test_cotrain_weight_of_zero_is_zero_throughout():
    assert [float(losses.cotrain_weight(e, 2, weight=0.0)) for e in range(4)] == [0, 0, 0, 0]


# ---- disagreement


def test_disagreement_by_hand():
    answers = np.asarray([[0, 0, 0, 1], [0, 0, 1, 1], [0, 2, 2, 1]])  # [S, B]
    logits = jnp.asarray(np.eye(3, dtype=np.float32)[answers])
    each = disagreement(logits)
    close(each, np.asarray([0, 2 / 3, 1, 0]), 1e-6)


@pytest.mark.parametrize("networks", [2, 4, 7])
def test_disagreement_equals_a_loop_over_pairs(networks):
    logits = np.random.default_rng(networks).normal(size=(networks, 20, 3))
    top = logits.argmax(-1)
    want = np.mean([top[i] != top[j] for i, j in itertools.combinations(range(networks), 2)], 0)
    close(disagreement(jnp.asarray(logits)), want, 1e-6)


@pytest.mark.parametrize("networks", [2, 3, 4, 7])
def test_networks_that_agree_do_not_disagree_at_all(networks):
    logits = jnp.tile(jnp.eye(5)[None], (networks, 1, 1))
    each = disagreement(logits)
    np.testing.assert_array_equal(each, np.zeros(5))


def test_disagreement_of_one_network_is_zero():
    assert not disagreement(jnp.ones((1, 5, 3))).any()
