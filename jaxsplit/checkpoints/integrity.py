"""Checks that a checkpoint on disk is what was saved, and fits the state to restore.

Format 1 has only the items model, opt, config and data. Format 2 states its number in the item data
and adds the item `checksums` of all other items and the metrics.
"""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from jaxsplit.checkpoints import checksums, orbax_log
from jaxsplit.errors import ConfigError, DamagedError
from jaxsplit.workdir import files

FORMAT = 2


class _UnfitError(Exception):
    """The saved arrays have other names or shapes than the wanted ones."""


@contextlib.contextmanager
def named_errors(path: pathlib.Path) -> Iterator[None]:
    """Turns errors of reading `path` into a DamagedError or ConfigError of one line."""
    try:
        yield
    except _UnfitError as error:
        raise ConfigError(
            f"{_name(path)}: is damaged or of another architecture ({error})"
        ) from error
    except ConfigError:
        raise
    except Exception as error:  # orbax raises bare Exception for damaged files
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DamagedError(f"{_name(path)}: is damaged ({reason[0][:200]})") from error


def text(path: pathlib.Path, item: str) -> dict:
    """Reads an item that is stored as JSON."""
    file = "metrics" if item == "metrics" else None
    return dict(ocp.JsonCheckpointHandler(file).restore(epath.Path(path / item)))


def sums_of(arrays: dict[str, Any], texts: dict[str, dict]) -> dict[str, Any]:
    """The item `checksums`: those of array trees and JSON values, by item, and its own."""
    sums: dict[str, Any] = {item: checksums.of_arrays(tree) for item, tree in arrays.items()}
    sums |= {item: checksums.of_json(text) for item, text in texts.items()}
    return sums | {"checksums": checksums.of_json(sums)}


def checked(path: pathlib.Path) -> dict[str, Any] | None:
    """Checks the JSON items; returns the checksums of the arrays, None for format 1.

    Raises:
      ConfigError: the format is unknown, or the checkpoint's folder was renamed.
      Exception: many kinds, if the checkpoint is damaged.
    """
    position = text(path, "data")
    form = position.get("format", 1)
    sums = None
    if form == FORMAT or (path / "checksums").exists():
        sums = text(path, "checksums")
        for item in ("data", "config", "metrics"):
            if item in sums and sums[item] != checksums.of_json(text(path, item)):
                raise ValueError(f"{item}: its checksum differs")
    if form not in range(1, FORMAT + 1):
        raise ConfigError(
            f"{_name(path)}: has format {form!r}, must be at most {FORMAT}; use the version of "
            "jaxsplit that saved it, or a newer one"
        )
    if sums is not None and sums.pop("checksums", None) != checksums.of_json(sums):
        raise ValueError("checksums: its own checksum differs")
    if (step := position.get("step", int(path.name))) != int(path.name):
        raise ConfigError(
            f"{_name(path)}: is of step {step}, must lie in a folder of that name; rename it to "
            f"{path.parent / str(step)}"
        )
    return sums


def add_metrics(path: pathlib.Path, metrics: dict) -> None:
    """Adds the metrics of an evaluation to a checkpoint that was saved without.

    If this is interrupted, the checkpoint has no metrics, or metrics without a checksum.
    """
    folder = path / "metrics"
    folder.mkdir(exist_ok=True)
    files.write_text(folder / "metrics", json.dumps(metrics))
    if not (path / "checksums").exists():
        return  # format 1
    sums = text(path, "checksums") | {"metrics": checksums.of_json(metrics)}
    sums.pop("checksums")
    sums["checksums"] = checksums.of_json(sums)
    files.write_text(path / "checksums" / "metadata", json.dumps(sums))


def check_fits(path: pathlib.Path, item: str, like: Any, sums: dict[str, Any] | None) -> None:
    """Compares the shapes of a saved item with those of `like`; reads no array.

    Raises:
      Exception: the shapes differ; `named_errors` turns it into a ConfigError.
    """
    _check_fits(path, item, like, sums, lambda name: True)


def check_parts_fit(path: pathlib.Path, item: str, like: Any, sums: dict[str, Any] | None) -> None:
    """Checks as `check_fits`, but the item may hold more parts (params/<part>/...) than `like`."""
    wanted = {part_of(name) for name in shapes(like)}
    _check_fits(path, item, like, sums, lambda name: part_of(name) in wanted)


def _check_fits(
    path: pathlib.Path,
    item: str,
    like: Any,
    sums: dict[str, Any] | None,
    counts: Callable[[str], bool],
) -> None:
    need = shapes(like)

    def same(have: dict[str, tuple[int, ...]], error: type[Exception]) -> None:
        for name in sorted(have.keys() | need.keys()):
            here, should = have.get(name), need.get(name)
            if here != should and counts(name):
                raise error(f"{name} has shape {here}, should be {should}")

    if sums is None:
        return same(saved_shapes(path, item), _UnfitError)
    same({name: checksums.shape(sum_) for name, sum_ in sums[item].items()}, _UnfitError)
    same(saved_shapes(path, item), ValueError)


def compare(item: str, sums: dict[str, Any] | None, tree: Any) -> None:
    """Raises ValueError if a restored array differs from what was saved."""
    if sums is not None and (names := checksums.differing(sums[item], tree)):
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise ValueError(f"{item}: {names[0]}{more}: checksum differs")


def saved_shapes(path: pathlib.Path, item: str) -> dict[str, tuple[int, ...]]:
    """The shape of every array of a saved item, by path."""
    with orbax_log.quiet(), ocp.StandardCheckpointer() as reader:
        return shapes(reader.metadata(path / item).item_metadata.tree)


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every array of a tree, by path ('params/stack/head/bias')."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def part_of(path: str) -> str:
    """The module to which an array belongs: 'stack' for 'params/stack/head/bias'."""
    return path.split("/")[1]


def _name(path: pathlib.Path) -> str:
    return f"checkpoint={path.name} in {path.parent}"
