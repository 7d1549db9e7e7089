"""One run at a time writes into a workdir: the file `.lock` says which.

The file holds host, process and start time of its owner, who touches it every `BEAT` seconds. A
run takes over a stale lock, whose owner no longer exists:

- If the owner ran on this machine (same boot, same PID namespace), its process id and start time
  tell whether it still runs.
- If the owner ran elsewhere, the lock is stale when the file has not changed for `STALE` seconds.
  Only changes count, so the clocks of the hosts do not matter.

Lock files are created exclusively, also on NFS, so two runs cannot both take a lock. A bucket
(`gs://`) has no exclusive creation: two runs that start within the same second may both continue
until one of them sees at its next beat that it no longer owns the file.
"""

import contextlib
import json
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from jaxsplit.errors import ConfigError, SaveError, disk_full
from jaxsplit.workdir import files

FILE = ".lock"
BEAT = 20.0  # seconds
STALE = 120.0  # seconds: more than a few beats, and longer than NFS caches a file
_held: dict[str, "Lock"] = {}


class Lock:
    """The lock of a workdir that this process writes into; `take` makes one.

    `lost`: who took the lock over, for instance while this process was suspended; '': nobody.
    """

    def __init__(self, folder: pathlib.Path, owner: dict[str, Any]) -> None:
        self._path, self._owner, self.lost = folder / FILE, owner, ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="workdir lock")
        self._thread.start()
        _held[str(folder)] = self

    def check(self) -> None:
        """Raises SaveError if another run has taken the workdir over."""
        if not self._over.is_set():
            self._look()
        if self.lost:
            raise SaveError(
                f"workdir={str(self._path.parent)!r}: was taken over by {self.lost} while this run "
                "was suspended; nothing was saved since"
            )

    def release(self) -> None:
        """Removes the lock file if this run still owns it."""
        self._over.set()
        _held.pop(str(self._path.parent), None)
        with contextlib.suppress(Exception):  # the disk may be gone
            if _read(self._path) == self._owner:
                self._path.unlink()

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            with contextlib.suppress(Exception):  # the file system may be away for a while
                self._look()
                if not self.lost:
                    _touch(self._path, self._owner)

    def _look(self) -> None:
        now = _read(self._path)
        if now is None:  # somebody removed it
            with contextlib.suppress(FileExistsError):
                files.create(self._path, json.dumps(self._owner) + "\n")
                if self._over.is_set():  # it was `release`, just now
                    self._path.unlink(missing_ok=True)
        elif now and now != self._owner:
            self.lost = _who(now)


def take(
    folder: pathlib.Path,
    say: Callable[[str], None] = print,
    make_room: Callable[[pathlib.Path], None] = lambda folder: None,
) -> Lock:
    """Locks a workdir before anything else in it changes.

    If the owner may no longer exist, it waits for at most `STALE` seconds.

    Args:
      folder: the workdir.
      say: gets a line if it waits, and one if it takes over.
      make_room: called with the folder if the disk is full, after an empty lock file is in place.

    Raises:
      ConfigError: another run owns the workdir; says who, since when, and how it knows.
      OSError: the file cannot be created.
    """
    path = folder / FILE
    owner = _me()
    while True:
        try:
            files.create(path)
        except FileExistsError:
            _take_over(path, say)
            continue
        try:
            _write(path, owner, lambda: make_room(folder))
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        if files.is_remote(path) and (now := _read(path)) != owner:
            raise _refusal(path, now or {}, "took it at the same moment")
        return Lock(folder, owner)


def held(
    at_end: contextlib.ExitStack, say: Callable[[str], None] = print
) -> Callable[[pathlib.Path], None]:
    """A function for `config.prepare_workdir` that locks until `at_end` closes."""

    def lock(folder: pathlib.Path) -> None:
        at_end.callback(take(folder, say).release)

    return lock


def check(folder: pathlib.Path) -> None:
    """Calls `Lock.check` if this process has locked the workdir; otherwise does nothing."""
    if held := _held.get(str(folder)):
        held.check()


def release_all() -> None:
    """Releases all locks of this process, before it ends at once."""
    for lock in list(_held.values()):
        lock.release()


def _me() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "machine": this_machine(),
        "started": _started(os.getpid()),
        "token": secrets.token_hex(8),
    }


def _take_over(path: pathlib.Path, say: Callable[[str], None]) -> None:
    """Removes a stale lock at `path`; returns when no lock is left.

    Raises:
      ConfigError: its owner still runs.
    """
    owner = _read(path)
    if owner is None:
        return
    here = owner.get("machine") == this_machine() is not None
    if here:
        if _started(owner.get("pid")) == owner.get("started") is not None:
            raise _refusal(path, owner, "that process is alive")
        why = "that process is gone"
    else:
        if seconds := _remaining(path):
            say(f"{path} belongs to {_who(owner)}; waiting up to {seconds:.0f} s for it to change")
        if _changes(path, seconds):
            owner = _read(path) or owner
            raise _refusal(path, owner, f"it touches {FILE} every {BEAT:.0f} s")
        why = f"{FILE} has not changed for {STALE:.0f} s"
    # Renamed first: if two runs find it stale, only one of them can take it.
    aside = path.with_name(f"{FILE}-{secrets.token_hex(4)}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    # Another run was faster; its file is empty until it has written its name.
    if (moved := _read(aside) or {}) != owner:
        with contextlib.suppress(FileExistsError):  # give it back
            files.create(path, json.dumps(moved) + "\n")
        files.remove(aside)
        raise _refusal(path, moved, "it has just started")
    files.remove(aside)
    say(f"took {path.parent} over from {_who(owner)}: {why}")


def _changes(path: pathlib.Path, seconds: float) -> bool:
    """Whether a lock is touched or replaced within that time; False if it is released."""
    first, until = _state(path), time.monotonic() + seconds
    while first is not None and time.monotonic() < until:
        time.sleep(min(1.0, STALE / 10))
        if (now := _state(path)) != first:
            return now is not None
    return False


def _remaining(path: pathlib.Path) -> float:
    """Seconds until an unchanged lock is stale, by the file system's own clock."""
    probe = path.with_name(f"{FILE}-{secrets.token_hex(4)}")
    try:
        files.create(probe)
        age = _mtime(probe) - _mtime(path)
    except OSError:
        return STALE
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return min(max(STALE - age, 0.0), STALE)


def _mtime(path: pathlib.Path) -> float:
    if not files.is_remote(path):
        return path.stat().st_mtime
    from etils import epath

    return epath.Path(path).stat().mtime


def _state(path: pathlib.Path) -> tuple | None:
    """The state that a beat changes. Opens the file, so that NFS asks the server."""
    try:
        if files.is_remote(path):
            return path.read_text(), _mtime(path)
        with path.open() as file:
            status = os.fstat(file.fileno())
            return file.read(), status.st_mtime_ns, status.st_ino
    except OSError:
        return None


def _touch(path: pathlib.Path, owner: dict[str, Any]) -> None:
    if files.is_remote(path):
        _write(path, owner)
    else:
        os.utime(path, follow_symlinks=False)


def _write(
    path: pathlib.Path, owner: dict[str, Any], make_room: Callable[[], None] = lambda: None
) -> None:
    text = json.dumps(owner) + "\n"
    try:
        files.write_text(path, text)
    except OSError as error:
        if not disk_full(error):
            raise
        make_room()
        files.write_text(path, text)


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    """The owner in a lock file; None: no file; {}: unreadable, as while it is being written."""
    try:
        owner = json.loads(path.read_text())
    except FileNotFoundError:
        return {} if not files.is_remote(path) and path.is_symlink() else None
    except (OSError, ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) else {}


def this_machine() -> str | None:
    """Boot and PID namespace, within which a process id is unique; None: unknown."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: Any) -> str | None:
    """Start time of a process of this machine, in the kernel's ticks; None: no such process."""
    try:
        text = pathlib.Path(f"/proc/{int(pid)}/stat").read_text()
    except (OSError, ValueError, TypeError):
        return None
    state, *rest = text.rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]


def _who(owner: dict[str, Any]) -> str:
    host, pid, since = (owner.get(name, "?") for name in ("host", "pid", "since"))
    return f"process {pid} on {host}, since {since}"


def _refusal(path: pathlib.Path, owner: dict[str, Any], why: str) -> ConfigError:
    return ConfigError(
        f"workdir={str(path.parent)!r}: another run is at work there: {_who(owner)} ({why}; a lock "
        f"is stale when its process is gone or, from another machine, {FILE} has not changed for "
        f"{STALE:.0f} s). Wait for its end, or choose another workdir"
    )
