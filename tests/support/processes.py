"""Runs of main.py by several processes."""

import socket

from tests.support.paths import ROOT

CONFIG = ROOT / "configs" / "digits_wrn16_4_x4.py"

STEPS = 6

FIELDS = {  # the smallest run whose results do not depend on the mesh
    "arch": "wide_resnet10_1",
    "split": 2,
    "divide_anyway": True,  # so narrow a network does not divide
    "batch_size": 16,
    "duration": f"{STEPS} steps",
    "batch_norm": "sync",
    "lowering": "dense",
    "log_every": "1 steps",
    "eval.every": "3 steps",
    "checkpoint.every": "2 steps",
}


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def training(count, workdir, **fields):
    """`command` of `start` for a run of main.py by `count` processes."""
    port = free_port()
    flags = [f"--config.{name}={value}" for name, value in (FIELDS | fields).items()]

    def command(i, *more):
        meet = (f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={i}")
        return [
            ROOT / "main.py",
            f"--config={CONFIG}",
            f"--workdir={workdir}",
            *meet,
            *flags,
            *more,
        ]

    return command
