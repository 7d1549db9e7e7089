"""How long the networks of a run take to answer, as latency.json holds it."""

from collections.abc import Sequence
from typing import Any

from jaxsplit import stack
from jaxsplit.errors import ConfigError
from jaxsplit.inference import latency
from jaxsplit.inference.latency import Cell, Found
from jaxsplit.inference.timing import Times
from jaxsplit.report import figures, html
from jaxsplit.report.charts import Chart
from jaxsplit.report.html import Raw
from jaxsplit.report.runs import Run, printable

_COLOURED = (latency.ONE, *stack.LOWERINGS)
_SIZE = (5.0, 4.0)  # inches, with room for a legend of three rows
_TICKS = 10  # batch sizes that are named below the axis


def section(runs: Sequence[Run]) -> Raw:
    """A sentence, a figure and a table of each run; '' where no run has a latency.json."""
    said, drawn, tables, notes = [], [], [], []
    for number, run in enumerate(runs):
        try:
            found = latency.read(run.path)
        except ConfigError as error:
            notes.append(html.paragraph(printable(f"No latency of {run.name}: {error}."), "muted"))
            continue
        if found is None:
            continue
        said.append(f"{run.name}: {sentences(found)}")
        if made := chart(run, number, found):
            drawn.append(html.figure(Raw(made.svg), made.caption))
        tables += [table(run, found), html.bullets(left_out(found))]
    lead = [html.paragraph(line) for line in said]
    return html.section("latency", "Latency", [*lead, html.grid(drawn), *tables, *notes])


# ---- Words


def sentences(found: Found) -> str:
    """Compares the networks with the undivided one at the smallest batch size and the largest."""
    ends = dict.fromkeys((found.batches[0], found.batches[-1]))
    first, *others = (f"{_compared(found, batch)}." for batch in ends)
    others = [f"{text[0].upper()}{text[1:]}" for text in others]
    return printable(" ".join([f"on {_machine(found)}, {first}", *others]))


def _compared(found: Found, batch: int) -> str:
    """What a batch takes the networks at best, and what the undivided network."""
    at = _cells(found)
    whole = at[latency.UNDIVIDED, batch].times
    several = [c for c in found.candidates if c.networks > 1 and c.name != latency.CASCADE]
    names = [c.name for c in several if c.devices == 1]
    who, best = f"the {several[0].networks} networks together" if several else "", " at best"
    if not names:
        names = [c.name for c in found.candidates if c.name == latency.ONE]
        who, best = "the divided network", ""
    size = f"a batch of {batch:,}"
    timed = {name: times for name in names if (times := at[name, batch].times)}
    if not timed and whole is None:
        return f"{size} was left out"
    if not timed and whole is not None:
        alone = f"{size} takes the {'undivided ' * bool(names)}network {_duration(whole)}"
        return f"{alone}; {who} {'were' if best else 'was'} left out" if names else alone
    name, its = min(timed.items(), key=lambda item: item[1].median)
    text = f"{size} takes {who} {_duration(its)}{best}{f' ({name})' if best else ''}"
    if whole is None:
        return f"{text}; the undivided network was left out"
    ratio = its.median / whole.median
    text += f", {ratio:.2f} times the {_duration(whole)} of the undivided network"
    if its.lower <= whole.upper and whole.lower <= its.upper:
        text += " (their quartile ranges overlap)"
    for one in several:
        if one.devices > 1 and (over := at[one.name, batch].times):
            ratio = over.median / whole.median
            text += f"; over {one.devices} devices {_duration(over)}, {ratio:.2f} times"
    return text


def _machine(found: Found) -> str:
    """'a CPU with 2 cores', or the device's name."""
    about = found.facts
    if about["platform"] != "cpu":
        return str(about["device"])
    cores = about["cores"]
    return f"a CPU with {cores} core{'s' * (cores != 1)}" if cores else "a CPU"


def left_out(found: Found) -> list[str]:
    """A line for each batch size at which something was not measured, with the reasons."""
    lines = []
    for batch in found.batches:
        cells = [cell for cell in found.cells if cell.batch == batch and cell.times is None]
        reasons = ", ".join(f"{cell.candidate} ({cell.reason})" for cell in cells)
        if reasons:
            lines.append(printable(f"Left out at batch {batch:,}: {reasons}."))
    return lines


def _duration(times: Times) -> str:
    seconds = times.median
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.2f} ms"


def _cells(found: Found) -> dict[tuple[str, int], Cell]:
    return {(cell.candidate, cell.batch): cell for cell in found.cells}


# ---- Table and figure


def table(run: Run, found: Found) -> Raw:
    """Median time and images a second at the smallest batch size and the largest."""
    about, at = found.facts, _cells(found)
    ends = dict.fromkeys((found.batches[0], found.batches[-1]))
    heads = ["networks"]
    for batch in ends:
        heads += [f"batch {batch:,}: ms", "images/s"]
    rows = []
    for candidate in found.candidates:
        row = [printable(candidate.name)]
        for batch in ends:
            row += _row(at[candidate.name, batch])
        rows.append(row)
    shape = "x".join(map(str, about["image_shape"]))
    caption = (
        f"{run.name}: {about['arch']}, images {shape}, {about['dtype']}, on {_machine(found)}. "
        f"Median time of a batch, from uint8 images in host memory to probabilities there."
    )
    lowerings = [c for c in found.candidates if c.name == c.lowering and c.networks > 1]
    if lowerings:
        names = ", ".join(c.name for c in lowerings)
        caption += f" {names}: ways to compute all {lowerings[0].networks} networks on one device."
    return html.table(printable(caption), heads, [("", rows)])


def _row(cell: Cell) -> list[str]:
    if (its := cell.times) is None:
        return ["left out", "-"]
    return [f"{1e3 * its.median:,.2f}", f"{cell.batch / its.median:,.0f}"]


def chart(run: Run, number: int, found: Found) -> Chart | None:
    """Median time against batch size, with bars from quartile to quartile; None: of nothing."""
    lines: dict[str, list[Cell]] = {}
    for candidate in found.candidates:
        cells = [c for c in found.cells if c.candidate == candidate.name and c.times]
        if cells:
            lines[candidate.name] = sorted(cells, key=lambda cell: cell.batch)
    if not lines:
        return None
    look_of = looks(list(lines))

    def draw(axes: Any) -> None:
        axes.grid(True)
        for name, cells in lines.items():
            batches = [cell.batch for cell in cells]
            lower, middle, upper = _quartiles(cells)
            figures.line(axes, batches, middle, printable(name), look_of[name])
            off = [[m - a for m, a in zip(middle, lower, strict=True)]]
            off += [[b - m for m, b in zip(middle, upper, strict=True)]]
            look = dict(ecolor=look_of[name]["color"], elinewidth=1, capsize=2.5)
            axes.errorbar(batches, middle, yerr=off, fmt="none", **look)
        figures.log_axis(axes)
        _batch_axis(axes, found.batches)
        axes.set_ylabel("time of a batch, ms")
        figures.legend_below(axes)

    ends = "; ".join(
        f"{name} {_duration(cells[0].times)} at {cells[0].batch:,}"
        + f", {_duration(cells[-1].times)} at {cells[-1].batch:,}" * (len(cells) > 1)
        for name, cells in lines.items()
        if cells[0].times and cells[-1].times
    )
    title = f"{run.name}: time of a batch by its size"
    text = printable(f"Median time from images to probabilities, by batch size. {ends}.")
    svg = figures.svg(f"r{number}-latency", title, text, draw, _SIZE)
    where = printable(f"{title}, on {_machine(found)}")
    return Chart(svg, f"{where}; less is better. Bars: the quartiles.")


def looks(names: list[str]) -> dict[str, dict[str, Any]]:
    """Candidate -> colour and dashes: one network and the lowerings each their own colour.

    The others take the text's colour: of more colours some would look alike.
    """
    coloured = [name for name in names if name in _COLOURED]
    found = figures.looks([name for name in names if name not in coloured])
    return found | dict(zip(coloured, figures.series(len(coloured)), strict=True))


def _quartiles(cells: Sequence[Cell]) -> tuple[list[float], list[float], list[float]]:
    """Lower quartiles, medians and upper quartiles in ms."""
    every = [cell.times for cell in cells if cell.times]
    lower, upper = [1e3 * its.lower for its in every], [1e3 * its.upper for its in every]
    return lower, [1e3 * its.median for its in every], upper


def _batch_axis(axes: Any, batches: Sequence[int]) -> None:
    """A logarithmic axis that names the batch sizes, as many as have room."""
    axes.set_xscale("log")
    low, high = batches[0], batches[-1]
    named = [low]
    for batch in batches[1:]:
        if batch / named[-1] >= (high / low) ** (1 / _TICKS) * (1 - 1e-9):
            named.append(batch)
    axes.set_xticks(named, [f"{batch:,}" for batch in named])
    axes.set_xticks([], minor=True)
    margin = 1.15 if high > low else 2
    axes.set_xlim(low / margin, high * margin)
    axes.set_xlabel("images of a batch")
