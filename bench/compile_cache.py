"""Time that the cache of compiled programs saves: seconds from the command to the first step.

python -m bench.compile_cache [--config configs/digits_wrn16_4_x4.py] [--rounds 3]

Starts main.py twice, in new workdirs and with different seeds, and ends it after its first step.
The second start finds the programs that the first has compiled. Each round has a new cache.
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


def first_step(config: str, folder: str, seed: int) -> tuple[float, float]:
    """(seconds until the first step is done, seconds of them spent compiling it)."""
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    env["XDG_CACHE_HOME"] = f"{folder}/cache"
    command = [sys.executable, "-u", str(ROOT / "main.py"), f"--config={config}"]
    command += [f"--workdir={folder}/{seed}", f"--config.seed={seed}", "--config.log_every=1 steps"]
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
        with tempfile.TemporaryDirectory() as folder:
            rows.append([first_step(args.config, folder, seed) for seed in (0, 1)])
            cache = pathlib.Path(folder) / "cache" / "jaxsplit" / "jax"
            files = [path.stat().st_size for path in cache.iterdir()]
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
