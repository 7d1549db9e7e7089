"""What eval.json holds of other data sets (`ood`) and corrupted images (`corruptions`), as tables.

Both are dicts of dicts; the innermost have numbers, or lists of numbers by severity. A row is an
innermost dict or list, whatever lies above it; rows with the same columns share a table.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxsplit.report import html
from jaxsplit.report.html import Raw
from jaxsplit.report.runs import Run

KINDS = {
    "ood": "Images of another data set, told from the test set by how uncertain the answers are. "
    "AUROC and AUPR: more is better; FPR95: less.",
    "corruptions": "Test images after the corruptions of ImageNet-C, by severity.",
}
_MOST = 12  # numbers of a list that is shown
Row = tuple[str, dict[str, Any]]


def section(runs: Sequence[Run]) -> Raw:
    """The tables of both; '' where no run has them."""
    parts = []
    for kind, caption in KINDS.items():
        for run in runs:
            found = run.evaluation.get(kind)
            if isinstance(found, Mapping) and found:
                parts += [_table(f"{run.name}: {caption}", rows) for rows in _tables(found)]
    return html.section("shift", "Foreign and corrupted images", parts)


def _tables(found: Mapping[str, Any]) -> list[list[Row]]:
    """The rows, in lists of the same columns."""
    kept: dict[tuple[str, ...], list[Row]] = {}
    for name, values in _rows(found, ()):
        kept.setdefault(tuple(values), []).append((name, values))
    return list(kept.values())


def _rows(value: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[Row]:
    numbers = {k: v for k, v in value.items() if not isinstance(v, Mapping | list)}
    if numbers:
        yield " / ".join(above), numbers
    for key, each in value.items():
        if isinstance(each, Mapping):
            yield from _rows(each, (*above, str(key)))
        elif isinstance(each, list) and 0 < len(each) <= _MOST and all(map(_plain, each)):
            severities = {str(i + 1): v for i, v in enumerate(each)}
            yield " / ".join((*above, str(key))), severities


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, int | float | str)


def _table(caption: str, rows: Sequence[Row]) -> Raw:
    heads = [key.replace("_", " ") for key in rows[0][1]]
    cells = [[name or "all", *map(_text, values.values())] for name, values in rows]
    return html.table(caption, ["", *heads], [("", cells)])


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
