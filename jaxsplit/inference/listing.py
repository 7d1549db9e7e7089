"""The image files that a user names: files, patterns and folders, in natural order."""

import glob
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

from jaxsplit.data.prepare.class_trees import SUFFIXES, is_image
from jaxsplit.data.prepare.junk import is_junk
from jaxsplit.errors import ConfigError

_LETTERS = 10**18  # behind all numbers


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts 'img2' before 'img10'; digits come before letters."""
    parts = [part for part in re.split(r"([0-9]+)", name.casefold()) if part]
    return [(int(p), "") if p[0] in "0123456789" else (_LETTERS, p) for p in parts] + [(-1, name)]


class Images:
    """The image files under some paths; a folder is listed again each time, which holds little.

    Args:
      given: files, folders, patterns of the shell, or several of these with commas between them.
        Of a folder all files that are named as images, at any depth, without hidden files and
        junk; a file that is named itself is taken whatever it is called.

    Raises:
      ConfigError: a path does not exist, or there is no image.
    """

    def __init__(self, given: Sequence[str]) -> None:
        self._paths = [path for each in given for path in _expanded(each)]
        self._count = sum(1 for _ in self)
        if not self._count:
            raise ConfigError(
                f"images={','.join(given)!r}: no image there, must hold files named as "
                f"{', '.join(SUFFIXES)}"
            )

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        for path in self._paths:
            if os.path.isdir(path):
                yield from _files(path, set())
            else:
                yield path


def _expanded(text: str) -> list[str]:
    """The paths that `text` stands for; a path may hold commas and brackets itself.

    Raises:
      ConfigError: there are none.
    """
    path = os.path.expanduser(text)
    if os.path.exists(path):
        return [path]
    if found := [p for p in glob.glob(path) if not is_junk(os.path.basename(p))]:
        return sorted(found, key=natural)
    if "," in text:
        return [path for part in text.split(",") if part for path in _expanded(part)]
    raise ConfigError(f"images={text!r}: no such file or folder")


def _files(folder: str, visited: set[tuple[int, int]]) -> Iterator[str]:
    """Those of a folder and of the folders in it, each once whatever links lead to it."""
    try:
        status = os.stat(folder)
        with os.scandir(folder) as entries:
            # Names alone: a folder may hold a million files.
            found = [(e.name, e.is_dir()) for e in entries if not is_junk(e.name)]
    except OSError as error:
        raise ConfigError(f"images={folder!r}: cannot be listed ({error.strerror})") from None
    key = (status.st_dev, status.st_ino)
    if key in visited:
        return
    visited.add(key)
    for name, is_folder in sorted(found, key=lambda each: natural(each[0])):
        path = os.path.join(folder, name)
        if is_folder:
            yield from _files(path, visited)
        elif is_image(name):
            yield path


def shown(path: str) -> str:
    """A path as text that every terminal and file takes."""
    return str(pathlib.PurePath(path)).encode(errors="backslashreplace").decode()
