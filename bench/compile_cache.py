"""What compiled programs kept in the workdir save: seconds from the command to the first step.

python -m bench.compile_cache [--config configs/digits_wrn16_4_x4.py] [--rounds 3]

Starts main.py twice in each of several new workdirs, and ends it after its first step: the second
start finds what the first has compiled, and no checkpoint.
"""

import argparse
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

import jax

from bench import made_by

ROOT = pathlib.Path(__file__).parent.parent


def first_step(config: str, workdir: str) -> tuple[float, float]:
    """Seconds until the first step is done; those of them that compiling the step took."""
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-u", str(ROOT / "main.py")]
    command += [f"--config={config}", f"--workdir={workdir}", "--config.log_every=1 steps"]
    began, compiling, lines = time.monotonic(), None, []
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        for line in run.stdout:
            lines.append(line)
            if found := re.match(r"compiled the training step in ([\d.]+) s", line):
                compiling = float(found[1])
            if line.startswith("step 1/"):
                seconds = time.monotonic() - began
                run.kill()
                return seconds, compiling
    raise RuntimeError("the run ended before its first step:\n" + "".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/digits_wrn16_4_x4.py")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rows = []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as workdir:
            rows.append([first_step(args.config, workdir) for _ in ("first", "second")])
            folder = pathlib.Path(workdir) / ".jax_cache"
            files = [path.stat().st_size for path in folder.iterdir()]
            print(rows[-1], flush=True)
    device = f"{jax.default_backend()}, {os.cpu_count()} cores"
    print(f"\n{args.config}; {made_by(device, f'jax {jax.__version__}')}\n")
    print("| | first start s | second start s | ratio |\n|---|---|---|---|")
    for number, (first, second) in enumerate(rows, 1):
        print(f"| round {number} | {first[0]:.1f} | {second[0]:.1f} | {second[0] / first[0]:.2f} |")
    first, second = (statistics.median(row[i][0] for row in rows) for i in (0, 1))
    print(f"| median | {first:.1f} | {second:.1f} | {second / first:.2f} |")
    first, second = (statistics.median(row[i][1] for row in rows) for i in (0, 1))
    print(f"| median, of this the step's program | {first:.1f} | {second:.1f} | |")
    print(f"\nThe folder holds {len(files)} files, {sum(files) / 2**20:.1f} MiB.")


if __name__ == "__main__":
    main()
