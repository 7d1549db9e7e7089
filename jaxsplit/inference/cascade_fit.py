"""The threshold of a run's cascade, from the logits that its evaluation has written."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxsplit import config as config_lib
from jaxsplit import costs
from jaxsplit.errors import ConfigError
from jaxsplit.inference import cascade
from jaxsplit.inference.restore import Restored

PREDICTIONS = "predictions.npz"  # of a workdir; written by --mode=eval


class Logits(NamedTuple):
    """Of the examples of a split: float[S, N, K] in the order of names, labels int[N]."""

    logits: np.ndarray
    labels: np.ndarray


def network_costs(restored: Restored, names: Sequence[str]) -> np.ndarray:
    """float[S]: multiply-adds of each network for one image.

    Networks that share a trunk compute it each for themselves when they run one after another.
    """
    config, known = restored.config, restored.facts
    resolved = config_lib.resolve(config)
    sizes = dict(num_classes=known.num_classes, image_shape=known.image_shape)
    small, _ = costs.config_costs(config, resolved, **sizes)
    own = costs.own_costs(config, resolved, small, **sizes)
    return np.array([own[name][1] if name in own else small.macs for name in names], np.float64)


def fitted(
    restored: Restored,
    names: Sequence[str],
    *,
    how: str = "mean_logits",
    temperature: float = 1.0,
    accuracy: float | None = None,
    share: float | None = None,
) -> cascade.Fitted:
    """The threshold for a wanted accuracy or cost; what it gives on other images.

    It is fitted on the validation set, and expected of the test set; without a validation set
    both come from the test set by cross-fitting.

    Args:
      restored: the networks.
      names: of them, in the order of the cascade.
      how, temperature: as of `cascade.steps`.
      accuracy, share: as of `cascade.fit`.

    Raises:
      ConfigError: as `cascade.fit`; or no predictions of this checkpoint are written.
    """
    splits, wanted = read(restored, names), dict(accuracy=accuracy, share=share)
    each = network_costs(restored, names)
    found = {split: cascade.steps(its.logits, how, temperature) for split, its in splits.items()}
    test = splits["test"]
    if "validation" not in splits:
        return cascade.cross_fitted(found["test"], test.labels, each, **wanted)
    held = splits["validation"]
    at = cascade.fit(found["validation"], held.labels, each, **wanted).threshold
    return cascade.Fitted(at, cascade.point(found["test"], test.labels, each, at))


def read(restored: Restored, names: Sequence[str]) -> dict[str, Logits]:
    """Split ('test', perhaps 'validation') -> logits, of WORKDIR/predictions.npz.

    Raises:
      ConfigError: there is no such file, or it is of another checkpoint or of other networks.
    """
    path = restored.workdir / PREDICTIONS
    how = f"`jaxsplit eval --workdir={restored.workdir} --checkpoint={restored.step}` writes it"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            step = int(arrays["step"])
            found = {
                split: Logits(
                    np.stack([arrays[f"{split}/logits/{name}"] for name in names]),
                    arrays[f"{split}/labels"],
                )
                for split in ("validation", "test")
                if f"{split}/labels" in arrays.files
            }
    except Exception as error:  # NumPy lets through what zipfile, zlib and its own parser raise
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"cascade: {path}: cannot be read ({reason}); {how}") from None
    if step != restored.step:
        raise ConfigError(
            f"cascade: {path} is of checkpoint {step}, this is {restored.step}; {how}"
        )
    if "test" not in found:
        raise ConfigError(f"cascade: {path} has no test set; {how}")
    return found
