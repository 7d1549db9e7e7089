"""Draws how the cost of a step grows, from the figures of `bench.train_step --grow`.

python -m bench.plots --figures bench/results/growth_cpu.jsonl --out docs/figures

One SVG a series: networks, batch, devices. Needs matplotlib (`pip install -e '.[bench]'`).
"""

import argparse
import json
import pathlib
from collections.abc import Sequence

AXES = {
    "networks": ("split", "networks S that replace one"),
    "batch": ("batch", "batch"),
    "devices": ("devices", "devices"),
}


def draw(name: str, rows: Sequence[dict], path: pathlib.Path) -> None:
    """Seconds of a step (by batch: images a second) along one series, and of its compilation."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    key, label = AXES[name]
    x = [row[key] for row in rows]
    # Text stays text; ids that do not change from drawing to drawing.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure = Figure(figsize=(5, 3.2), layout="constrained")
        axes = figure.subplots()
        unit = {"batch": "images a second"}.get(name, "seconds")

        def value(row: dict, which: str) -> float:
            return row["batch"] / row[which] if name == "batch" else row[which]

        middle = [value(row, "seconds") for row in rows]
        ends = [sorted(value(row, f"seconds_{end}") for end in ("min", "max")) for row in rows]
        low = [m - end[0] for m, end in zip(middle, ends, strict=True)]
        high = [end[1] - m for m, end in zip(middle, ends, strict=True)]
        axes.errorbar(x, middle, (low, high), marker="o", capsize=3, label="step: median, range")
        if name == "networks":
            compiled = [row["trace_s"] + row["compile_s"] for row in rows]
            axes.plot(x, compiled, marker="s", linestyle="--", label="compilation, once")
        axes.set_xscale("log", base=2)
        axes.set_xticks(x, [str(v) for v in x])
        axes.set_ylim(bottom=0)
        axes.set_xlabel(label)
        axes.set_ylabel(unit)
        title = rows[0]["case"].replace("/1,", ",") if name == "networks" else rows[0]["case"]
        if name == "batch":
            title = title.replace(f" batch {rows[0]['batch']},", "")
        axes.set_title(title, fontsize=8)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figures", type=pathlib.Path, required=True, help="a file of JSON lines")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a folder")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.figures.read_text().splitlines()]
    for name in AXES:
        own = [row for row in rows if row["part"] == f"train_step {name}"]
        if own:
            path = args.out / f"{args.figures.stem}_{name}.svg"
            draw(name, own, path)
            print(path)


if __name__ == "__main__":
    main()
