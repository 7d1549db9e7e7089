"""Small data sets of Hugging Face, written by its library."""

import pathlib
from collections.abc import Iterable
from typing import Any

import datasets
import numpy as np

datasets.disable_progress_bars()

CLASSES = ("ant", "bee", "cow", "dog", "elk")
Examples = Iterable[tuple[Any, Any]]


def features(names=CLASSES, **more) -> datasets.Features:
    """A column of images, one of classes, and more of them."""
    return datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names)), **more}
    )


def dataset(examples: Examples, kinds: datasets.Features | None = None, **more) -> datasets.Dataset:
    """(image, label) as rows; an image is an array or picture, which the library encodes, or bytes.

    Of gray images it takes [H, W] only, so the last axis of [H, W, 1] is dropped.
    more: the values of further columns.
    """
    images, labels = zip(*examples, strict=True)
    images = [dict(bytes=i, path=None) if isinstance(i, bytes) else i for i in images]
    images = [i[..., 0] if getattr(i, "shape", ())[2:] == (1,) else i for i in images]
    columns = {"image": images, "label": list(labels), **more}
    return datasets.Dataset.from_dict(columns, features=kinds or features())


def save(
    folder: pathlib.Path,
    splits: dict[str, Examples],
    kinds: datasets.Features | None = None,
    **options,
) -> pathlib.Path:
    """Writes the splits by `save_to_disk`; options of it. Returns the folder."""
    made = {name: dataset(examples, kinds) for name, examples in splits.items()}
    datasets.DatasetDict(made).save_to_disk(folder, **options)
    return folder


def cache(
    folder: pathlib.Path, splits: dict[str, Examples], *, subset: str = "default", **options
) -> pathlib.Path:
    """Prepares 'someone/InsectPhotos' in a cache, as `load_dataset` does; returns its folder.

    options: of `download_and_prepare`.
    """

    class Prepare(datasets.GeneratorBasedBuilder):
        DEFAULT_WRITER_BATCH_SIZE = 1  # so that small sets have several files, too

        def _info(self):
            return datasets.DatasetInfo(features=features(), version="0.0.0")

        def _split_generators(self, dl_manager):
            return [
                datasets.SplitGenerator(name, gen_kwargs={"examples": list(examples)})
                for name, examples in splits.items()
            ]

        def _generate_examples(self, examples):
            for key, (image, label) in enumerate(examples):
                if isinstance(image, np.ndarray | bytes):
                    image = datasets.Image().encode_example(image)
                yield key, {"image": image, "label": label}

    builder = Prepare(
        cache_dir=str(folder),
        dataset_name="InsectPhotos",
        repo_id="someone/InsectPhotos",
        config_name=subset,
        hash="0123456789abcdef",
    )
    builder.download_and_prepare(**options)
    return pathlib.Path(builder.cache_dir)
