"""Where a data set of Hugging Face lies: a folder of `save_to_disk`, or the cache of `datasets`."""

import contextlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxsplit.data import names
from jaxsplit.errors import ConfigError

_DICT, _STATE, INFO = "dataset_dict.json", "state.json", "dataset_info.json"
_IN_HUB = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)  # the name of a set in the Hub


class Found(NamedTuple):
    """A data set on this machine."""

    name: str
    folder: str
    splits: Mapping[str, tuple[pathlib.Path, list[pathlib.Path]]]  # folder of the info, files


def is_named(name: str) -> bool:
    """Whether a data set's name is one of this module."""
    return name.startswith(names.HUGGING_FACE)


def find(data_config: ConfigDict) -> Found:
    """Finds the data set `data_config.name`; if it is nowhere, data.download downloads it.

    Raises:
      ConfigError: it is nowhere, has several configurations, is damaged or cannot be downloaded; or
        the package `datasets` is missing.
    """
    library(data_config.name)
    found = _saved(data_config) or _cached(data_config)
    if found is None and data_config.download and _in_hub(_own(data_config.name)):
        _download(data_config)
        found = _cached(data_config)
    if found is None:
        raise _missing(data_config)
    return found


def library(name: str) -> Any:
    """The package `datasets`.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"data.name={name!r}: needs the package datasets ({error}); pip install -e '.[hf]'"
        ) from error
    return datasets


def _own(name: str) -> str:
    """The name or path without the prefix."""
    return name.removeprefix(names.HUGGING_FACE)


def _in_hub(text: str) -> bool:
    """Whether a set in the Hub may be called so, and no folder here is."""
    return bool(_IN_HUB.fullmatch(text)) and not _is_dir(pathlib.Path(text))


def _is_dir(path: pathlib.Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name too long, a NUL
        return False


def _candidates(data_config: ConfigDict) -> list[pathlib.Path]:
    """The folders in which `save_to_disk` may have put the set."""
    text = _own(data_config.name)
    if not text:
        return []
    own = pathlib.Path(os.path.expanduser(text))
    return list(dict.fromkeys([pathlib.Path(os.path.expanduser(data_config.dir)) / text, own]))


def _saved(data_config: ConfigDict) -> Found | None:
    """The set in a folder of `save_to_disk`."""
    for folder in filter(_is_dir, _candidates(data_config)):
        if (folder / _DICT).is_file() and (folder / _STATE).is_file():
            raise ConfigError(
                f"data.name={data_config.name!r}: {folder} has {_DICT} and {_STATE}, of two data "
                "sets that were saved there one after the other; save the right one elsewhere"
            )
        if (folder / _DICT).is_file():
            with _reading(folder / _DICT) as content:
                parts = [folder / split for split in content["splits"]]
            named = {part.name: (part, _state(part)[1]) for part in parts}
        elif (folder / _STATE).is_file():
            split, files = _state(folder)
            # A slice, such as train[:50%], is the training split of this folder.
            named = {split if split in ("test", "validation") else "train": (folder, files)}
        else:
            continue
        if data_config.subset:
            raise ConfigError(
                f"data.subset={data_config.subset!r}: must be '', as {folder} holds one data set"
            )
        return Found(data_config.name, str(folder), named)
    return None


def _state(folder: pathlib.Path) -> tuple[str | None, list[pathlib.Path]]:
    """(the split's name, its files) of a folder with a state.json."""
    with _reading(folder / _STATE) as state:
        return state["_split"], [folder / file["filename"] for file in state["_data_files"]]


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[Any]:
    """The content of a JSON file; an error in the block becomes a ConfigError."""
    try:
        yield json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, error) from error


def _cached(data_config: ConfigDict) -> Found | None:
    """The newest version of the set in the cache of `datasets`; uses no network.

    Raises:
      ConfigError: it has several configurations and data.subset names none, or another one that
        may not be downloaded.
    """
    text, subset = _own(data_config.name), data_config.subset
    if not _IN_HUB.fullmatch(text):
        return None
    from datasets.naming import camelcase_to_snakecase, filenames_for_dataset_split

    *space, last = text.split("/")
    root = _cache() / "___".join([*space, camelcase_to_snakecase(last)])
    ready = [
        info.parent for info in root.glob(f"*/*/*/{INFO}") if info.parent.suffix != ".incomplete"
    ]
    subsets = sorted({folder.parts[-3] for folder in ready})
    if not subsets:
        return None
    if subset not in (subsets if subset or len(subsets) > 1 else [""]):
        if subset and data_config.download:
            return None
        raise ConfigError(
            f"data.subset={subset!r}: must be one of {', '.join(subsets)}, which {root} holds"
        )
    chosen = [folder for folder in ready if folder.parts[-3] == (subset or subsets[0])]
    # By the time of the info: datasets adds files of its own to a folder long after it is complete.
    folder = max(chosen, key=lambda path: (path / INFO).stat().st_mtime)
    named = {}
    with _reading(folder / INFO) as info:
        prefix = info.get("dataset_name") or info["builder_name"]  # as old versions have it
        for split, known in info["splits"].items():
            lengths = known.get("shard_lengths")
            files = filenames_for_dataset_split(str(folder), prefix, split, "arrow", lengths)
            named[split] = (folder, [pathlib.Path(file) for file in files])
    return Found(data_config.name, str(folder), named)


def _cache() -> pathlib.Path:
    import datasets

    return pathlib.Path(os.path.expanduser(datasets.config.HF_DATASETS_CACHE))


def _download(data_config: ConfigDict) -> None:
    """Lets `datasets` download a set into its cache; the processes of a machine take turns."""
    import datasets

    text = _own(data_config.name)
    print(f"downloading {data_config.name!r} into {_cache()}", flush=True)
    try:
        datasets.load_dataset_builder(text, data_config.subset or None).download_and_prepare()
    except Exception as error:  # the network, the Hub, checksums, disks
        raise ConfigError(
            f"data.download=True: {data_config.name!r} cannot be downloaded ({one_line(error)})"
        ) from error


def _missing(data_config: ConfigDict) -> ConfigError:
    name, text = data_config.name, _own(data_config.name)
    must = "must be a folder that save_to_disk of datasets wrote"
    if text and _is_dir(pathlib.Path(os.path.expanduser(text))):
        make = f"datasets.load_dataset({text!r}).save_to_disk('DIR')"
        return ConfigError(f"data.name={name!r}: {must}, as {make} does; this one lacks {_STATE}")
    if text:
        must += f" ({' or '.join(map(str, _candidates(data_config)))})"
    if not text or _IN_HUB.fullmatch(text):
        must += f", or a set that load_dataset has put into its cache ({_cache()})"
    if text and not data_config.download and _IN_HUB.fullmatch(text):
        must += "; with --config.data.download=True datasets may download it"
    return ConfigError(f"data.name={name!r}: {must}")


def damaged(path: Any, error: Exception) -> ConfigError:
    return ConfigError(
        f"data.name: {path} is incomplete or damaged ({one_line(error)}); write the data set again"
    )


def one_line(error: Exception) -> str:
    """An error in one line."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text if len(text) <= 300 else f"{text[:300]} ..."
