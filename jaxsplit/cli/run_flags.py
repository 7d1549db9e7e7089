"""What all verbs of a run share: the flags --config and --workdir, and one-line errors."""

import contextlib
import os
import pathlib
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeAlias

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

# Keeps TensorFlow, which writes the TensorBoard files, from printing notices.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from jaxsplit import config as config_lib  # noqa: E402
from jaxsplit.cli import pages  # noqa: E402
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
from jaxsplit.recipes import experiments  # noqa: E402

_Parsed: TypeAlias = Callable[[list[str], dict[str, str]], list[str]]
_WANTED = "get_config() must return what jaxsplit.defaults.get_config() does, with fields changed"
# ml_collections reads a command line to make a flag of each config field. sys.argv may contain an
# unchecked --flagfile, so it reads this list instead, which is filled after all checks.
_ARGUMENTS: list[str] = []
# The flags of the config as they were given, before a name in --config becomes a path.
_OF_CONFIG: list[str] = []
CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "a built-in experiment or a file with get_config(), each with :ARGUMENTS if it takes some; "
    "default: the config saved in the workdir",
    sys_argv=_ARGUMENTS,
)
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run: config, metrics, checkpoints")


def overrides_and_experiments() -> str:
    """The part of a help page about --config."""
    titles = {name: experiments.title(name) for name in experiments.names()}
    listed = "\n".join(
        f"  {name:25} {textwrap.shorten(title, 70, placeholder=' ...')}"
        for name, title in titles.items()
    )
    return f"""--config.FIELD=VALUE overrides a field of the config, as in --config.optim.lr=0.05;
jaxsplit/defaults.py lists all fields. --flagfile=FILE reads flags from a file, one per line.

built-in experiments (NAME or NAME:key=value,...):
{listed}"""


def of_config() -> list[str]:
    """The arguments of the parsed command line that make the config: --config, --config.FIELD."""
    return list(_OF_CONFIG)


def parse(argv: list[str], page: pages.Page) -> list[str]:
    """Parses the flags, including those in files. A wrong flag prints one line and exits with 2.

    Args:
      argv: the program's name and its arguments. Without --config the workdir's config is used.
      page: what --help prints.

    Returns:
      The program's name.
    """

    def parsed(argv: list[str], given: dict[str, str]) -> list[str]:
        if "config" not in given and given.get("workdir"):
            # The workdir's own config can be overridden like any other.
            config_lib.load(given["workdir"])
            argv = [argv[0], f"--config={saved.__file__}:{given['workdir']}", *argv[1:]]
        rest = _values(argv, given)
        if rest[1:]:
            raise ConfigError(f"unknown argument {rest[1]!r}")
        return rest

    return _parse(argv, page, parsed)


def parse_with_files(argv: list[str], page: pages.Page) -> list[str]:
    """As `parse`, for a program that takes files; returns its name and the files."""
    return _parse(argv, page, _values)


def _parse(argv: list[str], page: pages.Page, parsed: _Parsed) -> list[str]:
    given: dict[str, str] = {}
    try:
        argv = [argv[0], *flag_files.expanded(argv[1:])]
        if pages.asked_for(argv[1:]):
            print(page.text(flags.FLAGS))
            sys.exit()
        given = config_lib.flags_given(argv)
        _OF_CONFIG[:] = _of_config(argv[1:])
        argv = _ARGUMENTS[:] = _with_experiment(argv, given)
        rest = parsed(argv, given)
        _check_config(given)
        return rest
    except BrokenPipeError:  # the page has no reader any more
        raise
    except (flags.Error, ConfigError, OSError) as error:
        _fail(_of_config_file(error, given.get("config", "")), 2)


def _of_config(arguments: list[str]) -> list[str]:
    """Those among the arguments that make the config, each with its value."""
    found = []
    for argument, after in zip(arguments, [*arguments[1:], "-"], strict=False):
        name, equals, _ = argument.partition("=")
        if argument == "--":
            break
        if not name.startswith("-"):
            continue
        if name.lstrip("-") == "config" or name.lstrip("-").startswith(("config.", "noconfig.")):
            alone = equals or not config_lib.may_be_a_value(after)
            found += [argument] if alone else [argument, after]
    return found


def _with_experiment(argv: list[str], given: dict[str, str]) -> list[str]:
    """Replaces the name of a built-in experiment in --config by the path of its file.

    Raises:
      ConfigError: --config names neither a file nor an experiment.
    """
    if "config" not in given:
        return argv
    name, colon, arguments = given["config"].partition(":")
    if pathlib.Path(name).is_file():
        return argv
    path = experiments.find(name)
    if path is None:
        near = ", ".join(experiments.nearest(name))
        raise ConfigError(
            f"config={given['config']!r}: must be a file with get_config() or a built-in "
            f"experiment; nearest are {near}"
        )
    # ml_collections reads every --config, so all of them are removed and the path is given once.
    rest, made = argv[1:], [argv[0], f"--config={path}{colon}{arguments}"]
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return [*made, argument, *rest]
        if argument in ("--config", "-config"):
            rest.pop(0)
        elif not argument.startswith(("--config=", "-config=")):
            made.append(argument)
    return made


def _values(argv: list[str], given: dict[str, str]) -> list[str]:
    """Gives the flags their values; returns the program's name and the other arguments."""
    logging.set_verbosity(logging.ERROR)  # ml_collections logs what is reported as an error here
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError, flags.Error) as error:
        # Only after the config file has run: it may register a method with fields of its own.
        config_lib.check_overrides(given)
        if isinstance(error, flags.Error):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        if "config_flags" not in frame.filename:  # a bug in the config file
            raise
        wanted = "must be a file with get_config()" if frame.name == "parse" else _WANTED
        raise ConfigError(f"config={given.get('config')!r}: {wanted}") from None


def _check_config(given: dict[str, str]) -> None:
    config = CONFIG.value
    if config is None and "config" not in given:
        raise ConfigError("config: must be given: --config=NAME or --config=FILE.py")
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"config={given.get('config')!r}: {_WANTED}, it returns {config!r}")


def _of_config_file(error: Exception, given: str) -> Exception:
    """A one-line error if the config file has no suitable get_config(), else `error`."""
    # absl keeps the traceback of an error in a config file as text.
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
    """Turns errors of a run into one line and an exit status.

    Bad input ends the program with status 2. A loss that is not finite, a checkpoint that cannot be
    saved and a full disk end it with status 1, and a signal with the status of `Stopped`. In a run
    of several processes any other error ends it with status 1, without waiting for the others.
    """
    logging.set_verbosity(logging.FATAL)  # orbax logs a lot, and reports errors twice
    try:
        yield
    except (ConfigError, NonFiniteLossError, SaveError) as error:
        _fail(error, 2 if isinstance(error, ConfigError) else 1)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        leave = processes.leave_together if stopped.together else processes.leave_now
        leave(stopped.status)
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


def _fail(error: Exception, status: int) -> NoReturn:
    """Prints one line and exits; keeps the traceback if a config file has a bug."""
    text = str(error).strip()
    last = " ".join(text.splitlines()[-1].split())
    # absl keeps the traceback of an error in a config file as text; its last line is the error.
    ours = last.removeprefix(f"{ConfigError.__module__}.{ConfigError.__qualname__}: ")
    text = text if "Traceback" in text and ours == last else ours
    print("error:", text, file=sys.stderr, flush=True)
    processes.leave(status)
