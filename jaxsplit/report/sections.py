"""The sections of a report, in the order of its page; each '' where it has nothing to show."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from jaxsplit.evaluation import scores
from jaxsplit.evaluation.predictions import SplitPredictions
from jaxsplit.report import cascades, charts, examples, html, reproduce, results
from jaxsplit.report.html import Raw
from jaxsplit.report.runs import Run

_PAIRS = 10  # of most confused classes in the list
_CLASSES = 5  # worst and best in the table of classes
_SPLITS = ("test", "validation")
# Name of a run -> split -> what was answered.
Predictions: TypeAlias = Mapping[str, Mapping[str, SplitPredictions]]


def results_table(groups: Sequence[Sequence[Run]]) -> Raw:
    """Every answer of every experiment: scores, parameters, multiply-adds, images a second."""
    metrics = [m for m in ("top1", "top5", "nll", "brier", "ece", "aurc") if _any(groups, m)]
    if any(len(run.class_names) in range(1, 6) for group in groups for run in group):
        metrics = [m for m in metrics if m != "top5"]
    heads = ["answer", *(results.SCORES[m].title for m in metrics), "parameters", "mult-adds"]
    bodies = []
    for group in groups:
        rows = []
        for name in group[0].answers:
            cells = [results.spread_of(group, name, metric) for metric in metrics]
            mark = html.tag("strong", name) if name == group[0].answer else name
            rows.append([mark, *cells, *_cost(group[0].cost(name))])
        if undivided := group[0].costs.get("undivided"):
            rows.append(["undivided", *["-"] * len(metrics), *_cost(undivided)])
        title = f"{results.named(group)}: {results.experiment(group[0])}"
        bodies.append((html.join([title, *_of_group(group)], ""), rows))
    caption = (
        "Scores on the test set; the answer of the method in bold. Mean ± standard deviation over "
        "runs that differ in the seed only. NLL in nats; NLL, Brier, ECE and AURC: less is better. "
        "Multiply-adds of one image."
        if any(len(group) > 1 for group in groups)
        else "Scores on the test set; the answer of the method in bold. NLL in nats; NLL, Brier, "
        "ECE and AURC: less is better. Multiply-adds of one image."
    )
    papers = [
        f"{results.named(group)}: the paper reports {reached} for these networks."
        for group in groups
        for reached in results.reached_in_paper(group[0])
    ]
    return html.section(
        "results", "Results", [html.table(caption, heads, bodies), html.bullets(papers)]
    )


def _any(groups: Sequence[Sequence[Run]], metric: str) -> bool:
    return any(metric in results.scores(r, n) for g in groups for r in g for n in r.answers)


def _cost(cost: tuple[int, int] | None) -> list[str]:
    return ["-", "-"] if cost is None else [f"{n:,}" for n in cost]


def _of_group(group: Sequence[Run]) -> list[str]:
    parts = []
    speeds = [run.images_per_second for run in group]
    if None not in speeds:
        parts.append(f"; trained {results.spread(speeds, lambda v: f'{v:,.0f}')} images/s")
    if group[0].step is not None:
        parts.append(f"; step {group[0].step}")
    return parts


def training(runs: Sequence[Run]) -> Raw:
    """The curves of metrics.jsonl."""
    drawn, without = [], []
    for number, run in enumerate(runs):
        found = [
            charts.curve(run, number, split, metric)
            for split in _SPLITS
            for metric in ("top1", "nll")
        ]
        drawn += [*(chart for chart in found if chart), *charts.losses(run, number)]
        if not run.lines:
            without.append(run.name)
    rates = charts.rates(runs)
    parts: list[Any] = [_figures([*drawn, *([rates] if rates else [])])]
    if without:
        parts.append(html.paragraph(f"No metrics.jsonl, so no curves: {', '.join(without)}."))
    return html.section("training", "Training", parts)


def calibration(runs: Sequence[Run]) -> Raw:
    """NLL, ECE and Brier before and after temperature scaling, and reliability diagrams."""
    bodies, notes = [], []
    for run in runs:
        found = run.evaluation.get("temperature") or {}
        rows = [
            [name, f"{its['temperature']:.3f}", *_pairs(its)]
            for name, its in (found.get("answers") or {}).items()
        ]
        if rows:
            bodies.append((run.name, rows))
            notes.append(f"{run.name}: {_fitted(found)}")
    heads = ["answer", "temperature"]
    for metric, column in results.SCALED.items():
        heads += [column.title, f"{column.title}, scaled"]
        assert metric
    caption = (
        "Test scores as the networks answer, and after each answer's logits were divided by a "
        "temperature of its own. Only the scaled values compare ensembles fairly."
    )
    drawn = [charts.reliability(run, i) for i, run in enumerate(runs)]
    parts: list[Any] = [_figures(drawn)]
    if bodies:
        parts += [html.table(caption, heads, bodies), html.bullets(notes)]
    return html.section("calibration", "Calibration", parts)


def _pairs(its: Mapping[str, Any]) -> list[str]:
    return [
        results.spread([its[when].get(metric)], column.text)
        for metric, column in results.SCALED.items()
        for when in ("before", "after")
    ]


def _fitted(found: Mapping[str, Any]) -> str:
    count = found.get("fitted_examples", 0)
    if found.get("fitted_on") == "validation":
        return f"fitted on {count:,} held-out training images"
    return "fitted on one half of the test set and scored on the other, both ways"


def errors(runs: Sequence[Run], predictions: Predictions) -> Raw:
    """Confusion matrices, the most confused pairs, error against coverage, classes."""
    drawn: list[charts.Chart | None] = []
    bodies = []
    for number, run in enumerate(runs):
        counts = _confusion(run, predictions.get(run.name, {}).get("test"))
        if counts is None:
            continue
        drawn.append(charts.confusion(run, number, counts))
        if len(counts) > charts.NUMBERED:  # else the numbers stand in the cells
            pairs = charts.confused_pairs(counts, _PAIRS)
            rows = [[run.class_name(t), run.class_name(g), f"{n:,}"] for t, g, n in pairs]
            bodies += [(run.name, rows)] if rows else []
    drawn += [charts.risk_coverage(run, i) for i, run in enumerate(runs)]
    parts: list[Any] = [_figures(drawn)]
    if bodies:
        heads = ["true class", "answered", "images"]
        parts.append(html.table("The pairs of classes most often confused.", heads, bodies))
    return html.section("errors", "Errors", [*parts, *_classes(runs)])


def _confusion(run: Run, found: SplitPredictions | None) -> np.ndarray | None:
    counts = results.scores(run, run.answer).get("confusion") if run.answers else None
    if counts is not None:
        return np.array(counts, np.int64)
    if found is None:
        return None
    logits = found.logits[run.answer]  # of too many classes for eval.json
    answer = examples.answered(logits).labels
    return scores.confusion(answer, found.labels, logits.shape[1])


def _classes(runs: Sequence[Run]) -> list[Raw]:
    """A table of each data set: the share of each class answered right, the worst first."""
    tables = []
    sets = dict.fromkeys((run.config.data.name, tuple(run.class_names)) for run in runs)
    for name, classes in sets:
        mine = [r for r in runs if (r.config.data.name, tuple(r.class_names)) == (name, classes)]
        shares = {
            run.name: found
            for run in mine
            if (found := results.scores(run, run.answer).get("per_class"))
        }
        if not shares:
            continue
        table = np.array(list(shares.values()), np.float64)  # null of JSON is NaN
        known = np.flatnonzero(~np.isnan(table).any(0))
        order = known[np.argsort(table[:, known].mean(0), kind="stable")]
        shown = order
        caption = f"{name}: share of each class answered right, %; the worst first."
        if len(order) > 2 * _CLASSES:
            shown = np.concatenate([order[:_CLASSES], order[-_CLASSES:]])
            caption += f" The {len(order) - len(shown):,} classes in the middle are left out."
        run = mine[0]
        rows = [
            [run.class_name(i), *(f"{100 * share:.2f}" for share in table[:, i])] for i in shown
        ]
        tables.append(html.table(caption, ["class", *shares], [("", rows)]))
    return tables


def diversity(runs: Sequence[Run]) -> Raw:
    """How the networks differ: the matrix of disagreement, and training against test."""
    several = [run for run in runs if len(run.networks) > 1]
    if not several:
        return Raw("")
    drawn = [charts.disagreement(run, i) for i, run in enumerate(runs)]
    titles = {
        "disagreement": ("disagreement %", "{:.2f}", 100),
        "pairwise_kl": ("pairwise KL, nats", "{:.4f}", 1),
        "error_correlation": ("correlation of errors", "{:.3f}", 1),
        "mutual_information": ("mutual information, nats", "{:.4f}", 1),
        "oracle": ("any network right %", "{:.2f}", 100),
    }
    bodies = []
    for run in several:
        gap = run.evaluation.get("diversity_gap") or {}
        rows = [
            [title, *(_number(gap[key].get(k), text, times) for k in ("train", "test", "gap"))]
            for key, (title, text, times) in titles.items()
            if key in gap
        ]
        if rows:
            bodies.append((run.name, rows))
    parts: list[Any] = [_figures(drawn)]
    if bodies:
        caption = (
            "How the networks differ, as means over their pairs, on a sample of the training set "
            "and on the test set. Networks that differ on training images only have learned to "
            "look different."
        )
        parts.append(html.table(caption, ["", "training", "test", "test - training"], bodies))
    parts += [
        html.paragraph(f"{run.name} has one network, so there is nothing to differ.")
        for run in runs
        if run not in several and run.answers
    ]
    return html.section("diversity", "Diversity of the networks", parts)


def _number(value: float | None, text: str, times: float) -> str:
    return "-" if value is None else text.format(times * value)


def cost(runs: Sequence[Run], predictions: Predictions) -> Raw:
    """Accuracy of a cascade against its multiply-adds."""
    drawn = [
        cascades.curve(run, number, its["test"], its.get("validation"))
        for number, run in enumerate(runs)
        if (its := predictions.get(run.name))
    ]
    begin = html.paragraph(
        "A cascade asks network after network until the mean of their answers is sure enough; "
        "easy images cost little (arXiv 2012.01988)."
    )
    return html.section("cost", "Cost", [begin, _figures(drawn)] if any(drawn) else [])


def wrong(runs: Sequence[Run], predictions: Predictions, most: int) -> Raw:
    """The images that the runs are most confidently wrong about."""
    from jaxsplit.errors import ConfigError

    parts: list[Any] = []
    for run in runs:
        if run.name not in predictions:
            continue
        found = examples.most_confident(run, predictions[run.name]["test"], most)
        parts.append(html.tag("h3", f"{run.name}: {run.answer}"))
        if not found:
            parts.append(html.paragraph("Every test image is answered right."))
            continue
        try:
            images = examples.images(run.config, found)
        except ConfigError as error:
            images = [None] * len(found)
            parts.append(html.paragraph(f"No pictures: {error}.", "muted"))
        cards = [examples.card(run, one, image) for one, image in zip(found, images, strict=True)]
        parts.append(html.tag("div", html.join(cards), class_="examples"))
    if not parts:
        return Raw("")
    begin = html.paragraph("In brackets the confidence; below, what each network answers alone.")
    return html.section("wrong", "Most confidently wrong", [begin, *parts])


def configs(runs: Sequence[Run]) -> Raw:
    """The fields in which the configs differ, and what changed while a run went on."""
    heads, rows = reproduce.differences(runs)
    if len(runs) > 1:
        caption = "Fields of the config that differ between the runs."
        none = "The configs of the runs are the same."
    else:
        caption = "Fields of the config that differ from the defaults."
        none = "The config holds the defaults."
    table = html.table(caption, heads, [("", rows)], "words") if rows else html.paragraph(none)
    changed = [line for run in runs for line in results.changes(run)]
    return html.section("config", "Configuration", [table, html.bullets(changed)])


def versions(runs: Sequence[Run]) -> Raw:
    """Versions of what the runs were made with, and how to make them again."""
    found = {run.name: reproduce.versions(run) for run in runs}
    names = list(dict.fromkeys(name for one in found.values() for name in one))
    rows = [[name, *(found[run.name].get(name, "-") for run in runs)] for name in names]
    caption = "What the runs were trained and evaluated with."
    parts: list[Any] = [
        html.table(caption, ["", *(run.name for run in runs)], [("", rows)], "words")
    ]
    for run in runs:
        parts.append(html.paragraph(f"Train {run.name} again:"))
        parts.append(html.tag("pre", html.code(reproduce.command(run))))
        if run.config.init_from:
            text = f"It starts from the weights {run.config.init_from}: --init_from=..."
            parts.append(html.paragraph(text, "muted"))
    return html.section("reproduce", "Versions, and how to reproduce", parts)


def _figures(drawn: Sequence[charts.Chart | None]) -> Raw:
    return html.grid([html.figure(Raw(c.svg), c.caption) for c in drawn if c])
