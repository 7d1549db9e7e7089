"""A fixed teacher: its loss by hand, its place outside the training state, and what is refused."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from jaxsplit import config as config_lib
from jaxsplit import expected, experiment, loop, state, teacher
from jaxsplit.checkpoints import read
from jaxsplit.errors import ConfigError, Stopped
from jaxsplit.inference.restore import restore
from jaxsplit.losses import distill
from jaxsplit.methods import distill_from
from jaxsplit.report import summary
from tests.support.by_hand import ONEHOT, B, K, ce, given, run, softmax
from tests.support.nets import registered
from tests.support.runs import AskedAt, assert_same_bits, lines_of, tiny


@pytest.mark.parametrize(("networks", "views"), [(1, 1), (3, 1), (3, 3)])
def test_loss_by_hand(networks, views):
    rng, t = np.random.default_rng(0), 4.0
    z, z_t = 2 * rng.normal(size=(networks, B, K)), 3 * rng.normal(size=(views, B, K))
    method = distill_from.make(
        given(networks), distill=distill.Distill("kl", t, weight=0.7), label_weight=0.3
    )
    value, metrics, grad = run(method, z, teacher=z_t.swapaxes(0, 1))
    p, q = softmax(z_t / t), softmax(z / t)
    kl = t**2 * (p * np.log(p / q)).sum(-1).mean(-1)
    np.testing.assert_allclose(value, (0.3 * ce(softmax(z)) + 0.7 * kl).sum(), rtol=1e-10)
    np.testing.assert_allclose(grad, (0.3 * (softmax(z) - ONEHOT) + 0.7 * t * (q - p)) / B, 1e-9)
    np.testing.assert_allclose(metrics["distill"], 0.7 * kl, rtol=1e-10)
    right = (z_t.argmax(-1) == ONEHOT.argmax(-1)).mean()
    np.testing.assert_allclose(metrics["teacher/top1"], right)
    assert method.answer == ("net0" if networks == 1 else "ensemble")


@pytest.fixture(scope="module")
def arch():
    with registered("tiny_taught") as name:
        yield name


@pytest.fixture(scope="module")
def taught(arch, tmp_path_factory):
    """The workdir of a teacher: an ensemble of two."""
    workdir = tmp_path_factory.mktemp("teacher")
    config = tiny(arch=arch, method="independent", divide=False, lowering="dense")
    loop.train_and_evaluate(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def student(arch, taught):
    """(fields) -> config of one network that learns from the teacher."""

    def config(**fields):
        own = dict(arch=arch, method="distill_from", split=1, divide=False, lowering="dense")
        return tiny(**own | {"distill_from__teacher": str(taught)} | fields)

    return config


@pytest.mark.slow
def test_the_teacher_sees_the_views_in_its_own_normalisation(taught, student):
    """As the predictor of its workdir, from pixels."""
    exp = experiment.build(student())
    restored = restore(taught)
    pixels = np.random.default_rng(0).integers(0, 256, (4, *exp.dataset.image_shape), np.uint8)
    want = restored.predict(restored.variables, pixels)["ensemble"]
    fixed = experiment.constants(exp)["teacher"]
    for mean, std in (((0.5, 0.4, 0.3), (0.2, 0.3, 0.1)), (exp.dataset.mean, exp.dataset.std)):
        views = (pixels / np.float32(255) - np.float32(mean)) / np.float32(std)
        said = jax.jit(exp.teacher.logits(exp.sharding, mean, std))(fixed, views[None])
        assert said.shape == (4, 1, exp.dataset.num_classes)
        np.testing.assert_allclose(said[:, 0], want, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def whole(student, tmp_path_factory):
    """(workdir, results) of a student that nobody stops."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, dict(loop.train_and_evaluate(student(), workdir))


def saved(workdir, step=4) -> dict:
    path = read.Reader(workdir).path(step)
    return {name: shape for name, shape in read.model_shapes(path).items()}


@pytest.mark.slow
def test_a_student_that_is_stopped_goes_on(whole, student, tmp_path):
    with pytest.raises(Stopped):
        loop.train_and_evaluate(student(), tmp_path, AskedAt(3))
    assert dict(loop.train_and_evaluate(student(), tmp_path)) == whole[1]
    shapes = experiment.build(student()).state_shapes()
    states = [read.restore(read.Reader(path).path(4), shapes) for path in (tmp_path, whole[0])]
    assert_same_bits(*states)
    steps = [line for line in lines_of(tmp_path) if "train/loss" in line]
    for line in steps:
        parts = line["train/net0/cross_entropy"] + line["train/net0/distill"]
        assert line["train/loss"] == pytest.approx(parts, rel=1e-5)
        assert 0 <= line["train/teacher/top1"] <= 1


@pytest.mark.slow
def test_nothing_of_the_teacher_is_saved(whole):
    """Not in the networks, not in the optimizer's state; the student is used without it."""
    workdir = whole[0]
    assert {name.split("/")[1] for name in saved(workdir)} == {"stack"}
    assert all(shape[0] == 1 for shape in saved(workdir).values())
    told = json.loads((workdir / teacher.NAME).read_text())
    assert (told["step"], told["split"], told["answer"]) == (4, 2, "ensemble")


@pytest.mark.slow
def test_evaluation_needs_no_teacher(whole, student, tmp_path):
    config = student(distill_from__teacher="/nowhere")
    workdir = shutil.copytree(whole[0], tmp_path / "moved")
    config_lib.save(config, workdir)
    found = loop.evaluate_checkpoint(config, workdir)
    assert found["test/net0/nll"] == pytest.approx(whole[1]["test/net0/nll"], rel=1e-6)


@pytest.mark.slow
def test_a_changed_teacher_is_refused(whole, arch, student, taught, tmp_path):
    """By what it is, not by where it lies."""
    moved = shutil.copytree(taught, tmp_path / "teacher")
    config = student(distill_from__teacher=str(moved), duration="6 steps")
    run_ = shutil.copytree(whole[0], tmp_path / "run")
    with pytest.raises(ConfigError, match="holds another experiment; changed are distill_from.te"):
        loop.train_and_evaluate(config, run_)
    config.resume_with = "changed"
    assert loop.train_and_evaluate(config, run_)["step"] == 6
    again = tiny(
        arch=arch, method="independent", divide=False, lowering="dense", duration="5 steps"
    )
    loop.train_and_evaluate(again, moved)
    config.duration = "8 steps"
    with pytest.raises(ConfigError) as caught:
        loop.train_and_evaluate(config, run_)
    assert str(caught.value).startswith(
        f"distill_from.teacher={str(moved)!r}: must be the teacher that the run in "
        f"workdir={str(run_)!r} started with; changed are step: 4 -> 5; checksum: "
    )
    (run_ / teacher.NAME).unlink()
    with pytest.raises(ConfigError, match="cannot be compared; .*teacher.json is missing or dama"):
        loop.train_and_evaluate(config, run_)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(1, 2), (2, 1)])
def test_meshes_agree_with_one_device(student, mesh):
    """Two students with own views: devices that hold one of them hold the whole teacher."""
    data, net = mesh
    fields = dict(split=2, views="different", batch_norm="sync", schedule__warmup="0 steps")
    fields |= dict(augment__mixup=0.0, ema=0.5)
    one, two = (
        two_steps(student(**fields, **size)) for size in ({}, dict(mesh__data=data, mesh__net=net))
    )
    np.testing.assert_allclose(two[1], one[1], rtol=1e-5)
    for (path, a), b in zip(
        jax.tree.leaves_with_path(one[0]), jax.tree.leaves(two[0]), strict=True
    ):
        assert np.abs(a - b).max() <= 2e-5 * max(1.0, np.abs(a).max()), jax.tree_util.keystr(path)


@pytest.mark.slow
def test_it_learns_from_the_teacher_alone(student):
    """Without labels: on one batch its distance to the teacher falls to less than half."""
    fields = dict(augment__mixup=0.0, schedule__warmup="0 steps", duration="40 steps")
    config = student(distill_from__label_weight=0.0, optim__lr=0.8, **fields)
    exp = experiment.build(config)
    s = state.init(exp.method, exp.optimizer, 0, exp.dataset.image_shape, exp.sharding)
    fixed, batches = experiment.constants(exp), exp.feed.batches(0)
    batch = experiment.put_batch(exp, next(batches))
    batches.close()
    step, empty = experiment.compile_step(exp, s, fixed, batch)
    losses = []
    for _ in range(40):
        s, totals = step(s, empty, fixed, batch)
        losses.append(float(totals.sums["distill"][0]))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def two_steps(config):
    """(the variables after two steps, their summed losses)."""
    exp = experiment.build(config)
    s = state.init(
        exp.method, exp.optimizer, 0, exp.dataset.image_shape, exp.sharding, averaged=True
    )
    fixed, batches = experiment.constants(exp), exp.feed.batches(0)
    batch = experiment.put_batch(exp, next(batches))
    step, totals = experiment.compile_step(exp, s, fixed, batch)
    for _ in range(2):
        s, totals = step(s, totals, fixed, batch)
    batches.close()
    return jax.device_get((s.raw, s.ema)), float(totals.sums["loss"])


@pytest.mark.slow
def test_micro_batches_have_their_own_targets(student):
    """The teacher's logits are cut as the views are: without BatchNorm's noise nothing changes."""
    exp = experiment.build(student())
    fixed, batches = experiment.constants(exp), exp.feed.batches(0)
    batch = experiment.put_batch(exp, next(batches))
    batches.close()
    made = jax.jit(experiment.inputs(exp))(fixed, batch, jax.random.key(0))
    cut = experiment.step.cut_batch(made, 4, exp.sharding)
    assert cut["teacher"].shape == (4, 4, 1, exp.dataset.num_classes)
    for i in range(4):
        said = exp.teacher.logits(exp.sharding, exp.dataset.mean, exp.dataset.std)
        own = jax.jit(said)(fixed["teacher"], cut["views"][i])
        np.testing.assert_allclose(cut["teacher"][i], own, rtol=1e-4, atol=1e-5)


def test_summary_counts_the_teacher_in_training_only(student):
    text = summary.of_config(student())
    found = teacher.cost(student())
    exp = experiment.build(student())
    one = summary.cost(exp.resolved.spec, num_classes=10, image_shape=exp.dataset.image_shape)
    assert found == ("ensemble", 2 * one.params, 2 * one.macs)
    assert (
        f"teacher, in training only: ensemble, {2 * one.params:,} parameters, {2 * one.macs:,} "
        "mult-adds for each view" in text
    )
    assert teacher.cost(tiny()) is None


def test_a_teacher_of_several_outputs_costs_what_it_is(tmp_path):
    """Its first convolution and its last layer are as many times as wide."""
    mimo = tiny(method="mimo", divide=False)
    config_lib.save(mimo, tmp_path)
    pupil = tiny(method="distill_from", split=1, distill_from__teacher=str(tmp_path))
    found, deployed = teacher.cost(pupil), expected.cost(mimo)
    assert (found.params, found.macs) == (deployed.params, deployed.macs)
    assert found.params > expected.cost(tiny(method="single", split=1, divide=False)).params


@pytest.mark.slow
def test_another_loss(student):
    config = student(distill__loss="dkd", distill__standardize=True, distill__temperature=2.0)
    z, z_t = np.random.default_rng(0).normal(size=(2, 1, B, K))
    loss = distill.make(config.distill, 4.0)
    method = distill_from.make(given(1), distill=loss)
    value, metrics, _ = run(method, z, teacher=z_t.swapaxes(0, 1))
    assert loss.loss == "dkd" and loss.temperature == 2.0
    np.testing.assert_allclose(value, ce(softmax(z)).sum() + metrics["distill"].sum(), rtol=1e-10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"distill_from.teacher": ""}, "^distill_from.teacher='': must be the workdir of a fin"),
        ({"distill_from.checkpoint": "last"}, "^distill_from.checkpoint='last': must be latest, b"),
        (
            {"distill_from.label_weight": -1.0},
            "^distill_from.label_weight=-1.0: must be 0 or m",
        ),
    ],
)
def test_wrong_values(student, fields, message):
    config = student()
    config.update_from_flattened_dict(fields)
    with pytest.raises(ConfigError, match=message):
        config_lib.check(config)


def test_wrong_teachers(student, taught, tmp_path):
    with pytest.raises(ConfigError, match="^distill_from.teacher='/nowhere': "):
        experiment.build(student(distill_from__teacher="/nowhere"))
    with pytest.raises(ConfigError, match="^distill_from.teacher=.*: checkpoint='9': not in "):
        experiment.build(student(distill_from__checkpoint="9"))
    with pytest.raises(ConfigError, match=r"has \(8, 8, 3\) \(height, width, channels\) of images"):
        experiment.build(student(data__image_size=16))
    data = experiment.build(student()).dataset
    other = dataclasses.replace(data, num_classes=7)
    with pytest.raises(ConfigError, match="has 10 classes, must have 7 as the data$"):
        teacher.load(config_lib.check(student()), other)
