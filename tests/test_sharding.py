"""The mesh: any of them gives what one device gives, and no activation is gathered."""

import functools

import jax
import numpy as np
import pytest

from bench.scaling import Collective, collectives, compile_step, predicted_seconds
from configs import common
from jaxsplit import experiment, methods, sharding, state
from jaxsplit.errors import ConfigError

MESHES = ((1, 1), (2, 4), *(pytest.param(m, marks=pytest.mark.slow) for m in ((8, 1), (4, 2))))
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
        # Mixup pairs images within a device's part of the batch, so that it depends on the mesh. So
        # do the images that are side by side, if they are not the same.
        augment=dict(mixup=0.0, crop_padding=1, erase_prob=0.5),
        mimo=dict(input_repetition=1.0),
        schedule=dict(warmup="0 steps", milestones=()),
        **fields,
    )
    return config


def train(data, net, steps=3, **fields):
    """(experiment, compiled step, state after `steps`, loss of each step)."""
    exp = experiment.build(make_config(data, net, **fields))
    s = state.init(exp.method, exp.optimizer, 0, exp.dataset.image_shape, exp.sharding)
    resident = dict(images=exp.feed.resident.images, labels=exp.feed.resident.labels)
    resident = exp.sharding.put(resident, exp.sharding.replicated)
    batches = exp.feed.batches(0)
    compiled, totals, sums = None, None, []
    for _ in range(steps):
        batch = experiment.put_batch(exp, next(batches))
        if compiled is None:
            compiled, totals = experiment.compile_step(exp, s, resident, batch)
        s, totals = compiled(s, totals, resident, batch)
        sums.append(float(totals.sums["loss"]))
    return exp, compiled, s, np.diff([0.0, *sums])


@pytest.fixture(scope="module")
def trained():
    """(data, net) -> what `train` gives, done once."""
    return functools.cache(train)


def assert_agree(one, many):
    """States, losses of two meshes."""
    (*_, one, losses), (*_, many, other) = one, many
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


@pytest.mark.parametrize("mesh", MESHES[1:])
def test_meshes_agree_with_one_device(trained, mesh):
    assert_agree(trained(1, 1), trained(*mesh))


@pytest.fixture(scope="module")
def one_device():
    """Method -> `train` on one device, done once.

    The seed is one with which no activation is so near to zero that rounding decides its sign.
    """
    return functools.cache(lambda method: train(1, 1, method=method, seed=1))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(2, 1), (8, 1), (1, 2), (2, 2), (2, 4), (1, 4)])
@pytest.mark.parametrize(  # one network has no mesh, and a method with a teacher tests of its own
    "method", [n for n, entry in methods.METHODS.items() if entry.most != 1 and not entry.teacher]
)
def test_every_method_on_every_mesh(one_device, method, mesh):
    if method == "mimo" and mesh[1] > 1:
        with pytest.raises(ConfigError, match="must divide the 1 networks"):
            train(*mesh, method=method, seed=1)
        return
    assert_agree(one_device(method), train(*mesh, method=method, seed=1))


@pytest.mark.parametrize("mesh", MESHES)
def test_each_device_holds_its_networks_only(trained, mesh):
    _, _, s, _ = trained(*mesh)
    data, net = mesh
    for tree in (s.params, s.batch_stats, s.opt_state):
        for leaf in jax.tree.leaves(tree):
            if leaf.ndim:
                shards = {shard.data.shape[0] for shard in leaf.addressable_shards}
                assert shards == {NETWORKS // net}
                assert len(leaf.addressable_shards) == data * net


@pytest.mark.parametrize("mesh", MESHES[1:])
def test_no_activation_crosses_devices(trained, mesh):
    exp, compiled, s, _ = trained(*mesh)
    found = collectives(compiled.as_text(), *mesh)
    assert {c.axis for c in found} <= {"data", "net", "both"}
    assert any(c.kind == "all-reduce" and c.axis == "data" for c in found)
    logits = NETWORKS * BATCH * exp.dataset.num_classes
    parameters = {leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(s.params)}
    for kind, axis, shapes, _ in found:
        for shape in shapes:
            if kind != "all-reduce" or axis != "data":
                # Logits may be gathered or added up over the networks, nothing larger.
                assert np.prod(shape) <= logits and len(shape) <= 3, (kind, axis, shape)
            else:
                # Gradients and BatchNorm moments; logits of the divergence.
                assert np.prod(shape) in parameters or np.prod(shape) <= logits, (kind, shape)


@pytest.mark.slow
def test_work_is_shared_out():
    """By XLA's own count of each device's program, at a size where the networks are the work."""
    flops = {}
    for mesh in ((1, 1), (8, 1), (2, 4)):
        config = make_config(*mesh)
        config.data.name, config.batch_size = "synthetic", 64  # 32x32 pixels
        config.arch, config.augment.erase_prob = "wide_resnet10_4", 0.0
        flops[mesh] = compile_step(config).flops * mesh[0] * mesh[1]
    for mesh in ((8, 1), (2, 4)):
        # What every device does by itself is the update of its networks.
        assert flops[mesh] / flops[1, 1] == pytest.approx(1, abs=0.05), mesh


@pytest.mark.slow
def test_bytes_along_the_mesh(trained):
    """Gradients cross the data axis only, in proportion to the networks of a device."""
    size = {}
    for mesh in ((8, 1), (2, 4)):
        _, compiled, s, _ = trained(*mesh)
        found = collectives(compiled.as_text(), *mesh)
        size[mesh] = {
            axis: sum(c.bytes for c in found if c.axis in (axis, "both"))
            for axis in ("data", "net")
        }
        own = 4 * sum(x.addressable_shards[0].data.size for x in jax.tree.leaves(s.params))
        # Beside gradients there are moments of synchronised BatchNorm, forwards and backwards.
        assert own <= size[mesh]["data"] <= 1.2 * own
    assert size[8, 1]["net"] == 0
    logits = 4 * NETWORKS * BATCH * 10
    assert 0 < size[2, 4]["net"] < 4 * logits


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("replica_groups={{0,2},{1,3}}", "data"),
        ("replica_groups={{0,1},{2,3}}", "net"),
        ("replica_groups={{0,1,2,3}}", "both"),
        ("replica_groups={{0},{1},{2},{3}}", "none"),
        ("replica_groups=[2,2]<=[4]", "net"),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", "data"),
        ("replica_groups=mesh['data'=2,'net'=2] {'net'}", "net"),
        ("replica_groups=mesh['data'=2,'net'=2] {'data'}", "data"),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2], device_ids=([2,2]T(1,0)) {'axis_0'}", "net"),
        ("replica_groups=mesh['axis_0'=4] {'axis_0'}", "both"),
        ("source_target_pairs={{0,1},{1,0},{2,3}}", "net"),
        ("source_target_pairs={{0,2},{1,1}}", "data"),
        ("", "?"),
    ],
)
def test_axis_of_a_collective(text, axis):
    """In every way that XLA writes which devices exchange something, on a mesh of 2 x 2."""
    line = (
        f"  %all-reduce.1 = (f32[2,3]{{1,0}}, bf16[4]{{0}}) all-reduce(%x, %y), {text}, to_apply=%a"
    )
    (found,) = collectives(line, 2, 2)
    assert found == ("all-reduce", axis, ((2, 3), (4,)), 32)


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
    gathered = [c.shapes for c in collectives(text, 8, 1) if c.kind == "all-gather"]
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


@pytest.mark.parametrize(
    ("kind", "milliseconds"),
    [("all-reduce", 15.0), ("all-gather", 7.5), ("collective-permute", 10.0)],
)
def test_predicted_seconds(kind, milliseconds):
    """100 MB at 10 GB/s among four: what passes through a link of a ring."""
    of = Collective(kind, "data", ((25_000_000,),), 100_000_000)
    assert predicted_seconds(of, 4, 10.0) * 1e3 == pytest.approx(milliseconds)
