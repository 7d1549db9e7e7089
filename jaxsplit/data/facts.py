"""`dataset.json` of a workdir: what prediction needs to know about the data set.

    {"format": 1, "name": "digits", "num_classes": 10, "class_names": ["0", ...],
     "image_shape": [8, 8, 1], "mean": [0.3054], "std": [0.376], "resize_shorter_side": 0}

`class_names` is empty if they are unknown. If `resize_shorter_side` is 0, images have the size of
the networks' input and are used whole. Otherwise the shorter side of an image is resized to that
many pixels (antialiased bicubic), and the centre of `image_shape` is cut out.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxsplit import data
from jaxsplit.data import stream
from jaxsplit.errors import ConfigError
from jaxsplit.workdir import files

NAME = "dataset.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Facts:
    """How evaluation and prediction prepare an image, and what the classes are called.

    image_shape: (H, W, C).
    mean, std: one for each channel, in 0..1.
    class_names: names of the labels 0, 1, ...; () if they are unknown.
    shorter_side: pixels to which the shorter side is resized before the crop; 0: no crop.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()
    shorter_side: int = 0

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names; numbers if the names are unknown."""
        return self.class_names or tuple(map(str, range(self.num_classes)))

    def fit(self, image: np.ndarray) -> np.ndarray:
        """Resizes and crops an image as evaluation does: uint8[h, w, C] -> uint8[H, W, C].

        If the data set has images of one size, an image of another size is resized to it
        (antialiased bilinear), whatever its aspect.
        """
        height, width, _ = self.image_shape
        if self.shorter_side:
            return stream.centre_crop(image, height, width, self.shorter_side)
        if image.shape[:2] == (height, width):
            return image
        from PIL import Image

        pixels = Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
        resized = pixels.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(resized).reshape(self.image_shape)

    def blank_dataset(self) -> data.Dataset:
        """A `Dataset` without examples, from which networks can be built."""
        empty = data.Arrays(np.zeros((0, *self.image_shape), np.uint8), np.zeros(0, np.int32))
        return data.Dataset(
            name=self.name,
            num_classes=self.num_classes,
            image_shape=self.image_shape,
            mean=self.mean,
            std=self.std,
            train=empty,
            validation=None,
            test=empty,
            class_names=self.class_names,
        )


def of_dataset(dataset: data.Dataset) -> Facts:
    """The facts of a loaded data set."""
    height, width, _ = dataset.image_shape
    return Facts(
        name=dataset.name,
        num_classes=dataset.num_classes,
        image_shape=dataset.image_shape,
        mean=tuple(dataset.mean),
        std=tuple(dataset.std),
        class_names=tuple(dataset.class_names),
        shorter_side=stream.shorter_side(height, width) if dataset.cropped else 0,
    )


def of_config(data_config: ConfigDict) -> Facts:
    """The facts of `config.data`; reads no example and raises as `data.source`."""
    source = data.source(data_config)
    shape = source.shape(data_config)
    return Facts(
        name=source.name,
        num_classes=source.num_classes,
        image_shape=shape,
        mean=source.mean,
        std=source.std,
        class_names=source.class_names(data_config),
        shorter_side=stream.shorter_side(*shape[:2]) if source.cropped(data_config) else 0,
    )


def of_workdir(
    workdir: str | pathlib.Path,
    data_config: ConfigDict,
    shapes: Mapping[str, tuple[int, ...]],
    say: Callable[[str], None] = print,
) -> Facts:
    """Reads the facts in WORKDIR/dataset.json.

    Old workdirs lack the file. Their facts come from the data set if it is there, otherwise from
    the config; `say` gets a line about it.

    Args:
      workdir: of the run.
      data_config: `config.data` of the run.
      shapes: shapes of the networks' arrays, by path ('params/stack/head/bias').
      say: gets the line.

    Raises:
      ConfigError: the file is wrong, or it is missing and the image size is unknown.
    """
    if (found := read(workdir)) is not None:
        return found
    try:
        facts, where = of_config(data_config), f"of data.name={data_config.name!r}"
    except ConfigError as error:
        size = data_config.image_size
        if not size:
            raise ConfigError(
                f"workdir={str(workdir)!r}: has no {NAME}, which tells the image size; then it is "
                f"read from the data set, but {error}"
            ) from None
        classes, channels = _of_networks(shapes)
        mean, std = data.usual_mean_and_std(data_config, channels)
        facts, where = (
            Facts(
                name=data_config.name,
                num_classes=classes,
                image_shape=(size, size, channels),
                mean=mean,
                std=std,
                shorter_side=stream.shorter_side(size, size),
            ),
            "of the config",
        )
    if not facts.class_names:
        where += ", and the classes are called by their numbers"
    say(f"{workdir} has no {NAME}: image size, mean and std are those {where}")
    return facts


def _of_networks(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """(number of classes, image channels), from the shapes of the networks' arrays."""
    heads = [shape[-1] for path, shape in shapes.items() if path.endswith("/head/bias")]
    stems = [s[-2] for path, s in shapes.items() if "/stem" in path and path.endswith("/kernel")]
    return heads[0], max((inputs for inputs in stems if inputs in (1, 3)), default=3)


def write(workdir: pathlib.Path, facts: Facts) -> None:
    """Writes WORKDIR/dataset.json."""
    files.write_text(workdir / NAME, to_json(facts))


def to_json(facts: Facts) -> str:
    """The text of `dataset.json`."""
    fields: dict[str, Any] = {"format": FORMAT, **dataclasses.asdict(facts)}
    fields["resize_shorter_side"] = fields.pop("shorter_side")
    lines = (
        f'  "{name}": {json.dumps(value, ensure_ascii=False)}' for name, value in fields.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read(workdir: str | pathlib.Path) -> Facts | None:
    """Reads WORKDIR/dataset.json; None if there is none, as in old workdirs.

    Raises:
      ConfigError: the file cannot be read, has a newer format or a wrong value.
    """
    path = files.path_of(workdir) / NAME
    try:
        if not path.exists():
            return None
        fields = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    form = fields.get("format") if isinstance(fields, dict) else None
    if form != FORMAT:
        raise ConfigError(f"{path}: format={form!r}: must be {FORMAT}")
    try:
        height, width, channels = fields["image_shape"]
        facts = Facts(
            name=str(fields["name"]),
            num_classes=int(fields["num_classes"]),
            image_shape=(int(height), int(width), int(channels)),
            mean=tuple(map(float, fields["mean"])),
            std=tuple(map(float, fields["std"])),
            class_names=tuple(map(str, fields["class_names"])),
            shorter_side=int(fields["resize_shorter_side"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from None
    _check(path, facts)
    return facts


def _check(path: pathlib.Path, facts: Facts) -> None:
    """Raises ConfigError if a value in the file is out of range."""
    shape, names = facts.image_shape, facts.class_names
    rules = {
        f"image_shape={list(shape)}: must be [H, W, 1 or 3]": min(shape) > 0
        and shape[-1] in (1, 3),
        f"num_classes={facts.num_classes}: must be at least 2": facts.num_classes >= 2,
        f"class_names: {len(names)} of them, must be none or {facts.num_classes}": len(names)
        in (0, facts.num_classes),
        f"mean={list(facts.mean)}: must be a number for each channel": len(facts.mean) == shape[-1]
        and all(map(math.isfinite, facts.mean)),
        f"std={list(facts.std)}: must be a positive number for each channel": len(facts.std)
        == shape[-1]
        and all(math.isfinite(s) and s > 0 for s in facts.std),
        f"resize_shorter_side={facts.shorter_side}: must be at least 0": facts.shorter_side >= 0,
    }
    for text, right in rules.items():
        if not right:
            raise ConfigError(f"{path}: {text}")
