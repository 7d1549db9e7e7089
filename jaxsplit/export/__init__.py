"""Networks of a run as files that other programs load; `export` writes one.

`stablehlo` holds the program and its weights, for jax alone. `onnx` holds both for onnxruntime.
`safetensors` holds the weights. `workdir` is one network as a workdir of its own.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from jaxsplit.errors import ConfigError
from jaxsplit.export import alone, onnx, stablehlo, tensors
from jaxsplit.export.target import Written
from jaxsplit.inference.predictor import Temperature

FORMATS: Mapping[str, Callable[..., Written]] = {
    "stablehlo": stablehlo.write,
    "onnx": onnx.write,
    "safetensors": tensors.write,
    "workdir": alone.write,
}
WITH_PROGRAM = ("stablehlo", "onnx")  # formats that hold the program too


def export(
    workdir: str | pathlib.Path,
    form: str,
    *,
    of: str = "",
    to: str | pathlib.Path | None = None,
    which: str | int = "latest",
    temperature: Temperature = 1.0,
    **options: Any,
) -> Written:
    """Writes networks of a run in a format.

    Args:
      workdir: of the run.
      form: a name in `FORMATS`.
      of: an answer of the method: ensemble, net0, ..., leader; '': its own answer.
      to: the file or workdir to write, which must not exist; None: WORKDIR/export/OF-STEP.FORMAT,
        and WORKDIR/OF for a workdir.
      which: checkpoint, 'latest', 'best' or a step.
      temperature: as of `Predictor.using`; of formats that hold the program.
      options: `config=` and `say=`, as of `jaxsplit.load`.

    Raises:
      ConfigError: no such format, run, checkpoint or network, or `to` exists.
    """
    if form not in FORMATS:
        raise ConfigError(f"format={form!r}: must be one of {', '.join(FORMATS)}")
    if form in WITH_PROGRAM:
        options["temperature"] = temperature
    elif temperature != 1.0:
        raise ConfigError(
            f"temperature={temperature!r}: only of the formats {', '.join(WITH_PROGRAM)}, which "
            "hold probabilities"
        )
    return FORMATS[form](workdir, of, to, which, **options)
