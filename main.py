"""The command line of jaxsplit: flags, and dispatch on --mode. All else can be imported.

python main.py --config=configs/digits_wrn16_4_x4.py --workdir=runs/digits
python main.py --mode=eval --workdir=runs/digits --checkpoint=best
python main.py --mode=summary --config=configs/imagenet_seresnet101_x4.py
"""

import os
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

# TensorFlow, which writes the TensorBoard files, prints notices unless told not to.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from jaxsplit import config as config_lib  # noqa: E402
from jaxsplit import loop, summary  # noqa: E402
from jaxsplit.errors import ConfigError, NonFiniteLossError  # noqa: E402

SAVED = pathlib.Path(__file__).parent / "configs" / "saved.py"
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File with get_config(), --config.field=value overrides; default: the workdir's"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: config, metrics, checkpoints")
_MODE = flags.DEFINE_string("mode", "train", "train, eval or summary")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "For eval: latest, best or a step")

MODES = {
    "train": lambda config: loop.train_and_evaluate(config, _WORKDIR.value),
    "eval": lambda config: loop.evaluate_checkpoint(config, _WORKDIR.value, _CHECKPOINT.value),
    "summary": lambda config: print(summary.of_config(config)),
}


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; wrong ones are one line and exit status 2."""
    given = config_lib.flags_given(argv)
    try:
        config_lib.check_overrides(given)
        if not pathlib.Path(given.get("config", __file__).partition(":")[0]).is_file():
            raise ConfigError(f"config={given['config']!r}: must be a file with get_config()")
        if "config" not in given and given.get("workdir"):
            # The workdir's own config, which can be overridden like any other.
            config_lib.load(given["workdir"])
            argv = [argv[0], f"--config={SAVED}:{given['workdir']}", *argv[1:]]
        if extra := flags.FLAGS(argv)[1:]:
            raise ConfigError(f"unknown argument {extra[0]!r}")
        if _CONFIG.value is None:
            raise ConfigError("config: must be given: --config=configs/<name>.py")
        return argv[:1]
    except (flags.Error, ConfigError, OSError) as error:
        fail(error, 2)


def fail(error: Exception, status: int) -> None:
    """Ends with one line, without a traceback, unless it is that of a config file."""
    text = str(error).strip()
    text = text if "Traceback" in text else " ".join(text.splitlines()[-1].split())
    print("error:", text, file=sys.stderr, flush=True)
    sys.exit(status)


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # jax and orbax tell much
    try:
        if _MODE.value not in MODES:
            raise ConfigError(f"mode={_MODE.value!r}: must be one of {', '.join(MODES)}")
        if _MODE.value != "summary" and not _WORKDIR.value:
            raise ConfigError(f"workdir: must be given with --mode={_MODE.value}")
        MODES[_MODE.value](_CONFIG.value)
    except (ConfigError, NonFiniteLossError) as error:
        fail(error, 2 if isinstance(error, ConfigError) else 1)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
