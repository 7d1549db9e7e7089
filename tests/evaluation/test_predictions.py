"""evaluation.predictions: the rows of a pass over a split, in their places, and their file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsplit import data, evaluation, sharding
from jaxsplit.data import Arrays, Stream
from jaxsplit.data.stream import Skipped
from jaxsplit.errors import ConfigError
from jaxsplit.evaluation import EXAMPLES, NETWORKS, predictions
from jaxsplit.methods.base import Method
from tests.support.samples import first_rows

CLASSES = 12  # networks, too, so that net10 and net11 come after net2


def predict(variables, images):
    """Logits that say which image they are of: its first pixel times the weight of each class."""
    first = images[:, 0, 0, :1] * variables["scale"]
    classes = jnp.arange(CLASSES, dtype=jnp.float32)[None]
    named = {f"net{i}": first * (classes - i) for i in range(CLASSES)}
    return named | {"leader": -first * classes, "ensemble": named["net1"]}


METHOD = Method(None, None, predict, None, "ensemble")
VARIABLES = {"scale": jnp.float32(2.0)}


def split_of(count, bad=()):
    images = np.zeros((count, 2, 2, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(count) % 250 + 1
    labels = (np.arange(count) * 5 % CLASSES).astype(np.int32)
    return Arrays(images, labels, {i: f"record {i} is bad" for i in bad}, Skipped())


def collected(split, data_devices=1, batch_size=8):
    mesh = sharding.make(data_devices, 1, num_networks=1, devices=jax.devices()[:data_devices])
    how = evaluation.EvalPass((2, 2, 1), batch_size, mesh)
    step = evaluation.make_predict_step(METHOD, (0.0,), (1.0,))
    means, found = predictions.collect(predictions.make_collect(step, how), VARIABLES, split, how)
    eval_step = jax.jit(evaluation.make_eval_step(METHOD, (0.0,), (1.0,)))
    assert means == evaluation.evaluate(eval_step, VARIABLES, split, how)
    return means, found


@pytest.mark.parametrize("devices, batch_size", first_rows(1, [(1, 8), (1, 64), (4, 6)]))
def test_every_example_in_its_place(devices, batch_size):
    split = split_of(37)
    means, found = collected(split, devices, batch_size)
    assert means[EXAMPLES]["count"] == 37 and NETWORKS in means
    assert found.labels.dtype == np.int32 and found.index.dtype == np.int64
    np.testing.assert_array_equal(found.labels, split.labels)
    np.testing.assert_array_equal(found.index, np.arange(37))
    assert list(found.logits) == [*(f"net{i}" for i in range(CLASSES)), "ensemble", "leader"]
    first = split.images[:, 0, 0].astype(np.float32) / 255 * 2
    for i in (0, 2, 11):
        logits = found.logits[f"net{i}"]
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, first * (np.arange(CLASSES) - i), rtol=1e-6)
        np.testing.assert_array_equal(found.networks()[i], logits)
    assert found.networks().shape == (CLASSES, 37, CLASSES)


def test_means_are_those_of_the_logits():
    means, found = collected(split_of(37), 2)
    for name, logits in found.logits.items():
        assert means[name]["top1"] == (logits.argmax(1) == found.labels).mean()


def test_bad_records_are_missing():
    split = split_of(11, bad=(0, 4, 10))
    means, found = collected(split)
    good = [1, 2, 3, 5, 6, 7, 8, 9]
    assert found.index.tolist() == good and means[EXAMPLES]["count"] == 8
    np.testing.assert_array_equal(found.labels, split.labels[good])
    assert all(len(logits) == 8 for logits in found.logits.values())
    with pytest.raises(ConfigError, match="leaves no example to evaluate"):
        collected(split_of(2, bad=(0, 1)))


# ---- The sample of the training set


def dataset(train, test):
    return data.Dataset("any", CLASSES, (2, 2, 1), (0.0,), (1.0,), train, None, test)


def test_sample_of_the_training_set():
    train = split_of(200)
    sample, at = predictions.train_sample(dataset(train, split_of(30)))
    assert len(sample) == len(at) == 30 and (np.diff(at) > 0).all() and at.max() > 100
    np.testing.assert_array_equal(sample.images, train.images[at])
    again = predictions.train_sample(dataset(train, split_of(30)))[1]
    np.testing.assert_array_equal(at, again)
    streamed = Stream([dict(label=label) for label in train.labels])
    part, same = predictions.train_sample(dataset(streamed, split_of(30)))
    np.testing.assert_array_equal(at, same)
    np.testing.assert_array_equal(part.labels(), sample.labels)


def test_a_small_training_set_is_taken_whole():
    _, at = predictions.train_sample(dataset(split_of(7), split_of(30)))
    assert at.tolist() == list(range(7))


# ---- The file


def test_written_and_read(tmp_path):
    _, test = collected(split_of(9))
    _, train = collected(split_of(11, bad=(3,)))
    path = tmp_path / predictions.FILE
    wrote = predictions.Predictions(7, {"test": test, "train": train})
    predictions.write(path, wrote)
    found = predictions.read(path)
    assert found.step == 7 and found.names == wrote.names == tuple(test.logits)
    assert list(found.splits) == ["test", "train"]
    for name, its in wrote.splits.items():
        read = found.splits[name]
        np.testing.assert_array_equal(read.labels, its.labels)
        np.testing.assert_array_equal(read.index, its.index)
        for answer in its.logits:
            np.testing.assert_array_equal(read.logits[answer], its.logits[answer])
    # As the page documents it, for programs without jaxsplit.
    with np.load(path) as file:
        assert file["step"] == 7 and file["names"].tolist() == list(test.logits)
        assert file["test/logits/net11"].shape == (9, CLASSES)
        assert len(file.files) == 2 + 2 * (2 + len(test.logits))
    assert [p.name for p in tmp_path.iterdir()] == [predictions.FILE]


def test_no_such_file(tmp_path):
    with pytest.raises(ConfigError, match="predictions.npz: does not exist; `jaxsplit eval`"):
        predictions.read(tmp_path / predictions.FILE)
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 no archive")
    np.savez(tmp_path / "b.npz", labels=np.zeros(3))
    for name in ("a.npz", "b.npz"):
        with pytest.raises(ConfigError, match=f"{name}: must be a file that `jaxsplit eval` wrote"):
            predictions.read(tmp_path / name)


def test_memory():
    """More than the logits of four networks and their ensemble, and less than four times that."""
    logits = 5 * 50_000 * 1000 * 4
    assert logits < predictions.memory(50_000, 1000, 4) < 4 * logits
