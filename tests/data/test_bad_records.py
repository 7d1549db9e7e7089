"""Bad records are named, or skipped in the same way in memory and in a stream, and counted."""

import json
import struct
import zlib

import jax
import numpy as np
import pytest

from configs.common import get_config
from jaxsplit import data, evaluation, experiment, loop, sharding
from jaxsplit.data import Stream, eval_batches, load, train_feed
from jaxsplit.data.stream import Skipped
from jaxsplit.report import views as show
from tests.support.data import data_config, message_of, take, tiny
from tests.support.samples import every
from tests.support.tfds import encode, picture, write_image_dataset


def broken(n, bad, classes=5):
    """n encoded images, labelled by their number; the files of those in `bad` are cut in half."""
    source = []
    for i in range(n):
        image = encode(picture(i, 40, 50), "JPEG")
        source.append(dict(image=image[: len(image) // 2] if i in bad else image, label=i))
    return source


def dataset_of(train, shape=(16, 16, 3)):
    return data.Dataset("any", 10, shape, (0.5,) * 3, (0.2,) * 3, train, None, train)


def test_a_bad_record_is_named_with_its_file(tmp_path):
    jpeg = encode(picture(0, 40, 50), "JPEG")
    splits = {"train": [(jpeg, 1)] * 5 + [(jpeg[:-300], 2)] + [(jpeg, 3)], "test": [(jpeg, 1)]}
    path = write_image_dataset(tmp_path, "birds", splits, num_classes=5)
    made = load(data_config("birds", tmp_path, image_size=16))
    feed = train_feed(made, batch_size=7, num_views=1, seed=0)
    file = path / "birds-train.array_record-00000-of-00001"
    message = message_of(lambda: take(feed, 0, 1))
    assert message.startswith(f"data.dir: record 5 (number 5 of {file}) cannot be decoded (")
    # A label that tfds lets through: of ten classes, where the data set has five.
    features = path / "features.json"
    splits["train"][5] = (jpeg, 7)
    write_image_dataset(tmp_path / "ten", "birds", splits, num_classes=10)
    features = tmp_path / "ten/birds/1.0.0/features.json"
    features.write_text(features.read_text().replace('"10"', '"5"'))
    made = load(data_config("birds", tmp_path / "ten", image_size=16))
    feed = train_feed(made, batch_size=7, num_views=1, seed=0)
    message = message_of(lambda: take(feed, 0, 1))
    assert message.startswith("data.dir: record 5 (number 5 of ")
    assert message.endswith(") has the label 7, must lie in 0..4")


def test_a_record_is_found_in_its_shard():
    source = broken(6, {4})
    source[4]["file_name"] = b"cat.jpg"
    stream = Stream(source, files=(("a", 3), ("b", 3)))
    message = message_of(lambda: stream.read(4, 3))
    assert message.startswith("data.dir: record 4 (cat.jpg, number 1 of b) cannot be decoded (")


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("bad", [(), (0,), (5, 6, 17)])
def test_every_example_once_also_if_some_are_bad(processes, bad, capsys):
    """Labels are the examples' numbers, so they show which process saw which example."""
    n, size = 24, 8
    stream = Stream(broken(n, set(bad)), skipped=Skipped())
    parts, counts = [], []
    for p in range(processes):
        own = Stream(stream.source, skipped=Skipped())
        feed = train_feed(
            dataset_of(own),
            batch_size=size,
            num_views=2,
            seed=4,
            process_index=p,
            process_count=processes,
        )
        parts.append(take(feed, 0, 9))
        counts.append(feed.bad_records)
    seen = [np.concatenate([part[k]["labels"] for part in parts]) for k in range(9)]
    for epoch in range(3):
        order = data.epoch_order(n, 4, epoch)
        labels = np.concatenate(seen[3 * epoch : 3 * epoch + 3])
        times = np.bincount(labels, minlength=n)
        assert (times[list(bad)] == 0).all() and times.sum() == n
        good = np.delete(np.arange(n), list(bad))
        assert (times[good] >= 1).all()  # none is lost
        if not bad:
            assert (times == 1).all()
        for position, label in enumerate(labels):  # bad ones give their place to the next good one
            after = (order[(position + k) % n] for k in range(n))
            assert label == next(i for i in after if i not in bad)
    assert sum(counts) == 3 * len(bad)
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning:" in line]
    assert len(warnings) == sum(count > 0 for count in counts)  # one line a process


def test_skipping_keeps_batches_a_function_of_seed_and_step():
    def feed(threads):
        stream = Stream(broken(20, {3, 11}), skipped=Skipped())
        return train_feed(dataset_of(stream), batch_size=4, num_views=2, seed=0, threads=threads)

    one = feed(1)
    whole = take(one, 0, 12)
    for start, threads in ((0, 3), (4, 1), (7, 4)):
        for a, b in zip(take(feed(threads), start, 5), whole[start : start + 5], strict=True):
            np.testing.assert_array_equal(a["images"], b["images"])
            np.testing.assert_array_equal(a["labels"], b["labels"])
    clean = train_feed(dataset_of(Stream(broken(20, ()))), batch_size=4, num_views=2, seed=0)
    same = [
        np.array_equal(a["images"][:, i], b["images"][:, i])
        for a, b in zip(whole, take(clean, 0, 12), strict=True)
        for i in range(4)
    ]
    assert same.count(False) == one.bad_records  # no other example changed, in order or in crops


def test_only_bad_records():
    stream = Stream(broken(8, set(range(8))), skipped=Skipped())
    feed = train_feed(dataset_of(stream), batch_size=2, num_views=1, seed=0, threads=1)
    message = message_of(lambda: take(feed, 0, 1))
    assert message.endswith("; 8 records in a row are bad")


def test_evaluation_of_only_bad_records():
    stream = Stream(broken(8, set(range(8))), skipped=Skipped())
    mesh = sharding.make(1, 1, num_networks=1, batch_size=4, devices=jax.devices()[:1])
    how = evaluation.EvalPass((16, 16, 3), batch_size=4, sharding=mesh, threads=1)

    def eval_step(variables, batch):
        return {evaluation.EXAMPLES: {"count": batch["mask"].sum()}}

    message = message_of(lambda: evaluation.evaluate(eval_step, {}, stream, how))
    assert message == "data.on_bad_record='skip': leaves no example to evaluate; all are bad"


def test_evaluation_masks_bad_records(capsys):
    stream = Stream(broken(7, {1, 6}), skipped=Skipped())
    for processes in (1, 2):
        parts = [
            list(
                eval_batches(
                    stream,
                    batch_size=4,
                    image_shape=(16, 16, 3),
                    process_index=p,
                    process_count=processes,
                )
            )
            for p in range(processes)
        ]
        masks, labels = (
            np.concatenate([part[k][key] for k in range(2) for part in parts])
            for key in ("mask", "labels")
        )
        np.testing.assert_array_equal(masks, [1, 0, 1, 1, 1, 1, 0, 0])
        np.testing.assert_array_equal(labels * masks, [0, 0, 2, 3, 4, 5, 0, 0])
    assert capsys.readouterr().out.count("warning: data.dir: record 1 cannot be decoded") == 1


# ---- Whatever the bytes are


def png_claiming(width, height):
    """A PNG of a few bytes whose header claims width x height pixels."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, body in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(1000))),
        (b"IEND", b""),
    ):
        parts += [struct.pack(">I", len(body)), name, body]
        parts.append(struct.pack(">I", zlib.crc32(name + body)))
    return b"".join(parts)


def claiming(form):
    """An image file whose header claims 60000 x 60000 pixels."""
    data = bytearray(encode(picture(0, 8, 8), form))
    if form == "GIF":
        data[6:10] = struct.pack("<HH", 60000, 60000)
    elif form == "BMP":
        data[18:26] = struct.pack("<ii", 60000, 60000)
    elif form == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", 60000, 60000)
    return bytes(data)


def overwrite(path, split, records):
    """Replaces records of a prepared split: {number: new bytes}."""
    from array_record.python import array_record_module as module

    (file,) = path.glob(f"*-{split}.array_record-*")
    reader = module.ArrayRecordReader(str(file))
    all_ = reader.read(list(range(reader.num_records())))
    reader.close()
    writer = module.ArrayRecordWriter(str(file), "group_size:1")
    for i, record in enumerate(all_):
        writer.write(records.get(i, record))
    writer.close()


RAW = {"empty": b"", "garbage": b"\xff\xff\xffgarbage"}  # records that are no tf.Example
IMAGES = {
    "PNG": png_claiming(60000, 60000),
    "smaller PNG": png_claiming(20000, 20000),  # that cv2 would make room for
    **{form: claiming(form) for form in ("JPEG", "GIF", "BMP")},
}


@pytest.fixture(params=[*RAW, *IMAGES])
def with_any_bytes(request, tmp_path):
    """`leaves` of 20 x 20 pixels, with these bytes as training record 3."""
    train = tiny(8)
    if request.param in IMAGES:
        train[3] = (IMAGES[request.param], train[3][1])
    splits = {"train": train, "test": tiny(4)}
    path = write_image_dataset(tmp_path, "leaves", splits, num_classes=5, shape=(20, 20, 3))
    if request.param in RAW:
        overwrite(path, "train", {3: RAW[request.param]})
    return tmp_path


def train_batches(made, start=0, count=6, batch_size=2, **fields):
    feed = train_feed(made, batch_size=batch_size, num_views=2, seed=3, **fields)
    batches = take(feed, start, count)
    if feed.resident:
        images, labels = feed.resident.images, feed.resident.labels
        batches = [dict(images=images[b["index"]], labels=labels[b["index"]]) for b in batches]
    return batches, feed.bad_records


def assert_same(got, want):
    for a, b in zip(got, want, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize(
    "fields", every(3, [dict(resident="device"), dict(resident="stream"), dict(image_size=16)])
)
def test_any_bytes_are_a_named_record_or_a_skip(with_any_bytes, fields):
    message = message_of(
        lambda: train_batches(load(data_config("leaves", with_any_bytes, **fields)))
    )
    assert message.startswith("data.dir: record 3 (number 3 of ")
    made = load(data_config("leaves", with_any_bytes, on_bad_record="skip", **fields))
    batches, bad = train_batches(made, batch_size=8, count=3)
    assert bad == 3  # once in each epoch
    labels = np.concatenate([batch["labels"] for batch in batches])
    assert labels.min() >= 0 and np.bincount(labels).sum() == 24


def test_any_bytes_in_the_last_record_are_named_too(tmp_path):
    splits = {"train": tiny(8), "test": tiny(4)}
    path = write_image_dataset(tmp_path, "leaves", splits, num_classes=5, shape=(20, 20, 3))
    overwrite(path, "train", {7: RAW["garbage"]})
    message = message_of(lambda: load(data_config("leaves", tmp_path)))
    assert message.startswith("data.dir: record 7 (number 7 of ") and "cannot be read (" in message


def test_what_is_no_fault_of_the_record(monkeypatch):
    """Missing memory or packages never make a record bad."""
    for error in (MemoryError(), ImportError("no cv2")):

        def fail(data, channels, error=error):
            raise error

        monkeypatch.setattr("jaxsplit.data.stream.decode", fail)
        with pytest.raises(type(error)):
            Stream(broken(2, ()), skipped=Skipped()).read(0, 3)


# ---- The same in memory and in a stream


@pytest.fixture(scope="module")
def leaves(tmp_path_factory):
    """Broken images: half a file, another size, no example, a wrong label."""
    folder = tmp_path_factory.mktemp("leaves")
    train, test, extra = tiny(40), tiny(10, first=60), tiny(6, first=80)
    png = encode(train[2][0], "PNG")
    train[2] = (png[: len(png) // 2], train[2][1])
    train[5] = (picture(0, 10, 20), 0)
    train[17] = (train[17][0], 7)
    test[4] = (picture(0, 10, 20), 0)
    splits = {"train": train, "test": test, "extra": extra}
    path = write_image_dataset(folder, "leaves", splits, num_classes=10)
    features = path / "features.json"  # says what is not true of all images and labels
    text = features.read_text().replace('"-1"', '"20"').replace('"10"', '"5"')
    features.write_text(text)
    overwrite(path, "train", {29: RAW["garbage"], 30: RAW["empty"]})
    return folder, [2, 5, 17, 29, 30]


def both(folder, **fields):
    return [
        load(data_config("leaves", folder, resident=where, on_bad_record="skip", **fields))
        for where in ("device", "stream")
    ]


@pytest.mark.parametrize("validation", [0.0, 0.25])
def test_memory_and_stream_skip_alike(leaves, validation):
    folder, bad = leaves
    on_device, streamed = both(folder, validation=validation)
    assert len(on_device.train) == len(streamed.train) == 40 - round(40 * validation)
    want, count = train_batches(on_device, count=30, batch_size=6)
    got, streamed_count = train_batches(streamed, count=30, batch_size=6)
    assert_same(got, want)
    assert count == streamed_count > 0
    for made in both(folder, validation=validation):  # a resume counts what comes after it
        assert_same(train_batches(made, start=13, count=17, batch_size=6)[0], want[13:])
    halves = [
        train_batches(made, count=30, batch_size=6, process_index=p, process_count=2)
        for made in both(folder, validation=validation)
        for p in range(2)
    ]
    for p in range(2):
        assert_same(halves[p][0], halves[2 + p][0])
    assert halves[0][1] + halves[1][1] == halves[2][1] + halves[3][1] == count
    for part in ("test", "validation") if validation else ("test",):
        pairs = [
            list(eval_batches(getattr(made, part), batch_size=7, image_shape=made.image_shape))
            for made in (on_device, streamed)
        ]
        assert_same(*pairs)
    if not validation:
        masks = np.concatenate([batch["mask"] for batch in pairs[0]])
        np.testing.assert_array_equal(np.flatnonzero(masks == 0), [4, *range(10, 14)])


def test_who_is_held_out_does_not_depend_on_where(leaves):
    folder, bad = leaves
    on_device, streamed = both(folder, validation=0.25)
    np.testing.assert_array_equal(on_device.validation.labels, streamed.validation.labels())
    np.testing.assert_array_equal(on_device.train.labels, streamed.train.labels())
    assert (
        sorted(on_device.train.bad) == np.flatnonzero(np.isin(streamed.train.indices, bad)).tolist()
    )
    assert len(on_device.train.bad) + len(on_device.validation.bad) == len(bad)


def test_bad_records_in_memory_keep_their_place(leaves, capsys):
    folder, bad = leaves
    message = message_of(lambda: load(data_config("leaves", folder)))
    assert message.startswith("data.dir: record 2 (number 2 of ") and "cannot be decoded" in message
    made = load(data_config("leaves", folder, on_bad_record="skip"))
    assert made.resident and sorted(made.train.bad) == bad and list(made.test.bad) == [4]
    np.testing.assert_array_equal(np.flatnonzero(made.train.labels < 0), [17, 29, 30])
    feed = train_feed(made, batch_size=40, num_views=1, seed=0)
    seen = np.concatenate([batch["index"] for batch in take(feed, 0, 2)])
    assert set(seen) == set(range(40)) - set(bad)
    assert feed.bad_records == 2 * len(bad)
    assert capsys.readouterr().out.count("warning: ") == 1


def test_labels_out_of_range_in_an_npz(tmp_path, capsys):
    arrays = dict(
        train_images=np.zeros((5, 8, 8, 1), np.uint8), train_labels=np.array([0, 1, 10, 3, -1])
    )
    arrays |= dict(test_images=arrays["train_images"][:2], test_labels=np.arange(2))
    np.savez(tmp_path / "digits.npz", **arrays)
    message = message_of(lambda: load(data_config("digits", tmp_path)))
    assert message.endswith("values -1..10, must lie in 0..9 (example 2 has 10)")
    made = load(data_config("digits", tmp_path, on_bad_record="skip"))
    assert len(made.train) == 5 and sorted(made.train.bad) == [2, 4] and not made.test.bad
    feed = train_feed(made, batch_size=5, num_views=1, seed=0)
    assert set(take(feed, 0, 1)[0]["index"]) == {0, 1, 3} and feed.bad_records == 2
    assert "example 4 has the label -1, must lie in 0..9" in made.train.bad[4]
    assert capsys.readouterr().out.count("; left out, as any other will be") == 1


def test_many_bad_records_in_a_row_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxsplit.data.feed._BAD_IN_A_ROW", 3)
    splits = {"train": tiny(20), "test": tiny(4)}
    path = write_image_dataset(tmp_path, "leaves", splits, num_classes=5, shape=(20, 20, 3))
    overwrite(path, "train", dict.fromkeys(range(19), b""))
    messages = {message_of(lambda made=made: train_batches(made)) for made in both(tmp_path)}
    (message,) = messages
    assert message.endswith("; 3 records in a row are bad")
    overwrite(path, "train", dict.fromkeys(range(20), b""))
    assert message_of(lambda: both(tmp_path)).endswith("; no record is good")


@pytest.mark.parametrize("threads", [1, 4])
def test_the_first_bad_record_is_the_error_of_many_threads(tmp_path, threads, monkeypatch, capsys):
    monkeypatch.setattr("jaxsplit.data.prepared.READ_AHEAD", 4)
    monkeypatch.setattr("jaxsplit.data.stream._SLOW_S", -1.0)
    train = tiny(30)
    path = write_image_dataset(
        tmp_path, "leaves", {"train": train, "test": tiny(5)}, num_classes=5, shape=(20, 20, 3)
    )
    capsys.readouterr()
    made = load(data_config("leaves", tmp_path, threads=threads))
    np.testing.assert_array_equal(made.train.images, [image for image, _ in train])
    np.testing.assert_array_equal(made.train.labels, [label for _, label in train])
    said = capsys.readouterr().out.splitlines()
    assert said == ["reading leaves train: 30 images", "reading leaves test: 5 images"]
    overwrite(path, "train", {21: b"", 11: b"", 25: b""})
    message = message_of(lambda: load(data_config("leaves", tmp_path, threads=threads)))
    assert message.startswith("data.dir: record 11 ")


# ---- Counted by the step


def run_of(folder, **fields):
    made = get_config()
    made.arch, made.split, made.method, made.batch_size = "wide_resnet10_1", 1, "single", 8
    made.data.update(name="leaves", dir=str(folder), validation=0.25, **fields)
    made.duration, made.schedule.warmup, made.log_every = "3 epochs", "0 steps", "1 steps"
    made.schedule.name = "exponential"  # does not depend on the duration
    made.mesh.data, made.eval.every, made.checkpoint.every = 1, "3 epochs", "1 epochs"
    return made


def lines_of(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


@pytest.mark.slow
def test_metrics_of_bad_records_are_a_function_of_the_step(leaves, tmp_path, monkeypatch, capsys):
    folder, bad = leaves
    for where in ("device", "stream"):
        made = run_of(folder, resident=where)
        assert "record " in message_of(lambda c=made: loop.train_and_evaluate(c, tmp_path / "x"))
        made.data.on_bad_record = "skip"  # an interrupted run may resume with this
        results = loop.train_and_evaluate(made, tmp_path / where)
        assert capsys.readouterr().out.count("warning: data.dir: record ") <= 3  # one a split
        assert results["test/bad_records"] == 1 and results["test/count"] == 9
        held = load(made.data).validation
        left_out = len(held) - results["validation/count"]
        assert results["validation/bad_records"] == left_out
    lines = lines_of(tmp_path / "device")
    assert lines == lines_of(tmp_path / "stream")
    counted = {line["step"]: line["data/bad_records"] for line in lines if "lr" in line}
    dataset = both(folder, validation=0.25)[0]
    for step in counted:  # 3 steps an epoch
        _, want = train_batches_of(dataset, step)
        assert counted[step] == want
    # Interrupted in the middle of the second epoch.
    put = experiment.put_batch

    def stop(exp, batch, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return put(exp, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(experiment, "put_batch", stop)
        loop.train_and_evaluate(made, tmp_path / "resumed")
    loop.train_and_evaluate(made, tmp_path / "resumed")
    assert "resumed at step 3" in capsys.readouterr().out
    assert lines_of(tmp_path / "resumed") == lines


def train_batches_of(dataset, steps):
    feed = train_feed(dataset, batch_size=8, num_views=1, seed=0)
    return take(feed, 0, steps), feed.bad_records


@pytest.mark.slow
def test_the_views_that_are_shown_skip_bad_records_too(leaves, tmp_path):
    """The originals belong to the views, replacements included; for whole and cropped images."""
    folder, bad = leaves
    for fields in (dict(resident="device"), dict(resident="stream"), dict(image_size=16)):
        made = run_of(folder, on_bad_record="skip", **fields)
        made.data.validation = 0.0
        made.seed = next(s for s in range(99) if set(data.epoch_order(40, s, 0)[:8]) & set(bad))
        order = data.epoch_order(40, made.seed, 0)
        dataset = load(made.data)
        originals, views = show.draw(made, dataset)
        assert len(originals) == 8 and views.shape[1:] == originals.shape
        gone = [i for i in bad if i != 5 or not made.data.image_size]  # crops fit in any size
        for row, image in enumerate(originals):
            i = next(int(i) for i in order[row:] if i not in gone)
            if isinstance(dataset.train, Stream):
                want, _ = dataset.train.read_eval(i, dataset.image_shape)
            else:
                want = dataset.train.images[i]
            np.testing.assert_array_equal(image, want)
        assert show.views(made, tmp_path / "run").is_file()
