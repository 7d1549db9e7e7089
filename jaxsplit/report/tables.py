"""What a run prints: its progress and the table at its end."""

import sys
from collections.abc import Mapping, Sequence

from jaxsplit.costs import ALL, Cost, own_costs, stack_cost
from jaxsplit.evaluation import METRICS
from jaxsplit.recipes import published
from jaxsplit.recipes.published import Result
from jaxsplit.report import summary


class Progress:
    """One progress bar on a terminal, plain lines elsewhere; silent unless `active`.

    Args:
      total: steps of the run.
      start: steps done before.
      active: whether anything is printed.
      num_networks: S; the loss is printed as that of one network.
    """

    def __init__(self, *, total: int, start: int, active: bool = True, num_networks: int = 1):
        self._active, self._total, self._bar = active, total, None
        self._num_networks = num_networks
        if active and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True)

    def advance(self) -> None:
        """One step was dispatched."""
        if self._bar is not None:
            self._bar.update()

    def training(self, step: int, epoch: float, m: Mapping[str, float]) -> None:
        """The metrics of a log point."""
        parts = [self._loss(m)]
        if "train/ensemble/top1" in m:
            parts.append(f"ensemble {m['train/ensemble/top1']:.2%}")
        if "train/leader/top1" in m:
            parts.append(f"leader {m['train/leader/top1']:.2%}")
        for key, value in m.items():  # of what a method weighs by the step
            if key.startswith("train/") and key.endswith("/weight"):
                name = key.removeprefix("train/").replace("/", " ")
                parts.append(f"{name} {value:.3f}")
        parts += [f"lr {m['lr']:.4g}", f"{m['images_per_second']:,.0f} images/s"]
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(parts[:2]))
        else:
            self.line(f"step {step}/{self._total}, epoch {epoch:.2f}: {', '.join(parts)}")

    def _loss(self, m: Mapping[str, float]) -> str:
        """The sum over the networks, divided by their number, so that it does not grow with S."""
        if self._num_networks == 1:
            return f"loss {m['train/loss']:.4f}"
        if "train/leader/loss" in m:  # of a network, and modules, beside the others
            return f"loss {m['train/loss']:.4f} in all"
        return f"loss {m['train/loss'] / self._num_networks:.4f} a network"

    def line(self, text: str) -> None:
        """A line of its own, above the bar."""
        if not self._active:
            return
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def results_table(
    title: str,
    results: Mapping[str, float],
    costs: tuple[Cost, Cost],
    num_networks: int,
    published: Sequence[Result] = (),
    own: Mapping[str, tuple[int, int]] | None = None,
    num_classes: int = 1000,
) -> str:
    """Text: a row for each network and what they answer together, with parameters and costs.

    Args:
      title: the first line.
      results: of `evaluate`; which of them have a column, `evaluation.METRICS` says.
      costs: (one divided network, the undivided network).
      num_networks: S.
      published: what the paper reached with the same, a line each below the table.
      own: of `costs.own_costs`.
      num_classes: K; metrics that say nothing of so few classes are left out.
    """
    own = own or {}
    small, large = costs
    answers = [key.removesuffix("/top1") for key in results if key.endswith("/top1")]
    # A jitted function sorts the names: networks first, by number.
    names = sorted((n for n in answers if n.startswith("net")), key=lambda n: int(n[3:]))
    names += [n for n in answers if n not in names]
    columns = {
        name: metric
        for name, metric in METRICS.items()
        if not metric.of_networks and num_classes >= metric.least_classes
    }
    rows = [("", *(metric.title for metric in columns.values()), "parameters", "mult-adds")]
    together = own.get(ALL, (num_networks * small.params, num_networks * small.macs))
    for name in names:
        if name.startswith("net"):
            params, macs = small.params, small.macs
        else:
            params, macs = own.get(name, together)
        values = (metric.text(results[f"{name}/{key}"]) for key, metric in columns.items())
        rows.append((name, *values, f"{params:,}", f"{macs:,}"))
    if num_networks > 1:
        none = ("-",) * len(columns)
        rows.append(("undivided", *none, f"{large.params:,}", f"{large.macs:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [title]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells))
    of_networks = [
        f"{metric.title}: {metric.text(results[name])}"
        for name, metric in METRICS.items()
        if metric.of_networks and name in results
    ]
    if of_networks:
        lines.append("; ".join(of_networks))
    lines += [f"published: {result}" for result in published]
    return "\n".join(lines)


def brief(exp, results: Mapping[str, float]) -> str:
    """Accuracy and NLL of an evaluation of an `Experiment`, in a line."""
    split, answer = exp.eval_split[0], exp.method.answer
    return (
        f"{split} {answer} top-1 {results[f'{split}/{answer}/top1']:.2%}, "
        f"NLL {results[f'{split}/{answer}/nll']:.4f}"
    )


def tables(exp, results: Mapping[str, float], which: str, *, imported: bool = False) -> str:
    """The table of every evaluated split of an `Experiment`, and how `best` was chosen.

    Args:
      exp: the experiment.
      results: of `evaluate`, with the name of the split before each.
      which: checkpoint, in words.
      imported: the checkpoint holds what was said of its accuracy where it was trained.
    """
    config = exp.config
    costs = stack_cost(
        config.arch,
        exp.resolved.divided_in,
        num_classes=exp.dataset.num_classes,
        image_shape=exp.dataset.image_shape,
    )
    own = own_costs(
        config,
        exp.resolved,
        costs[0],
        num_classes=exp.dataset.num_classes,
        image_shape=exp.dataset.image_shape,
    )
    as_published = exp.resolved.entry.as_published(config)
    parts = []
    for split in ("validation", "test"):
        if f"{split}/count" not in results:
            continue
        title = (
            f"{config.data.name} {split} ({results[f'{split}/count']:.0f} images), "
            f"{summary.title(config)}, {config.method}; "
            f"checkpoint {which}"
        )
        values = {k.split("/", 1)[1]: v for k, v in results.items() if k.startswith(f"{split}/")}
        same = dict(
            dataset=config.data.name, method=config.method, arch=config.arch, split=config.split
        )
        # The papers' are test figures.
        reached = published.find(**same) if split == "test" and as_published else ()
        classes = exp.dataset.num_classes
        parts.append(results_table(title, values, costs, config.split, reached, own, classes))
    if "best/step" in results:
        best = f"{exp.method.answer} top-1 {results[f'best/{exp.best_metric}']:.2%}"
        chosen = "training part held out" if exp.eval_split[0] == "validation" else "test set"
        if imported:
            parts.append(f"said where it comes from: {best}")
        else:
            parts.append(f"best: step {results['best/step']:.0f}, {best}, chosen on the {chosen}")
    return "\n\n".join(parts)
