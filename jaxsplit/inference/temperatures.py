"""The temperatures by which logits are divided before they become probabilities."""

import json
import math

from jaxsplit.errors import ConfigError
from jaxsplit.inference.restore import Restored

FITTED = "fitted"
EVAL = "eval.json"  # written by --mode=eval
SECTION = "temperature"  # in it
ENSEMBLE = "ensemble"


def checked(temperature: float | str) -> float | str:
    """A positive number, or FITTED.

    Raises:
      ConfigError: it is neither.
    """
    if temperature == FITTED:
        return FITTED
    try:
        value = float(temperature)
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(
            f"temperature={temperature!r}: must be a positive number, or {FITTED!r} for those of "
            f"the workdir's {EVAL}"
        )
    return value


def of(restored: Restored, temperature: float | str, name: str) -> float:
    """The temperature of an answer.

    Args:
      restored: the networks.
      temperature: as `checked` returns it.
      name: of the answer in evaluations; '': a combination that evaluations do not have.

    Raises:
      ConfigError: FITTED, and none is known of that answer.
    """
    if temperature != FITTED:
        return float(temperature)
    known = _fitted(restored)
    if name not in known:
        what = name or "these networks combined so"
        raise ConfigError(
            f"temperature={FITTED!r}: {restored.workdir / EVAL} has none of {what}, has those of "
            f"{', '.join(known)}"
        )
    return known[name]


def _fitted(restored: Restored) -> dict[str, float]:
    """Answer -> its temperature.

    Raises:
      ConfigError: there is no such file, it is of another checkpoint, or has no temperatures.
    """
    path = restored.workdir / EVAL
    how = f"`jaxsplit eval --workdir={restored.workdir} --checkpoint={restored.step}` writes it"
    try:
        record = json.loads(path.read_text())
        step = record["step"]
        known = {n: float(of["temperature"]) for n, of in record[SECTION]["answers"].items()}
        if record["config"]["ensemble"] != restored.config.eval.ensemble:
            known.pop(ENSEMBLE, None)  # of networks that were combined in another way
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"temperature={FITTED!r}: {path} has no temperatures ({type(error).__name__}); {how}"
        ) from None
    if step != restored.step:
        raise ConfigError(
            f"temperature={FITTED!r}: {path} is of checkpoint {step}, this is {restored.step}; "
            f"{how}"
        )
    return {name: value for name, value in known.items() if value > 0}
