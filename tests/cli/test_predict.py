"""`jaxsplit predict` and --mode=predict: flags, exit status, bad input in one line."""

import csv

import numpy as np
import pytest

import jaxsplit
from tests.support.inference import write_untrained
from tests.support.runs import tiny
from tests.support.tfds import encode, picture

# ml_collections loads config files by a function that Python warns of.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict") / "run"
    write_untrained(tiny(), folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(encode(picture(i, 8, 8), "PNG"))
    return folder


def rows(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder(run, workdir, photos, tmp_path, capsys):
    out = tmp_path / "out.csv"
    flags = f"--workdir={workdir}", f"--images={photos}", f"--out={out}"
    run("--mode=predict", *flags, "--top=2", "--networks=1,net0", "--combine=max_probs")
    said = capsys.readouterr()
    assert said.out == f"predicted 3 images: {out}\nnext: jaxsplit report --workdir={workdir}\n"
    assert said.err == ""
    options = dict(networks=["net1", "net0"], combine="max_probs")
    expected = jaxsplit.load(workdir)(sorted(photos.iterdir()), **options)
    found = rows(out)
    assert [row["class1"] for row in found] == [str(c) for c in expected.argmax(-1)]
    told = [float(row["probability1"]) for row in found]
    np.testing.assert_allclose(told, expected.max(-1), atol=1e-5)
    assert "class3" not in found[0] and list(found[0])[5:] == [
        "net1",
        "net1_probability",
        "net0",
        "net0_probability",
    ]


def test_a_damaged_file_is_named_and_the_status_is_one(run, workdir, photos, tmp_path, capsys):
    (photos / "1.png").write_bytes(b"no image")
    out = tmp_path / "out.csv"
    with pytest.raises(SystemExit) as caught:
        run("--mode=predict", f"--workdir={workdir}", f"--images={photos}", f"--out={out}")
    assert caught.value.code == 1
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == f"predicted 2 images, 1 could not be read: {out}"
    assert said.err == f"{photos}/1.png: cannot be read as an image (no known image format)\n"
    assert [row["file"] for row in rows(out)] == [str(photos / "0.png"), str(photos / "2.png")]


def test_a_cascade(run, workdir, photos, tmp_path):
    out = tmp_path / "out.csv"
    flags = f"--workdir={workdir}", f"--images={photos}", f"--out={out}"
    run("--mode=predict", *flags, "--cascade=0")
    assert all(row["net0"] and not row["net1"] for row in rows(out))


def test_wrong_flags(refused, workdir, photos, tmp_path):
    own = "--mode=predict", f"--workdir={workdir}"
    empty = tmp_path / "empty"
    empty.mkdir()
    for flags, line in (
        ((), "images: must be given: --images=FOLDER_OR_FILES"),
        ((f"--images={empty}",), f"images='{empty}': no image there, must hold files named as "),
        ((f"--images={photos}", "--top=0"), "top=0: must be at least 1"),
        ((f"--images={photos}", f"--out={empty}"), f"out='{empty}': must be a file, is a director"),
        ((f"--images={photos}", "--out=gs://b/a.csv"), "out='gs://b/a.csv': must be a file of thi"),
        ((f"--images={photos}", "--networks=net7"), "networks='net7': must be of net0, net1"),
        ((f"--images={photos}", "--cascade=fast"), "cascade='fast': must be a threshold, "),
        ((f"--images={photos}", "--cascade=cost=0.5"), "cascade: "),
        ((f"--images={photos}", "--checkpoint=9"), "checkpoint='9': not in "),
        ((f"--images={photos}", "--config.eval.ensemble=sum"), "eval.ensemble='sum': must be"),
        ((f"--images={photos}", "--config.arch=resnet110"), f"workdir='{workdir}'"),
    ):
        assert refused(*own, *flags).startswith(line)
    assert refused("--mode=eval", f"--workdir={workdir}", "--top=3") == (
        "top: only with --mode=predict, not eval"
    )
