"""Predicting gives the probabilities of evaluation, without data set and optimizer."""

import dataclasses
import io
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import jaxsplit
from jaxsplit import config as config_lib
from jaxsplit import data, losses
from jaxsplit.checkpoints import read
from jaxsplit.data import facts
from jaxsplit.errors import ConfigError
from jaxsplit.inference import pictures, temperatures
from jaxsplit.inference.restore import Restored
from tests.support.inference import evaluated, write_untrained
from tests.support.runs import one_network, tiny
from tests.support.tfds import encode, picture, write_imagenet

TOLERANCE = dict(rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def stacked(tmp_path_factory):
    """(workdir, experiment, its variables, 5 images) of two networks on 8x8 images."""
    workdir = tmp_path_factory.mktemp("predict") / "run"
    exp = write_untrained(tiny(), workdir)
    variables = read.restore_model(workdir / "checkpoints" / "0", exp.state_shapes())
    return workdir, exp, variables, exp.dataset.test.images[:5]


@pytest.fixture(scope="module")
def predictor(stacked):
    return jaxsplit.load(stacked[0])


def test_probabilities_are_those_of_evaluation(stacked, predictor):
    _, exp, variables, images = stacked
    expected = evaluated(exp, variables, images)
    found = predictor.predict(images)
    np.testing.assert_allclose(found.probabilities, expected["ensemble"], **TOLERANCE)
    assert found.probabilities.dtype == np.float32 and found.probabilities.shape == (5, 10)
    assert list(found.networks) == ["net0", "net1"] == list(predictor.networks)
    for name, own in found.networks.items():
        np.testing.assert_allclose(own, expected[name], **TOLERANCE)
    logits = predictor.logits(images)
    assert list(logits) == ["net0", "net1", "ensemble"]
    np.testing.assert_allclose(jax.nn.softmax(logits["net1"]), expected["net1"], **TOLERANCE)


def test_what_it_tells(stacked, predictor):
    _, exp, *_ = stacked
    assert predictor.class_names == tuple("0123456789")  # `synthetic` has no names
    assert predictor.image_shape == (8, 8, 3) and predictor.step == 0
    assert predictor.config.arch == exp.config.arch and predictor.batch_size == 256


def test_it_needs_no_data_set(tmp_path):
    """Not even one of one's own, of which config.json has the name alone."""
    rng, npz = np.random.default_rng(0), tmp_path / "mine.npz"
    arrays = {
        name: rng.integers(0, 256, (20, 6, 7)).astype(np.uint8)
        for name in ("train_images", "test_images")
    } | {name: np.arange(20) % 2 for name in ("train_labels", "test_labels")}
    np.savez(npz, **arrays, class_names=["cat", "dog"])
    fields = dict(data__name="mine", data__image_size=0, data__dir=str(tmp_path))
    write_untrained(one_network(**fields), tmp_path / "run")
    before = jaxsplit.load(tmp_path / "run")(arrays["test_images"][..., None])
    npz.unlink()
    predictor = jaxsplit.load(tmp_path / "run")
    assert predictor.class_names == ("cat", "dog") and predictor.image_shape == (6, 7, 1)
    np.testing.assert_array_equal(predictor(arrays["test_images"][..., None]), before)
    (tmp_path / "run" / facts.NAME).unlink()
    with pytest.raises(ConfigError, match="has no dataset.json, which tells the image size"):
        jaxsplit.load(tmp_path / "run")


def test_networks_and_combinations(stacked, predictor):
    _, exp, variables, images = stacked
    logits = predictor.logits(images)
    both = np.stack([logits["net0"], logits["net1"]])
    for how in losses.ENSEMBLES:
        expected = jax.nn.softmax(losses.ensemble(both, how) / 2.0)
        found = predictor(images, combine=how, temperature=2)
        np.testing.assert_allclose(found, expected, **TOLERANCE)
    alone = predictor.using(networks=1)
    np.testing.assert_allclose(alone(images), jax.nn.softmax(both[1]), **TOLERANCE)
    assert list(alone.predict(images).networks) == ["net1"]
    np.testing.assert_allclose(alone(images), predictor(images, networks="net1"), rtol=0)
    swapped = predictor(images, networks=["net1", 0])
    np.testing.assert_allclose(swapped, predictor(images), **TOLERANCE)


@pytest.mark.parametrize(
    "options, line",
    [
        (dict(networks=["net2"]), "networks='net2': must be of net0, net1, or a number"),
        (dict(networks=[]), "networks=(): must be at least one"),
        (dict(combine="mean"), "combine='mean': must be one of mean_logits, mean_probs,"),
        (dict(temperature=0), "temperature=0: must be a positive number"),
        (dict(temperature="hot"), "temperature='hot': must be a positive number"),
        (dict(temperature="fitted"), "eval.json has no temperatures (FileNotFoundError)"),
    ],
)
def test_wrong_options(predictor, options, line):
    with pytest.raises(ConfigError) as caught:
        predictor.using(**options)
    assert line in str(caught.value)


@pytest.mark.slow
def test_large_input_is_cut_into_padded_batches(stacked, predictor):
    workdir, exp, _, _ = stacked
    images = exp.dataset.test.images[:23]
    whole = predictor(images)
    parts = jaxsplit.load(workdir, batch_size=9)  # 8 + 8 + 7, padded to 8
    assert parts.batch_size == 8
    np.testing.assert_allclose(parts(images), whole, **TOLERANCE)
    assert [parts.forward.padded(n) for n in (1, 2, 3, 4, 5, 8)] == [1, 2, 4, 4, 8, 8]
    shared = jaxsplit.load(workdir, devices=jax.devices()[:4])
    assert shared.forward.padded(9) == 16 and shared.forward.padded(1) == 4
    np.testing.assert_allclose(shared(images), whole, **TOLERANCE)


def test_none_and_one(predictor, stacked):
    image = stacked[3][0]
    assert predictor([]).shape == (0, 10)
    assert predictor(np.zeros((0, 8, 8, 3), np.uint8)).shape == (0, 10)
    np.testing.assert_allclose(predictor(image), predictor(stacked[3])[:1], **TOLERANCE)


def test_files_pictures_and_arrays_are_the_same(stacked, predictor, tmp_path):
    images = stacked[3]
    paths = []
    for i, image in enumerate(images):
        paths.append(tmp_path / f"{i}.png")
        paths[-1].write_bytes(encode(image, "PNG"))
    expected = predictor(images)
    for given in (
        paths,
        [str(path) for path in paths],
        [Image.open(path) for path in paths],
        list(images),
        iter(images),
    ):
        np.testing.assert_allclose(predictor(given), expected, **TOLERANCE)
    np.testing.assert_allclose(predictor(paths[0]), expected[:1], **TOLERANCE)


def test_a_damaged_file_is_named(predictor, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(encode(picture(0, 8, 8), "PNG")[:40])
    for given, line in (
        (path, f"{path}: cannot be read as an image ("),
        (tmp_path / "none.png", "none.png: cannot be read as an image (No such file or directory)"),
        ([3.5], "float: cannot be read as an image (must be a path"),
        (np.zeros((2, 8, 8, 3)), "ndarray: cannot be read as an image (array float64[8, 8, 3]"),
        (np.zeros((8, 8), np.uint8), "images: uint8[8, 8], must be uint8[B, H, W, C]"),
    ):
        with pytest.raises(ConfigError) as caught:
            predictor(given)
        assert line in str(caught.value)


def test_other_sizes_are_told_once(stacked):
    said = []
    read = pictures.Reader(facts.of_dataset(stacked[1].dataset), said.append)
    read(stacked[3][0])
    assert not said
    for image in (picture(0, 30, 20), picture(1, 9, 9, 1)):
        assert read(image).shape == (8, 8, 3)
    assert said == ["images of synthetic are 8x8 and RGB: others are resized and converted"]


def test_a_workdir_without_dataset_json(stacked, tmp_path):
    workdir = stacked[0]
    (workdir / facts.NAME).rename(tmp_path / "away")
    try:
        said = []
        predictor = jaxsplit.load(workdir, say=said.append)
    finally:
        (tmp_path / "away").rename(workdir / facts.NAME)
    (line,) = said
    assert line.endswith(
        "has no dataset.json: image size, mean and std are those of data.name='synthetic', and the "
        "classes are called by their numbers"
    )
    assert predictor.restored.facts == jaxsplit.load(workdir).restored.facts


def test_wrong_workdirs(stacked, tmp_path):
    with pytest.raises(ConfigError, match="holds no readable config.json"):
        jaxsplit.load(tmp_path)
    config_lib.save(tiny(), tmp_path)
    with pytest.raises(ConfigError, match="holds no checkpoints"):
        jaxsplit.load(tmp_path)
    with pytest.raises(ConfigError, match="checkpoint=7: not in .*one of: 0"):
        jaxsplit.load(stacked[0], 7)
    with pytest.raises(ConfigError, match="batch_size=-1"):
        jaxsplit.load(stacked[0], batch_size=-1)


@pytest.mark.slow
def test_an_answer_that_is_no_network(tmp_path):
    """ONE answers by gates over its networks; FFSD is in methods/test_ffsd_runs.py."""
    exp = write_untrained(tiny(arch="wide_resnet10_1", method="one"), tmp_path)
    variables = read.restore_model(tmp_path / "checkpoints" / "0", exp.state_shapes())
    images = exp.dataset.test.images[:3]
    expected = evaluated(exp, variables, images)
    predictor = jaxsplit.load(tmp_path)
    assert predictor.networks == ("net0", "net1", "gated")
    found = predictor.predict(images)
    np.testing.assert_allclose(found.probabilities, expected["gated"], **TOLERANCE)
    assert list(found.networks) == ["net0", "net1"]
    ensemble = predictor(images, combine="mean_logits")
    np.testing.assert_allclose(ensemble, expected["ensemble"], **TOLERANCE)


@pytest.mark.parametrize(
    "method, of_method",
    [("okddip", ("leader",)), ("okdph", ("hybrid",)), ("ffsd", ("leader",)), ("mimo", ())],
)
def test_members_of_an_ensemble_are_the_networks_of_the_stack(method, of_method):
    fields: dict = dict.fromkeys(field.name for field in dataclasses.fields(Restored))
    restored = Restored(**fields | {"config": tiny(method=method, split=3), "metrics": {}})
    networks = ("net0", "net1", "net2")
    assert restored.voters == networks + of_method
    assert restored.members == networks == restored.by_accuracy()


def test_a_leader_of_the_stack_votes_once(tmp_path):
    """OKDDip's leader is the last network of the stack."""
    exp = write_untrained(tiny(method="okddip", split=3), tmp_path)
    images = exp.dataset.test.images[:3]
    predictor = jaxsplit.load(tmp_path)
    networks = ["net0", "net1", "net2"]
    assert list(predictor.predict(images).networks) == [*networks, "leader"]
    logits = predictor.logits(images)["ensemble"]
    expected = jax.nn.softmax(logits)
    combined = predictor.predict(images, combine="mean_logits")
    assert list(combined.networks) == networks
    np.testing.assert_allclose(combined.probabilities, expected, **TOLERANCE)
    every = predictor.predict(images, cascade=2)
    assert list(every.networks) == networks and set(every.used) == {3}
    np.testing.assert_allclose(every.probabilities, expected, rtol=1e-4, atol=1e-6)
    fitted = {name: {"temperature": 1.5} for name in (*networks, "leader")}
    fitted |= {"ensemble": {"temperature": 2.5}}
    record = {"step": 0, "config": {"ensemble": "mean_logits"}, "temperature": {"answers": fitted}}
    (tmp_path / temperatures.EVAL).write_text(json.dumps(record))
    for options in (dict(combine="mean_logits"), dict(cascade=0.5)):
        found = predictor(images, temperature="fitted", **options)
        np.testing.assert_allclose(found, jax.nn.softmax(logits / 2.5), rtol=1e-4, atol=1e-6)


def test_one_network_with_an_average(tmp_path):
    exp = write_untrained(one_network(ema=0.9), tmp_path)
    predictor = jaxsplit.load(tmp_path)
    assert predictor.networks == ("net0",)
    images = exp.dataset.test.images[:2]
    found = predictor.predict(images)
    np.testing.assert_array_equal(found.probabilities, found.networks["net0"])


def test_photographs_are_cropped_as_evaluation_does(tmp_path):
    """JPEG, PNG, gray and CMYK files of several sizes, as a streamed data set has them."""
    write_imagenet(tmp_path, 16, 8)
    fields = dict(data__name="imagenet2012", data__image_size=16, data__dir=str(tmp_path))
    config = one_network(**fields)
    exp = write_untrained(config, tmp_path / "run")
    variables = read.restore_model(tmp_path / "run" / "checkpoints" / "0", exp.state_shapes())
    test = exp.dataset.test
    batch = next(iter(data.eval_batches(test, batch_size=8, image_shape=(16, 16, 3))))
    expected = evaluated(exp, variables, batch["images"])["net0"]
    encoded = [test.source[i]["image"] for i in range(8)]
    paths = []
    for i, content in enumerate(encoded):
        paths.append(tmp_path / f"{i}.jpeg")
        paths[-1].write_bytes(content)
    predictor = jaxsplit.load(tmp_path / "run")
    np.testing.assert_allclose(predictor(paths), expected, **TOLERANCE)
    assert predictor.restored.facts.shorter_side == 18
    opened = [Image.open(io.BytesIO(content)) for content in encoded]
    np.testing.assert_allclose(predictor(opened), expected, rtol=1e-2, atol=1e-4)


def test_importing_the_package_stays_light():
    code = "import jaxsplit, sys; assert not {'jax', 'numpy'} & set(sys.modules); jaxsplit.load"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        _ = jaxsplit.lode
