"""Kills a run again and again; in the end its weights must equal those of an undisturbed run.

python -m bench.chaos [--kills 50] [--steps 400] [--seed 0] [--out FILE]

The run trains two small networks on the handwritten digits on one CPU device. Each process of the
run, called a life here, ends by SIGKILL or SIGTERM: at a random moment of its training, while it
starts, or while it writes the files of a checkpoint. The next life resumes from what it left. Lives
are forked from a process that has imported everything, so each starts in about a second.
"""

import argparse
import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
import random
import signal
import sys
import tempfile
import time

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from bench import made_by
from configs import digits_wrn16_4_x4
from jaxsplit import experiment, loop, metrics
from jaxsplit.checkpoints import read, store
from jaxsplit.cli import run_flags
from jaxsplit.hosts import signals

MOMENTS = ("training", "saving", "starting")
_PRELOADED = ("jaxsplit.loop", "jaxsplit.cli.run_flags", "sklearn.datasets")
_LIMIT = 600  # seconds that a life may take until it is killed, or ends
_UNFINISHED = "*.orbax-checkpoint-tmp*"


class ChaosError(RuntimeError):
    """The run did something wrong; the message has its last lines."""


@dataclasses.dataclass
class Life:
    """How a life ended. `unfinished`: whether it left an unfinished checkpoint."""

    signal: str
    moment: str
    step: int  # the last one in its metrics
    status: int
    unfinished: bool


def make_config(steps: int) -> ConfigDict:
    """A run that saves every 5th step and evaluates every 50th; its data is resident."""
    config = digits_wrn16_4_x4.get_config()
    config.arch, config.split, config.batch_size = "wide_resnet10_1", 2, 16
    config.divide_anyway = True  # so narrow a network does not divide
    config.mesh.data = 1
    config.duration, config.log_every = f"{steps} steps", "3 steps"  # not a divisor of 5
    config.eval.every, config.checkpoint.every = "50 steps", "5 steps"
    return config


def run(kills: int, steps: int, seed: int, workdir: pathlib.Path) -> list[Life]:
    """Kills a run `kills` times, lets it finish, and compares it with one that is never killed.

    Args:
      kills: number of kills.
      steps: steps of the run; each life ends in its own part of them.
      seed: seed of the random moments; the speed of the machine influences them as well.
      workdir: the folder for both runs and their output.

    Raises:
      ChaosError: a life ended otherwise than its signal asks for, or the runs differ.
    """
    # So that only the first life compiles, and takes a minute where the others take a second.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(workdir / "cache"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    config = make_config(steps)
    start = functools.partial(_start, context, config)
    whole, killed = workdir / "whole", workdir / "killed"
    _end(start(whole), whole, 0)
    rng = random.Random(seed)
    lives = [_life(start, killed, k, kills, steps, rng) for k in range(kills)]
    _end(start(killed), killed, 0)
    compare(config, whole, killed)
    return lives


def compare(config: ConfigDict, a: pathlib.Path, b: pathlib.Path) -> None:
    """Raises ChaosError unless two finished runs have the same state, bit for bit, and metrics."""
    exp = experiment.build(config)
    states, lines = [], []
    for workdir in (a, b):
        checkpoints = read.Reader(workdir, exp.best_metric)
        steps = checkpoints.latest(), checkpoints.best()
        states.append((steps, read.restore(checkpoints.path(steps[0]), exp.state_shapes())))
        lines.append([line | {"images_per_second": 0} for line in _lines(workdir)])
    (steps, state), (other_steps, other) = states
    if steps != other_steps:
        raise ChaosError(f"latest and best: {other_steps}, must be {steps}")
    for (path, x), y in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(other), strict=True):
        if x.dtype != y.dtype or np.asarray(x).tobytes() != np.asarray(y).tobytes():
            raise ChaosError(f"{jax.tree_util.keystr(path)} differs")
    if lines[0] != lines[1]:
        raise ChaosError("metrics.jsonl differs")


def _start(context, config: ConfigDict, workdir: pathlib.Path):
    workdir.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_run, args=(config.to_dict(), str(workdir)))
    process.start()
    return process


def _run(fields: dict, workdir: str) -> None:
    """Does what main.py does, in the process of a life."""
    said = os.open(f"{workdir}/said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.modules["tensorflow"] = None  # TensorBoard files, for which it takes seconds to start
    with run_flags.errors_in_one_line(), signals.Stop() as stop:
        loop.train_and_evaluate(ConfigDict(fields), workdir, stop)


def _life(start, workdir: pathlib.Path, k: int, kills: int, steps: int, rng) -> Life:
    # Ends have the same share of the run each, so that it is not over before the last of them.
    goal = 1 + int((steps - 2) * (k + rng.random()) / kills)
    signum = rng.choice((signal.SIGKILL, signal.SIGTERM))
    moment = rng.choices(MOMENTS, (4, 4, 2))[0]
    process = start(workdir)
    began = time.monotonic()
    if moment == "starting":
        until = began + rng.uniform(0.0, 2.0)
        _until(lambda: time.monotonic() > until, process, workdir)
    else:
        _until(lambda: _last_step(workdir) >= goal, process, workdir)
        until = time.monotonic() + rng.uniform(0.0, 0.05)
        _until(lambda: time.monotonic() > until, process, workdir)
        if moment == "saving":
            _stop_in_a_save(process, workdir, rng.uniform(0.0, 0.03))
    os.kill(process.pid, signum)
    os.kill(process.pid, signal.SIGCONT)
    allowed = {-signal.SIGKILL} if signum == signal.SIGKILL else {75}
    if moment == "starting":
        allowed.add(-signum)  # before the signal is taken
    status = _end(process, workdir, *allowed)
    unfinished = any((workdir / store.FOLDER).glob(_UNFINISHED))
    return Life(signal.Signals(signum).name, moment, _last_step(workdir), status, unfinished)


def _stop_in_a_save(process, workdir: pathlib.Path, seconds: float) -> None:
    """Stops a life some time after a save has begun, or at once if that save is already done."""
    saves = workdir / store.FOLDER

    def unfinished() -> bool:
        return any(saves.glob(_UNFINISHED))

    _until(unfinished, process, workdir)
    time.sleep(seconds)
    while True:
        os.kill(process.pid, signal.SIGSTOP)
        if unfinished():
            return
        os.kill(process.pid, signal.SIGCONT)
        _until(unfinished, process, workdir)


def _until(done, process, workdir: pathlib.Path) -> None:
    end = time.monotonic() + _LIMIT
    while not done():
        if not process.is_alive():
            raise ChaosError(f"it ended with status {process.exitcode}\n{_said(workdir)}")
        if time.monotonic() > end:
            process.kill()
            raise ChaosError(f"it hangs\n{_said(workdir)}")
        time.sleep(0.002)


def _end(process, workdir: pathlib.Path, *allowed: int) -> int:
    """Waits for the end of a life. Returns its status; raises ChaosError if it is not allowed."""
    process.join(_LIMIT)
    if process.is_alive():
        process.kill()
        raise ChaosError(f"it hangs\n{_said(workdir)}")
    if process.exitcode not in allowed:
        raise ChaosError(
            f"it ended with status {process.exitcode}, must be {allowed}\n{_said(workdir)}"
        )
    return process.exitcode


def _said(workdir: pathlib.Path) -> str:
    path = workdir / "said.txt"
    return "\n".join(path.read_text().splitlines()[-20:]) if path.exists() else ""


def _lines(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / metrics.JSONL).read_text().splitlines()]


def _last_step(workdir: pathlib.Path) -> int:
    """The step of the last complete line of metrics.jsonl; 0: there is none."""
    path = workdir / metrics.JSONL
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def report(lives: list[Life], steps: int, seconds: float) -> str:
    """The figures as a Markdown table."""
    rows = [
        f"{len(lives)} kills of a run of {steps} steps (two WRN-10-1, digits, a checkpoint every 5 "
        f"steps): weights, statistics, optimizer state, best checkpoint and metrics of the end are "
        f"those of the run that was left alone, bit for bit. {seconds:.0f} s in all.",
        "",
        "| signal | while | kills | of these with an unfinished checkpoint left | statuses |",
        "|---|---|---|---|---|",
    ]
    for name in ("SIGKILL", "SIGTERM"):
        for moment in MOMENTS:
            some = [life for life in lives if (life.signal, life.moment) == (name, moment)]
            if some:
                left = sum(life.unfinished for life in some)
                statuses = ", ".join(str(s) for s in sorted({life.status for life in some}))
                rows.append(f"| {name} | {moment} | {len(some)} | {left} | {statuses} |")
    return "\n".join([*rows, "", made_by(jax.default_backend(), f"jax {jax.__version__}")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, help="file for the figures; default: printed")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"  # elsewhere sums may be taken in another order
    logging.set_verbosity(logging.ERROR)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        lives = run(args.kills, args.steps, args.seed, pathlib.Path(folder))
    text = report(lives, args.steps, time.monotonic() - began)
    if args.out:
        args.out.write_text(f"# A run that is killed again and again\n\n{text}\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
