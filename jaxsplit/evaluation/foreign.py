"""The images of another data set as a run's networks would see them."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from jaxsplit import data
from jaxsplit.errors import ConfigError
from jaxsplit.evaluation import ood, predictions, scores
from jaxsplit.evaluation.predictions import SplitPredictions
from jaxsplit.evaluation.run import EvalPass

_LEAST = 16  # pixels; images that vary in size are cropped to no fewer
_LUMA = (19595, 38470, 7471)  # Pillow's, of 2 ** 16


@dataclasses.dataclass(frozen=True)
class Foreign:
    """The test split of another data set.

    image_shape: (H, W, C) of its own. note: what is changed of its images; '' if nothing.
    """

    name: str
    examples: data.Arrays | data.Stream
    image_shape: tuple[int, int, int]
    note: str


def load(data_config: ConfigDict, name: str, image_shape: tuple[int, int, int]) -> Foreign:
    """Reads what lies in `data_config.dir` under that name.

    Args:
      data_config: config.data of the run.
      name: of a data set, as `data.name`.
      image_shape: (H, W, C) that the run's networks take.

    Raises:
      ConfigError: an unknown name, the run's own data set, or nothing is prepared.
    """
    if name == data_config.name:
        raise ConfigError(f"eval.ood={name!r}: must be another data set than data.name")
    its = ConfigDict(data_config.to_dict())
    its.name, its.mean, its.std, its.validation = name, (), (), 0.0
    its.update(train_split="", test_split="", subset="", image_column="", label_column="")
    its.resident = "stream"  # else the training part would be decoded, too
    side = max(*image_shape[:2], _LEAST)
    try:
        its.image_size = side
        one_size = data.source(its).one_size
        its.image_size = 0 if one_size else side
        found = data.load(its)
    except ConfigError as error:
        raise ConfigError(f"eval.ood={name!r}: {error}") from error
    return Foreign(name, found.test, found.image_shape, _note(name, found.image_shape, image_shape))


def _note(name: str, its: tuple[int, int, int], ours: tuple[int, int, int]) -> str:
    parts = []
    if its[:2] != ours[:2]:
        parts.append(f"resized from {its[0]}x{its[1]} to {ours[0]}x{ours[1]} (bilinear)")
    if its[2] != ours[2]:
        parts.append("made gray" if ours[2] == 1 else "given three equal channels")
    return f"images of {name!r} are {' and '.join(parts)}" if parts else ""


def converted(images: Array, image_shape: tuple[int, int, int]) -> Array:
    """uint8[B, H, W, C] of another size or number of channels as uint8[B, *image_shape].

    Colours become gray as Pillow, with which data is prepared, converts them; gray is repeated.
    Sizes change by bilinear interpolation, over all pixels where images shrink.
    """
    if images.shape[3] == 3 and image_shape[2] == 1:
        weights = jnp.array(_LUMA)[:, None]
        images = ((images.astype(jnp.int32) @ weights + 0x8000) >> 16).astype(jnp.uint8)
    elif images.shape[3] != image_shape[2]:
        images = jnp.repeat(images, image_shape[2], 3)
    if images.shape[1:3] == image_shape[:2]:
        return images
    large = jax.image.resize(images.astype(jnp.float32), (len(images), *image_shape), "linear")
    return jnp.round(large.clip(0, 255)).astype(jnp.uint8)


def collect(
    step: Callable[[dict, dict], tuple], variables: dict, foreign: Foreign, how: EvalPass
) -> SplitPredictions | None:
    """The logits of foreign images, on process 0; their labels are 0. Collective.

    step: of `predictions.make_collect`; how: of the run's own images.
    """
    batch = how.sharding.named(how.sharding.batch)
    convert = jax.jit(
        lambda images: converted(images, how.image_shape), in_shardings=batch, out_shardings=batch
    )

    def answer(variables: dict, batch: dict) -> tuple:
        # Foreign labels may be no class of the networks.
        known = {"images": convert(batch["images"]), "labels": batch["labels"] * 0}
        return step(variables, batch | known)

    its = dataclasses.replace(how, image_shape=foreign.image_shape)
    return predictions.collect(answer, variables, foreign.examples, its)[1]


def scored(test: SplitPredictions, foreign: Foreign, found: SplitPredictions) -> dict:
    """The section `ood` of eval.json; docs/evaluation.md describes it."""
    named = {
        name: {
            kind: ood.detection(*(of(scores.log_softmax(x)) for x in (logits, found.logits[name])))
            for kind, of in ood.UNCERTAINTIES.items()
        }
        for name, logits in test.logits.items()
    }
    record = {
        "data": foreign.name,
        "note": foreign.note,
        "count": len(test.labels),
        "foreign_count": len(found.labels),
        "answers": _plain(named),
    }
    if len(test.networks()) > 1:
        both = (scores.log_softmax(its.networks()) for its in (test, found))
        detection = ood.detection(*(ood.mutual_information(log_p) for log_p in both))
        record["networks"] = {"mutual_information": detection._asdict()}
    return record


def _plain(named: dict[str, dict[str, ood.Detection]]) -> dict:
    return {
        name: {kind: detection._asdict() for kind, detection in kinds.items()}
        for name, kinds in named.items()
    }
