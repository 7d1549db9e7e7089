"""`--mode=predict`: a folder of images in, a CSV of classes and probabilities out."""

import csv
import itertools
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TextIO

import numpy as np

from jaxsplit.errors import ConfigError
from jaxsplit.inference import listing, pictures
from jaxsplit.inference.predictor import Prediction, Predictor, threads

PART = ".part"  # behind the name of a file that is not yet complete


class Written(NamedTuple):
    """What `write` did: how many images it predicted, and how many it could not read."""

    predicted: int
    damaged: int


def write(predictor: Predictor, images: listing.Images, out: pathlib.Path, top: int) -> Written:
    """Predicts images and writes a line of CSV for each that can be read.

    The columns are `file`; `class1`, `probability1`, ... of the `top` most probable classes; and
    for each network its name, its own most probable class, and `<name>_probability`. Those
    that a cascade did not ask have empty cells. Files that cannot be read are named on stderr.
    Until the end the lines lie in OUT.part.

    Raises:
      ConfigError: `top` is out of range, or the file cannot be written.
    """
    if top < 1:
        raise ConfigError(f"top={top}: must be at least 1")
    top = min(top, len(predictor.class_names))
    part = out.with_name(out.name + PART)
    try:
        file = part.open("w", newline="", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"out={str(out)!r}: cannot be written ({error.strerror})") from None
    with file:
        written = _write(predictor, images, file, top)
    os.replace(part, out)
    return written


def _write(predictor: Predictor, images: listing.Images, file: TextIO, top: int) -> Written:
    from tqdm import tqdm

    table, predicted, damaged = csv.writer(file), 0, 0
    header = ["file"]
    for k in range(1, top + 1):
        header += [f"class{k}", f"probability{k}"]
    table.writerow(header + [c for name in predictor.voters for c in (name, f"{name}_probability")])
    quiet = not sys.stderr.isatty()
    with tqdm(total=len(images), unit="image", dynamic_ncols=True, disable=quiet) as bar:
        for paths, arrays, errors in _read(predictor, images):
            for error in errors:
                with bar.external_write_mode(file=sys.stderr):
                    print(error, file=sys.stderr, flush=True)
            damaged += len(errors)
            if paths:
                found = predictor.predict(np.stack(arrays))
                table.writerows(_rows(predictor.class_names, paths, found, top))
                predicted += len(paths)
            bar.update(len(paths) + len(errors))
    return Written(predicted, damaged)


def _read(
    predictor: Predictor, images: Iterable[str]
) -> Iterator[tuple[list[str], list[np.ndarray], list[str]]]:
    """Batches of (paths, images uint8[H, W, C], lines on those that cannot be read).

    Threads read the next batch while the caller has this one; no more lies in memory.
    """
    waiting = iter(images)
    with ThreadPoolExecutor(threads(predictor.config)) as pool:

        def start() -> list[tuple[str, Future]]:
            some = itertools.islice(waiting, predictor.together)
            return [(path, pool.submit(_attempt, predictor, path)) for path in some]

        try:
            ahead = start()
            while ahead:
                these, ahead = ahead, start()
                paths, arrays, errors = [], [], []
                for path, made in these:
                    result = made.result()
                    if isinstance(result, np.ndarray):
                        paths.append(path)
                        arrays.append(result)
                    else:
                        errors.append(result)
                yield paths, arrays, errors
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _attempt(predictor: Predictor, path: str) -> np.ndarray | str:
    """uint8[H, W, C], or why there is none."""
    try:
        return predictor.read(path)
    except pictures.PictureError as error:
        return listing.shown(str(error))


def _rows(
    names: Sequence[str], paths: Sequence[str], found: Prediction, top: int
) -> Iterator[list[Any]]:
    order = np.argsort(-found.probabilities, axis=1, kind="stable")[:, :top]
    for i, path in enumerate(paths):
        row: list[Any] = [listing.shown(path)]
        for k in order[i]:
            row += [names[k], _text(found.probabilities[i, k])]
        for own in found.networks.values():
            best = int(own[i].argmax())
            asked = not np.isnan(own[i, best])
            row += [names[best], _text(own[i, best])] if asked else ["", ""]
        yield row


def _text(probability: float) -> str:
    return f"{probability:.6f}"
