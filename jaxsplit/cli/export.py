"""`jaxsplit export`, main.py --mode=export: networks of a run as a file that others load."""

from absl import flags
from ml_collections import ConfigDict

from jaxsplit.cli import pages
from jaxsplit.errors import ConfigError

_FORMAT = flags.DEFINE_string("format", None, "for export: stablehlo, onnx, safetensors or workdir")
_OF = flags.DEFINE_string(
    "of", "", "for export: ensemble, net0, ..., leader; default: the answer of the method"
)
FLAGS = (_FORMAT, _OF)
VALUES = {"format": "FORMAT", "of": "NAME"}
PAGE = pages.Page(
    usage="jaxsplit export --workdir=DIR --format=FORMAT [--of=NAME] [--to=PATH] [FLAGS]",
    about="""Writes networks of a run as a file that other programs load.

stablehlo    the program and its weights, uint8 images in, probabilities out; jax alone loads it
onnx         the same for onnxruntime; needs jax2onnx in an environment of its own, which
             JAXSPLIT_ONNX_PYTHON names, else a folder is written that is converted there
safetensors  the weights; --init_from and `jaxsplit import-torch` read them back
workdir      one network as a workdir of its own

The first three write FILE.json beside the file: class names, shapes, versions, checksum.""",
    flags={"workdir": "DIR"} | VALUES | {"to": "PATH", "checkpoint": "STEP", "temperature": "T"},
    examples=(
        "jaxsplit export --workdir=runs/digits --format=stablehlo",
        "jaxsplit export --workdir=runs/digits --format=safetensors --of=net0",
        "jaxsplit export --workdir=runs/ffsd --format=onnx --of=leader --checkpoint=best",
    ),
)


def run(
    config: ConfigDict, workdir: str, checkpoint: str, to: str | None, temperature: str | None
) -> None:
    """The mode.

    Raises:
      ConfigError: wrong flags or workdir, or no such network.
    """
    from jaxsplit import export
    from jaxsplit.workdir import compile_cache

    form = _FORMAT.value
    if form is None:
        raise ConfigError(f"format: must be given: --format={'|'.join(export.FORMATS)}")
    scale = 1.0 if temperature is None else temperature
    with compile_cache.kept():
        written = export.export(
            workdir,
            form,
            of=_OF.value,
            to=to,
            which=checkpoint,
            temperature=scale,
            config=config,
        )
    print(written)
