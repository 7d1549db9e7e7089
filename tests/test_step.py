"""The evaluation step: ranks, ties, padding; and what a device makes of its part of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsplit import augment, sharding, step
from jaxsplit.methods.base import Method

MEAN, STD = (0.0,), (1.0,)


def sums_of(named, labels, mask):
    """What the evaluation step adds up for given logits of every name."""
    method = Method(None, None, lambda variables, images: named, None, "ensemble")
    batch = {
        "images": jnp.zeros((len(labels), 2, 2, 1), jnp.uint8),
        "labels": jnp.asarray(labels),
        "mask": jnp.asarray(mask, jnp.float32),
    }
    return {k: float(v) for k, v in step.make_eval_step(method, MEAN, STD)({}, batch).items()}


def test_sums_by_hand():
    logits = jnp.asarray(
        [
            [9.0, 8, 7, 6, 5, 4, 3],  # label 0: first
            [9.0, 8, 7, 6, 5, 4, 3],  # label 4: fifth
            [9.0, 8, 7, 6, 5, 4, 3],  # label 5: sixth
            [0.0, 0, 0, 0, 0, 0, 9],  # padding
        ]
    )
    labels, mask = [0, 4, 5, 6], [1, 1, 1, 0]
    other = logits[:, ::-1]
    sums = sums_of({"net0": logits, "net1": other, "ensemble": logits}, labels, mask)
    assert sums["count"] == 3
    assert (sums["ensemble/top1"], sums["ensemble/top5"]) == (1, 2)
    log_p = np.asarray(jax.nn.log_softmax(logits))
    assert sums["ensemble/nll"] == pytest.approx(-log_p[[0, 1, 2], [0, 4, 5]].sum(), rel=1e-6)
    assert sums["disagreement"] == 3  # net0 says 0, net1 says 6; the padding does not count


def test_of_equals_the_first_counts_as_higher():
    equal = jnp.zeros((10, 10))
    sums = sums_of({"net0": equal}, list(range(10)), [1] * 10)
    assert (sums["net0/top1"], sums["net0/top5"]) == (1, 5)
    assert sums["net0/nll"] == pytest.approx(10 * np.log(10))


def test_what_is_not_a_number_is_no_hit():
    sums = sums_of({"net0": jnp.full((2, 10), jnp.nan)}, [0, 1], [1, 1])
    assert (sums["net0/top1"], sums["net0/top5"]) == (0, 0)


def test_fewer_than_five_classes():
    sums = sums_of({"net0": jnp.asarray([[1.0, 2.0, 3.0]])}, [0], [1])
    assert (sums["net0/top1"], sums["net0/top5"]) == (0, 1)


@pytest.mark.parametrize("shared", [False, True])
def test_inputs_do_not_depend_on_the_mesh(shared):
    """Views, by the number of their network and of their example; only mixup pairs per device."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 8, 8, 1), np.uint8)
    resident = {"images": images, "labels": np.arange(20, dtype=np.int32)}
    batch = {"index": rng.permutation(20)[:8].astype(np.int32)}
    config = dict(
        crop_padding=2, flip=True, erase_prob=0.5, erase_area=(0.1, 0.2), erase_aspect=(1, 1)
    )
    ops = augment.pipeline(config, MEAN, STD, streamed=False)
    made = {}
    for data, net in ((1, 1), (4, 2)):
        mesh = sharding.make(data, net, num_networks=4, batch_size=8)
        inputs = step.make_inputs(
            mesh, ops, num_networks=4, shared_view=shared, streamed=False, mixup=0.0
        )
        made[data] = jax.jit(inputs)(
            mesh.put(resident, mesh.replicated), mesh.put(batch, mesh.batch), jax.random.key(1)
        )
    assert made[1]["views"].shape == (1 if shared else 4, 8, 8, 8, 1)
    np.testing.assert_array_equal(made[1]["views"], made[4]["views"])
    np.testing.assert_array_equal(made[4]["labels"], batch["index"])


def test_mixup_pairs_within_a_device_with_one_lambda():
    labels = np.arange(16, dtype=np.int32)
    images = np.zeros((1, 16, 2, 2, 1), np.uint8) + labels[None, :, None, None, None].astype(
        np.uint8
    )
    mesh = sharding.make(4, 2, num_networks=2, batch_size=16)
    ops = [("wide", lambda key, image: image.astype(jnp.float32))]
    inputs = step.make_inputs(
        mesh, ops, num_networks=2, shared_view=False, streamed=True, mixup=1.0
    )
    batch = {
        "images": mesh.put(np.repeat(images, 2, 0), mesh.views),
        "labels": mesh.put(labels, mesh.batch),
    }
    out = jax.device_get(jax.jit(inputs)({}, batch, jax.random.key(3)))
    partner, lam = out["partner"], out["lam"]
    assert (partner // 4 == labels // 4).all() and (partner != labels).any()
    for views in out["views"]:  # one lambda and one permutation for all networks
        np.testing.assert_allclose(views[:, 0, 0, 0], lam * labels + (1 - lam) * partner, rtol=1e-5)
