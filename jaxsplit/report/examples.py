"""The test images that a run is most confidently wrong about, with the vote of every network."""

import base64
import io
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxsplit import data
from jaxsplit.errors import ConfigError
from jaxsplit.evaluation import scores
from jaxsplit.evaluation.predictions import SplitPredictions
from jaxsplit.report import html
from jaxsplit.report.runs import Run

_SIDE = 96  # pixels; larger images are reduced to it
_CHUNK = 2**22  # logits that are looked at together


class Vote(NamedTuple):
    name: str
    label: int
    confidence: float


class Wrong(NamedTuple):
    """An image of the test set: its place in it, its class, and what was answered."""

    index: int
    label: int
    answer: Vote
    networks: tuple[Vote, ...]


class Answered(NamedTuple):
    """What one answer says of N images: int64[N], float64[N]."""

    labels: np.ndarray
    confidence: np.ndarray


def answered(logits: np.ndarray) -> Answered:
    """The class and the confidence of every row of logits float[N, K]; as `scores` defines them."""
    labels, sure = np.empty(len(logits), np.int64), np.empty(len(logits))
    size = max(1, _CHUNK // logits.shape[1])
    for at in range(0, len(logits), size):
        log_p = scores.log_softmax(logits[at : at + size])
        labels[at : at + size] = scores.predicted(log_p)
        sure[at : at + size] = scores.confidence(log_p)
    return Answered(labels, sure)


def most_confident(run: Run, found: SplitPredictions, most: int) -> list[Wrong]:
    """Those that the run's answer is wrong about, the most confident first."""
    its = answered(found.logits[run.answer])
    wrong = np.flatnonzero(its.labels != found.labels)
    chosen = wrong[np.argsort(-its.confidence[wrong], kind="stable")][:most]
    networks = {
        name: answered(found.logits[name][chosen])
        for name in found.logits
        if name.startswith("net") and name != run.answer
    }
    return [
        Wrong(
            index=int(found.index[at]),
            label=int(found.labels[at]),
            answer=Vote(run.answer, int(its.labels[at]), float(its.confidence[at])),
            networks=tuple(
                Vote(name, int(one.labels[i]), float(one.confidence[i]))
                for name, one in networks.items()
            ),
        )
        for i, at in enumerate(chosen)
    ]


def images(config: ConfigDict, wrong: list[Wrong]) -> list[np.ndarray | None]:
    """uint8[H, W, C] of each, as evaluation sees it; None: it cannot be read.

    Raises:
      ConfigError: the data set is not there.
    """
    fields = config.data.copy_and_resolve_references()
    fields.resident = "stream" if fields.resident == "auto" else fields.resident  # not all is read
    dataset = data.load(fields)
    found: list[np.ndarray | None] = []
    for one in wrong:
        try:
            if isinstance(dataset.test, data.Arrays):
                image, label = dataset.test.read(one.index)
            else:
                image, label = dataset.test.read_eval(one.index, dataset.image_shape)
        except (ConfigError, IndexError):
            image, label = None, None
        found.append(image if label == one.label else None)
    return found


def card(run: Run, wrong: Wrong, image: np.ndarray | None) -> html.Raw:
    """The picture with what was answered."""
    true = run.class_name(wrong.label)
    lines = [
        html.join([html.tag("strong", true), f" taken for {_said(run, wrong.answer)}"], ""),
        _votes(run, wrong),
        html.tag("span", f"test image {wrong.index}", class_="votes"),
    ]
    text = html.tag("figcaption", html.join(lines, "<br>"))
    if image is None:
        return html.tag("figure", text, class_="example")
    smooth = " smooth" if max(image.shape[:2]) > 64 else ""
    alt = f"Test image {wrong.index} of class {true}"
    height, width = image.shape[:2]
    picture = html.Raw(
        f'<img alt="{html.text(alt)}" width="{width}" height="{height}" '
        f'src="data:image/png;base64,{_png(image)}">'
    )
    return html.tag("figure", html.join([picture, text]), class_=f"example{smooth}")


def _said(run: Run, vote: Vote) -> str:
    return f"{run.class_name(vote.label)} ({100 * vote.confidence:.1f} %)"


def _votes(run: Run, wrong: Wrong) -> html.Raw:
    votes = [
        html.tag("span", f"{vote.name}: {_said(run, vote)}", class_="vote")
        for vote in wrong.networks
    ]
    return html.tag("span", html.join(votes, " "), class_="votes") if votes else html.Raw("")


def _png(image: np.ndarray) -> str:
    from PIL import Image

    picture = Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
    picture.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
