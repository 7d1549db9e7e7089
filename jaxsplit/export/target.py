"""What the formats share: where they write, which answers exist, and what stands beside a file."""

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxsplit import __version__
from jaxsplit.errors import ConfigError
from jaxsplit.inference.predictor import Predictor
from jaxsplit.workdir import files

FOLDER = "export"  # in the workdir of the run
FORMAT = 1  # of the description
_CHECKED = 8  # images that an exported program is compared on


@dataclasses.dataclass(frozen=True)
class Written:
    """What was written, and what to tell of it.

    path: of the file or folder.
    lines: sentences: what it is, its size, its check and the next command.
    difference: the largest between its probabilities and those of the Predictor; None: not
      compared.
    """

    path: pathlib.Path
    lines: tuple[str, ...]
    difference: float | None = None

    def __str__(self) -> str:
        return "\n".join(self.lines)


def new_file(
    predictor: Predictor, of: str, to: str | pathlib.Path | None, suffix: str
) -> pathlib.Path:
    """The file to write, whose folder is there.

    Raises:
      ConfigError: it or its description exists, or its folder cannot be made.
    """
    default = predictor.restored.workdir / FOLDER / f"{of}-{predictor.step}{suffix}"
    path = files.path_of(to) if to else default
    if path.is_dir():
        path = path / default.name
    for taken in (path, _beside(path)):
        if taken.exists():
            raise ConfigError(f"to={str(taken)!r}: exists; choose another with --to, or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"to={str(path)!r}: cannot be written ({reason})") from None
    return path


def answer(predictor: Predictor, of: str, known: Iterable[str] = ()) -> str:
    """`of`, or the method's own answer where it is ''.

    Args:
      predictor: the networks.
      of: a name.
      known: those allowed; empty: all that the method answers.

    Raises:
      ConfigError: it is not among them.
    """
    known = tuple(known) or predictor.forward.answers
    name = of or predictor.restored.method.answer
    if name not in known:
        method = predictor.config.method
        raise ConfigError(f"of={name!r}: method={method!r} has {', '.join(known)}")
    return name


def using(predictor: Predictor, of: str, temperature: float | str) -> Predictor:
    """The predictor whose answer is `of`."""
    chosen = predictor.using(temperature=temperature)
    return chosen if of == predictor.restored.method.answer else chosen.using(networks=of)


def random_images(predictor: Predictor) -> np.ndarray:
    """uint8[8, H, W, C], to compare programs on."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (_CHECKED, *predictor.image_shape), dtype=np.uint8)


def described(predictor: Predictor, of: str, form: str) -> dict[str, Any]:
    """What the JSON file beside an exported program says; `docs/export.md` lists the keys."""
    config, known = predictor.config, predictor.restored.facts
    return {
        "format": FORMAT,
        "kind": form,
        "of": of,
        "arch": config.arch,
        "split": config.split,
        "method": config.method,
        "step": predictor.step,
        "num_classes": known.num_classes,
        "class_names": list(known.labels),
        "image_shape": list(known.image_shape),
        "resize_shorter_side": known.shorter_side,
        "mean": list(known.mean),
        "std": list(known.std),
        "jaxsplit": __version__,
        "jax": importlib.metadata.version("jax"),
    }


def interface(predictor: Predictor) -> dict[str, Any]:
    """Names, types and shapes of what an exported program takes and gives."""
    height, width, channels = predictor.image_shape
    return {
        "input": {
            "name": "images",
            "dtype": "uint8",
            "shape": ["batch", height, width, channels],
            "normalised": "inside",
        },
        "output": {
            "name": "probabilities",
            "dtype": "float32",
            "shape": ["batch", predictor.restored.facts.num_classes],
        },
    }


def write_with_description(path: pathlib.Path, data: bytes, description: dict[str, Any]) -> None:
    """Writes a file, and FILE.json with its description and checksum."""
    files.write_bytes(path, data)
    description = description | {
        "file": path.name,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    text = json.dumps(description, indent=2, ensure_ascii=False)
    files.write_text(_beside(path), text + "\n")


def _beside(path: pathlib.Path) -> pathlib.Path:
    """The file of the description."""
    return path.with_name(path.name + ".json")


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
