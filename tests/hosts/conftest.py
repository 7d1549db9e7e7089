"""Starts processes for a test and ends them with it."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from tests.support.paths import ROOT


@dataclasses.dataclass
class Process:
    """A process of a run; its output goes to a file."""

    popen: subprocess.Popen
    log: pathlib.Path

    def wait(self, seconds: float = 240) -> int:
        return self.popen.wait(seconds)

    @property
    def said(self) -> str:
        return self.log.read_text()


@pytest.fixture
def start(tmp_path):
    """A function that starts N processes: `command(i)` gives the arguments of each to Python."""
    started: list[Process] = []

    def start_(count, command, **variables):
        # jax would take what a scheduler or the other tests have set.
        drop = ("JAX_", "SLURM_", "OMPI_", "XLA_FLAGS", "http_proxy", "https_proxy", "TPU_")
        env = {k: v for k, v in os.environ.items() if not k.startswith(drop)}
        env |= {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": os.environ["JAX_COMPILATION_CACHE_DIR"],
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
            "XLA_FLAGS": "--xla_backend_optimization_level=0 "
            "--xla_llvm_disable_expensive_passes=true",
            "PYTHONPATH": str(ROOT),
            **variables,
        }
        here = []
        for i in range(count):
            log = tmp_path / f"log{len(started)}"
            with log.open("w") as out:
                popen = subprocess.Popen(
                    [sys.executable, *map(str, command(i))],
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=env,
                    start_new_session=True,
                )
            here.append(Process(popen, log))
            started.append(here[-1])
        return here

    yield start_
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.popen.pid, signal.SIGKILL)
        process.popen.wait()
