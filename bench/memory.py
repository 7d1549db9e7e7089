"""Time of training steps on CPU with freed memory returned to the system, and with it kept.

python -m bench.memory [--arch wide_resnet16_8] [--split 4] [--batch 32] [--rounds 8]

Compares `allocator.keep_memory` with the defaults of glibc, in turn in one process, and counts the
page faults of a step.
"""

import argparse
import pathlib
import resource
import statistics

from bench import Results, programs
from jaxsplit.hosts import allocator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    programs.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1, help="of a round")
    parser.add_argument("--out", type=pathlib.Path, help="Markdown file to append the table to")
    args = parser.parse_args()
    case = programs.of_arguments(args)
    program = programs.compile_case(case)
    ways = {"given back": allocator.give_back, "kept": allocator.keep_memory}
    seconds = {name: [] for name in ways}
    faults = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, set_up in ways.items():
            set_up()
            for _ in range(4):  # until what was freed fits what is asked for
                program.run()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            seconds[name].append(program.seconds(args.steps))
            after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            faults[name].append((after - before) / args.steps)
    lines = ["| freed memory | seconds | ratio | page faults a step |", "|---|---|---|---|"]
    results = Results(args.out)
    for name in ways:
        pairs = zip(seconds[name], seconds["given back"], strict=True)
        ratio = statistics.median(a / b for a, b in pairs)
        median, faulted = statistics.median(seconds[name]), statistics.median(faults[name])
        results.add("memory", case=str(case), way=name, seconds=median, ratio=ratio, faults=faulted)
        lines.append(f"| {name} | {median:.4f} | {ratio:.2f} | {faulted:,.0f} |")
    made = f"median of {args.rounds} rounds"
    results.show("\n".join(lines), str(case), programs.device_name(), made)


if __name__ == "__main__":
    main()
