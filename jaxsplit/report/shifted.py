"""What an evaluation prints of corrupted images and of another data set's images."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxsplit.report.tables import aligned


def text(scored: Mapping[str, Any]) -> str:
    """The tables of the sections `ood` and `corruptions` of eval.json; '' without either."""
    parts = [
        table(scored[section], scored["answer"])
        for section, table in (("ood", _ood), ("corruptions", _corruptions))
        if section in scored
    ]
    return "\n\n".join(parts)


def _ood(found: Mapping[str, Any], answer: str) -> str:
    rows: list[tuple[str, ...]] = [
        ("", "uncertainty", "AUROC %", "AUPR out %", "AUPR in %", "FPR95 %")
    ]
    named = found["answers"] | ({"all": found["networks"]} if "networks" in found else {})
    for name, kinds in named.items():
        for kind, its in kinds.items():
            values = (f"{100 * value:.2f}" for value in its.values())
            rows.append((name, kind.replace("_", " "), *values))
    head = (
        f"{found['count']:,} test images against {found['foreign_count']:,} of {found['data']!r}, "
        "by how uncertain the answers are"
    )
    return "\n".join([head, *([found["note"]] if found["note"] else []), *aligned(rows)])


def _corruptions(found: Mapping[str, Any], answer: str) -> str:
    rows: list[tuple[str, ...]] = [
        (f"error % of {answer}", "1", "2", "3", "4", "5", "mean", "NLL", "ECE %")
    ]
    for kind, its in found["kinds"].items():
        scores = its["answers"][answer]
        errors = [100 * (1 - top1) for top1 in scores["top1"]]
        name = kind + ("*" if its["definition"] != "published" else "")
        texts = [f"{error:.2f}" for error in [*errors, float(np.mean(errors))]]
        nll, ece = np.mean(scores["nll"]), 100 * np.mean(scores["ece"])
        rows.append((name.replace("_", " "), *texts, f"{nll:.4f}", f"{ece:.2f}"))
    over = [("over all kinds and severities", "mCE %", "NLL", "ECE %")]
    for name, its in found["answers"].items():
        error = f"{100 * its['mean_corruption_error']:.2f}"
        over.append((name, error, f"{its['nll']:.4f}", f"{100 * its['ece']:.2f}"))
    head = f"{found['count']:,} test images under 15 corruptions at 5 severities (*: approximate)"
    return "\n".join([head, *aligned(rows), "", *aligned(over)])
