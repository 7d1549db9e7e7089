"""What users have on disk, made small: CIFAR, SVHN and IDX files, image trees, ImageNet's tars."""

import gzip
import io
import pathlib
import pickle
import struct
import tarfile

import numpy as np

from tests.support.tfds import encode, picture

WNIDS = ("n01440764", "n01443537", "n15075141")  # labels 0, 1 and 999


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def cifar_members(n: int, num_classes: int, names_key: str, labels_key: str, seed: int = 0):
    """(slice -> bytes of a batch, bytes of the meta file, uint8[6 * n, 32, 32, 3], labels)."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (6 * n, 32, 32, 3), dtype=np.uint8)
    labels = [int(i % num_classes) for i in range(6 * n)]

    def batch(part: slice) -> bytes:
        raw = images[part].transpose(0, 3, 1, 2).reshape(-1, 3072)
        # As Python 2 wrote them: keys and file names are byte strings.
        return pickle.dumps({b"data": raw, labels_key.encode(): labels[part]}, protocol=2)

    names = [f"class {i}".encode() for i in range(num_classes)]
    meta = pickle.dumps({names_key.encode(): names}, protocol=2)
    return batch, meta, images, labels


def make_cifar10(folder: pathlib.Path, n: int = 4) -> tuple[np.ndarray, list[int]]:
    batch, meta, images, labels = cifar_members(n, 10, "label_names", "labels")
    members = {f"data_batch_{i + 1}": batch(slice(n * i, n * i + n)) for i in range(5)}
    members |= {"test_batch": batch(slice(5 * n, 6 * n)), "batches.meta": meta}
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as tar:
        for name in sorted(members, key=lambda name: name[::-1]):  # in no good order
            add(tar, f"cifar-10-batches-py/{name}", members[name])
    return images, labels


def make_cifar100(folder: pathlib.Path, n: int = 20) -> tuple[np.ndarray, list[int]]:
    batch, meta, images, labels = cifar_members(n, 100, "fine_label_names", "fine_labels")
    extracted = folder / "cifar-100-python"
    extracted.mkdir()
    (extracted / "train").write_bytes(batch(slice(0, 5 * n)))
    (extracted / "test").write_bytes(batch(slice(5 * n, 6 * n)))
    (extracted / "meta").write_bytes(meta)
    return images, labels


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def make_idx(folder: pathlib.Path, n_train: int = 30, n_test: int = 10) -> np.ndarray:
    """IDX files, those of training compressed; labels i % 10."""
    images = np.random.default_rng(1).integers(0, 256, (n_train + n_test, 28, 28), dtype=np.uint8)
    labels = (np.arange(n_train + n_test) % 10).astype(np.uint8)
    with gzip.open(folder / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(idx_bytes(images[:n_train]))
    with gzip.open(folder / "train-labels-idx1-ubyte.gz", "wb") as file:
        file.write(idx_bytes(labels[:n_train]))
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(images[n_train:]))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(labels[n_train:]))
    return images


def make_svhn(folder: pathlib.Path, splits=("train", "test", "extra")) -> dict:
    from scipy.io import savemat

    made = {}
    for seed, split in enumerate(splits):
        images = np.random.default_rng(seed).integers(0, 256, (32, 32, 3, 12), dtype=np.uint8)
        labels = (np.arange(12) % 10 + 1).astype(np.uint8)[:, None]
        savemat(folder / f"{split}_32x32.mat", {"X": images, "y": labels}, do_compression=True)
        made[split] = images
    return made


def make_tree(folder: pathlib.Path, counts: dict[str, int], size=(48, 64), form="JPEG") -> list:
    """folder/<class>/<i>.jpg; returns the images' bytes in the order of the reader."""
    made = []
    for c, (name, count) in enumerate(sorted(counts.items())):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            content = encode(picture(100 * c + i, *size), form)
            path = folder / name / f"{i:03}.{'JPEG' if form == 'JPEG' else 'png'}"
            path.write_bytes(content)
            made.append(content)
    return made


def make_imagenet_tars(folder: pathlib.Path, n: int = 3) -> list[tuple[bytes, int]]:
    """The two tars; returns what the train split must hold. Validation images 1, 2, 3."""
    made = []
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as outer:
        for c, (wnid, label) in enumerate(zip(WNIDS, (0, 1, 999), strict=True)):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for i in range(n):
                    content = encode(picture(10 * c + i, 40, 60), "JPEG", "L" if i == 1 else None)
                    add(inner, f"{wnid}_{i}.JPEG", content)
                    made.append((content, label))
            add(outer, f"{wnid}.tar", buffer.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as tar:
        for i in (2, 1, 3):  # in no good order
            name = f"ILSVRC2012_val_{i:08}.JPEG"
            add(tar, name, encode(picture(i, 30, 50), "JPEG"))
    return made


def make_devkit() -> dict[str, bytes]:
    from scipy.io import savemat

    meta = np.zeros(4, [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")])
    for i, wnid in enumerate((WNIDS[2], WNIDS[0], WNIDS[1], "n99999999")):
        meta[i] = (i + 1, wnid, "words")
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": meta[:, None]})
    return {
        "ILSVRC2012_validation_ground_truth.txt": b"2\n1\n3\n",  # labels 0, 999, 1
        "meta.mat": buffer.getvalue(),
    }
