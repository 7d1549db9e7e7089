"""`jaxsplit latency`, main.py --mode=latency: how long networks take to answer."""

from typing import TYPE_CHECKING

from absl import flags
from ml_collections import ConfigDict

from jaxsplit.cli import pages, predict
from jaxsplit.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

_BATCHES = flags.DEFINE_list(
    "batches",
    [str(2**i) for i in range(9)],
    "for latency: batch sizes, with commas between them",
)
_SECONDS = flags.DEFINE_float(
    "seconds", 2.0, "for latency: time to measure one program at one batch size"
)
_LOWERINGS = flags.DEFINE_list(
    "lowerings", None, "for latency: names as of config.lowering, with commas; default: all"
)
FLAGS = (_BATCHES, _SECONDS, _LOWERINGS)
VALUES = {"batches": "SIZES", "seconds": "S", "lowerings": "NAMES"}
PAGE = pages.Page(
    usage="jaxsplit latency --config=NAME|FILE | --workdir=DIR [--batches=SIZES] [--seconds=S]",
    about="""Measures how long a batch of images takes from host memory to probabilities there: of
the undivided network and of the networks that replace it, in every lowering or in those of
--lowerings, over several devices where there are some, and as a cascade with --cascade.

It prints a table, and writes WORKDIR/latency.json if a workdir is given. With --config alone the
weights are random, which takes as long.""",
    flags={"config": "NAME|FILE", "workdir": "DIR"}
    | VALUES
    | {"cascade": "HOW", "checkpoint": "STEP"},
    examples=(
        "jaxsplit latency --config=digits_wrn16_4_x4 --batches=1,16,256",
        "jaxsplit latency --workdir=runs/digits --cascade=cost=0.5",
    ),
)


def run(config: ConfigDict, workdir: str, checkpoint: str, cascade: str | None) -> None:
    """The mode.

    Raises:
      ConfigError: wrong flags, config or workdir.
    """
    batches = _sizes()
    if not _SECONDS.value > 0:
        raise ConfigError(f"seconds={_SECONDS.value}: must be above 0")
    if cascade is not None and not workdir:
        raise ConfigError("cascade: needs --workdir, whose networks it asks")
    from jaxsplit import config as config_lib
    from jaxsplit import stack
    from jaxsplit.checkpoints import store
    from jaxsplit.inference import latency, load
    from jaxsplit.report import following
    from jaxsplit.workdir import compile_cache

    is_run = bool(workdir) and store.exists(workdir)
    with compile_cache.kept():
        predictor = None
        if is_run:
            predictor = load(workdir, checkpoint, config=config, batch_size=max(batches))
            if cascade is not None:
                predictor = predictor.using(cascade=predict.threshold(predictor, cascade))
        elif cascade is not None:
            raise ConfigError(f"workdir={workdir!r}: holds no checkpoints, which cascade needs")
        if workdir:  # before minutes of measuring
            config_lib.prepare_workdir(workdir)
        found = latency.measure(
            config,
            batches,
            seconds=_SECONDS.value,
            lowerings=_LOWERINGS.value or stack.LOWERINGS[1:],
            predictor=predictor,
            images=None if cascade is None else _test_images(config, max(batches)),
            say=lambda line: print(line, flush=True),
        )
    print(latency.table(found))
    if workdir:
        print(f"latency: {latency.write(found, workdir)}")
    if is_run:
        print(following.of_workdir(workdir, "report"))


def _test_images(config: ConfigDict, count: int) -> "np.ndarray":
    """uint8[N, H, W, C]: at most `count` images of the test set.

    Raises:
      ConfigError: the data set is not there, or is read from JPEG files during a run.
    """
    from jaxsplit import data, experiment

    test = experiment.build_for_evaluation(config).dataset.test
    if not isinstance(test, data.Arrays):
        raise ConfigError("cascade: latency needs a data set that lies in memory")
    return test.images[:count]


def _sizes() -> list[int]:
    """The batch sizes, in ascending order."""
    sizes = []
    for text in _BATCHES.value:
        if not text.strip().isdecimal() or int(text) < 1:
            raise ConfigError(f"batches={text!r}: must be numbers of 1 or more")
        sizes.append(int(text))
    if not sizes:
        raise ConfigError("batches: must be at least one number")
    return sorted(set(sizes))
