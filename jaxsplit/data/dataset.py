"""A data set as the networks see it."""

from dataclasses import dataclass

from jaxsplit.data.arrays import Arrays
from jaxsplit.data.stream import Stream


@dataclass(frozen=True)
class Dataset:
    """A data set as the networks see it.

    image_shape: (H, W, C). mean, std: of the training pixels in 0..1, one for each channel.
    class_names: of the labels 0, 1, ...; () where they are not known.
    resident: an in-memory training split lies on the device; False: its batches are sent there.
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
        """Whether its images vary in size, so that evaluation resizes and crops them."""
        return isinstance(self.test, Stream) and self.test.shape is None
