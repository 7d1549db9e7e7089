"""The figures of a comparison: accuracy against costs, differences, axes, diversity."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxsplit.compare import collect
from jaxsplit.compare.bootstrap import Spread
from jaxsplit.compare.collect import Found, Group
from jaxsplit.compare.runs import SINGLE, Run
from jaxsplit.report import figures, labels
from jaxsplit.report.charts import Chart
from jaxsplit.report.runs import printable

_SIZE = (5.0, 4.2)  # inches
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LOG = 3.0  # a span of costs from which on the axis is logarithmic


class Cost(NamedTuple):
    """What accuracy is drawn against.

    text: of a value, in words. answer: of the method's answer; cascade: of its cascade, or None.
    """

    key: str
    title: str
    text: Callable[[float], str]
    answer: Callable[[Run], float | None]
    cascade: Callable[[Run], float | None] | None = None


def _thousands(value: float) -> str:
    return f"{value:,.0f}"


COSTS = (
    Cost("params", "parameters", _thousands, lambda run: run.params),
    Cost("macs", "multiply-adds", _thousands, lambda run: run.macs, collect.cascade_macs),
    Cost("seconds", "training time", lambda v: f"{v:,.0f} s", collect.seconds),
    Cost(
        "latency",
        "latency",
        "{:.2f} times the undivided network's".format,
        collect.latency_ratio,
        collect.cascade_latency_ratio,
    ),
)

# Of networks that differ in more than their division, whose undivided networks are not the same.
_MILLISECONDS = Cost(
    "latency",
    "latency",
    lambda v: f"{1e3 * v:.2f} ms",
    collect.latency,
    collect.cascade_latency,
)


def costs(found: Found) -> list[Cost]:
    """What the accuracy of a comparison is drawn against."""
    several = "arch" in found.axes
    return [_MILLISECONDS if several and cost.key == "latency" else cost for cost in COSTS]


class Point(NamedTuple):
    """A group in a figure, all in the units of its axes; deviations may be NaN."""

    group: Group
    x: float
    x_deviation: float
    y: float
    y_deviation: float


def looks(groups: Sequence[Group]) -> dict[str, dict[str, Any]]:
    """Method -> colour and mark; the undivided network has the colour of text."""
    methods = dict.fromkeys(group.method for group in groups if not group.is_single)
    found: dict[str, dict[str, Any]] = {SINGLE: dict(color=figures.INK, marker="s")}
    for i, method in enumerate(methods):
        colour = figures.SERIES[i % len(figures.SERIES)]
        found[method] = dict(color=colour, marker=_MARKERS[(i + i // 6) % len(_MARKERS)])
    return found


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Of points (cost, accuracy) those that no other beats in both, from the cheapest on."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    kept: list[int] = []
    for i in order:
        if not kept or points[i][1] > points[kept[-1]][1]:
            kept.append(i)
    return kept


# ---- Accuracy against a cost


def pareto(found: Found, cost: Cost) -> Chart | None:
    """Accuracy of every group against a cost, with the Pareto front; None: nothing to draw."""
    unit, each = _unit(cost, found.groups)
    points = _points(found.groups, cost.answer, collect.top1, each, 100.0)
    if len(points) < 2:
        return None
    cascades = []
    if cost.cascade:
        cascades = _points(found.groups, cost.cascade, collect.cascade_top1, each, 100.0)
    look_of, missing = looks(found.groups), []
    every = [(p.x, p.y) for p in (*points, *cascades)]
    best = [every[i] for i in front(every)]

    def draw(axes: Any) -> None:
        axes.grid(True)
        axes.plot(*zip(*best, strict=True), color=figures.MUTED, linewidth=1, zorder=1)
        bars = _marks(axes, points, look_of)
        by_group = {id(point.group): point for point in points}
        for point in cascades:
            look = look_of[point.group.method]
            whole = by_group.get(id(point.group))
            if whole:
                ends = [whole.x, point.x], [whole.y, point.y]
                axes.plot(*ends, color=look["color"], linewidth=0.8, linestyle=(0, (1, 2)))
            marks = dict(markersize=5, markerfacecolor="none", linestyle="", **look)
            axes.plot(point.x, point.y, **marks)
        _limits(axes, [*points, *cascades])
        axes.set_xlabel(f"{cost.title}, {unit}" if unit else cost.title)
        axes.set_ylabel("test accuracy, %")
        names = [printable(point.group.name) for point in points] + [""] * len(cascades)
        colours = [look_of[point.group.method] for point in (*points, *cascades)]
        missing.extend(labels.draw(axes, every, names, colours, _font(points), bars))

    told = "; ".join(
        f"{p.group.name} {p.y:.2f} % at {cost.text(p.x * each)}"
        for p in sorted(points, key=lambda p: p.x)
    )
    title = f"Accuracy against {cost.title}"
    svg = figures.svg(f"pareto-{cost.key}", title, printable(f"{title}. {told}."), draw, _SIZE)
    return Chart(svg, _caption(title, cost, bool(cascades), missing, found))


def _caption(title: str, cost: Cost, cascades: bool, missing: Sequence[str], found: Found) -> str:
    parts = [f"{title}: up and to the left is better. The line: what no other beats in both."]
    if any(len(group.counted) > 1 for group in found.groups):
        parts.append("Bars: ± the deviation over seeds.")
    if cascades:
        parts.append("Hollow marks: the same networks as a cascade.")
    if cost.key == "latency":
        its = next(run.latency for run in found.runs if run.latency)
        said = f"Median time of a batch of {its.batch:,} on one device ({its.where})"
        if cost is not _MILLISECONDS:
            said += ", beside that of the undivided network, which took turns with it"
        parts.append(f"{said}.")
    if missing:
        parts.append(f"Without room for a name: {', '.join(missing)}.")
    return printable(" ".join(parts))


def _unit(cost: Cost, groups: Sequence[Group]) -> tuple[str, float]:
    """(unit of the axis, what its numbers are multiplied with)."""
    if cost is _MILLISECONDS:
        return "ms", 1e-3
    if cost.key == "latency":
        return "times the undivided network's", 1.0
    largest = max((abs(v) for group in groups if (v := group.mean(cost.answer))), default=1.0)
    if cost.key == "seconds":
        names = (("hours", 3600.0, 7200.0), ("minutes", 60.0, 300.0), ("s", 1.0, 0.0))
    else:
        names = (("billions", 1e9, 1e9), ("millions", 1e6, 1e6), ("thousands", 1e3, 0.0))
    return next((name, each) for name, each, least in names if largest >= least)


def _points(
    groups: Sequence[Group],
    x: Callable[[Run], float | None],
    y: Callable[[Run], float | None],
    x_each: float,
    y_times: float,
) -> list[Point]:
    points = []
    for group in groups:
        across, up = group.spread(x), group.spread(y)
        if across and up:
            xs = (across.mean / x_each, across.deviation / x_each)
            points.append(Point(group, *xs, y_times * up.mean, y_times * up.deviation))
    return points


def _marks(
    axes: Any, points: Sequence[Point], look_of: Mapping[str, dict[str, Any]]
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Draws marks with bars; returns the ends of the bars."""
    bars = []
    for point in points:
        look = look_of[point.group.method]
        for off, which in ((point.x_deviation, "xerr"), (point.y_deviation, "yerr")):
            if math.isfinite(off) and off > 0:
                kind = dict(fmt="none", ecolor=look["color"], elinewidth=0.9, capsize=2, alpha=0.6)
                axes.errorbar(point.x, point.y, **{which: off}, **kind)
                side = (off, 0.0) if which == "xerr" else (0.0, off)
                ends = [(point.x + s * side[0], point.y + s * side[1]) for s in (-1, 1)]
                bars.append((ends[0], ends[1]))
        axes.plot(point.x, point.y, markersize=6, linestyle="", zorder=3, **look)
    return bars


def _limits(axes: Any, points: Sequence[Point]) -> None:
    """Room around the points for bars and names; a logarithmic axis where costs span much."""
    xs = [p.x for p in points]
    around = [
        p.x + s * (p.x_deviation if math.isfinite(p.x_deviation) else 0.0)
        for p in points
        for s in (-1, 1)
    ]
    ys = [
        p.y + s * (p.y_deviation if math.isfinite(p.y_deviation) else 0.0)
        for p in points
        for s in (-1, 1)
    ]
    room = 0.12 * max(max(ys) - min(ys), 0.2)
    axes.set_ylim(min(ys) - room, max(ys) + room)
    if min(xs) > 0 and max(xs) / min(xs) >= _LOG:
        _log_x(axes, min(xs), max(xs))
    else:
        room = 0.12 * max(max(xs) - min(xs), 0.05 * max(xs), 1e-9)
        low = min(around) - room
        axes.set_xlim(low if min(xs) < 0 else max(0.0, low), max(around) + 1.6 * room)


def _log_x(axes: Any, low: float, high: float) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.set_xscale("log")
    span = high / low
    axes.set_xlim(low / span**0.08, high * span**0.15)
    subs = (1.0,) if span > 1e3 else (1.0, 2.0, 3.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _font(points: Sequence[Point]) -> float:
    return 9.5 if len(points) <= 8 else 8.5 if len(points) <= 14 else 7.5


# ---- Differences


def forest(found: Found) -> Chart | None:
    """The difference of every group to the undivided network with its interval."""
    shown = [(group, group.difference) for group in found.groups if group.difference]
    if not shown:
        return None
    look_of = looks(found.groups)

    def draw(axes: Any) -> None:
        axes.grid(True, axis="x")
        axes.axvline(0, color=figures.INK, linewidth=1.2)
        for row, (group, its) in enumerate(shown):
            look = look_of[group.method]
            ends = [100 * its.lower, 100 * its.upper]
            axes.plot(ends, [row, row], color=look["color"], linewidth=1.6)
            face = look["color"] if its.seeds > 1 else "none"
            marks = dict(markersize=6, linestyle="", markerfacecolor=face, **look)
            axes.plot(100 * its.mean, row, **marks)
        axes.set_yticks(range(len(shown)), [_short(g.name) for g, _ in shown], fontsize=9)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlabel("accuracy less the undivided network's, points")

    told = "; ".join(
        f"{group.name} {100 * its.mean:+.2f}, from {100 * its.lower:+.2f} to {100 * its.upper:+.2f}"
        for group, its in shown
    )
    title = "Difference to the undivided network"
    size = (5.0, 1.1 + 0.27 * len(shown))
    svg = figures.svg("difference", title, printable(f"{title}, in points: {told}."), draw, size)
    caption = f"{title} with its 95 % interval over seeds and test images; right of 0 is better."
    if any(its.seeds == 1 for _, its in shown):
        caption += " Hollow marks: of one seed, so over test images only."
    return Chart(svg, caption)


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= 30 else f"{name[:29]}…"


# ---- Axes of the grid


def sweep(found: Found, field: str, number: int) -> Chart | None:
    """Accuracy over the values of a field, a line for each group without it."""
    lines: dict[str, list[tuple[Any, Spread]]] = {}
    for group in found.groups:
        values = dict(group.axes)
        spread = group.spread(collect.top1)
        if field in values and spread:
            others = tuple((k, v) for k, v in group.axes if k != field)
            name = Group(group.method, group.split, others, group.runs).name
            lines.setdefault(name, []).append((values[field], spread))
    values = list(dict.fromkeys(value for its in lines.values() for value, _ in its))
    if len(values) < 2:
        return None
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if numbers:
        values.sort()
    at = {v: float(v) if numbers else float(i) for i, v in enumerate(values)}
    apart = [g for g in found.groups if g.is_single and field not in dict(g.axes)]

    def draw(axes: Any) -> None:
        axes.grid(True)
        for (name, its), look in zip(lines.items(), figures.series(len(lines)), strict=True):
            its = sorted(its, key=lambda one: at[one[0]])
            xs, ys = [at[v] for v, _ in its], [100 * s.mean for _, s in its]
            offs = [100 * s.deviation if math.isfinite(s.deviation) else 0.0 for _, s in its]
            figures.line(axes, xs, ys, printable(name), look)
            axes.errorbar(xs, ys, offs, fmt="none", ecolor=look["color"], elinewidth=1, capsize=2)
        for group in apart[:1]:
            if level := group.mean(collect.top1):
                dashes: dict[str, Any] = dict(color=figures.INK, linestyle=(0, (2, 2)))
                axes.axhline(100 * level, linewidth=1.2, label=group.name, **dashes)
        _value_axis(axes, values, at, numbers)
        axes.set_xlabel(printable(field))
        axes.set_ylabel("test accuracy, %")
        figures.legend_below(axes, 2)

    told = "; ".join(
        f"{name}: " + ", ".join(f"{collect.text(v)} {100 * s.mean:.2f} %" for v, s in its)
        for name, its in lines.items()
    )
    title = f"Accuracy by {field}"
    svg = figures.svg(f"axis{number}", printable(title), printable(f"{title}. {told}."), draw)
    return Chart(svg, printable(f"{title}. Bars: ± the deviation over seeds."))


def _value_axis(axes: Any, values: Sequence[Any], at: Mapping[Any, float], numbers: bool) -> None:
    """Ticks at the values; a logarithmic axis of positive numbers that span much."""
    ticks = [at[value] for value in values]
    if numbers and min(ticks) > 0 and max(ticks) / min(ticks) > 20:
        axes.set_xscale("log")
        axes.set_xticks([], minor=True)
    named = [_short(collect.text(value)) for value in values]
    axes.set_xticks(ticks, named, rotation=30 if max(map(len, named)) > 8 else 0)


# ---- Diversity


def diversity(found: Found) -> Chart | None:
    """Mean accuracy of the single networks against how often two of them differ."""
    points = _points(found.groups, collect.disagreement, collect.networks_top1, 0.01, 100.0)
    if not points:
        return None
    look_of, missing = looks(found.groups), []

    def draw(axes: Any) -> None:
        axes.grid(True)
        bars = _marks(axes, points, look_of)
        _limits(axes, points)
        axes.set_xlabel("test images on which two networks differ, %")
        axes.set_ylabel("mean accuracy of one network, %")
        names = [printable(point.group.name) for point in points]
        at = [(point.x, point.y) for point in points]
        colours = [look_of[point.group.method] for point in points]
        missing.extend(labels.draw(axes, at, names, colours, _font(points), bars))

    told = "; ".join(f"{p.group.name}: differ {p.x:.2f} %, alone {p.y:.2f} % right" for p in points)
    title = "Diversity against the accuracy of single networks"
    svg = figures.svg("diversity", title, printable(f"{title}. {told}."), draw, _SIZE)
    caption = (
        f"{title}: an ensemble gains from networks that differ, and loses where they are weak."
    )
    if missing:
        caption += f" Without room for a name: {', '.join(missing)}."
    return Chart(svg, printable(caption))
