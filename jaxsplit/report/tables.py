"""The tables that a run and an evaluation print at their end."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from jaxsplit.costs import ALL, Cost, config_costs, of_answer, own_costs
from jaxsplit.evaluation import EXAMPLES, METRICS, NETWORKS, Results, SplitResults, answers
from jaxsplit.recipes import published
from jaxsplit.recipes.published import Result
from jaxsplit.report import summary

if TYPE_CHECKING:  # `experiment` lies above this room
    from jaxsplit.experiment import Experiment


def results_table(
    title: str,
    results: SplitResults,
    costs: tuple[Cost, Cost],
    num_networks: int,
    published: Sequence[Result] = (),
    own: Mapping[str, tuple[int, int]] | None = None,
    num_classes: int = 1000,
) -> str:
    """Text with a row for each network and each common answer, with metrics and costs.

    Args:
      title: the first line.
      results: the results of a split; `evaluation.METRICS` has the columns. One more column shows
        `ece`, which evaluations that keep the logits have.
      costs: (one divided network, the undivided network).
      num_networks: S.
      published: the paper's results of the same networks; each is a line below the table.
      own: the costs from `costs.own_costs`.
      num_classes: K; metrics that are meaningless with so few classes are left out.
    """
    columns: dict[str, tuple[str, Callable[[float], str]]] = {
        name: (metric.title, metric.text)
        for name, metric in METRICS.items()
        if not metric.of_networks and num_classes >= metric.least_classes
    }
    if all("ece" in results[name] for name in answers(results)):
        columns["ece"] = "ECE %", lambda value: f"{100 * value:.2f}"
    small, large = costs
    together = (num_networks * small.params, num_networks * small.macs)
    sizes = {ALL: together, **(own or {})}
    rows = [("", *(title for title, _ in columns.values()), "parameters", "mult-adds")]
    for name in answers(results):
        params, macs = of_answer(name, small, sizes)
        values = (form(results[name][key]) for key, (_, form) in columns.items())
        rows.append((name, *values, f"{params:,}", f"{macs:,}"))
    if num_networks > 1:
        none = ("-",) * len(columns)
        rows.append(("undivided", *none, f"{large.params:,}", f"{large.macs:,}"))
    of_networks = [
        f"{metric.title}: {metric.text(results[NETWORKS][name])}"
        for name, metric in METRICS.items()
        if name in results.get(NETWORKS, {})
    ]
    lines = [title, *aligned(rows), *(["; ".join(of_networks)] if of_networks else [])]
    return "\n".join(lines + [f"published: {result}" for result in published])


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a table: the first column is left-aligned, the others right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for first, *others in rows:
        cells = [c.rjust(w) for c, w in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells])


def brief(exp: "Experiment", results: Results) -> str:
    """One line with the accuracy and NLL of an evaluation."""
    split, answer = exp.eval_split[0], exp.method.answer
    values = results[split][answer]
    return f"{split} {answer} top-1 {values['top1']:.2%}, NLL {values['nll']:.4f}"


def tables(exp: "Experiment", results: Results, which: str, best: str = "") -> str:
    """The tables of all evaluated splits.

    Args:
      exp: the experiment.
      results: the results of every split.
      which: the checkpoint in words, for the title.
      best: the last line, from `best_line` or `imported_line`; '': none.
    """
    config, classes = exp.config, exp.dataset.num_classes
    costs = config_costs(
        config, exp.resolved, num_classes=classes, image_shape=exp.dataset.image_shape
    )
    own = own_costs(
        config,
        exp.resolved,
        costs[0],
        num_classes=classes,
        image_shape=exp.dataset.image_shape,
    )
    as_published = exp.resolved.entry.as_published(config)
    parts = []
    for split, values in results.items():
        title = (
            f"{config.data.name} {split} ({values[EXAMPLES]['count']:.0f} images), "
            f"{summary.title(config)}, {config.method}; "
            f"checkpoint {which}"
        )
        same = dict(
            dataset=config.data.name, method=config.method, arch=config.arch, split=config.split
        )
        # The papers report results on the test set.
        reached = published.find(**same) if split == "test" and as_published else ()
        parts.append(results_table(title, values, costs, config.split, reached, own, classes))
    return "\n\n".join([*parts, *([best] if best else [])])


def best_line(exp: "Experiment", step: int, top1: float) -> str:
    """One line that names the best checkpoint, and the split on which it was chosen."""
    chosen = "training part held out" if exp.eval_split[0] == "validation" else "test set"
    return f"best: step {step}, {exp.method.answer} top-1 {top1:.2%}, chosen on the {chosen}"


def imported_line(exp: "Experiment", top1: float) -> str:
    """One line with the accuracy of imported weights, as their files report it."""
    return f"reported by its source: {exp.method.answer} top-1 {top1:.2%}"
