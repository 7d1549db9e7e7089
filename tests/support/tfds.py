"""Small prepared data sets for tests, written by tfds as array_record files without TensorFlow."""

import io
import pathlib
from collections.abc import Iterable

import numpy as np
from PIL import Image

SMALL = {  # name: (version, image shape, classes), as tfds has them
    "cifar10": ("3.0.2", (32, 32, 3), 10),
    "cifar100": ("3.0.2", (32, 32, 3), 100),
    "fashion_mnist": ("3.0.1", (28, 28, 1), 10),
    "svhn_cropped": ("3.1.0", (32, 32, 3), 10),
}
Examples = Iterable[tuple[np.ndarray | bytes, int]]


def write_image_dataset(
    folder: pathlib.Path,
    name: str,
    splits: dict[str, Examples],
    *,
    num_classes: int,
    version: str = "1.0.0",
    shape: tuple[int | None, int | None, int] = (None, None, 3),
) -> pathlib.Path:
    """Prepare <folder>/<name>/<version> and return that path; examples keep their order.

    splits: {split: [(image, label), ...]}, an image being uint8[H, W, C] (kept as PNG) or the bytes
    of an encoded image (kept as they are).
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    with registered.skip_registration():  # one name may be written more than once

        class Prepare(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version(version)

            def _info(self):
                features = tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=shape),
                        "label": tfds.features.ClassLabel(num_classes=num_classes),
                    }
                )
                return tfds.core.DatasetInfo(
                    builder=self, features=features, disable_shuffling=True
                )

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(split) for split in splits}

            def _generate_examples(self, split):
                for key, (image, label) in enumerate(splits[split]):
                    if isinstance(image, np.ndarray):  # tfds would encode it with TensorFlow
                        image = encode(image, "PNG")
                    yield key, {"image": io.BytesIO(image), "label": int(label)}

    Prepare.name = name
    tfds.disable_progress_bar()
    builder = Prepare(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)


def encode(image: np.ndarray, form: str, mode: str | None = None) -> bytes:
    """The bytes of uint8[H, W, 1 or 3] as a file of format `form`, converted to Pillow's `mode`."""
    pixels = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    buffer = io.BytesIO()
    (pixels.convert(mode) if mode else pixels).save(buffer, form)
    return buffer.getvalue()


def picture(seed: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    """uint8[height, width, channels]: smooth colours with a little noise, as a photograph has."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noisy = smooth + rng.integers(-6, 7, smooth.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)[..., :channels]


def small_arrays(name: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(uint8[n, H, W, C], int64[n]) like the data set `name`; its classes differ in brightness."""
    _, shape, num_classes = SMALL[name]
    labels = np.arange(n) % num_classes
    noise = np.random.default_rng(seed).integers(0, 56, (n, *shape))
    images = (labels * 199 // (num_classes - 1))[:, None, None, None] + noise
    return images.astype(np.uint8), labels


def write_small(folder: pathlib.Path, name: str, n_train: int, n_test: int) -> pathlib.Path:
    """Prepare cifar10, cifar100, fashion_mnist or svhn_cropped with the images of `small_arrays`.

    The seed of the training images is 0, of the test images 1.
    """
    version, shape, num_classes = SMALL[name]
    splits = {
        "train": list(zip(*small_arrays(name, n_train, 0), strict=True)),
        "test": list(zip(*small_arrays(name, n_test, 1), strict=True)),
    }
    return write_image_dataset(
        folder, name, splits, num_classes=num_classes, version=version, shape=shape
    )


def write_imagenet(
    folder: pathlib.Path, n_train: int = 16, n_val: int = 8, num_classes: int = 1000
) -> pathlib.Path:
    """Prepare a mocked imagenet2012.

    Among every eight images: one of 500x375, a grayscale and a CMYK JPEG, a PNG; the others are
    JPEGs of 96x72 or 60x90. Label of image i: (7 * i) % num_classes.
    """

    def examples(n: int, seed: int) -> list[tuple[bytes, int]]:
        made = []
        for i in range(n):
            size = (375, 500) if i % 8 == 0 else (72, 96) if i % 2 else (90, 60)
            mode = {1: "L", 2: "CMYK"}.get(i % 8)
            form = "PNG" if i % 8 == 3 else "JPEG"
            made.append((encode(picture(seed + i, *size), form, mode), 7 * i % num_classes))
        return made

    splits = {"train": examples(n_train, 0), "validation": examples(n_val, 10_000)}
    return write_image_dataset(
        folder, "imagenet2012", splits, num_classes=num_classes, version="5.1.0"
    )
