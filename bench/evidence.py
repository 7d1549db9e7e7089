"""Tables of `docs/evidence.md` from the comparisons in `bench/results/evidence/`.

python -m bench.evidence               # prints a table for each folder
python -m bench.evidence --keep DIR    # copies the small results of a comparison into such a folder

A folder holds compare.csv, metrics.csv and compare.json of a `jaxsplit compare`, no checkpoints.
`command.txt` holds the command, the commit and the time.
"""

import argparse
import csv
import json
import pathlib

from bench import errors_in_one_line, made_by, programs
from jaxsplit import defaults
from jaxsplit.compare import record as record_lib
from jaxsplit.errors import ConfigError

FOLDER = pathlib.Path(__file__).parent / "results" / "evidence"
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
    args = parser.parse_args()
    if args.keep:
        print(keep(args.keep, args.name or args.keep.name, args.command))
        return
    for path in sorted(FOLDER.glob("*/compare.csv")):
        with path.open() as file:
            rows = list(csv.DictReader(file))
        print(f"## {path.parent.name}\n\n{table(rows)}\n\n{networks(rows)}\n")


if __name__ == "__main__":
    with errors_in_one_line():
        main()
