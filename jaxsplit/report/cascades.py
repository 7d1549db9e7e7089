"""The accuracy of a cascade of a run's networks against its multiply-adds (arXiv 2012.01988)."""

from typing import Any

import numpy as np

from jaxsplit.evaluation.predictions import SplitPredictions
from jaxsplit.inference import cascade
from jaxsplit.methods import METHODS
from jaxsplit.report import figures
from jaxsplit.report.charts import Chart
from jaxsplit.report.runs import Run


def curve(
    run: Run, number: int, test: SplitPredictions, held: SplitPredictions | None
) -> Chart | None:
    """Test error of a cascade at every threshold, beside each network and all together.

    Args:
      run: of one of several networks; there is no cascade of the outputs of one.
      number: of the run on the page.
      test: its predictions.
      held: of held-out images, by which the networks are ordered; None: they come by number.
    """
    names = run.networks
    known = [run.cost(name) for name in names]
    apart = set(names) <= set(METHODS[run.config.method].networks(run.config))
    if len(names) < 2 or None in known or not apart:
        return None
    if held is not None:
        right = np.stack([held.logits[name].argmax(-1) == held.labels for name in names])
        order = np.argsort(-right.mean(1), kind="stable")
        names = [names[i] for i in order]
    costs = np.array([cost[1] for name in names if (cost := run.cost(name))], float)
    logits = [test.logits[name] for name in names]
    found = cascade.steps_in_parts(logits, run.config.eval.ensemble)
    points = cascade.curve(found, test.labels, costs)
    unit, each = _unit(costs.sum())

    def draw(axes: Any) -> None:
        axes.grid(True)
        x = [point.cost / each for point in points]
        errors = [100 * (1 - point.accuracy) for point in points]
        axes.plot(x, errors, color=figures.SERIES[0], drawstyle="steps-post", label="cascade")
        alone = [(test.logits[name].argmax(-1) != test.labels).mean() for name in names]
        marks = dict(color=figures.SERIES[1], linestyle="", marker="o", markersize=5)
        axes.plot(costs / each, 100 * np.array(alone), label="each network alone", **marks)
        axes.plot(x[-1], errors[-1], "s", color=figures.INK, label="all together", markersize=6)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"mean multiply-adds of an image, {unit}")
        axes.set_ylabel("test error, %")
        figures.legend_below(axes)

    whole = points[-1]
    same = next(point for point in points if point.accuracy >= whole.accuracy)
    title = f"{run.name}: error of a cascade against its cost"
    saved = (
        f"At {100 * same.share:.0f} % of the multiply-adds of all networks it is as accurate as "
        "they are together."
    )
    text = f"An image leaves once the networks so far are sure enough. {saved}"
    how = f"in the order {', '.join(names)}" + " (best on held-out images first)" * bool(held)
    svg = figures.svg(f"r{number}-cascade", title, text, draw)
    note = "Its threshold is chosen on the same images, so expect a little less of others."
    return Chart(svg, f"{title}, {how}. {saved} {note}")


def _unit(macs: float) -> tuple[str, float]:
    """('millions', 1e6) or ('billions', 1e9)."""
    return ("billions", 1e9) if macs >= 1e9 else ("millions", 1e6)
