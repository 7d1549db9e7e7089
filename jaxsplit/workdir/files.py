"""Files of a workdir, on a local disk or in a bucket (`gs://`).

A file is first written under another name, which is created exclusively. So a link at its place is
never followed, and a reader sees either the whole old file or the whole new one.
"""

import contextlib
import importlib.util
import os
import pathlib
import secrets
import shutil
from collections.abc import Callable
from typing import BinaryIO, TextIO

from jaxsplit.errors import ConfigError

_TEMPORARY = ".jaxsplit-tmp"
_FLAGS = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


def path_of(workdir: str | os.PathLike) -> pathlib.Path:
    """The absolute path of a workdir: a `pathlib.Path`; etils' `Path` for `gs://bucket/folder`.

    Raises:
      ConfigError: another scheme, no bucket, or the library for buckets is not installed.
    """
    text = os.fspath(workdir)
    scheme, remote, rest = text.partition("://")
    if not remote and isinstance(workdir, pathlib.Path) and text.startswith("gs:/"):
        raise ConfigError(f"workdir={text!r}: must be text; pathlib takes one of the slashes away")
    if not remote:
        return pathlib.Path(os.path.expanduser(text)).absolute()
    if scheme != "gs" or not rest.strip("/"):  # orbax knows no other
        raise ConfigError(f"workdir={text!r}: must be a directory or gs://<bucket>/<folder>")
    if missing := missing_libraries():
        raise ConfigError(f"workdir={text!r}: needs {missing}; pip install it")
    from etils import epath

    # It has the methods of pathlib.Path that are used here, but does not inherit from it.
    return epath.Path(text)  # pyrefly: ignore[bad-return]


def missing_libraries() -> str:
    """The missing library that reads and writes buckets; '': none is missing."""
    if not any(importlib.util.find_spec(name) for name in ("tensorflow", "gcsfs")):
        return "gcsfs (or tensorflow)"
    try:
        found = importlib.util.find_spec("google.cloud.storage")  # of orbax
    except ModuleNotFoundError:
        found = None
    return "" if found else "google-cloud-storage"


def is_remote(path: pathlib.Path) -> bool:
    """Whether a path lies in a bucket, where nothing can be appended or created exclusively."""
    return "://" in os.fspath(path)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes or replaces a whole file; replaces a link of that name without following it."""
    write_bytes(path, text.encode())


def write_bytes(path: pathlib.Path, data: bytes) -> None:
    """Writes or replaces a whole file, as `write_text` does."""
    if is_remote(path):  # an object appears only when it is complete
        path.write_bytes(data)
        return
    _replace(path, lambda file: file.write(data))


def write_with(path: pathlib.Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes or replaces a whole file, which `write` gets opened, as `write_text` does."""
    if is_remote(path):
        with path.open("wb") as file:
            write(file)
        return
    _replace(path, write)


def create(path: pathlib.Path, text: str = "") -> None:
    """Creates a file that must not exist.

    Raises:
      FileExistsError: the file, or a link of that name, exists. In a bucket another writer may
        create it between check and write.
    """
    if is_remote(path):
        if path.exists():
            raise FileExistsError(str(path))
        path.write_text(text)
    else:
        _create(path, lambda file: file.write(text.encode()))


def _replace(path: pathlib.Path, write: Callable[[BinaryIO], object]) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    try:
        _create(temporary, write)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _create(path: pathlib.Path, write: Callable[[BinaryIO], object]) -> None:
    with os.fdopen(os.open(path, _FLAGS | os.O_EXCL, 0o666), "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def open_to_append(path: pathlib.Path) -> TextIO:
    """Opens a text file on a local disk to append to it; does not follow a link."""
    return os.fdopen(os.open(path, _FLAGS | os.O_APPEND, 0o666), "a", encoding="utf-8")


def try_to_write(folder: pathlib.Path) -> None:
    """Creates and removes a file, to check that the folder is writable.

    Raises:
      OSError: a local folder is not writable. For a bucket its library's own error.
    """
    probe = folder / f".writable-{secrets.token_hex(4)}"
    create(probe)
    probe.unlink()


def clear_temporary(folder: pathlib.Path) -> None:
    """Removes temporary files of killed writers; nobody else may write meanwhile."""
    if not is_remote(folder):
        for path in folder.glob(f".*{_TEMPORARY}"):
            with contextlib.suppress(OSError):
                path.unlink()


def move(path: pathlib.Path, to: pathlib.Path) -> None:
    """Renames a file or folder; removes an existing `to` before."""
    remove(to)
    path.rename(to)


def aside(path: pathlib.Path) -> pathlib.Path:
    """Renames a damaged file to `<name>.damaged`, or `.damaged2` ...; returns the new path."""
    to, number = path.with_name(f"{path.name}.damaged"), 1
    while to.exists():
        number += 1
        to = path.with_name(f"{path.name}.damaged{number}")
    path.rename(to)
    return to


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
