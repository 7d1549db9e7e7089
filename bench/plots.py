"""Draws the figures of `docs/figures`: the growth of a step's cost, and the curves of a run.

python -m bench.plots --figures bench/results/growth_cpu.jsonl --out docs/figures
python -m bench.plots --run runs/digits --out docs/figures

Writes one SVG for each series of `bench.train_step --grow` (networks, batch, devices), or one for a
run, with the name of its workdir.
"""

import argparse
import contextlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

AXES = {
    "networks": ("split", "networks S that replace one"),
    "batch": ("batch", "batch"),
    "devices": ("devices", "devices"),
}


@contextlib.contextmanager
def svg(
    path: pathlib.Path, size: tuple[float, float], *, salt: str = "", description: str = "", **rc
) -> Iterator[Any]:
    """A figure of `size` inches, which is written to `path` at the end; `rc`: of matplotlib."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Text stays text; ids that do not change from drawing to drawing.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt or path.stem, **rc}):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"Description": description} if description else {}
        figure.savefig(path, metadata={"Date": None, **about})


def draw_run(lines: Sequence[dict], path: pathlib.Path) -> None:
    """Draws the test errors of all networks and of the ensemble by step, from metrics.jsonl."""
    rows = [line for line in lines if "test/ensemble/top1" in line]
    names = [key.split("/")[1] for key in rows[0] if key.startswith("test/") and "/top1" in key]
    with svg(path, (6.4, 3)) as figure:
        axes = figure.subplots()
        steps = [row["step"] for row in rows]
        for name in names:
            errors = [100 * (1 - row[f"test/{name}/top1"]) for row in rows]
            together = name == "ensemble"
            style = dict(color="black", linewidth=2) if together else dict(alpha=0.6, linewidth=1)
            axes.plot(steps, errors, label=name, **style)
        axes.set_yscale("symlog", linthresh=1)  # a network may make no error
        ticks = [0, 0.5, 1, 2, 5, 10, 20, 50, 100]
        axes.set_yticks(ticks, [str(tick) for tick in ticks], minor=False)
        axes.set_yticks([], minor=True)
        axes.set_xlabel("step")
        axes.set_ylabel("test error, %")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)


def draw(name: str, rows: Sequence[dict], path: pathlib.Path) -> None:
    """Draws seconds of a step (by batch: images per second) and of its compilation by series."""
    key, label = AXES[name]
    x = [row[key] for row in rows]
    with svg(path, (5, 3.2), salt=name) as figure:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--figures", type=pathlib.Path, help="a file of JSON lines")
    which.add_argument("--run", type=pathlib.Path, help="a workdir")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a folder")
    args = parser.parse_args()
    file = args.run / "metrics.jsonl" if args.run else args.figures
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    if args.run:
        path = args.out / f"{args.run.name}.svg"
        draw_run(rows, path)
        print(path)
        return
    for name in AXES:
        own = [row for row in rows if row["part"] == f"train_step {name}"]
        if own:
            path = args.out / f"{args.figures.stem}_{name}.svg"
            draw(name, own, path)
            print(path)


if __name__ == "__main__":
    main()
