"""The page of a comparison: one HTML file beside `compare.csv` and `metrics.csv`."""

import math
import pathlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from ml_collections import ConfigDict

from jaxsplit import defaults
from jaxsplit.compare import collect, verdict
from jaxsplit.compare.bootstrap import Difference, Spread
from jaxsplit.compare.collect import Found, Group
from jaxsplit.compare.runs import FAILED, FINISHED, Run
from jaxsplit.durations import in_words
from jaxsplit.errors import ConfigError
from jaxsplit.report import compare_charts as charts
from jaxsplit.report import figures, html, page, reproduce, style
from jaxsplit.report.html import Raw
from jaxsplit.report.runs import printable
from jaxsplit.section import flat
from jaxsplit.workdir import files
from jaxsplit.workdir import versions as trained_with

FILE = "compare.html"
_REPORT = "report.html"
# Fields that flags of compare say.
_OF_GRID = ("split", "seed")


def write(workdir: pathlib.Path) -> pathlib.Path:
    """Writes compare.csv, metrics.csv and compare.html of a comparison as far as it has come.

    Args:
      workdir: with compare.json.

    Raises:
      ConfigError: compare.json cannot be read, a file cannot be written, or matplotlib is missing.
    """
    found = collect.write(workdir)
    figures.need_matplotlib()
    out = workdir / FILE
    try:
        files.write_text(out, made(found))
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error})") from None
    return out


def made(found: Found) -> str:
    """The HTML of the page; the same runs give the same bytes."""
    shown = [
        results(found),
        costs(found),
        axes(found),
        diversity(found),
        every_run(found),
        versions(found),
    ]
    title = f"Should I divide? {_what(found)}"
    body = html.join([_head(found, title), page.contents(shown), *shown])
    return html.page(title, style.CSS, html.tag("main", body))


def _what(found: Found) -> str:
    config = _base(found)
    return "" if config is None else printable(f"{config.arch} on {config.data.name}")


def _head(found: Found, title: str) -> Raw:
    answer = verdict.of(found)
    first, *others = answer.sentences
    opening, _, rest = first.partition(". ")
    lead: list[object] = [printable(first)]
    if rest:
        lead = [html.tag("strong", printable(f"{opening}.")), printable(rest)]
    more = html.paragraph(printable(" ".join(others))) if others else Raw("")
    done = sum(run.counts for run in found.runs)
    state = f"{done} of {len(found.runs)} runs count here. Numbers: "
    links = html.join([_link(collect.GROUPS), ", a row for each group; ", _link(collect.RUNS)], "")
    about = html.join([state, links, ", a row for each run."], "")
    parts = [html.tag("h1", title), html.paragraph(html.join(lead, " "), "lead"), more]
    parts.append(html.paragraph(about, "muted"))
    return html.tag("header", html.join(parts))


def _link(target: str, name: object = "") -> Raw:
    return Raw(f'<a href="{quote(target)}">{html.text(name or target)}</a>')


# ---- Groups


def results(found: Found) -> Raw:
    """The scores of every group, and its difference to the undivided network."""
    heads = ["", "seeds", "accuracy %", "difference, points", "95 % interval"]
    rows, others = [], []
    for group in found.groups:
        its = group.difference
        interval = "-"
        if its:
            interval = f"{verdict.points(its.lower)} to {verdict.points(its.upper)}"
            interval += " (images only)" * (its.seeds == 1)
        rows.append(
            [
                _name(group),
                _seeds(group),
                _spread(group.spread(collect.top1), _percent),
                verdict.points(its.mean) if its else "-",
                interval,
            ]
        )
        others.append(
            [
                _name(group),
                _spread(group.spread(collect.nll), "{:.4f}".format),
                _interval(group.nll_difference, verdict.nats),
                _spread(group.spread(collect.ece), _percent),
                _interval(group.ece_difference, verdict.points),
            ]
        )
    caption = (
        "Accuracy on the test set: mean ± deviation over the seeds. Difference to the undivided "
        "network: of the same seeds and test images; the interval is a bootstrap over both."
    )
    table = html.table(caption, heads, [("", rows)])
    heads = ["", "NLL", "difference (95 %)", "ECE %", "difference, points (95 %)"]
    caption = (
        "Probabilities after temperature scaling: NLL in nats and ECE; less is better. The "
        "interval of NLL is over seeds and test images, that of ECE over the seeds alone."
    )
    more = html.table(caption, heads, [("", others)])
    return html.section("results", "Results", [table, _grid([charts.forest(found)]), more])


def costs(found: Found) -> Raw:
    """What every group costs, and accuracy against each cost."""
    heads = ["", "parameters", "mult-adds", "mult-adds in training", "training time"]
    heads += [
        "latency, ms",
        "x undivided",
        "cascade: ms",
        "cascade: mult-adds",
        "cascade: accuracy %",
    ]
    rows = []
    for group in found.groups:
        cost, cascaded = group.cost, group.mean(collect.cascade_macs)
        rows.append(
            [
                _name(group),
                _whole(cost.params),
                _whole(cost.macs),
                _whole(cost.train_macs),
                _spread(group.spread(collect.seconds), in_words),
                _spread(group.spread(collect.latency), _milliseconds),
                _spread(group.spread(collect.latency_ratio), "{:.2f}".format),
                _spread(group.spread(collect.cascade_latency), _milliseconds),
                _whole(cascaded),
                _spread(group.spread(collect.cascade_top1), _percent),
            ]
        )
    timed = next((run.latency for run in found.runs if run.latency), None)
    caption = (
        "Parameters and multiply-adds of one image are those of what is deployed; in training all "
        "networks count."
    )
    if timed:
        caption += (
            f" Latency: median time of a batch of {timed.batch:,} on one device ({timed.where}); "
            "'x undivided' is measured in turns with the undivided network, so what else the "
            "machine did falls on both."
        )
    if any(group.mean(collect.cascade_macs) for group in found.groups):
        caption += (
            " A cascade asks network after network until their mean is sure enough; its threshold "
            "is that of the accuracy of all networks, and its numbers are of images on which the "
            "threshold was not fitted."
        )
    table = html.table(printable(caption), heads, [("", rows)])
    drawn = [charts.pareto(found, cost) for cost in charts.costs(found)]
    return html.section("costs", "Costs", [_grid(drawn), table])


def axes(found: Found) -> Raw:
    """Accuracy over the values of each axis of the grid."""
    drawn = [charts.sweep(found, field, i) for i, field in enumerate(found.axes)]
    return html.section("axes", "Fields that were varied", [_grid(drawn)])


def diversity(found: Found) -> Raw:
    """How the networks of each group differ, and what each is worth alone."""
    several = [group for group in found.groups if group.spread(collect.networks_top1)]
    if not several:
        return Raw("")
    heads = ["", "one network, %", "answer, %", "disagreement, test %", "test - training, points"]
    rows = [
        [
            _name(group),
            _spread(group.spread(collect.networks_top1), _percent),
            _spread(group.spread(collect.top1), _percent),
            _spread(group.spread(collect.disagreement), _percent),
            _spread(group.spread(collect.gap), _percent),
        ]
        for group in several
    ]
    caption = (
        "Accuracy of the mean single network and of the answer; share of images on which two "
        "networks differ. Networks that differ less on test than on training images have learned "
        "to look different."
    )
    parts = [_grid([charts.diversity(found)]), html.table(caption, heads, [("", rows)])]
    return html.section("diversity", "Diversity of the networks", parts)


def _name(group: Group) -> object:
    name = printable(group.name)
    return html.tag("strong", name) if group.is_single else name


def _seeds(group: Group) -> str:
    text = str(len(group.counted))
    if failed := len(group.failed):
        text += f", {failed} failed"
    if waiting := len(group.runs) - len(group.counted) - failed:
        text += f", {waiting} to come"
    return text


def _grid(drawn: Sequence[Any]) -> Raw:
    shown = [html.figure(Raw(c.svg), c.caption) for c in drawn if c]
    return html.tag("div", html.join(shown), class_="grid wide") if shown else Raw("")


# ---- Runs


def every_run(found: Found) -> Raw:
    """All runs with their state and a link to the report, or the folder, of each."""
    heads = ["run", "state", "accuracy %", "NLL", "ECE %", "training time", "files", "error"]
    rows = []
    for run in found.runs:
        state = run.status if run.counts or run.status != FINISHED else "not evaluated"
        rows.append(
            [
                printable(run.name),
                html.tag("strong", state) if run.status == FAILED else state,
                _value(collect.top1(run), _percent),
                _value(collect.nll(run), "{:.4f}".format),
                _value(collect.ece(run), _percent),
                _value(run.seconds, in_words),
                _files(run),
                printable(run.error),
            ]
        )
    caption = "Every run of the grid; those that failed or have not finished count nowhere."
    table = html.table(caption, heads, [("", rows)], "words runs")
    return html.section("runs", "Runs", [table])


def _files(run: Run) -> object:
    if not run.path.is_dir():
        return ""
    links = [_link(f"{run.name}/", "folder")]
    if (run.path / _REPORT).exists():
        links = [_link(f"{run.name}/{_REPORT}", "report"), *links]
    return html.join(links, " ")


def versions(found: Found) -> Raw:
    """What the runs were made with, and the command that makes them again."""
    values: dict[str, dict[str, int]] = {}
    for run in found.runs:
        starts = trained_with.read(run.path)
        for name, value in (starts[-1] if starts else {}).items():
            if name != "step":
                counts = values.setdefault(str(name), {})
                counts[str(value)] = counts.get(str(value), 0) + 1
    rows = [
        [name, ", ".join(v if len(its) == 1 else f"{v} ({n} runs)" for v, n in its.items())]
        for name, its in values.items()
    ]
    parts: list[object] = []
    if rows:
        caption = "What the runs were trained with."
        cells = [[printable(cell) for cell in row] for row in rows]
        parts.append(html.table(caption, ["", "version"], [("", cells)], "words"))
    if text := command(found):
        parts += [html.paragraph("Make the comparison again, or go on with it:")]
        parts += [html.tag("pre", html.code(printable(text)))]
    return html.section("reproduce", "Versions, and how to reproduce", parts)


def command(found: Found) -> str:
    """`jaxsplit compare ...` of the grid; '' where its config cannot be read."""
    config, grid = _base(found), found.record.get("grid") or {}
    if config is None:
        return ""
    name, others = reproduce.nearest(config)
    seeds = [str(seed) for seed in grid.get("seeds") or ()]
    words = ["jaxsplit", "compare", f"--config={name}", f"--workdir=runs/{found.folder.name}"]
    for key in ("methods", "splits"):
        words.append(f"--compare.{key}={','.join(map(str, grid.get(key) or ()))}")
    # One number is a count of seeds, several are the seeds themselves.
    words.append(f"--compare.seeds={','.join(seeds) if len(seeds) != 1 else 1}")
    words += [f"--config.seed={seeds[0]}"] if len(seeds) == 1 and seeds[0] != "0" else []
    for field, its in (grid.get("axes") or {}).items():
        tuples = any(isinstance(value, list | tuple) for value in its)
        values = [repr(_tuples(v)) if tuples else collect.text(v) for v in its]
        between = ";" if tuples or any("," in value for value in values) else ","
        words.append(f"--compare.axis={field}={between.join(values)}")
    if teacher := grid.get("teacher"):
        words.append(f"--compare.teacher={teacher}")
    for field, value in others.items():
        if field not in _OF_GRID:
            shown = repr(value) if isinstance(value, tuple) else str(value)
            words.append(f"--config.{field}={shown}")
    return shlex.join(words)


def _base(found: Found) -> ConfigDict | None:
    """The base config of the grid; None: it is not one of this version."""
    config = defaults.get_config()
    known = dict(flat(config))
    try:
        config.update_from_flattened_dict(
            {k: v for k, v in _fields(found.record["config"]).items() if k in known}
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return config


def _fields(groups: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value, with the tuples of a config."""
    out: dict[str, Any] = {}
    for name, value in groups.items():
        if isinstance(value, dict):
            out |= _fields(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = _tuples(value)
    return out


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


# ---- Numbers


def _spread(found: Spread | None, text: Callable[[float], str]) -> str:
    if found is None:
        return "-"
    more = "" if math.isnan(found.deviation) else f" ± {text(found.deviation)}"
    return f"{text(found.mean)}{more}"


def _interval(found: Difference | None, text: Callable[[float], str]) -> str:
    if found is None:
        return "-"
    return f"{text(found.mean)} ({text(found.lower)} to {text(found.upper)})"


def _value(value: float | None, text: Callable[[float], str]) -> str:
    return "-" if value is None else text(value)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f}"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
