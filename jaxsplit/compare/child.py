"""One process of a comparison: `jaxsplit train`, `eval` or `latency` of a run."""

import contextlib
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import jaxsplit
from jaxsplit.compare import outcome

# On Linux a process gets SIGTERM when the one that started it is gone: it saves and ends, and does
# not train beside the one that the next start starts. The setting survives exec.
_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit(75)
os.execv(sys.argv[2], sys.argv[2:])
"""


def of_program(verb: str, arguments: Sequence[str]) -> list[str]:
    """The command `jaxsplit VERB ...` with this Python."""
    return [sys.executable, "-m", "jaxsplit", verb, *arguments]


class Child:
    """A running process; its output is appended to log.txt in the run's folder.

    It is in a group of its own: a Ctrl-C in the terminal reaches it only through `stop`.
    """

    def __init__(
        self, command: Sequence[str], folder: pathlib.Path, environment: Mapping[str, str]
    ) -> None:
        self._log = folder / outcome.LOG
        self.stopped = False
        self.began = time.monotonic()
        command = list(command)
        if sys.platform == "linux":
            launcher = [sys.executable, "-I", "-S", "-c", _WITH_PARENT, str(os.getpid())]
            command = [*launcher, *command]
        with self._log.open("ab") as log:
            self._start = log.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment() | dict(environment),
                start_new_session=True,
            )

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.began

    def status(self) -> int | None:
        """Its exit status; negative: the signal that killed it; None: it still runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Asks it once to save and end."""
        if not self.stopped:
            self.stopped = True
            with contextlib.suppress(OSError):
                self._process.terminate()

    def wait(self) -> None:
        self._process.wait()

    def error(self) -> str:
        """One line about why it failed."""
        status, said = self.status(), outcome.last_error(self._log, self._start)
        if status is not None and status < 0:
            return f"killed by signal {-status}" + (f", after: {said}" if said else "")
        return said or f"exit status {status}, without a word"


def _environment() -> dict[str, str]:
    """This process's variables, such that `-m jaxsplit` is this package from any folder."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    above = pathlib.Path(jaxsplit.__file__).resolve().parent.parent
    if above.name not in ("site-packages", "dist-packages"):
        paths = [str(above), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return environment
