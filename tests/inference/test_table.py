"""`jaxsplit predict`: which files it takes, what it writes, what it says."""

import csv
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

import jaxsplit
from jaxsplit.data.prepare.class_trees import SUFFIXES
from jaxsplit.errors import ConfigError
from jaxsplit.inference import listing, table
from tests.support.inference import write_untrained
from tests.support.runs import tiny
from tests.support.tfds import encode, picture


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("table") / "run"
    write_untrained(tiny(), workdir)
    return jaxsplit.load(workdir, batch_size=4, say=lambda line: None)


def touch(folder: pathlib.Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def listed(*given) -> list[str]:
    images = listing.Images([str(path) for path in given])
    found = list(images)
    assert len(images) == len(found) and found == list(images)
    return found


# ---- Which files


def test_folders_in_natural_order_without_junk(tmp_path):
    touch(tmp_path, "img10.png", "img2.PNG", "b/1.jpg", "b/.hidden.jpg", "notes.txt")
    touch(tmp_path, "__MACOSX/x.png", "Thumbs.db", ".git/x.png", "b/c/2.webp", "Img1.tiff")
    found = [os.path.relpath(path, tmp_path) for path in listed(tmp_path)]
    assert found == ["b/1.jpg", "b/c/2.webp", "Img1.tiff", "img2.PNG", "img10.png"]


def test_files_patterns_and_lists(tmp_path):
    touch(tmp_path, "a,b.png", "c.png", "d10.jpg", "d9.jpg", "plain")
    a, c, plain = (str(tmp_path / name) for name in ("a,b.png", "c.png", "plain"))
    assert listed(a) == [a]
    assert listed(f"{c},{plain}", a) == [c, plain, a]
    assert listed(plain, c) == [plain, c]  # named, so taken
    names = [os.path.basename(path) for path in listed(tmp_path / "d*.jpg")]
    assert names == ["d9.jpg", "d10.jpg"]


def test_links(tmp_path):
    touch(tmp_path, "in/a.png", "out/b.png")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in")  # a circle
    (tmp_path / "in" / "out").symlink_to(tmp_path / "out")
    found = [os.path.relpath(path, tmp_path / "in") for path in listed(tmp_path / "in")]
    assert found == ["a.png", "out/b.png"]


def test_nothing_to_predict(tmp_path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(ConfigError) as caught:
        listing.Images([str(tmp_path)])
    assert str(caught.value) == (
        f"images='{tmp_path}': no image there, must hold files named as {', '.join(SUFFIXES)}"
    )
    with pytest.raises(ConfigError, match="no such file or folder"):
        listing.Images([str(tmp_path / "none")])


# ---- What is written


def rows(path: pathlib.Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_folder(predictor, tmp_path, capsys):
    """Of ten images in batches of four, two of them damaged: the others are predicted."""
    folder = tmp_path / 'photos, "mine"'
    folder.mkdir()
    for i in range(10):
        (folder / f"{i}.png").write_bytes(encode(picture(i, 8, 8), "PNG"))
    good = [i for i in range(10) if i not in (3, 9)]
    expected = predictor.predict([folder / f"{i}.png" for i in good])
    for i, content in ((3, b"no image"), (9, encode(picture(9, 8, 8), "PNG")[:50])):
        (folder / f"{i}.png").write_bytes(content)
    out = tmp_path / "out.csv"
    done = table.write(predictor, listing.Images([str(folder)]), out, top=3)
    assert done == (8, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", folder.name]
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [f"{folder}/3.png", f"{folder}/9.png"]
    found = rows(out)
    assert list(found[0]) == [
        "file",
        *("class1", "probability1", "class2", "probability2", "class3", "probability3"),
        *("net0", "net0_probability", "net1", "net1_probability"),
    ]
    assert [row["file"] for row in found] == [f"{folder}/{i}.png" for i in good]
    for i, row in enumerate(found):
        order = np.argsort(-expected.probabilities[i])[:3]
        assert [row[f"class{k}"] for k in (1, 2, 3)] == [str(c) for c in order]
        told = [float(row[f"probability{k}"]) for k in (1, 2, 3)]
        np.testing.assert_allclose(told, expected.probabilities[i, order], atol=1e-5)
        for name, own in expected.networks.items():
            assert row[name] == str(own[i].argmax())
            assert float(row[f"{name}_probability"]) == pytest.approx(own[i].max(), abs=1e-5)


def test_all_damaged_and_more_classes_than_there_are(predictor, tmp_path, capsys):
    touch(tmp_path, "in/a.png")
    images = listing.Images([str(tmp_path / "in")])
    assert table.write(predictor, images, tmp_path / "out.csv", top=50) == (0, 1)
    (header,) = (tmp_path / "out.csv").read_text().splitlines()
    assert header.split(",")[19:21] == ["class10", "probability10"]
    assert "cannot be read as an image (no known image format)" in capsys.readouterr().err


def test_wrong_arguments(predictor, tmp_path):
    touch(tmp_path, "a.png")
    images = listing.Images([str(tmp_path / "a.png")])
    with pytest.raises(ConfigError, match="top=0: must be at least 1"):
        table.write(predictor, images, tmp_path / "out.csv", top=0)
    with pytest.raises(ConfigError, match="out=.*cannot be written"):
        table.write(predictor, images, tmp_path / "none" / "out.csv", top=1)


def test_what_was_predicted_before_an_interrupt_stays(predictor, tmp_path):
    class Interrupted(listing.Images):
        def __iter__(self):
            yield from list(super().__iter__())
            raise KeyboardInterrupt

    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(encode(picture(i, 8, 8), "PNG"))
    with pytest.raises(KeyboardInterrupt):
        images = Interrupted.__new__(Interrupted)
        images._paths, images._count = [str(tmp_path)], 8
        table.write(predictor, images, tmp_path / "out.csv", top=1)
    assert not (tmp_path / "out.csv").exists()
    assert len(rows(tmp_path / "out.csv.part")) == 4


# ---- Odd pictures


def test_every_kind_of_picture(predictor, tmp_path):
    """Files of the same picture give the same answer, whatever their format."""
    pixels = picture(5, 8, 8, 1)
    gray = Image.fromarray(pixels[..., 0])
    turned = Image.Exif()
    turned[274] = 8  # looked at after a quarter turn against the clock
    half = gray.convert("LA")
    half.putalpha(Image.fromarray(np.full((8, 8), 99, np.uint8)))
    sixteen = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    made = {
        "rgb.png": gray.convert("RGB"),
        "palette.png": gray.convert("P"),
        "alpha.png": half,
        "rgba.webp": half.convert("RGBA"),
        "sixteen.png": sixteen,
        "sixteen.tiff": sixteen,
        "gray.bmp": gray,
        "cmyk.tiff": gray.convert("CMYK"),
    }
    for name, image in made.items():
        image.save(tmp_path / name, **(dict(lossless=True) if name.endswith("webp") else {}))
    gray.rotate(-90).save(tmp_path / "exif.png", exif=turned)
    expected = predictor(pixels)
    for path in sorted(tmp_path.iterdir()):
        for given in (path, Image.open(path)):
            np.testing.assert_allclose(predictor(given), expected, atol=0.01, err_msg=path.name)
