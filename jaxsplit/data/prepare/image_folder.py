"""Reads folders of images: train/<class>/<image> with test/ or val/, or only <class>/<image>."""

import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jaxsplit.data.arrays import not_held_out, stratified_holdout
from jaxsplit.data.prepare.class_trees import SUFFIXES, Tree, ascii_path, list_trees, subfolders
from jaxsplit.data.prepare.junk import is_junk
from jaxsplit.data.prepare.readers import Example, Found, not_found
from jaxsplit.errors import ConfigError

_ROLES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "development": "validation",
    "eval": "validation",
    "evaluation": "validation",
}


def role(name: str) -> str | None:
    """The split that a folder's name stands for, such as Train, test-set or valid; None: none."""
    plain = re.sub(r"[-\s]+", "_", name.strip().casefold())
    return _ROLES.get(plain.removesuffix("set").rstrip("_"))


def image_folder(source: pathlib.Path, holdout: float = 0.0) -> Found:
    """Reads train/<class>/<image> with test/ or val/ beside it, or <class>/<image> with a holdout.

    Classes are numbered in the order of their names. `holdout` is the share of every class that
    becomes the split `test` if the source has none.

    Raises:
      ConfigError: the folders do not form such a data set.
      OSError: a folder cannot be listed.
    """
    if not source.is_dir():
        raise not_found(source, "a folder train/<class>/<image>, with test/ or val/ beside it")
    roots, notes = _roots(source)
    tests = [root for split, root in roots.items() if split != "train"]
    trees = {split: Tree(root) for split, root in roots.items()}
    notes += list_trees(source, list(trees.values()))
    for tree in trees.values():
        _check_filled(source, tree, notes)
    if tests and holdout:
        raise ConfigError(
            f"holdout={holdout:g}: must be left out, {source} has the folder {tests[0].name}"
        )
    if not tests and not holdout:
        raise ConfigError(
            f"source={source}: no folder test or val beside train; give --holdout=0.1 to hold out "
            "a tenth of every class"
        )
    train = trees["train"]
    if len(train.names) < 2:
        raise _one_class(source, train)
    if line := _deeper(train):
        notes.append(line)
    names = tuple(train.names)
    label_of = {split: tree.label_of(names) for split, tree in trees.items()}
    splits: dict[str, Callable[[], Iterator[Example]]] = {
        split: lambda split=split: trees[split].examples(label_of[split]) for split in trees
    }
    totals = {split: len(tree) for split, tree in trees.items()}
    if holdout:
        kept, held = stratified_holdout(train.labels(), holdout, 0)
        if not len(kept) or not len(held):
            raise ConfigError(
                f"holdout={holdout:g}: holds out {len(held)} of {len(train)} images, must leave "
                "some on both sides"
            )
        mask = np.zeros(len(train), bool)
        mask[kept] = True
        splits["train"] = lambda: train.examples(label_of["train"], mask)
        splits["test"] = lambda: train.examples(label_of["train"], ~mask)
        totals = {"train": len(kept), "test": len(held)}
        if line := not_held_out(train.labels(), held, names):
            notes.append(f"holdout={holdout:g}: {line}")
    return Found(
        splits=splits,
        names=names,
        totals=totals,
        stamp=[[tree.stamp for tree in trees.values()], holdout],
        notes=tuple(notes),
        train_counts=tuple(train.counts),
    )


def _roots(source: pathlib.Path) -> tuple[dict[str, pathlib.Path], list[str]]:
    """({split: its folder}, notes); without a split's folder `source` itself is the training split.

    Raises:
      ConfigError: two folders stand for one split, there is no training folder, or a class has the
        name of a split.
    """
    folders = subfolders(source)
    found: dict[str, str] = {}
    for name in folders:
        if split := role(name):
            if split in found:
                raise ConfigError(
                    f"source={source}: has {ascii_path(found[split])} and {ascii_path(name)}, both "
                    f"the split {split}; must be one folder"
                )
            found[split] = name
    if not found:
        return {"train": source}, []
    if "train" not in found:
        name = ascii_path(next(iter(found.values())))
        raise ConfigError(
            f"source={source}: has the folder {name} and no folder train; put the training images "
            f"into train/<class>/, or, if {name} is a class, rename it (my_{name}, say)"
        )
    notes = []
    others = [name for name in folders if name not in found.values()]
    if others:
        beside = f"{len(others)} folders beside {found['train']} left out"
        notes.append(f"{beside}: {_first(others)}")
    roots = {}
    for split in ("train", "test", "validation"):
        if split in found:
            roots[split], told = _inner(source, source / found[split], split)
            notes += told
    return roots, notes


def _inner(
    source: pathlib.Path, folder: pathlib.Path, split: str
) -> tuple[pathlib.Path, list[str]]:
    """(`folder`, or the only folder in it if its name stands for the same split; notes)."""
    named = [name for name in subfolders(folder) if role(name)]
    if not named:
        return folder, []
    inner = folder / named[0]
    alone = [name for name in os.listdir(folder) if not is_junk(name)] == named
    if alone and role(named[0]) == split and not inner.is_symlink():
        deepest, notes = _inner(source, inner, split)
        return deepest, [f"the split {split} is read from {inner}", *notes]
    raise ConfigError(
        f"source={source}: {folder} has the folder {ascii_path(named[0])}, named as a split is; if "
        f"it is a class, rename it (my_{ascii_path(named[0])}, say), otherwise give "
        f"--source={folder} or move it"
    )


def _check_filled(source: pathlib.Path, tree: Tree, notes: list[str]) -> None:
    """Raises ConfigError unless the tree has classes with images."""
    if len(tree):
        return
    if tree.loose.count:
        form = "<class>/<image>" if tree.folder == source else f"{tree.folder.name}/<class>/<image>"
        raise ConfigError(
            f"source={source}: {tree.loose.count} images lie directly in {tree.folder}; must lie "
            f"in a folder for each class, {form}"
        )
    left_out = "".join(f" ({note})" for note in notes if "link" in note)
    raise not_found(source, f"images in {tree.folder}/<class>/ ({', '.join(SUFFIXES)}){left_out}")


def _deeper(train: Tree) -> str | None:
    """A line for a tree in which no class's folder holds an image itself; None: one does."""
    every = range(len(train.names))
    if any(os.sep not in path for i in every for path in train.paths(i)):  # mostly the first
        return None
    folders = set().union(*(_folders(train, i) for i in every))
    return (
        f"the classes are {_first(train.names)}, and all their images lie in folders within them "
        f"({_first(sorted(folders))}); if those are the classes, {train.folder} must hold them "
        "directly"
    )


def _folders(train: Tree, i: int) -> set[str]:
    """The folders in that of class i, as far as they hold images."""
    return {path.split(os.sep)[0] for path in train.paths(i) if os.sep in path}


def _first(names: Sequence[str]) -> str:
    """The first three names."""
    return ", ".join(map(ascii_path, names[:3])) + " ..." * (len(names) > 3)


def _one_class(source: pathlib.Path, train: Tree) -> ConfigError:
    """The error that there is only one class; it says where others may be."""
    inside = sorted(_folders(train, 0))
    folder, hint = train.folder / train.folders[0], ""
    if inside:
        what = f"--source={folder}" if train.folder == source else f"move them into {train.folder}"
        hint = f"; its folders {_first(inside)} hold images: if these are the classes, " + (
            f"give {what}" if train.folder == source else what
        )
    return ConfigError(
        f"source={source}: one class, {ascii(train.names[0])}, must be at least two{hint}"
    )
