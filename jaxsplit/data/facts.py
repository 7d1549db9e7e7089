"""`dataset.json` of a workdir: what predicting needs to know of the data set, without its images.

    {"format": 1, "name": "digits", "num_classes": 10, "class_names": ["0", ...],
     "image_shape": [8, 8, 1], "mean": [0.3054], "std": [0.376], "resize_shorter_side": 0}

`class_names` is empty where the data set has none. Where `resize_shorter_side` is 0, images have
the size of the networks and are used whole; else the shorter side of an image is resized to so
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
    """What evaluation and prediction do with an image, and what the classes are called.

    image_shape: (H, W, C). mean, std: one for each channel, in 0..1.
    class_names: of the labels 0, 1, ...; () where they are not known.
    shorter_side: pixels that the shorter side is resized to before the crop; 0: images are whole.
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
        """The class names; where they are not known, numbers."""
        return self.class_names or tuple(map(str, range(self.num_classes)))

    def fit(self, image: np.ndarray) -> np.ndarray:
        """uint8[h, w, C] -> uint8[H, W, C], as evaluation resizes and crops.

        Where the images of the data set have one size, another one is resized (antialiased
        bilinear), whatever its aspect.
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
        """A `Dataset` without examples, for what builds networks of it."""
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
    """Those of a data set that is loaded."""
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
    """Those of `config.data`, of which no example is read; raises as `data.source`."""
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
    """Those of WORKDIR/dataset.json; of an old workdir without one, as far as they are known.

    Then they are those of the data set where it is there, else of the config. `say` gets a line.

    Args:
      workdir: of the run.
      data_config: `config.data` of the run.
      shapes: of the arrays of its networks, by path ('params/stack/head/bias').

    Raises:
      ConfigError: the file is wrong; or there is none and the image size cannot be known.
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
    """(classes, image channels) that networks have, by the shapes of their arrays."""
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
    """Those of WORKDIR/dataset.json; None where there is none, as in old workdirs.

    Raises:
      ConfigError: it is not such a file, or of a newer format.
    """
    path = files.path_of(workdir) / NAME
    try:
        if not path.exists():
            return None
        fields = json.loads(path.read_text())
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
    """Raises ConfigError where values of a file cannot be."""
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
