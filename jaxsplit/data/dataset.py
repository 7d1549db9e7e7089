"""The value `Dataset`: splits, classes and statistics of a data set."""

from dataclasses import dataclass

from jaxsplit.data.arrays import Arrays
from jaxsplit.data.stream import Stream


@dataclass(frozen=True)
class Dataset:
    """A data set as the networks see it.

    image_shape: (H, W, C).
    mean, std: of the training pixels, in 0..1, one for each channel.
    class_names: names of the labels 0, 1, ...; () if they are unknown.
    resident: whether the device holds the whole training split; otherwise it gets each batch.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Arrays | Stream
    validation: Arrays | Stream | None
    test: Arrays | Stream
    resident: bool = True
    class_names: tuple[str, ...] = ()

    @property
    def cropped(self) -> bool:
        """Whether evaluation resizes and crops the images, because they vary in size."""
        return isinstance(self.test, Stream) and self.test.shape is None
