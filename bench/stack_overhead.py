"""Overhead of stacking S networks: a step of the stack compared with S steps of one network.

python -m bench.stack_overhead [--arch wide_resnet16_4] [--split 4] [--batch 64] [--size 32]

Times in turn in one process: S training steps of one divided network compiled alone (the base), and
one step of the stack for each lowering. The networks train independently.
"""

import argparse
import pathlib
import statistics

from bench import Results, errors_in_one_line, programs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    programs.add_arguments(parser, arch="wide_resnet16_4", batch=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--lowerings", nargs="+", default=["dense", "unrolled", "grouped"], help="without auto"
    )
    parser.add_argument("--out", type=pathlib.Path, help="Markdown file to append the table to")
    args = parser.parse_args()
    with errors_in_one_line():
        stack = programs.changed(programs.of_arguments(args), method="independent", shared=True)
        alone = programs.changed(stack, split=1, method="single", divide_in=stack.split)
        base = f"{stack.split} single steps"
        made = {base: programs.compile_case(alone)}
        for lowering in args.lowerings:
            made[lowering] = programs.compile_case(programs.changed(stack, lowering=lowering))
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(args.rounds + 1):  # the first warms up
        for name, program in made.items():
            times = stack.split if name == base else 1
            seconds[name].append(times * program.seconds(times))
    results = Results(args.out)
    lines = ["| step | seconds | ratio | compile s |", "|---|---|---|---|"]
    for name, program in made.items():
        pairs = zip(seconds[name][1:], seconds[base][1:], strict=True)
        median = statistics.median(seconds[name][1:])
        ratio = statistics.median(a / b for a, b in pairs)
        results.add(
            "stack_overhead",
            case=str(stack),
            step=name,
            seconds=median,
            ratio=ratio,
            compile_s=program.compile_s,
        )
        lines.append(f"| {name} | {median:.4f} | {ratio:.3f} | {program.compile_s:.1f} |")
    made_in = f"median of {args.rounds} rounds"
    results.show("\n".join(lines), str(stack), programs.device_name(), made_in)


if __name__ == "__main__":
    main()
