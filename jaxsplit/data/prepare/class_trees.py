"""Lists the images in folders with a folder for each class; no image counts twice."""

import collections
import hashlib
import os
import pathlib
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxsplit.data.prepare.junk import is_junk
from jaxsplit.data.prepare.readers import Example
from jaxsplit.errors import ConfigError

SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm")
SUFFIXES += (".tif", ".tiff", ".webp")


def is_image(name: str) -> bool:
    """Whether a file of that name counts as an image."""
    return name.lower().endswith(SUFFIXES) and not is_junk(name)


def subfolders(folder: pathlib.Path) -> list[str]:
    """Names of the folders in `folder` that may be classes, sorted."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not is_junk(e.name))


@dataclass
class _Some:
    """Counts paths and remembers the first three."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, path: str) -> None:
        self.count += 1
        if len(self.first) < 3:
            self.first.append(path)

    def __str__(self) -> str:
        return ", ".join(map(ascii_path, self.first)) + " ..." * (self.count > len(self.first))


def ascii_path(text: str) -> str:
    """The text, with escapes if a terminal could not print it."""
    return text if text.isprintable() else ascii(text)


class Tree:
    """A folder with one folder of images for each class.

    names: names of the classes, in Unicode NFC, sorted.
    counts: number of images of each class.
    stamp: changes if any image changes.
    """

    def __init__(self, folder: pathlib.Path, folders: Sequence[str] | None = None) -> None:
        """folders: the classes' folders, "" for `folder` itself; None: all that may be classes."""
        self.folder = folder
        given = folders is not None
        of_name = {"": ""} if given else _class_names(folder, subfolders(folder))
        self.names = sorted(of_name)
        self.folders = [of_name[name] for name in self.names]
        self.loose, self.others, self.special = _Some(), _Some(), _Some()
        self.files: list[list[str]] = [[] for _ in self.names]  # images that are not yet in _packed
        self.counts: list[int] = []
        self.stamp: list[str] = []
        self._packed = [""] * len(
            self.names
        )  # a list of a million strings would take four times the memory

    def __len__(self) -> int:
        return sum(self.counts)

    def pack(self, i: int) -> None:
        """Moves the images of class i from `files` to the packed ones."""
        if self.files[i]:
            self._packed[i] = "\0".join(sorted(self.paths(i) + self.files[i]))
            self.files[i] = []

    def end(self) -> None:
        """Computes counts and stamp after all images are listed."""
        digest = hashlib.sha256()
        for i, name in enumerate(self.names):
            self.pack(i)
            files = self.paths(i)
            digest.update(f"{name}\0\0".encode(errors="surrogateescape"))
            _update(digest, self.folder / self.folders[i], files)
            self.counts.append(len(files))
        self.stamp = [self.folder.name, digest.hexdigest()]

    def paths(self, i: int) -> list[str]:
        """Paths of the images of class i within its folder, sorted."""
        return self._packed[i].split("\0") if self._packed[i] else []

    def labels(self) -> np.ndarray:
        """int[N]: the class of each image, as its position in `names`."""
        return np.repeat(np.arange(len(self.names)), self.counts)

    def examples(
        self, label_of: dict[str, int], take: np.ndarray | None = None
    ) -> Iterator[Example]:
        """Yields the images, class by class; only those in `take` (bool[N]) if it is given."""
        at = 0
        for i, name in enumerate(self.names):
            for image in self.paths(i):
                if take is None or take[at]:
                    path = self.folder / self.folders[i] / image
                    yield Example(str(path), label_of[name], path)
                at += 1

    def label_of(self, names: Sequence[str]) -> dict[str, int]:
        """The label of each class in `names`, which is its position.

        Raises:
          ConfigError: a class of this folder is not in `names`.
        """
        unknown = sorted(set(self.names) - set(names))
        if unknown:
            raise ConfigError(
                f"source: {self.folder} has the class {ascii(unknown[0])}, which is not one of the "
                f"{len(names)} known classes ({ascii_path(names[0])}, ...)"
            )
        return {name: label for label, name in enumerate(names)}

    def notes(self) -> list[str]:
        return [
            f"{some.count} {what}: {some}"
            for some, what in (
                (self.others, f"files in {self.folder} left out, not named as images"),
                (self.special, f"entries of {self.folder} left out, no regular files"),
                (self.loose, f"images left out, directly in {self.folder}, in no class's folder"),
            )
            if some.count
        ]


def _class_names(folder: pathlib.Path, found: list[str]) -> dict[str, str]:
    """The classes whose folders were `found`: name in Unicode NFC -> folder.

    Raises:
      ConfigError: a name begins or ends with a blank, or two names look the same.
    """
    names: dict[str, str] = {}
    for raw in found:
        name = unicodedata.normalize("NFC", raw).strip()
        if name in names:
            raise ConfigError(
                f"source: {folder} has the classes {ascii(names[name])} and {ascii(raw)}, the same "
                "but for blanks or the Unicode form of their letters; rename or merge them"
            )
        names[name] = raw
    for name, raw in names.items():
        if name != unicodedata.normalize("NFC", raw):
            raise ConfigError(
                f"source: {folder}: class {ascii(raw)}: must not begin or end with a blank; rename "
                f"it to {ascii(name)}"
            )
    return names


def _update(digest: Any, folder: pathlib.Path, files: list[str]) -> None:
    """Adds the name, size and modification time of each file to a digest."""
    for name in files:
        try:
            status = os.stat(folder / name)
            facts = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:  # such as a dangling link: reading the image raises an error that names it
            facts = "?"
        digest.update(f"{name}\0{facts}\0".encode(errors="surrogateescape"))


def list_trees(source: pathlib.Path, trees: Sequence[Tree]) -> list[str]:
    """Lists the images of all trees of one source; returns notes for the user.

    Each folder is visited once, however many links lead to it. A file behind a link counts only if
    it is not counted elsewhere. Real files and folders take precedence over links.

    Raises:
      OSError: a folder cannot be listed.
      ConfigError: the folder of a tree is a link to the folder of another.
    """
    walk = _Walk(source)
    for tree in trees:
        walk.add(tree)
    walk.follow_links()
    for tree in trees:
        tree.end()
    notes = [note for tree in trees for note in tree.notes()]
    if walk.left_out.count:
        notes.append(
            f"{walk.left_out.count} links in {source} left out, what they lead to is counted "
            f"elsewhere or holds the source: {walk.left_out}"
        )
    return notes


class _Walk:
    """Walks the trees of one source.

    visited: (device, inode) of the folders seen so far.
    listed: those of them whose images count.
    """

    def __init__(self, source: pathlib.Path):
        self.source = source
        real = pathlib.Path(os.path.realpath(source))
        # A link to a folder that holds the source would list the source again.
        self.visited = {_key(os.stat(folder)) for folder in (real, *real.parents)}
        self.listed: set[tuple[int, int]] = set()
        self.left_out = _Some()
        # Links as (tree, index of the class, path in its folder).
        self.to_classes: collections.deque = collections.deque()
        self.to_folders: collections.deque = collections.deque()
        self.to_files: list[tuple[Tree, int, str]] = []

    def add(self, tree: Tree) -> None:
        """Lists a tree; notes its links for `follow_links`."""
        root = _key(os.stat(tree.folder))
        if tree.folder != self.source and root in self.visited:
            raise ConfigError(
                f"source={self.source}: {tree.folder} is a link to "
                f"{os.path.realpath(tree.folder)}, which is read already; must be images of its own"
            )
        self.visited.add(root)
        for c, folder in enumerate(tree.folders):
            if folder and os.path.islink(tree.folder / folder):
                self.to_classes.append((tree, c, ""))
            else:
                self._list(tree, c, "")
                tree.pack(c)
        if tree.folders != [""]:
            for entry in _entries(tree.folder):
                if is_image(entry.name) and not entry.is_dir():
                    (tree.loose if entry.is_file() else tree.special).add(entry.path)

    def follow_links(self) -> None:
        while self.to_classes or self.to_folders:
            tree, c, path = (self.to_classes or self.to_folders).popleft()
            folder = tree.folder / tree.folders[c] / path
            if _key(os.stat(folder)) in self.visited:
                self.left_out.add(str(folder))
            else:
                self._list(tree, c, path)
        taken = set()
        keys: dict[str, tuple[int, int]] = {}  # key of each folder, by path
        for tree, c, path in self.to_files:
            link = tree.folder / tree.folders[c] / path
            target = os.path.realpath(link)
            folder, name = os.path.split(target)
            if folder not in keys:
                keys[folder] = _key(os.stat(folder))
            if target in taken or (is_image(name) and keys[folder] in self.listed):
                self.left_out.add(str(link))
            else:
                taken.add(target)
                tree.files[c].append(path)

    def _list(self, tree: Tree, c: int, path: str) -> None:
        """Lists a folder and all folders below it; notes their links for later."""
        base = tree.folder / tree.folders[c]
        root = base == tree.folder  # `add` has visited it
        waiting = [path]
        while waiting:
            path = waiting.pop()
            key = _key(os.stat(base / path))
            if key in self.visited and not (root and not path):
                continue
            self.visited.add(key)
            self.listed.add(key)
            for entry in _entries(base / path):
                name = os.path.join(path, entry.name)
                if entry.is_symlink():
                    self._note_link(tree, c, name, entry)
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(name)
                elif not entry.is_file(follow_symlinks=False):
                    tree.special.add(entry.path)
                elif is_image(entry.name):
                    tree.files[c].append(name)
                else:
                    tree.others.add(entry.path)

    def _note_link(self, tree: Tree, c: int, name: str, entry: os.DirEntry) -> None:
        try:
            mode = os.stat(entry.path).st_mode
        except OSError:  # the link leads nowhere: reading it raises an error that names it
            (tree.files[c].append if is_image(entry.name) else tree.others.add)(name)
            return
        if stat.S_ISDIR(mode):
            self.to_folders.append((tree, c, name))
        elif not stat.S_ISREG(mode):
            tree.special.add(entry.path)
        elif is_image(entry.name):
            self.to_files.append((tree, c, name))
        else:
            tree.others.add(entry.path)


def _entries(folder: pathlib.Path) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not is_junk(e.name)), key=lambda e: e.name)


def _key(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
