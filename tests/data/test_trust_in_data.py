"""A stranger's data set is only data: jaxsplit imports no code that its files name."""

import json
import sys

import pytest

from jaxsplit import data
from jaxsplit.data import load
from tests.support.data import data_config, message_of, tiny
from tests.support.tfds import write_image_dataset

EVIL = "evil_module.Feature"


@pytest.fixture
def leaves(tmp_path, monkeypatch):
    """(a prepared set, a file that exists once `evil_module` has been imported)."""
    ran = tmp_path / "ran"
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "evil_module.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "evil_module", raising=False)
    splits = {"train": tiny(4), "test": tiny(2)}
    path = write_image_dataset(tmp_path / "d", "leaves", splits, num_classes=5, shape=(20, 20, 3))
    return path, ran


def put(path, feature):
    """Adds a feature to a prepared set."""
    file = path / "features.json"
    content = json.loads(file.read_text())
    content["featuresDict"]["features"]["extra"] = feature
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "feature",
    [
        {"pythonClassName": EVIL, "tensor": {"dtype": "int64", "shape": {}}},
        {"python_class_name": EVIL, "tensor": {"dtype": "int64", "shape": {}}},
        {
            "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
            "sequence": {"feature": {"pythonClassName": EVIL}, "length": "-1"},
        },
        {
            "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
            "jsonFeature": {
                "json": json.dumps({"feature": {"type": EVIL, "content": {}}, "length": None})
            },
        },
    ],
    ids=["name", "other spelling", "nested", "JSON in JSON"],
)
def test_a_class_of_others_is_not_imported(leaves, feature):
    path, ran = leaves
    put(path, feature)
    message = message_of(lambda: load(data_config("leaves", path.parent.parent)))
    assert message == (
        f"data.dir={path.parent.parent}: {path / 'features.json'} names the feature class "
        f"'{EVIL}', must be one of tensorflow_datasets.core.features (any other is a program that "
        "would be run)"
    )
    assert not ran.exists()


def test_nor_one_in_the_other_file_or_of_an_old_version(leaves):
    path, ran = leaves
    info = path / "dataset_info.json"
    content = json.loads(info.read_text())
    content["features"] = {"pythonClassName": EVIL, "featuresDict": {}}
    kept = info.read_text()
    info.write_text(json.dumps(content))
    config = data_config("leaves", path.parent.parent)
    assert f"dataset_info.json names the feature class '{EVIL}'" in message_of(lambda: load(config))
    info.write_text(kept)
    (path / "features.json").write_text(json.dumps({"type": EVIL, "content": {}}))
    assert f"features.json names the feature class '{EVIL}'" in message_of(lambda: load(config))
    assert not ran.exists()


def test_nor_where_a_download_is_asked_for(leaves):
    """tfds would read a set whose version `find` does not recognise."""
    path, ran = leaves
    put(path, {"pythonClassName": EVIL, "tensor": {"dtype": "int64", "shape": {}}})
    info = path / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    config = data_config("leaves", path.parent.parent, download=True)
    message_of(lambda: data.source(config))
    path.rename(path.with_name("1.0.0-x"))
    assert f"names the feature class '{EVIL}'" in message_of(lambda: data.source(config))
    assert not ran.exists()


def test_own_features_and_their_names_are_fine(leaves):
    """Features may be called `type` or `json`; the module that wrote a set is not imported."""
    path, ran = leaves
    info = path / "dataset_info.json"
    info.write_text(info.read_text().replace("tests.support.tfds", "evil_module"))
    assert "evil_module" in info.read_text()
    integer = {
        "pythonClassName": "tensorflow_datasets.core.features.scalar.Scalar",
        "tensor": {"dtype": "int64", "shape": {}},
    }
    file = path / "features.json"
    content = json.loads(file.read_text())
    content["featuresDict"]["features"] |= {"type": integer, "json": integer}
    file.write_text(json.dumps(content))
    made = load(data_config("leaves", path.parent.parent))
    assert made.num_classes == 5 and not ran.exists()
