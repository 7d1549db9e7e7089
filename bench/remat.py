"""Memory that recomputing stages saves, and time that it costs.

python -m bench.remat [--arch wide_resnet16_8] [--split 4] [--batch 64] [--rounds 5]

Compiles a training step for several values of `config.remat` and prints XLA's own figure of the
memory for temporary values; with --rounds also the time of a step, in alternating rounds.
"""

import argparse
import pathlib
import statistics

from bench import Results, errors_in_one_line, programs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    programs.add_arguments(parser, batch=64)
    parser.add_argument("--rounds", type=int, default=0, help="0: memory only")
    parser.add_argument("--stages", nargs="+", default=["", "stage1", "all"], help="first the base")
    parser.add_argument("--out", type=pathlib.Path, help="Markdown file to append the table to")
    args = parser.parse_args()
    results = Results(args.out)
    with errors_in_one_line():
        base = programs.of_arguments(args)
        made = {s: programs.compile_case(programs.changed(base, remat=s)) for s in args.stages}
    seconds = {stages: [program.seconds()] for stages, program in made.items() if args.rounds}
    for _ in range(args.rounds):  # the first call above warms up
        for stages, times in seconds.items():
            times.append(made[stages].seconds())
    lines = ["| remat | temporary MiB | share | step s | ratio |", "|---|---|---|---|---|"]
    first = args.stages[0]
    for stages, program in made.items():
        row = {
            "mib": program.temporary_mib,
            "share": program.temporary_mib / made[first].temporary_mib,
        }
        cells = f"| {stages or 'none'} | {row['mib']:.0f} | {row['share']:.2f} |"
        if args.rounds:
            pairs = zip(seconds[stages][1:], seconds[first][1:], strict=True)
            row["seconds"] = statistics.median(seconds[stages][1:])
            row["ratio"] = statistics.median(a / b for a, b in pairs)
            cells += f" {row['seconds']:.3f} | {row['ratio']:.2f} |"
        else:
            cells += "  |  |"
        results.add("remat", case=str(base), remat=stages, **row)
        lines.append(cells)
    how = f"median of {args.rounds} rounds" if args.rounds else "compiled only"
    results.show("\n".join(lines), str(base), programs.device_name(), how)


if __name__ == "__main__":
    main()
