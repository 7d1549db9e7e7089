"""What eval.json holds of another data set (`ood`) and of corrupted images (`corruptions`)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxsplit.report import html
from jaxsplit.report.html import Raw
from jaxsplit.report.runs import Run

_DETECTION = {"auroc": "AUROC %", "aupr_out": "AUPR out %", "aupr_in": "AUPR in %"}
_DETECTION |= {"fpr95": "FPR95 %"}
_SEVERITIES = 5


def section(runs: Sequence[Run]) -> Raw:
    """Tables of both; '' where no run has them."""
    parts = []
    for run in runs:
        if foreign := run.evaluation.get("ood"):
            parts.append(_foreign(run, foreign))
        if corrupted := run.evaluation.get("corruptions"):
            parts += _corrupted(run, corrupted)
    return html.section("shift", "Foreign and corrupted images", parts)


def _foreign(run: Run, found: Mapping[str, Any]) -> Raw:
    note = f" ({found['note']})" if found.get("note") else ""
    caption = (
        f"{run.name}: {found.get('foreign_count', 0):,.0f} images of {found.get('data')}{note} "
        f"told from {found.get('count', 0):,.0f} test images by how uncertain the answers are. "
        "AUROC and AUPR: more is better; FPR95: less."
    )
    every = {**found.get("answers", {}), "networks together": found.get("networks", {})}
    rows = [
        [f"{name}, {kind.replace('_', ' ')}", *(_percent(its.get(key)) for key in _DETECTION)]
        for name, kinds in every.items()
        for kind, its in kinds.items()
    ]
    return html.table(caption, ["answer, uncertainty", *_DETECTION.values()], [("", rows)])


def _corrupted(run: Run, found: Mapping[str, Any]) -> list[Raw]:
    """Means of every answer, then the error of the run's answer by kind and severity."""
    heads = ["answer", "mean corruption error %", "NLL", "ECE %"]
    rows = []
    for name, its in found.get("answers", {}).items():
        error, nll, ece = (its.get(key) for key in ("mean_corruption_error", "nll", "ece"))
        rows.append([name, _percent(error), "-" if nll is None else f"{nll:.4f}", _percent(ece)])
    caption = (
        f"{run.name}: {found.get('count', 0):,.0f} test images, corrupted as in CIFAR-10-C and "
        "ImageNet-C; means over kinds and severities. Less is better."
    )
    tables = [html.table(caption, heads, [("", rows)])]
    by_kind = []
    for kind, its in found.get("kinds", {}).items():
        right = its.get("answers", {}).get(run.answer, {}).get("top1") or []
        errors = [None if share is None else 1 - share for share in right]
        how = str(its.get("definition", "published")).partition(":")[0]
        mark = "" if how == "published" else f" ({how})"
        by_kind.append([kind.replace("_", " ") + mark, *map(_percent, errors[:_SEVERITIES])])
    if by_kind:
        caption = f"{run.name}: error of {run.answer} in %, by severity."
        heads = ["kind", *map(str, range(1, _SEVERITIES + 1))]
        tables.append(html.table(caption, heads, [("", by_kind)]))
    return tables


def _percent(share: float | None) -> str:
    return "-" if share is None or not math.isfinite(share) else f"{100 * share:.2f}"
