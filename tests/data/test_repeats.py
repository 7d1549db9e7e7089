"""Repeated augmentation: which rows are copies, and that every copy is seen anew."""

import collections

import jax
import numpy as np
import pytest

from jaxsplit import data, experiment
from jaxsplit.data import Arrays, Stream, train_feed
from jaxsplit.data.stream import Skipped
from jaxsplit.errors import ConfigError
from tests.support import runs
from tests.support.data import take
from tests.support.tfds import encode, picture

N, SHAPE = 26, (16, 16, 3)


class Source(list):
    """Records that count how often they are read; those in `bad` are damaged."""

    def __init__(self, bad: tuple[int, ...] = (), side: int = SHAPE[0]):
        files = [encode(picture(i, side, side), "PNG") for i in range(N)]
        super().__init__(
            dict(image=file[: 40 if i in bad else None], label=i) for i, file in enumerate(files)
        )
        self.read = collections.Counter()

    def __getitem__(self, i):
        self.read[int(i)] += 1
        return super().__getitem__(i)


def dataset_of(train) -> data.Dataset:
    return data.Dataset("any", N, SHAPE, (0.5,) * 3, (0.2,) * 3, train, None, train)


def arrays(**fields) -> data.Dataset:
    """Labels are the examples' numbers."""
    images = np.zeros((N, *SHAPE), np.uint8)
    return dataset_of(Arrays(images, np.arange(N, dtype=np.int32), **fields))


def numbers(feed, start: int, count: int) -> np.ndarray:
    """[count, b]: the numbers of the examples in some batches."""
    name = "labels" if feed.resident is None else "index"
    return np.stack([batch[name] for batch in take(feed, start, count)])


@pytest.mark.parametrize(("batch_size", "repeats"), [(6, 3), (6, 2), (6, 6), (8, 3), (5, 4)])
def test_an_epoch_is_the_start_of_its_order_repeated(batch_size, repeats):
    """Also where copies of an image lie in two batches, as in DeiT's 3 in a batch of 1024."""
    feed = train_feed(arrays(), batch_size=batch_size, num_views=1, seed=5, repeats=repeats)
    steps = feed.steps_per_epoch
    assert steps == N // batch_size
    for epoch in range(2):
        want = data.epoch_order(N, 5, epoch).repeat(repeats)[: steps * batch_size]
        got = numbers(feed, epoch * steps, steps)
        np.testing.assert_array_equal(got.ravel(), want)


@pytest.fixture(scope="module", params=["crops", "whole", "memory"])
def made(request):
    """(repeats, fields of `train_feed`) -> the feed of a stream of each kind, or of arrays."""
    if request.param == "memory":
        dataset = arrays()
    else:
        shape = SHAPE if request.param == "whole" else None
        dataset = dataset_of(Stream(Source(), shape=shape))
    fields = dict(batch_size=8, num_views=2, seed=3, threads=2)
    return lambda repeats, **more: train_feed(dataset, repeats=repeats, **fields | more)


@pytest.mark.parametrize("start", [0, 2, 3, 4])
def test_resume_is_exact(made, start):
    whole = take(made(3), 0, 7)
    for a, b in zip(take(made(3, threads=1), start, 7 - start), whole[start:], strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize(("repeats", "processes"), [(2, 2), (3, 4), (8, 4)])
def test_processes_share_a_batch(made, repeats, processes):
    """Also copies of one image, each with the crops that it has in a single process."""
    whole = take(made(repeats), 1, 5)
    parts = [
        take(made(repeats, process_index=p, process_count=processes), 1, 5)
        for p in range(processes)
    ]
    for k, batch in enumerate(whole):
        for key, value in batch.items():
            axis = 1 if key == "images" and value.ndim == 5 else 0
            joined = np.concatenate([part[k][key] for part in parts], axis)
            np.testing.assert_array_equal(joined, value)


def test_crops_of_copies_differ_and_each_image_is_decoded_once():
    source = Source(side=80)  # so large that no two crops are the same by chance
    fields = dict(batch_size=8, num_views=2, seed=3, threads=1)
    feed = train_feed(dataset_of(Stream(source)), repeats=4, **fields)
    batches = feed.batches(0)
    batch = next(batches)
    batches.close()
    assert [source.read[i] for i in set(batch["labels"].tolist())] == [1, 1]
    for first in (0, 4):
        crops = batch["images"][:, first : first + 4].reshape(8, -1)
        assert len(np.unique(crops, axis=0)) == 8
    # The first copy is the image's only one without repeats.
    (alone,) = take(train_feed(dataset_of(Stream(source)), repeats=1, **fields), 0, 1)
    np.testing.assert_array_equal(batch["images"][:, 4], alone["images"][:, 1])


def test_copies_of_a_whole_stream_are_equal():
    stream = Stream(Source(), shape=SHAPE)
    feed = train_feed(dataset_of(stream), batch_size=6, num_views=1, seed=3, repeats=3)
    (batch,) = take(feed, 0, 1)
    np.testing.assert_array_equal(batch["images"][[0, 0, 3, 3]], batch["images"][[1, 2, 4, 5]])
    assert (batch["images"][0] != batch["images"][3]).any()


@pytest.mark.parametrize("processes", [1, 4])
def test_bad_records_are_replaced_with_all_their_copies(processes):
    """Each row of a bad record counts; memory and streams agree."""
    bad, seen, counts = (2, 9, 10), [], []
    for kind in ("stream", "memory"):
        for p in range(processes):
            split = Stream(Source(bad), skipped=Skipped())
            dataset = dataset_of(split)
            if kind == "memory":
                dataset = arrays(bad=dict.fromkeys(bad, "bad"), skipped=Skipped())
            feed = train_feed(
                dataset,
                batch_size=8,
                num_views=1,
                seed=3,
                repeats=3,
                process_index=p,
                process_count=processes,
            )
            seen.append(numbers(feed, 0, 9))
            counts.append(feed.bad_records)
    of_stream, of_memory = (np.concatenate(seen[i : i + processes], 1) for i in (0, processes))
    np.testing.assert_array_equal(of_stream, of_memory)
    assert not np.isin(of_stream, bad).any()
    clean = train_feed(arrays(), batch_size=8, num_views=1, seed=3, repeats=3)
    replaced = np.isin(numbers(clean, 0, 9), bad).sum()
    assert sum(counts[:processes]) == sum(counts[processes:]) == replaced > 3


@pytest.mark.parametrize("repeats", [0, -1, 9])
def test_values_out_of_range(repeats):
    line = rf"^augment.repeats={repeats}: must be in 1 ... batch_size=8$"
    with pytest.raises(ConfigError, match=line):
        train_feed(arrays(), batch_size=8, num_views=1, seed=0, repeats=repeats)


# ---- On the devices


def views_on(devices: int) -> tuple[dict, np.ndarray]:
    """The input of the first step, and its indices: two copies of each image."""
    config = runs.tiny(augment__repeats=2, augment__mixup=0.0, mesh__data=devices)
    exp = experiment.build(config)
    (batch,) = take(exp.feed, 0, 1)
    made = jax.jit(experiment.inputs(exp))
    out = made(experiment.constants(exp), experiment.put_batch(exp, batch), jax.random.key(0))
    return jax.device_get(out), batch["index"]


def test_copies_get_views_of_their_own_on_every_mesh():
    out, index = views_on(1)
    assert (index[::2] == index[1::2]).all() and len(set(index)) == len(index) // 2
    np.testing.assert_array_equal(out["labels"][::2], out["labels"][1::2])
    views = out["views"]
    assert all((a != b).any() for a, b in zip(views[0, ::2], views[0, 1::2], strict=True))
    several, _ = views_on(4)
    np.testing.assert_array_equal(several["views"], views)
