"""`jaxsplit predict`, main.py --mode=predict: a CSV of what the networks say of images."""

import sys
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import ConfigDict

from jaxsplit.cli import pages
from jaxsplit.errors import ConfigError

if TYPE_CHECKING:
    from jaxsplit.inference import Predictor

_IMAGES = flags.DEFINE_multi_string(
    "images",
    None,
    "for predict: a folder with images at any depth, a file, a pattern as 'photos/*.jpg', or "
    "several with commas between them",
)
_TOP = flags.DEFINE_integer("top", 5, "for predict: classes listed of each image")
_OUT = flags.DEFINE_string("out", "predictions.csv", "for predict and report: the file to write")
_NETWORKS = flags.DEFINE_string(
    "networks",
    None,
    "for predict: those that answer together, as net0,net2 or leader; default: the answer of the "
    "method",
)
_COMBINE = flags.DEFINE_string(
    "combine",
    None,
    "for predict: how they answer together: mean_logits, mean_probs, max_logits or max_probs; "
    "default: config.eval.ensemble",
)
TEMPERATURE = flags.DEFINE_string(
    "temperature",
    None,
    "for predict and export: what logits are divided by: a number, or fitted for the "
    "temperatures that `jaxsplit eval` has written; default: 1",
)
CASCADE = flags.DEFINE_string(
    "cascade",
    None,
    "for predict and latency: asks network after network until they are sure: a threshold of the "
    "largest probability, as 0.9, or accuracy=0.97 or cost=0.5 (of all multiply-adds) to fit one",
)
# TEMPERATURE and CASCADE are of other modes too.
FLAGS = (_IMAGES, _TOP, _OUT, _NETWORKS, _COMBINE)
VALUES = {
    "images": "PATH",
    "out": "FILE",
    "top": "K",
    "networks": "NAMES",
    "combine": "HOW",
    "temperature": "T",
    "cascade": "HOW",
}
PAGE = pages.Page(
    usage="jaxsplit predict --workdir=DIR --images=PATH [--out=FILE] [FLAGS]",
    about="""Predicts the classes of images with the networks of a run; no data set is needed.

Each image is resized, cropped and normalised as an evaluation of the run does. It writes a line
of CSV for each image: the file, the most probable classes with their probabilities, and each
network's own vote. Files that cannot be read are named on stderr, the others are predicted, and
the exit status is 1.""",
    flags={"workdir": "DIR"} | VALUES | {"checkpoint": "STEP"},
    examples=(
        "jaxsplit predict --workdir=runs/digits --images=photos",
        "jaxsplit predict --workdir=runs/digits --images='photos/*.jpg' --top=3 --out=top3.csv",
        "jaxsplit predict --workdir=runs/digits --images=a.png,b.png --networks=net0,net1",
    ),
)


def run(config: ConfigDict, workdir: str, checkpoint: str) -> None:
    """The mode.

    Raises:
      ConfigError: wrong flags or workdir, or no image to predict.
      SystemExit: with status 1; images could not be read, the others are predicted.
    """
    if not _IMAGES.value:
        raise ConfigError("images: must be given: --images=FOLDER_OR_FILES")
    import jax

    from jaxsplit.inference import listing, load, table
    from jaxsplit.report import following
    from jaxsplit.workdir import compile_cache, files

    if "://" in _OUT.value:  # nothing can be appended there
        raise ConfigError(f"out={_OUT.value!r}: must be a file of this machine")
    out = files.path_of(_OUT.value)
    if out.is_dir():
        raise ConfigError(f"out={_OUT.value!r}: must be a file, is a directory")
    images = listing.Images(_IMAGES.value)
    with compile_cache.kept():
        predictor = load(
            workdir,
            checkpoint,
            networks=None if _NETWORKS.value is None else _NETWORKS.value.split(","),
            combine=_COMBINE.value,
            temperature=TEMPERATURE.value,
            config=config,
            devices=jax.local_devices(),
        )
        if CASCADE.value is not None:
            predictor = predictor.using(cascade=threshold(predictor, CASCADE.value))
        done = table.write(predictor, images, out, _TOP.value)
    text = f"predicted {done.predicted:,} image{'s' * (done.predicted != 1)}"
    if done.damaged:
        text += f", {done.damaged:,} could not be read"
    print(f"{text}: {out}\n{following.of_workdir(workdir, 'report')}", flush=True)
    if done.damaged:
        sys.exit(1)


def threshold(predictor: "Predictor", text: str) -> float:
    """That of --cascade; fitted where it asks for an accuracy or a cost.

    Raises:
      ConfigError: it is none of these, or cannot be fitted.
    """
    goal, _, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = None
    if value is None or goal not in ("", "accuracy", "cost"):
        raise ConfigError(f"cascade={text!r}: must be a threshold, accuracy=NUMBER or cost=NUMBER")
    if not goal:
        return value
    fitted = predictor.fit_cascade(**{goal: value})
    its = fitted.expected
    print(
        f"cascade: threshold {fitted.threshold:.4f}, expected on other images: accuracy "
        f"{its.accuracy:.2%} at {its.share:.1%} of the multiply-adds",
        flush=True,
    )
    return fitted.threshold
