"""Joint training: the loss and its gradients by hand, and what both ends of the weight do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsplit import config as config_lib
from jaxsplit import experiment, stack
from jaxsplit.errors import ConfigError
from jaxsplit.losses import LabelLoss
from jaxsplit.methods import independent, joint
from tests.support.by_hand import ONEHOT, B, K, S, ce, given, run, softmax
from tests.support.nets import registered
from tests.support.runs import tiny
from tests.support.samples import first


@pytest.fixture
def logits():
    return 2 * np.random.default_rng(0).normal(size=(S, B, K))


@pytest.mark.parametrize("of", first(2, joint.OF))
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_by_hand(logits, of, weight):
    p = softmax(logits)
    if of == "mean_logits":
        together = softmax(logits.mean(0))
        slope = np.broadcast_to((together - ONEHOT)[None] / S, p.shape)
    else:  # d CE / d z_i = p_i (share of the label in network i) - onehot, weighted
        together = p.mean(0)
        share = (p * ONEHOT).sum(-1, keepdims=True) / (S * (together * ONEHOT).sum(-1))[..., None]
        slope = share * (p - ONEHOT)
    value, metrics, grad = run(joint.make(given(), weight=weight, of=of), logits)
    np.testing.assert_allclose(
        value, (1 - weight) * ce(p).sum() + weight * S * ce(together), rtol=1e-12
    )
    want = ((1 - weight) * (p - ONEHOT) + weight * S * slope) / B
    np.testing.assert_allclose(grad, want, atol=1e-14)
    np.testing.assert_allclose(metrics["ensemble/cross_entropy"], ce(together), rtol=1e-12)
    np.testing.assert_allclose(metrics["joint/diversity"], ce(p).mean() - ce(together), rtol=1e-10)


def test_smoothed_and_mixed_labels(logits):
    mixed = dict(partner=np.array([1, 1, 2, 0]), lam=0.7)
    target = 0.9 * (0.7 * ONEHOT + 0.3 * np.eye(K)[mixed["partner"]]) + 0.1 / K
    method = joint.make(given(), weight=1.0, label_loss=LabelLoss(smoothing=0.1))
    value, _, _ = run(method, logits, **mixed)
    together = -(target * np.log(softmax(logits.mean(0)))).sum(-1).mean()
    np.testing.assert_allclose(value, S * together, rtol=1e-12)


@pytest.mark.slow
def test_weight_0_is_independent():
    """To the last bit of every gradient, in a real network."""
    with registered("tiny_joint") as arch:
        fields = dict(arch=arch, divide=False, lowering="dense")
        exp = experiment.build(tiny(method="joint", joint__weight=0.0, **fields))
        made = stack.make(
            exp.resolved.spec, 2, exp.dataset.num_classes, exp.sharding, lowering="dense"
        )
    alone = independent.make(made)
    init = jax.jit(lambda key: exp.method.init(key, exp.dataset.image_shape))
    variables = init(jax.random.key(1))
    images = jax.random.normal(jax.random.key(2), (1, 4, *exp.dataset.image_shape))
    batch = {"views": images, "labels": jnp.array([0, 1, 2, 3])}

    def gradients(method):
        def loss(params):
            whole = variables | {"params": params}
            return method.loss(whole, batch, jax.random.key(0), 0)[0]

        return jax.jit(jax.grad(loss))(variables["params"])

    joined, plain = gradients(exp.method), gradients(alone)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), joined, plain))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"joint.weight": 1.5}, r"^joint.weight=1.5: must be in \[0, 1\]$"),
        ({"joint.of": "max_logits"}, "^joint.of='max_logits': must be one of mean_logits, mean_pr"),
        ({"split": 1}, "^split=1: must be 2 or more with method='joint'; one network is"),
    ],
)
def test_wrong_values(fields, message):
    config = tiny(method="joint")
    config.update_from_flattened_dict(fields)
    with pytest.raises(ConfigError, match=message):
        config_lib.check(config)
