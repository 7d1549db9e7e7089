"""SIGTERM, SIGHUP and SIGINT: a run finishes its step, saves and exits with a status that
schedulers know.

    with signals.Stop() as stop:
        train_and_evaluate(config, workdir, stop)

The module imports only the standard library at first, so that `early` can run before all else.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, Self

from jaxsplit.errors import Stopped

# 75 is EX_TEMPFAIL, "try again", on which schedulers requeue; 130 is what shells give to Ctrl-C.
# SIGHUP means a closed terminal or connection: handled as SIGTERM, but ignored under nohup.
_Handler = Callable[[int, FrameType | None], object] | int | None  # as `signal.signal` gives it
STATUS = {signal.SIGTERM: 75, signal.SIGINT: 130, signal.SIGHUP: 75}
AGAIN = "the same command resumes from there"
_early: list[socket.socket] = []  # kept open
_ending = threading.Lock()
_PATIENCE = 5.0  # seconds that a program with nothing to save may take to exit by itself


def early() -> None:
    """Lets the signals end the program at once, with their status, until a `Stop` takes over."""
    for signum in _taken():
        signal.signal(signum, lambda number, _: _end(number))
    # A thread reacts even while the main thread waits in C++, as jax does for other processes.
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    _early.extend((reader, writer))

    def watch() -> None:
        while heard := reader.recv(1):
            if heard[0] in STATUS:
                _end(heard[0])

    threading.Thread(target=watch, daemon=True).start()


class Stop:
    """Whether the run was asked to stop.

    Before `hold` and after `release` there is nothing to lose: a signal raises `Stopped` in the
    main thread. If the main thread does not react, as in a compilation, the program exits without
    it. In between, the training calls `after` after every step. A SIGINT that is not the first
    signal always ends the program at once. `request` stops the run like a signal, from any thread.

    `Stop` handles signals only inside `with`, in Python's main thread. In a run of several
    processes jax handles SIGTERM itself, to agree on a step; it takes effect during training, not
    before.
    """

    def __init__(self) -> None:
        self._asked: signal.Signals | None = None
        self._requested = False
        self._held = False
        self._before: dict[int, _Handler] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        taken = [s for s in _taken() if not (s == signal.SIGTERM and _is_multiprocess())]
        self._before = {signum: signal.signal(signum, self._handle) for signum in taken}
        # Python runs handlers when the main thread next runs Python; a thread reacts at once.
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._before:
            return
        signal.set_wakeup_fd(self._wakeup)
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._writer.close()  # ends the thread
        self._watcher.join()
        self._reader.close()

    def request(self) -> None:
        """Stops the run as SIGTERM does, from another thread, a callback or a notebook.

        The run finishes its step, saves and raises `Stopped` with status 75. Before the first step
        it raises as soon as the step is compiled; after the last one it ends as usual. In a run of
        several processes one of them is enough.
        """
        self._requested = True
        if self._held and _is_multiprocess():
            os.kill(os.getpid(), signal.SIGTERM)  # by which jax makes the processes agree

    def hold(self) -> None:
        """From now on a signal takes effect at the end of a step."""
        self._held = True
        self._raise_if_asked()

    def release(self) -> None:
        """Everything is saved: from now on a signal takes effect at once.

        Raises:
          Stopped: a signal has arrived meanwhile.
        """
        self._held = False
        self._raise_if_asked()

    def after(self, step: int) -> bool:
        """Whether all processes stop after this step. Collective; called after every step."""
        if not _is_multiprocess():
            return self._asked is not None or self._requested
        from jax.experimental import multihost_utils

        if not multihost_utils.reached_preemption_sync_point(step):
            return False
        from jaxsplit.hosts import processes

        interrupted = processes.total(self._asked == signal.SIGINT)
        self._asked = signal.SIGINT if interrupted else signal.SIGTERM
        return True

    def stopped(self, text: str) -> Stopped | KeyboardInterrupt:
        """The exception to raise when everything is saved; `text` says what is saved."""
        if self._requested and self._asked is None:
            return Stopped(f"stopped by request: {text}", STATUS[signal.SIGTERM])
        return _stopped(self._asked, text)

    def _raise_if_asked(self) -> None:
        if self._asked is not None or self._requested:
            stopped = self.stopped(f"there was no unsaved work; {AGAIN}")
            if isinstance(stopped, Stopped):
                stopped.together = False  # other processes may not know of the signal
            raise stopped

    def _handle(self, signum: int, _: FrameType | None) -> None:
        if signum == signal.SIGHUP:
            ignore_lost_readers()
        first, self._asked = self._asked is None, self._asked or signal.Signals(signum)
        if first and self._held and _is_multiprocess():
            os.kill(os.getpid(), signal.SIGTERM)  # by which jax makes the processes agree
        if first and not self._held:
            self._raise_if_asked()

    def _watch(self) -> None:
        asked, timeout = None, None
        while True:
            ready, _, _ = select.select([self._reader], [], [], timeout)
            if not ready:
                if asked is not None and not self._held:
                    _end(asked)
                timeout = None
                continue
            for signum in self._reader.recv(64) or [None]:
                if signum is None:
                    return
                if asked and signum == signal.SIGINT:
                    _end(signum)
                elif not asked and signum in STATUS:
                    asked, timeout = signal.Signals(signum), _PATIENCE
                    if asked == signal.SIGHUP:
                        ignore_lost_readers()
                    if self._held:
                        text = "finishing this step, then saving; Ctrl-C (again) stops at once"
                        print(f"{asked.name}: {text}", file=sys.stderr, flush=True)


class _Deaf:
    """A stream that ignores failed writes, for instance to a closed terminal or pipe."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


def ignore_lost_readers() -> None:
    """From now on the program goes on when a terminal or pipe that it prints to is closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Deaf):
            setattr(sys, name, _Deaf(stream))


def _taken() -> list[signal.Signals]:
    """The signals to handle: not SIGHUP if it is ignored already, as under nohup."""
    return [s for s in STATUS if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]


class Interrupt(Stop):
    """The default of a run without a `Stop`: an interrupt saves, then raises KeyboardInterrupt.

    During training the first interrupt is raised when the step is saved; at other
    times, and from the second on, interrupts raise it at once. It never ends the program and
    handles no other signal. It works only in the main thread, in a run of one process, and if
    nobody else handles SIGINT.
    """

    def __enter__(self) -> Self:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            if not _is_multiprocess():
                self._before = {signal.SIGINT: signal.signal(signal.SIGINT, self._handle)}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def stopped(self, text: str) -> Stopped | KeyboardInterrupt:
        # In a run of several processes jax reports SIGTERM, and this object handles nothing.
        return KeyboardInterrupt(text) if self._before else super().stopped(text)

    def _raise_if_asked(self) -> None:
        if self._asked is not None:
            raise KeyboardInterrupt

    def _handle(self, signum: int, _: FrameType | None) -> None:
        first, self._asked = self._asked is None, signal.Signals(signum)
        if not (first and self._held):
            raise KeyboardInterrupt
        text = "finishing this step, then saving; again: stops at once"
        print(f"interrupted: {text}", file=sys.stderr, flush=True)


def _is_multiprocess() -> bool:
    if "jax" not in sys.modules:
        return False
    from jaxsplit.hosts import processes

    return processes.is_multiprocess()


def _stopped(signum: int | None, text: str) -> Stopped:
    name = signal.Signals(signum or signal.SIGTERM)
    return Stopped(f"stopped by {name.name}: {text}", STATUS[name])


def _end(signum: int) -> NoReturn:
    if not _ending.acquire(blocking=False):
        time.sleep(_PATIENCE)  # another thread is about to end the program
    if signum == signal.SIGHUP:
        ignore_lost_readers()
    if "jaxsplit.workdir.lock" in sys.modules:
        sys.modules["jaxsplit.workdir.lock"].release_all()
    stopped = _stopped(signum, "at once; the same command resumes from the last checkpoint")
    print(stopped, file=sys.stderr, flush=True)
    os._exit(stopped.status)
