"""Files of a workdir, on disks of this machine or in a bucket (`gs://`).

Files are written under another name first, created exclusively: a link that somebody has placed
there is never followed, and a reader sees the old file or the new one, whole.
"""

import contextlib
import importlib.util
import os
import pathlib
import secrets
import shutil
from typing import TextIO

from jaxsplit.errors import ConfigError

_TEMPORARY = ".jaxsplit-tmp"
_FLAGS = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


def path_of(workdir: str | os.PathLike) -> pathlib.Path:
    """The absolute path of a workdir: a `pathlib.Path`, or etils' for `gs://bucket/folder`.

    Raises:
      ConfigError: another scheme, no bucket, or what reads buckets is not installed.
    """
    text = os.fspath(workdir)
    scheme, remote, rest = text.partition("://")
    if not remote and isinstance(workdir, pathlib.Path) and text.startswith("gs:/"):
        raise ConfigError(f"workdir={text!r}: must be text; pathlib takes one of the slashes away")
    if not remote:
        return pathlib.Path(text).expanduser().absolute()
    if scheme != "gs" or not rest.strip("/"):  # orbax knows no other
        raise ConfigError(f"workdir={text!r}: must be a directory or gs://<bucket>/<folder>")
    if missing := _missing():
        raise ConfigError(f"workdir={text!r}: needs {missing}; pip install it")
    from etils import epath

    # It has the methods of pathlib.Path that are used here, but does not inherit from it.
    return epath.Path(text)  # pyrefly: ignore[bad-return]


def _missing() -> str:
    """What reads and writes buckets and is not installed."""
    if not any(importlib.util.find_spec(name) for name in ("tensorflow", "gcsfs")):
        return "gcsfs (or tensorflow)"
    try:
        found = importlib.util.find_spec("google.cloud.storage")  # of orbax
    except ModuleNotFoundError:
        found = None
    return "" if found else "google-cloud-storage"


def is_remote(path: pathlib.Path) -> bool:
    """Whether a path is that of a bucket: nothing can be appended or created exclusively there."""
    return "://" in os.fspath(path)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes or replaces a file as a whole; a link of that name is replaced, not followed."""
    write_bytes(path, text.encode())


def write_bytes(path: pathlib.Path, data: bytes) -> None:
    """As `write_text`."""
    if is_remote(path):  # an object appears when it is whole
        path.write_bytes(data)
        return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    try:
        _create(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def create(path: pathlib.Path, text: str = "") -> None:
    """Creates a file that must not exist.

    Raises:
      FileExistsError: it does, or a link of that name. Of a bucket as far as can be seen before.
    """
    if is_remote(path):
        if path.exists():
            raise FileExistsError(str(path))
        path.write_text(text)
    else:
        _create(path, text.encode())


def _create(path: pathlib.Path, data: bytes) -> None:
    with os.fdopen(os.open(path, _FLAGS | os.O_EXCL, 0o666), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def open_to_append(path: pathlib.Path) -> TextIO:
    """A text file of a local disk, opened at its end; not through a link."""
    return os.fdopen(os.open(path, _FLAGS | os.O_APPEND, 0o666), "a", encoding="utf-8")


def try_to_write(folder: pathlib.Path) -> None:
    """Creates and removes a file.

    Raises:
      OSError: a local folder cannot be written. Of a bucket the error is its library's.
    """
    probe = folder / f".writable-{secrets.token_hex(4)}"
    create(probe)
    probe.unlink()


def clear_temporary(folder: pathlib.Path) -> None:
    """Removes what writers that were killed have left behind; none may be at work."""
    if not is_remote(folder):
        for path in folder.glob(f".*{_TEMPORARY}"):
            with contextlib.suppress(OSError):
                path.unlink()


def move(path: pathlib.Path, to: pathlib.Path) -> None:
    """Renames a file or folder; what has the name `to` is removed before."""
    remove(to)
    path.rename(to)


def remove(path: pathlib.Path) -> None:
    """Removes a file or folder, if there is one."""
    if is_remote(path):
        if path.exists():
            from etils import epath

            epath.Path(path).rmtree()
    elif path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)
