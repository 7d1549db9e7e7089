"""Tables and figures of `docs/evidence.md` from the comparisons in `bench/results/evidence/`.

python -m bench.evidence                          # prints a table for each folder
python -m bench.evidence --keep DIR               # copies the small results of a comparison there
python -m bench.evidence --figures docs/figures   # draws an SVG for each folder

A folder holds compare.csv, metrics.csv and compare.json of a `jaxsplit compare`, no checkpoints.
`command.txt` holds the command, the commit and the time.
"""

import argparse
import contextlib
import csv
import hashlib
import json
import pathlib
from typing import Any

from bench import errors_in_one_line, made_by, plots, programs
from jaxsplit import defaults
from jaxsplit.compare import record as record_lib
from jaxsplit.errors import ConfigError

FOLDER = pathlib.Path(__file__).parent / "results" / "evidence"
_COLOURS = ("independent", "cotrain", "packed", "batch_ensemble", "mimo", "okdph", "distill_from")
_COLOURS += ("dml", "ffsd", "joint")
KEPT = ("compare.csv", "metrics.csv", "compare.json")


def keep(workdir: pathlib.Path, name: str, command: str) -> pathlib.Path:
    """Copies the small results of a comparison, with its command, and returns the folder.

    Raises:
      ConfigError: the workdir holds no comparison.
    """
    missing = [file for file in KEPT if not (workdir / file).is_file()]
    if missing:
        raise ConfigError(f"{workdir}: has no {missing[0]}; it holds no comparison")
    out = FOLDER / name
    out.mkdir(parents=True, exist_ok=True)
    for file in KEPT:  # with the paths of teachers relative to the comparison
        (out / file).write_text((workdir / file).read_text().replace(f"{workdir}/", ""))
    record = json.loads((out / record_lib.NAME).read_text())
    record["config"]["data"]["dir"] = defaults.get_config().data.dir  # the rest is no path
    (out / record_lib.NAME).write_text(json.dumps(record, indent=1) + "\n")
    (out / "command.txt").write_text(f"{command}\n\n{made_by(programs.device_name())}\n")
    return out


def table(rows: list[dict[str, str]]) -> str:
    """A Markdown table of the rows of a compare.csv."""
    heads = ["", "seeds", "accuracy %", "difference, points (95 %)", "NLL", "ECE %"]
    heads += ["parameters", "multiply-adds", "in training", "seconds"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    return "\n".join(lines)


def networks(rows: list[dict[str, str]]) -> str:
    """A Markdown table of the networks alone and of how they differ, of a compare.csv."""
    heads = ["", "seeds", "one network %", "answer %", "networks differ on %", "gap, points"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        fields = ("networks_top1", "top1", "disagreement", "diversity_gap")
        cells = [_name(row), row["seeds"], *(_mean(row, field, 100, 2) for field in fields)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: list[dict[str, str]], path: pathlib.Path) -> None:
    """Draws the differences to the undivided network, and accuracy by multiply-adds in training."""
    with _drawn(rows, path, (9, 1.3 + 0.28 * len(rows))) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
        compared = [row for row in rows if row["difference"]]
        for y, row in enumerate(reversed(compared)):
            mean, low, high = (
                100 * float(row[f"difference{end}"]) for end in ("", "_lower", "_upper")
            )
            left.errorbar(mean, y, xerr=([mean - low], [high - mean]), **_look(row), capsize=3)
        left.axvline(0, color="black", linewidth=0.8)
        left.set_yticks(range(len(compared)), [_name(row) for row in reversed(compared)])
        left.set_ylim(-0.6, len(compared) - 0.4)
        left.set_xlabel("difference to the undivided network, points (95 %)")
        left.grid(alpha=0.3, axis="x")
        for row in rows:
            deviation = 100 * float(row["top1_deviation"] or "nan")
            x, y = float(row["train_macs"]) / 1e6, 100 * float(row["top1"])
            right.errorbar(x, y, deviation, **_look(row), capsize=3, label=_name(row))
        right.set_xlabel("millions of multiply-adds of an image in training, forwards")
        right.set_ylabel("accuracy, %")
        right.set_xlim(0, 1.07 * max(float(row["train_macs"]) for row in rows) / 1e6)
        right.grid(alpha=0.3)
        right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def draw_networks(rows: list[dict[str, str]], path: pathlib.Path) -> None:
    """Draws the accuracies of one network and of all, and how many images two differ on."""
    lines = (
        ("top1", "answer"),
        ("networks_top1", "one network"),
        ("disagreement", "two differ on"),
    )
    with _drawn(rows, path, (6.4, 2.6)) as figure:
        axes = figure.subplots()
        for field, label in lines:
            y = [100 * float(row[field]) for row in rows]
            deviations = [100 * float(row[f"{field}_deviation"] or "nan") for row in rows]
            axes.errorbar(range(len(rows)), y, deviations, marker="o", capsize=3, label=label)
        axes.set_xticks(range(len(rows)), [_name(row).replace(", ", "\n") for row in rows])
        axes.set_ylabel("test images, %")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="center left")


def _drawn(
    rows: list[dict[str, str]], path: pathlib.Path, size: tuple[float, float]
) -> contextlib.AbstractContextManager[Any]:
    about = f"rows {digest(rows)}"
    return plots.svg(path, size, description=about, **{"font.size": 8})


def digest(rows: list[dict[str, str]]) -> str:
    """Tells whether a figure is of these rows."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _look(row: dict[str, str]) -> dict[str, str]:
    """Colour by method, mark by S."""
    if row["method"] not in _COLOURS:
        return dict(color="black", fmt="s")
    return dict(color=f"C{_COLOURS.index(row['method'])}", fmt="D" if row["split"] == "2" else "o")


def _name(row: dict[str, str]) -> str:
    columns = list(row)
    axes = columns[columns.index("split") + 1 : columns.index("seeds")]
    name = f"{row['method']}, S = {row['split']}" if int(row["split"]) > 1 else row["method"]
    return name + "".join(f", {field} = {row[field]}" for field in axes if row[field])


def _cells(row: dict[str, str]) -> list[str]:
    return [
        _name(row),
        row["seeds"],
        _mean(row, "top1", 100, 2),
        _difference(row),
        _mean(row, "nll", 1, 4),
        _mean(row, "ece", 100, 2),
        *(f"{int(float(row[field])):,}" for field in ("params", "macs", "train_macs")),
        _mean(row, "seconds", 1, 0),
    ]


def _mean(row: dict[str, str], field: str, times: float, digits: int) -> str:
    if not row[field]:
        return "-"
    text = f"{times * float(row[field]):.{digits}f}"
    spread = row.get(f"{field}_deviation", "")
    return f"{text} ± {times * float(spread):.{digits}f}" if spread else text


def _difference(row: dict[str, str]) -> str:
    if not row["difference"]:
        return "-"
    mean, low, high = (
        f"{100 * float(row[field]):+.2f}"
        for field in ("difference", "difference_lower", "difference_upper")
    )
    return f"{mean} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=pathlib.Path, help="workdir of a comparison")
    parser.add_argument("--name", default="", help="of its folder; default: that of the workdir")
    parser.add_argument("--command", default="", help="how it was made")
    parser.add_argument("--figures", type=pathlib.Path, help="a folder")
    args = parser.parse_args()
    if args.keep:
        print(keep(args.keep, args.name or args.keep.name, args.command))
        return
    for path in sorted(FOLDER.glob("*/compare.csv")):
        with path.open() as file:
            rows = list(csv.DictReader(file))
        if args.figures:
            drawn = args.figures / f"evidence_{path.parent.name}.svg"
            (draw if any(row["difference"] for row in rows) else draw_networks)(rows, drawn)
            print(drawn)
        else:
            print(f"## {path.parent.name}\n\n{table(rows)}\n\n{networks(rows)}\n")


if __name__ == "__main__":
    with errors_in_one_line():
        main()
