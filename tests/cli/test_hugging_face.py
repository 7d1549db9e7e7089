"""The program on a data set of Hugging Face: training, evaluation, prediction, summary, views."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from jaxsplit import loop
from jaxsplit.data import facts
from jaxsplit.errors import Stopped
from tests.support import hugging_face as hf
from tests.support.data import tiny
from tests.support.runs import (
    DIGITS,
    AskedAt,
    assert_same_bits,
    lines_of,
    one_network,
    state_at,
)
from tests.support.tfds import encode

# ml_collections loads config files by a function that Python warns of.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(scope="module")
def insects(tmp_path_factory):
    """PNG and JPEG of 8x8 pixels; one of the training images is damaged."""
    folder = tmp_path_factory.mktemp("insects")
    images = tiny(40, 8, 8)
    train = [(encode(image, "JPEG"), i) if i % 2 else (image, i) for image, i in images]
    train[4] = (encode(images[4][0], "PNG")[:50], 4)
    return hf.save(folder / "insects", {"train": train, "test": tiny(10, 8, 8, first=60)})


def config_of(insects):
    return one_network(
        data__name="hf:insects",
        data__dir=str(insects.parent),
        data__image_size=0,
        data__on_bad_record="skip",
        data__resident="stream",
    )


@pytest.fixture(scope="module")
def trained(insects, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "run"
    results = loop.train_and_evaluate(config_of(insects), workdir)
    return workdir, results


def test_training_and_evaluation(trained, run, capsys):
    workdir, results = trained
    assert results["test/count"] == 10
    # Two batches of 16 an epoch, of 40 images: the bad one is met once in each or not at all.
    assert max(line.get("data/bad_records", 0) for line in lines_of(workdir)) in (1, 2)
    known = facts.read(workdir)
    assert (known.name, known.class_names, known.image_shape) == (
        "hf:insects",
        hf.CLASSES,
        (8, 8, 3),
    )
    run("--mode=eval", f"--workdir={workdir}")
    assert "net0 " in capsys.readouterr().out
    record = json.loads((workdir / "eval.json").read_text())
    assert record["config"]["data"] == "hf:insects"


@pytest.mark.slow
def test_a_resumed_run_ends_bit_identical(trained, insects, tmp_path):
    workdir, results = trained
    config = config_of(insects)
    with pytest.raises(Stopped):
        loop.train_and_evaluate(config, tmp_path, stop=AskedAt(2))
    assert loop.train_and_evaluate(config, tmp_path) == results
    assert_same_bits(*(state_at(config, folder, 4) for folder in (tmp_path, workdir)))
    counts = [[line.get("data/bad_records") for line in lines_of(w)] for w in (tmp_path, workdir)]
    assert counts[0] == counts[1]


def test_prediction_names_the_classes(trained, run, tmp_path):
    workdir, _ = trained
    (tmp_path / "photos").mkdir()
    for i, (image, _) in enumerate(tiny(2, 8, 8)):
        Image.fromarray(image).save(tmp_path / "photos" / f"{i}.png")
    out = tmp_path / "out.csv"
    run("--mode=predict", f"--workdir={workdir}", f"--images={tmp_path / 'photos'}", f"--out={out}")
    with out.open(newline="") as file:
        assert {row["class1"] for row in csv.DictReader(file)} <= set(hf.CLASSES)


def test_summary_and_views(insects, run, tmp_path, capsys):
    data = [f"--config.data.{each}" for each in ("name=hf:insects", f"dir={insects.parent}")]
    data.append("--config.batch_size=16")
    run("--mode=summary", DIGITS, *data, "--config.data.on_bad_record=skip")
    assert "hf:insects" in capsys.readouterr().out
    fields = "--config.data.on_bad_record=skip", "--config.augment.crop_padding=1"
    run("--mode=show_views", DIGITS, *data, *fields, f"--workdir={tmp_path / 'run'}")
    assert np.asarray(Image.open(tmp_path / "run" / "views.png")).ndim == 3


def test_bad_input_is_one_line(insects, refused):
    flags = DIGITS, "--config.data.name=hf:insects", f"--config.data.dir={insects.parent}"
    line = refused("--mode=summary", *flags, "--config.data.image_column=label")
    assert line.startswith("data.image_column='label': must be one of image, of the feature type ")
    line = refused("--mode=summary", DIGITS, "--config.data.name=hf:no/such/set")
    assert line.startswith("data.name='hf:no/such/set': must be a folder that save_to_disk ")
