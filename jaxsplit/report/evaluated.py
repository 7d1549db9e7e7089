"""What an evaluation prints of eval.json: diversity, and calibration before and after scaling."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxsplit.evaluation import record
from jaxsplit.report.tables import aligned


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _nats(value: float) -> str:
    return f"{value:.4f}"


# Rows of the table of diversity: key of `networks`, its title, its text.
_ROWS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("disagreement", "pairwise disagreement %", _percent),
    ("pairwise_kl", "pairwise KL, nats", _nats),
    ("error_correlation", "correlation of errors", lambda value: f"{value:.3f}"),
    ("entropy", "entropy of the mean, nats", _nats),
    ("mutual_information", "mutual information, nats", _nats),
    ("oracle", "oracle top-1 %", _percent),
    ("ensemble_gain_top1", "gain of the ensemble, top-1 %", lambda x: f"{100 * x:+.2f}"),
    ("ensemble_gain_nll", "gain of the ensemble, NLL", lambda x: f"{x:+.4f}"),
)


def text(scored: Mapping[str, Any]) -> str:
    """Two small tables of the contents of eval.json; that of diversity where it has several."""
    parts = [_diversity(scored), _temperature(scored)]
    return "\n\n".join(part for part in parts if part)


def _diversity(scored: Mapping[str, Any]) -> str:
    splits = {name: its for name, its in scored["splits"].items() if "networks" in its}
    if not splits:
        return ""
    columns = [name for name in ("validation", "test", record.TRAIN) if name in splits]
    heads = ["training sample" if name == record.TRAIN else name for name in columns]
    rows = [("diversity of the networks", *heads)]
    for key, title, form in _ROWS:
        rows.append((title, *(form(splits[name]["networks"][key]) for name in columns)))
    return "\n".join(aligned(rows))


def _temperature(scored: Mapping[str, Any]) -> str:
    found = scored["temperature"]
    count, split = found["fitted_examples"], found["scored_on"]
    how = f"temperature fitted on the {count:,} validation images, scored on {split}"
    if found["fitted_on"] != "validation":
        how = f"temperature fitted on one half of {split}, scored on the other, both ways"
    rows: list[tuple[str, ...]] = [
        ("", "T", "NLL", "-> scaled", "ECE %", "-> scaled", "Brier", "-> scaled")
    ]
    for name, its in found["answers"].items():
        before, scaled = its["before"], its["after"]
        pairs = (
            form(values[metric])
            for metric, form in (("nll", _nats), ("ece", _percent), ("brier", _nats))
            for values in (before, scaled)
        )
        rows.append((name, f"{its['temperature']:.3f}", *pairs))
    return "\n".join([how, *aligned(rows)])
