"""The mesh: any of them gives what one device gives, and no activation is gathered."""

import re

import jax
import numpy as np
import pytest

from configs import common
from jaxsplit import experiment, sharding, state
from jaxsplit.errors import ConfigError

MESHES = ((1, 1), (8, 1), (4, 2), (2, 4))
BATCH, NETWORKS = 16, 4


def make_config(data, net, **fields):
    config = common.get_config()
    config.update(
        arch="wide_resnet10_1",
        split=NETWORKS,
        duration="3 steps",
        batch_size=BATCH,
        batch_norm="sync",
        lowering="dense",
        mesh=dict(data=data, net=net),
        cotrain=dict(warmup="0 steps"),
        data=dict(name="digits"),
        # Mixup pairs images within a device's part of the batch, so that it depends on the mesh.
        augment=dict(mixup=0.0, crop_padding=1, erase_prob=0.5),
        schedule=dict(warmup="0 steps", milestones=()),
        **fields,
    )
    return config


def train(data, net, steps=3):
    """(experiment, compiled step, state after `steps`, loss of each step)."""
    exp = experiment.build(make_config(data, net))
    s = state.init(exp.method, exp.optimizer, 0, exp.dataset.image_shape, exp.sharding)
    resident = dict(images=exp.feed.resident.images, labels=exp.feed.resident.labels)
    resident = exp.sharding.put(resident, exp.sharding.replicated)
    batches = exp.feed.batches(0)
    compiled, totals, sums = None, None, []
    for _ in range(steps):
        batch = experiment.put(exp, next(batches))
        if compiled is None:
            compiled, totals = experiment.compile_step(exp, s, resident, batch)
        s, totals = compiled(s, totals, resident, batch)
        sums.append(float(totals.sums["loss"]))
    return exp, compiled, s, np.diff([0.0, *sums])


@pytest.fixture(scope="module")
def trained():
    return {mesh: train(*mesh) for mesh in MESHES}


@pytest.mark.parametrize("mesh", MESHES[1:])
def test_meshes_agree_with_one_device(trained, mesh):
    _, _, one, losses = trained[1, 1]
    _, _, many, other = trained[mesh]
    np.testing.assert_allclose(other, losses, rtol=1e-5)
    assert losses[2] != losses[0]
    for (path, a), b in zip(
        jax.tree.leaves_with_path(jax.device_get(one)),
        jax.tree.leaves(jax.device_get(many)),
        strict=True,
    ):
        if np.issubdtype(a.dtype, np.floating):
            a, b = np.asarray(a), np.asarray(b)
            assert np.abs(a - b).max() <= 1e-5 * max(1.0, np.abs(a).max()), path
        else:
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("mesh", MESHES)
def test_each_device_holds_its_networks_only(trained, mesh):
    _, _, s, _ = trained[mesh]
    data, net = mesh
    for tree in (s.params, s.batch_stats, s.opt_state):
        for leaf in jax.tree.leaves(tree):
            if leaf.ndim:
                shards = {shard.data.shape[0] for shard in leaf.addressable_shards}
                assert shards == {NETWORKS // net}
                assert len(leaf.addressable_shards) == data * net


def collectives(text):
    """(operation, shapes of what it moves) of every collective in a compiled program."""
    found = []
    for line in text.splitlines():
        match = re.search(
            r"= (.*?) (all-gather|all-to-all|all-reduce|collective-permute|reduce-scatter)"
            r"(?:-start)?\(",
            line,
        )
        if match:
            shapes = re.findall(r"\w+\[([\d,]*)\]", match[1])
            found.append((match[2], [tuple(map(int, s.split(","))) if s else () for s in shapes]))
    return found


@pytest.mark.parametrize("mesh", MESHES[1:])
def test_no_activation_crosses_devices(trained, mesh):
    exp, compiled, s, _ = trained[mesh]
    found = collectives(compiled.as_text())
    assert any(kind == "all-reduce" for kind, _ in found)
    logits = NETWORKS * BATCH * exp.dataset.num_classes
    parameters = {leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(s.params)}
    for kind, shapes in found:
        for shape in shapes:
            if kind != "all-reduce":
                # Logits may be gathered over the networks, nothing larger.
                assert np.prod(shape) <= logits and len(shape) <= 3, (kind, shape)
            else:
                # Gradients and BatchNorm moments; logits of the divergence.
                assert np.prod(shape) in parameters or np.prod(shape) <= logits, (kind, shape)


def test_the_check_sees_a_gathered_activation():
    """Plain jit over a grouped convolution gathers a sharded batch: the check can fail."""
    mesh = sharding.make(8, 1, num_networks=1, batch_size=BATCH)
    x = jax.device_put(np.ones((BATCH, 8, 8, 8), np.float32), mesh.named(mesh.batch))
    kernel = np.ones((3, 3, 2, 8), np.float32)

    def loss(kernel, x):
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=4,
        )
        return jax.numpy.square(y).sum()

    text = jax.jit(jax.grad(loss)).lower(kernel, x).compile().as_text()
    gathered = [shapes for kind, shapes in collectives(text) if kind == "all-gather"]
    assert any(BATCH in shape and len(shape) >= 4 for shapes in gathered for shape in shapes)


def test_all_devices_by_default():
    mesh = sharding.make(-1, 1, num_networks=4, batch_size=16)
    assert mesh.mesh.shape == {"data": jax.device_count(), "net": 1}
    mesh = sharding.make(-1, 2, num_networks=4, batch_size=16)
    assert mesh.mesh.shape == {"data": jax.device_count() // 2, "net": 2}


def test_wrong_meshes_are_named():
    with pytest.raises(ConfigError, match=r"mesh.net=3: must divide the 4 networks: 1, 2, 4"):
        sharding.make(-1, 3, num_networks=4, batch_size=16)
    with pytest.raises(ConfigError, match=r"mesh.data=9, mesh.net=1: needs 9 devices, there are 8"):
        sharding.make(9, 1, num_networks=4, batch_size=18)
    with pytest.raises(ConfigError, match=r"batch_size=12: must be divisible by the 8 devices"):
        sharding.make(8, 1, num_networks=4, batch_size=12)
