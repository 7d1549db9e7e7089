"""The numbers of a report: scores of runs, means over seeds, and sentences made of them."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxsplit import config as config_lib
from jaxsplit.config import history
from jaxsplit.errors import ConfigError
from jaxsplit.recipes import published
from jaxsplit.report import summary
from jaxsplit.report.runs import Run


class Column(NamedTuple):
    """A score in a table: its title, and how a value, and a deviation of it, are written."""

    title: str
    text: Callable[[float], str]


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _nats(value: float) -> str:
    return f"{value:.4f}"


SCORES = {
    "top1": Column("top-1 %", _percent),
    "top5": Column("top-5 %", _percent),
    "nll": Column("NLL", _nats),
    "brier": Column("Brier", _nats),
    "ece": Column("ECE %", _percent),
    "adaptive_ece": Column("adaptive ECE %", _percent),
    "aurc": Column("AURC %", _percent),
}
SCALED = {"nll": SCORES["nll"], "ece": SCORES["ece"], "brier": SCORES["brier"]}


def scores(run: Run, answer: str) -> Mapping[str, Any]:
    """The scores of an answer on the test set; {}: it was not evaluated."""
    return run.test.get("answers", {}).get(answer, {})


def spread(values: Sequence[float | None], text: Callable[[float], str]) -> str:
    """'mean ± standard deviation' (of a sample: n - 1) of several, the value of one, else '-'."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    if not known or len(known) < len(values):
        return "-"
    if len(known) == 1:
        return text(known[0])
    return f"{text(statistics.fmean(known))} ± {text(statistics.stdev(known))}"


def spread_of(group: Sequence[Run], answer: str, metric: str) -> str:
    """`spread` of a score over runs that differ in the seed only."""
    column = SCORES[metric]
    return spread([scores(run, answer).get(metric) for run in group], column.text)


def mean_of(group: Sequence[Run], answer: str, metric: str = "top1") -> float:
    """The mean of a score over runs; NaN where one lacks it."""
    values = [scores(run, answer).get(metric, math.nan) for run in group]
    return statistics.fmean(values) if values else math.nan


# ---- Sentences


def experiment(run: Run) -> str:
    """'wide_resnet16_4 divided in 4, cotrain, on digits'."""
    config = run.config
    return f"{summary.title(config)}, {config.method}, on {config.data.name}"


def named(group: Sequence[Run]) -> str:
    """The runs of a group: 'a' or 'a, b (seeds 0, 1)'."""
    names = ", ".join(run.name for run in group)
    seeds = ", ".join(str(run.config.seed) for run in group)
    return f"{names} (seeds {seeds})" if len(group) > 1 else names


def headline(group: Sequence[Run]) -> str:
    """What came out of runs that differ in the seed only: the answer against its parts."""
    first = group[0]
    answer, count = first.answer if first.answers else "", first.test.get("count")
    top1 = mean_of(group, answer)
    if not answer or math.isnan(top1) or not count:
        return "There is no evaluation of this run."
    who = f"the {answer} of {len(first.networks)} networks" if answer == "ensemble" else answer
    if answer.startswith("net"):
        who = "the network" if len(first.networks) == 1 else answer
    elif answer != "ensemble":
        who = f"the {answer}"
    # Of a share, over the draw of the test images.
    error = 100 * math.sqrt(max(top1 * (1 - top1), 0) / count)
    begin = f"Over {len(group)} runs that differ in the seed only, {who}" if group[1:] else who
    text = (
        f"{begin[0].upper()}{begin[1:]} answers {spread_of(group, answer, 'top1')} % of the "
        f"{count:,.0f} test images right (standard error from the choice of images: {error:.2f})."
    )
    return f"{text} {_against_parts(group, answer, top1)}".strip()


def _against_parts(group: Sequence[Run], answer: str, top1: float) -> str:
    first = group[0]
    parts = [name for name in first.networks if name != answer]
    if not parts:
        return ""
    each = {name: mean_of(group, name) for name in parts}
    mean, (best, highest) = statistics.fmean(each.values()), max(each.items(), key=lambda x: x[1])
    kind = "Its networks" if answer == "ensemble" else "The networks"
    if len(parts) == 1:
        text = f"{best} alone answers {100 * highest:.2f} % right, {_points(top1 - highest)}."
    else:
        text = (
            f"{kind} alone answer {100 * mean:.2f} % right on average and {100 * highest:.2f} % at "
            f"best ({best}): the {answer} is {_points(top1 - mean)} than their mean and "
            f"{_points(top1 - highest)} than the best of them."
        )
    differ = [run.test.get("networks", {}).get("disagreement") for run in group]
    if answer == "ensemble" and None not in differ:
        text += f" Two of them differ on {100 * statistics.fmean(differ):.2f} % of the images."
    return text


def _points(difference: float) -> str:
    """'0.83 points better', '0.10 points worse', 'no better'."""
    size = f"{abs(100 * difference):.2f}"
    if size == "0.00":
        return "no better"
    return f"{size} points {'better' if difference > 0 else 'worse'}"


def comparison(groups: Sequence[Sequence[Run]]) -> str:
    """Which experiment is ahead, where several can be compared; else ''."""
    ranked = [(mean_of(g, g[0].answer), g) for g in groups if g[0].answers]
    ranked = sorted((x for x in ranked if not math.isnan(x[0])), key=lambda x: -x[0])
    if len(ranked) < 2:
        return ""
    data = {g[0].config.data.name for _, g in ranked}
    if len(data) > 1:
        return (
            f"The runs are of different data sets ({', '.join(sorted(data))}): their scores cannot "
            "be compared."
        )
    (first, best), (second, after) = ranked[:2]
    gap = 100 * (first - second)
    if f"{gap:.2f}" == "0.00":
        return f"{named(best)} and {named(after)} are level at {100 * first:.2f} % top-1."
    text = f"{named(best)} is ahead of {named(after)} by {gap:.2f} points of top-1."
    count = best[0].test.get("count", 0)
    error = 100 * math.sqrt(max(first * (1 - first) + second * (1 - second), 0) / max(count, 1))
    if gap < 2 * error:
        text += (
            f" {count:,.0f} test images cannot tell so small a difference from chance (two standard"
            f" errors: {2 * error:.2f} points)."
        )
    return text


def reached_in_paper(run: Run) -> list[str]:
    """The papers' results of the same networks; empty where they report none."""
    config = run.config
    try:
        if not config_lib.resolve(config).entry.as_published(config):
            return []
    except ConfigError:
        return []
    same = dict(
        dataset=config.data.name, method=config.method, arch=config.arch, split=config.split
    )
    return [str(result) for result in published.find(**same)]


def changes(run: Run) -> list[str]:
    """What was changed while the run went on, in words."""
    return [
        f"{run.name}: from step {one.get('step')} on: {history.in_words(one['changed'])}"
        for one in run.changes
        if isinstance(one, Mapping) and isinstance(one.get("changed"), Mapping)
    ]
