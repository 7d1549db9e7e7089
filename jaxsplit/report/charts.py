"""The figures of a report, each of one run or of all: name, title, words and drawing."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxsplit.report import figures
from jaxsplit.report.runs import Run

MOST_NAMED = 30  # classes of a confusion matrix that has their names
_MOST_CELLS = 250  # pixels of a larger one
_PARTS = 6  # of the loss, in a figure
NUMBERED = 12  # classes of one that has its numbers in the cells


class Chart(NamedTuple):
    """A figure with what is said under it; svg: '' where there is nothing to draw."""

    svg: str
    caption: str


# ---- Training


def curve(run: Run, number: int, split: str, metric: str) -> Chart | None:
    """Top-1 error or NLL of every answer over the steps; None: the run logged none."""
    rows = [x for x in run.lines if any(_is(key, split, metric) for key in x)]
    names = sorted(
        {k.split("/")[1] for x in rows for k in x if _is(k, split, metric)},
        key=lambda n: (not n.startswith("net"), int(n[3:]) if n.startswith("net") else 0, n),
    )
    if len(rows) < 2:  # one evaluation is no curve; the table has its values
        return None
    looks = figures.looks(names)

    def draw(axes: Any) -> None:
        for name in names:
            points = [(x["step"], x[k]) for x in rows if (k := f"{split}/{name}/{metric}") in x]
            steps, values = np.array(points, float).T
            shown = 100 * (1 - values) if metric == "top1" else values
            figures.line(axes, steps, shown, name, looks[name])
        _step_axis(axes)
        if metric == "top1":
            figures.error_axis(axes)
            axes.set_ylabel(f"{split} error, %")
        else:
            figures.log_axis(axes)
            axes.set_ylabel(f"{split} NLL, nats")
        figures.legend_below(axes, 5)

    what = "top-1 error" if metric == "top1" else "negative log-likelihood"
    last = rows[-1]
    ends = ", ".join(
        f"{n} {_percent(1 - last[k]) if metric == 'top1' else f'{last[k]:.4f}'}"
        for n in names
        if (k := f"{split}/{n}/{metric}") in last
    )
    title = f"{run.name}: {split} {what}"
    svg = figures.svg(
        f"r{number}-{split}-{metric}",
        title,
        f"{what.capitalize()} on the {split} images over {len(rows)} evaluations, up to step "
        f"{last['step']}. The last values: {ends}.",
        draw,
    )
    return Chart(svg, f"{title}; less is better.")


def losses(run: Run, number: int) -> list[Chart]:
    """The parts of the training loss over the steps, at most `_PARTS` in a figure."""
    parts: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in run.lines:
        for key, value in row.items():
            label = _part(key)
            if label and np.isfinite(value):
                parts[label][int(row["step"])].append(value)
    names = sorted(parts, key=lambda name: (name != "whole loss", name))
    count = -(-len(names) // _PARTS)
    shares = [names[i * len(names) // count : (i + 1) * len(names) // count] for i in range(count)]
    return [
        _loss(run, f"r{number}-loss{i}", {name: parts[name] for name in share})
        for i, share in enumerate(shares)
    ]


def _loss(run: Run, name: str, parts: Mapping[str, Mapping[int, Sequence[float]]]) -> Chart:
    def draw(axes: Any) -> None:
        for (label, found), look in zip(parts.items(), figures.series(len(parts)), strict=True):
            steps = sorted(found)
            figures.line(axes, steps, [np.mean(found[step]) for step in steps], label, look)
        _step_axis(axes)
        figures.log_axis(axes)
        axes.set_ylabel("training loss")
        figures.legend_below(axes, 2)

    title = f"{run.name}: parts of the training loss"
    text = "Means since the log point before, of: " + ", ".join(parts) + "."
    return Chart(figures.svg(name, title, text, draw), f"{title}; (mean): over the networks.")


def rates(runs: Sequence[Run]) -> Chart | None:
    """The learning rate of every run over its steps; runs of the same rates share a line."""
    curves: dict[tuple, list[str]] = {}
    for run in runs:
        if points := tuple((x["step"], x["lr"]) for x in run.lines if "lr" in x):
            curves.setdefault(points, []).append(run.name)
    if not curves:
        return None
    found = [(", ".join(names), points) for points, names in curves.items()]

    def draw(axes: Any) -> None:
        for (name, points), look in zip(found, figures.series(len(found)), strict=True):
            steps, values = np.array(points, float).T
            figures.line(axes, steps, values, name, look)
        _step_axis(axes)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("learning rate")
        figures.legend_below(axes, 2)

    highest = "; ".join(
        f"{name}: highest {max(rate for _, rate in points):.4g}, last {points[-1][1]:.4g}"
        for name, points in found
    )
    svg = figures.svg("lr", "Learning rate", f"Learning rate over the steps. {highest}.", draw)
    return Chart(svg, f"Learning rate{f' of {found[0][0]}' if len(found) == 1 else ''}.")


def _is(key: str, split: str, metric: str) -> bool:
    return key.startswith(f"{split}/") and key.endswith(f"/{metric}") and key.count("/") == 2


def _part(key: str) -> str:
    """What a part of the loss is called in the legend; '' of what is none."""
    head, _, rest = key.partition("/")
    if head != "train" or rest.endswith(("top1", "top5", "/weight", "/warmup")):
        return ""
    if rest == "loss":
        return "whole loss"
    first, _, last = rest.partition("/")
    if first.startswith("net") and first[3:].isdecimal():
        return f"{last.replace('_', ' ')} (mean)"
    return rest.replace("_", " ").replace("/", " ")


def _step_axis(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.grid(True)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("step")


# ---- Evaluation


def reliability(run: Run, number: int) -> Chart | None:
    """Accuracy against confidence of the answer, before and after temperature scaling."""
    before = run.test.get("answers", {}).get(run.answer, {}).get("reliability")
    scaled = run.evaluation.get("temperature", {})
    of_answer = scaled.get("answers", {}).get(run.answer, {})
    after = of_answer.get("after", {}).get("reliability")
    if not before:
        return None
    look: dict[str, Any] = dict(color=figures.SERIES[1], linestyle="-", marker="o")
    drawn = [("as it answers", before, look)]
    if after:
        look = dict(color=figures.SERIES[0], linestyle=(0, (5, 1.5)), marker="s")
        drawn.append(("temperature-scaled", after, look))

    def draw(axes: Any) -> None:
        axes.grid(True)
        axes.plot([0, 1], [0, 1], color=figures.MUTED, linewidth=1, linestyle=(0, (2, 2)))
        for label, bins, look in drawn:
            counts = np.array(bins["count"], float)
            full = counts > 0
            x, y = (_numbers(bins[key])[full] for key in ("confidence", "accuracy"))
            sizes = 3 + 110 * np.sqrt(counts[full] / counts.sum())
            axes.plot(x, y, label=label, markersize=1, linewidth=1, alpha=0.6, **look)
            axes.scatter(x, y, s=sizes, color=look["color"], marker=look["marker"], alpha=0.6)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.04)
        axes.set_xlabel("confidence")
        axes.set_ylabel("share right")
        figures.legend_below(axes)

    text = (
        "Share of right answers in bins of equal confidence; on the diagonal confidence is the "
        "share that is right. "
    ) + _bins_in_words(drawn)
    title = f"{run.name}: reliability of {run.answer}"
    name = f"r{number}-reliability"
    how = f"; temperature {of_answer['temperature']:.3f}" if after else ""
    caption = f"{title}{how}. Large marks are bins of many images; below the line: too confident."
    return Chart(figures.svg(name, title, text, draw), caption)


def _bins_in_words(drawn: Sequence[tuple[str, Mapping[str, Any], Any]]) -> str:
    parts = []
    for label, bins, _ in drawn:
        counts = np.array(bins["count"], float)
        gaps = np.abs(_numbers(bins["accuracy"]) - _numbers(bins["confidence"]))
        gaps = gaps[counts > 0]
        parts.append(f"{label}: largest gap {gaps.max(initial=0):.2f}")
    return "; ".join(parts).capitalize() + "."


def risk_coverage(run: Run, number: int) -> Chart | None:
    """The error among the most confident answers, of every answer."""
    found = {
        name: its["risk_coverage"]
        for name in run.answers
        if (its := run.test["answers"][name]).get("risk_coverage")
    }
    if not found:
        return None
    looks = figures.looks(list(found))

    def draw(axes: Any) -> None:
        axes.grid(True)
        for name, its in found.items():
            coverage, risk = 100 * _numbers(its["coverage"]), 100 * _numbers(its["risk"])
            figures.line(axes, coverage, risk, name, looks[name])
        axes.set_xlim(0, 100)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("share answered, the most confident first, %")
        axes.set_ylabel("of these wrong, %")
        figures.legend_below(axes, 5)

    ends = ", ".join(f"{n} {100 * _numbers(its['risk'])[-1]:.2f}%" for n, its in found.items())
    title = f"{run.name}: error against coverage"
    text = f"Error if only the most confident answers are given. If all are given: {ends}."
    return Chart(figures.svg(f"r{number}-risk", title, text, draw), f"{title}; less is better.")


def disagreement(run: Run, number: int) -> Chart | None:
    """The share of images that two networks answer differently, of every pair."""
    found = run.test.get("networks", {}).get("disagreement_matrix")
    if not found or len(found) < 2:
        return None
    shares = _numbers(found)
    names = run.networks
    texts = [[f"{100 * v:.1f}" for v in row] for row in shares] if len(names) <= 10 else None
    picture = figures.shaded(shares / max(shares.max(), 1e-9), np.zeros_like(shares))

    def draw(axes: Any) -> None:
        figures.matrix(axes, picture, texts, names, names)

    i, j = np.unravel_index(shares.argmax(), shares.shape)
    title = f"{run.name}: disagreement of the networks, %"
    text = (
        f"Share of test images that two networks answer differently. The most: {names[i]} and "
        f"{names[j]}, {100 * shares[i, j]:.2f}%."
    )
    svg = figures.svg(f"r{number}-disagreement", title, text, draw, size=(4.2, 3.8))
    return Chart(svg, f"{title} of the test images.")


def confusion(run: Run, number: int, counts: np.ndarray) -> Chart:
    """Examples by true class (row) and answer (column): int[K, K]."""
    classes = len(counts)
    names = [run.class_name(i) for i in range(classes)]
    totals = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    diagonal = np.eye(classes, dtype=bool)
    wrong = np.where(diagonal, 0, shares)
    note = ""
    if classes > _MOST_CELLS:
        block = -(-classes // _MOST_CELLS)
        wrong, right = _blocks(wrong, block), _blocks(np.where(diagonal, shares, 0), block)
        right = right / block
        note = f" Each pixel stands for {block} by {block} classes."
    else:
        right = np.where(diagonal, shares, 0)
    picture = figures.shaded(right, wrong / max(wrong.max(), 1e-9))
    texts = None
    if classes <= NUMBERED:
        texts = [[f"{n}" if n else "" for n in row] for row in counts]

    def draw(axes: Any) -> None:
        if classes <= MOST_NAMED:
            figures.matrix(axes, picture, texts, names, names)
        else:
            axes.imshow(picture, aspect="equal", extent=(0, classes, classes, 0))
        axes.set_xlabel("answer")
        axes.set_ylabel("true class")

    title = f"{run.name}: confusion matrix of {run.answer}"
    text = f"{int(np.trace(counts))} of {int(counts.sum())} images on the diagonal. " + (
        pairs_in_words(run, counts, 3) or "No pair of classes is confused."
    )
    svg = figures.svg(f"r{number}-confusion", title, text, draw, size=(5.0, 4.8))
    return Chart(svg, f"{title}; blue: right, orange: wrong.{note}")


def confused_pairs(counts: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """(true class, answer, images) of the most confused pairs, the most images first."""
    wrong = np.where(np.eye(len(counts), dtype=bool), 0, counts).ravel()
    order = np.argsort(-wrong, kind="stable")[:most]
    return [
        (int(at // len(counts)), int(at % len(counts)), int(wrong[at])) for at in order if wrong[at]
    ]


def pairs_in_words(run: Run, counts: np.ndarray, most: int) -> str:
    """'Most often confused: 8 answered as 1 (3 images), ...'; '': none is."""
    pairs = [
        f"{run.class_name(true)} answered as {run.class_name(given)} ({n:,} image{'s' * (n > 1)})"
        for true, given, n in confused_pairs(counts, most)
    ]
    return f"Most often confused: {', '.join(pairs)}." if pairs else ""


def _blocks(values: np.ndarray, size: int) -> np.ndarray:
    """Sums over blocks of size x size; what is missing at the ends counts as 0."""
    count = -(-len(values) // size)
    padded = np.zeros((count * size, count * size))
    padded[: len(values), : len(values)] = values
    return padded.reshape(count, size, count, size).sum((1, 3))


def _numbers(values: Any) -> np.ndarray:
    """float64; null of JSON is NaN."""
    return np.array(values, dtype=np.float64)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"
