"""What the command line programs share: flags of a config and a workdir, errors of one line."""

import contextlib
import os
import pathlib
import sys
import traceback
from collections.abc import Iterator

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

# TensorFlow, which writes the TensorBoard files, prints notices unless told not to.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from jaxsplit import config as config_lib  # noqa: E402
from jaxsplit.config import (
    flag_files,  # noqa: E402
    saved,  # noqa: E402
)
from jaxsplit.errors import (  # noqa: E402
    ConfigError,
    NonFiniteLossError,
    SaveError,
    Stopped,
    disk_full,
)
from jaxsplit.hosts import processes  # noqa: E402

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File with get_config(), --config.field=value overrides; default: the workdir's"
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: config, metrics, checkpoints")


def parse(argv: list[str], *, files: bool = False) -> list[str]:
    """Parses the flags, those in files too; wrong ones are one line and exit status 2.

    `files`: of a program that makes a workdir from files. Returns its name and those.
    """
    given: dict[str, str] = {}
    try:
        # ml_collections makes the flags of a config's fields from sys.argv.
        argv = sys.argv[:] = [argv[0], *flag_files.expanded(argv[1:])]
        given = config_lib.flags_given(argv)
        return _parse(argv, given, files)
    except (flags.Error, ConfigError, OSError) as error:
        _fail(_of_config_file(error, given.get("config", "")), 2)


def _parse(argv: list[str], given: dict[str, str], files: bool) -> list[str]:
    if {"help", "h", "helpshort"} & given.keys():
        main = sys.modules["__main__"]
        print(f"{main.__doc__}\n{flags.FLAGS.main_module_help()}")
        print(flags.FLAGS.module_help(sys.modules[__name__]))
        sys.exit()
    if not pathlib.Path(given.get("config", __file__).partition(":")[0]).is_file():
        raise ConfigError(f"config={given['config']!r}: must be a file with get_config()")
    if "config" not in given and given.get("workdir") and not files:
        # The workdir's own config, which can be overridden like any other.
        config_lib.load(given["workdir"])
        argv = [argv[0], f"--config={saved.__file__}:{given['workdir']}", *argv[1:]]
    wanted = "get_config() must return what configs.defaults.get_config() does, with fields changed"
    logging.set_verbosity(logging.ERROR)  # ml_collections warns of what is an error below
    try:
        rest = flags.FLAGS(argv)
    except (AttributeError, KeyError, flags.Error) as error:
        # The file may have registered a method, and with it fields.
        config_lib.check_overrides(given)
        if isinstance(error, flags.Error):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        if "config_flags" not in frame.filename:  # a bug in the config file
            raise
        if frame.name == "parse":  # of the file
            wanted = "must be a file with get_config()"
        raise ConfigError(f"config={given.get('config')!r}: {wanted}") from None
    if rest[1:] and not files:
        raise ConfigError(f"unknown argument {rest[1]!r}")
    config = CONFIG.value
    if config is None and "config" not in given:
        raise ConfigError("config: must be given: --config=configs/<name>.py")
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"config={given.get('config')!r}: {wanted}, it returns {config!r}")
    return rest


def _of_config_file(error: Exception, given: str) -> Exception:
    """`error`, or one line where the file has no get_config() that can be called so."""
    # Of an error in a config file absl keeps the traceback as text.
    lines = str(error).strip().splitlines()
    frames = [line for line in lines if line.lstrip().startswith("File ")]
    if not frames or "config_flags.py" not in frames[-1]:
        return error
    path, _, text = given.partition(":")
    if "get_config() takes 0 positional arguments" in lines[-1]:
        return ConfigError(f"config={given!r}: {path} takes no arguments ({text!r})")
    return ConfigError(f"config={given!r}: must be a file with get_config() ({lines[-1].strip()})")


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Ends the program at bad input (status 2) and at a loss that is not finite, a checkpoint that
    cannot be saved and a full disk (status 1); where a signal stopped it with the signal's status.

    Of several processes also at any other error (status 1): the others would be waited for.
    """
    logging.set_verbosity(logging.FATAL)  # orbax tells much, and errors twice
    try:
        yield
    except (ConfigError, NonFiniteLossError, SaveError) as error:
        _fail(error, 2 if isinstance(error, ConfigError) else 1)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        processes.leave_together(stopped.status, wait=stopped.together)
    except Exception as error:
        if disk_full(error):
            _fail(SaveError(f"the disk is full: {error}"), 1)
        if not processes.is_multiprocess():
            raise
        if line := processes.lost(error):
            print("error:", line, file=sys.stderr)
        else:
            traceback.print_exc()
        processes.leave(1)


def _fail(error: Exception, status: int) -> None:
    """Ends with one line, without a traceback, unless it is that of a bug in a config file."""
    text = str(error).strip()
    last = " ".join(text.splitlines()[-1].split())
    # Of an error in a config file absl keeps the traceback as text; its last line says what.
    ours = last.removeprefix(f"{ConfigError.__module__}.{ConfigError.__qualname__}: ")
    text = text if "Traceback" in text and ours == last else ours
    print("error:", text, file=sys.stderr, flush=True)
    processes.leave(status)
