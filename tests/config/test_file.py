"""jaxsplit.config.file: what is wrong with the config.json of a workdir, in one line."""

import json

import pytest

import jaxsplit
from configs import common
from jaxsplit import config as config_lib
from jaxsplit.config import file
from jaxsplit.errors import ConfigError
from tests.support.runs import tiny

THIS = f"this is jaxsplit {jaxsplit.__version__}"


def message(folder, text: str) -> str:
    (folder / file.NAME).write_text(text)
    with pytest.raises(ConfigError) as caught:
        config_lib.load(folder)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 400
    start = f"workdir={str(folder)!r}: "
    assert line.startswith(start)
    return line.removeprefix(start)


def test_the_version_that_wrote_it(tmp_path):
    config = common.get_config()
    config_lib.save(config, tmp_path)
    fields = json.loads((tmp_path / file.NAME).read_text())
    assert fields.pop("written_by") == f"jaxsplit {jaxsplit.__version__}"
    assert fields == json.loads(config.to_json())
    assert config_lib.load(tmp_path).to_dict() == config.to_dict()
    (tmp_path / file.NAME).write_text(config.to_json())  # as it was before
    assert config_lib.load(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    "text, said",
    [
        ("[1,2]", "[1, 2]"),
        ("null", "null"),
        ("5", "5"),
        ('"x"', "'x'"),
        (json.dumps("y" * 1000), f"'{'y' * 56}..."),
    ],
)
def test_what_holds_no_fields(tmp_path, text, said):
    line = f"config.json must hold the fields of a config, holds {said}"
    assert message(tmp_path, text) == line


@pytest.mark.parametrize("text", ["[" * 100_000, '{"optim":' * 100_000, "{", "\0"])
def test_what_is_no_json(tmp_path, text):
    assert message(tmp_path, text).startswith("holds no readable config.json of a run (")


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"optim": {"lr": None}}, "optim.lr=null: must be as 0.1"),
        ({"seed": None}, "seed=null: must be as 0"),
        ({"optim": None}, "optim=null: must be a group of fields"),
        ({"optim": [1]}, "optim=[1]: must be a group of fields"),
        ({"optim": {"new": 1}}, "optim.new=1: no such field"),
        ({"newer": {"a": 1}}, 'newer={"a": 1}: no such field'),
        ({"batch_size": "x"}, "batch_size='x': must be as 128"),
        ({"batch_size": {"a": {"b": 1}}}, 'batch_size={"a": {"b": 1}}: must be as 128'),
        ({"arch": 5}, "arch=5: must be as 'wide_resnet28_10'"),
        ({"arch": [[[1]]]}, "arch=[[[1]]]: must be as 'wide_resnet28_10'"),
        (
            {"schedule": {"milestones": {"a": 1}}},
            "schedule.milestones={\"a\": 1}: must be as ('100 epochs', '225 epochs')",
        ),
    ],
    ids=range(11),
)
@pytest.mark.parametrize(
    "writer, by",
    [
        (None, "an unknown version"),
        ("jaxsplit 9.0", "jaxsplit 9.0"),
        ([5], "an unknown version"),
    ],
    ids=["old", "newer", "odd"],
)
def test_a_field_that_does_not_fit(tmp_path, fields, said, writer, by):
    text = json.dumps(fields | ({"written_by": writer} if writer else {}))
    assert message(tmp_path, text) == (
        f"config.json does not fit jaxsplit/defaults.py: {said} (written by {by}, {THIS})"
    )


def test_lists_that_are_nested_deeply(tmp_path):
    value = '{"schedule": {"milestones": ' + "[" * 500 + "]" * 500 + "}}"
    line = message(tmp_path, value)
    assert line.startswith(
        "config.json does not fit jaxsplit/defaults.py: schedule.milestones=[[[["
    )


def test_links_are_not_followed(tmp_path):
    workdir, other = tmp_path / "run", tmp_path / "precious"
    workdir.mkdir()
    other.write_text("mine")
    for name in (file.NAME, "config.tmp", "config.json.tmp", ".writable"):
        (workdir / name).symlink_to(other)
    config_lib.save(common.get_config(), config_lib.prepare_workdir(workdir))
    assert other.read_text() == "mine"
    assert not (workdir / file.NAME).is_symlink()
    assert config_lib.load(workdir).seed == 0
    other.unlink()  # links to nothing make nothing
    config_lib.save(common.get_config(), config_lib.prepare_workdir(workdir))
    assert not other.exists()


def test_a_picture_does_not_follow_a_link(tmp_path):
    from jaxsplit.report import views

    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run" / views.FILE).symlink_to(tmp_path / "precious")
    path = views.views(tiny(), tmp_path / "run")
    assert (tmp_path / "precious").read_text() == "mine"
    assert path.read_bytes().startswith(b"\x89PNG") and not path.is_symlink()
