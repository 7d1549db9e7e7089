"""Several processes of one run: how they meet, make sure that they agree, and end together.

`initialize` comes before any computation, in every process. Everything else works on one process,
too, where there is nothing to agree on.
"""

import contextlib
import glob
import json
import os
import pathlib
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxsplit.errors import ConfigError
from jaxsplit.hosts import rendezvous
from jaxsplit.workdir import files

# Seconds. A process that is silent for so long counts as dead, and all others end; jax's own 100
# would leave them waiting for longer than a minute.
HEARTBEAT = 30
# At the end of a run, until the slowest process is there.
_SHUTDOWN = 60
# Until all processes have started: machines of a cluster come up one after another.
MEET = 300
_CONNECT = 60  # until those that have found each other are connected
_SEEN = 15  # until a new file must have appeared on every host: file systems cache
_NAMES = {  # flag: variable of the environment
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
# What jax says, in words of its collectives, where another process is gone.
_LOST = ("gloo", "nccl", "connection closed", "connection reset", "heartbeat", "unhealthy")


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = MEET,
) -> None:
    """Meets the other processes of the run; returns when all are there.

    Without arguments the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID
    count, and without these what jax finds on TPU pods, Slurm, Open MPI and in an indexed Job or
    JobSet of Kubernetes. On a single machine nothing happens; `num_processes=1` alone says that
    this is one.

    Args:
      coordinator: host:port that process 0 listens on and the others can reach.
      num_processes: of the run.
      process_id: 0 .. num_processes - 1, of this process.
      timeout: seconds until all must be there.

    Raises:
      ConfigError: a wrong value, or they do not all come: see `rendezvous.meet`.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    if num_processes == 1 and coordinator is None and process_id is None:
        return
    if all(value is None for value in given.values()):
        given = {name: os.environ.get(variable) for name, variable in _NAMES.items()}
        if None in given.values() and cluster():
            return _initialize_in_cluster(timeout)
        if given["num_processes"] is None and given["process_id"] is None:
            return  # an address alone, which jax would read, too, is of no use
    address, count, index = _checked(given)
    rendezvous.meet(address, count, index, timeout)
    _meet(
        f"process {index}: waiting for all {count} processes at {address}",
        coordinator_address=address,
        num_processes=count,
        process_id=index,
        cluster_detection_method="deactivate",
        initialization_timeout=_CONNECT,
    )
    if jax.process_count() != count:
        raise ConfigError(
            f"num_processes={count}: must be {jax.process_count()}, as the devices have joined"
        )


def cluster() -> str:
    """'slurm', 'mpi', 'tpu' or 'kubernetes' where this is one of a cluster's processes; else ''."""
    env = os.environ
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in env for name in slurm):
        return "slurm" if int(env.get("SLURM_NTASKS", 1)) > 1 else ""
    if int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return "mpi"
    platforms = env.get("JAX_PLATFORMS", "")
    if not platforms or "tpu" in platforms:
        # jax asks Google's metadata server; it finds no cluster where this is no TPU.
        if "TPU_WORKER_HOSTNAMES" in env or "TPU_PROCESS_ADDRESSES" in env:
            return "tpu"
        if glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"):
            return "tpu"
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        return "kubernetes"
    return ""


def _initialize_in_cluster(timeout: int) -> None:
    kind = cluster()
    options = {"local_device_ids": _slurm_devices()} if kind == "slurm" else {}
    try:
        _meet(
            f"waiting for all processes of the cluster ({kind})",
            initialization_timeout=timeout,
            **options,
        )
    except (ValueError, RuntimeError) as error:
        # Of a machine with TPUs that is no part of a pod; of Kubernetes without its package; of
        # Open MPI 5, whose variables jax does not know.
        if "coordinator_address should be defined" not in str(error):
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"coordinator=None: must be given with num_processes and process_id; jax cannot "
                f"take them from the cluster ({kind}: {reason})"
            ) from error
        if kind != "tpu":
            hint = ", or `kubernetes` be installed" if kind == "kubernetes" else ""
            raise ConfigError(
                f"coordinator=None: must be given with num_processes and process_id, which jax "
                f"does not find in the variables of {kind}{hint}; num_processes=1 alone says that "
                f"this is one process"
            ) from None


def _slurm_devices() -> list[int] | None:
    """GPUs of this process among those it sees; None: as jax does, which is one for each."""
    if os.environ.get("JAX_LOCAL_DEVICE_IDS"):
        return None
    visible = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    # jax takes the GPU of the number that the process has on its node. That is one of eight where
    # a process has the whole node, and none where Slurm shows each process its own alone.
    alone = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split("(")[0] == "1"
    if visible and (alone or len(visible) == 1):
        return list(range(len(visible)))
    return None


def _meet(notice: str, **options) -> None:
    """jax.distributed.initialize, with a line where it takes long."""
    line = threading.Timer(rendezvous.NOTICE, lambda: print(notice, file=sys.stderr, flush=True))
    line.daemon = True
    line.start()
    try:
        jax.distributed.initialize(
            heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=_SHUTDOWN, **options
        )
        jax.devices()  # here they tell each other of their devices
    finally:
        line.cancel()


def _checked(given: Mapping[str, str | int | None]) -> tuple[str, int, int]:
    """(address of the coordinator, number of processes, number of this one)."""
    missing = [name for name, value in given.items() if value is None]
    if missing:
        have = ", ".join(f"{name}={value}" for name, value in given.items() if value is not None)
        raise ConfigError(f"{missing[0]}: must be given, too, with {have}")
    count, index = (
        _number(name, given[name], least)
        for name, least in (("num_processes", 1), ("process_id", 0))
    )
    if index >= count:
        raise ConfigError(
            f"process_id={given['process_id']}: must be 0 to {count - 1} with num_processes={count}"
        )
    address = str(given["coordinator"])
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"coordinator={given['coordinator']!r}: must be host:port, as node1:1234")
    return address, count, index


def _number(name: str, value: str | int | None, least: int) -> int:
    with contextlib.suppress(ValueError):
        if value is not None and int(value) >= least:
            return int(value)
    raise ConfigError(f"{name}={value}: must be a number from {least}")


def check_same(values: Mapping[str, object]) -> None:
    """Makes sure that all processes have the same values; each has to call it.

    Args:
      values: name -> what `json` can write, of any length.

    Raises:
      ConfigError: on all processes; names the first that differs, with both values.
    """
    if jax.process_count() == 1:
        return
    texts = _gather_bytes(json.dumps(dict(values), sort_keys=True).encode())
    first, *others = (json.loads(text) for text in texts)
    for process, other in enumerate(others, 1):
        for name in sorted(first.keys() | other.keys()):
            a, b = (side.get(name, "missing") for side in (first, other))
            if a != b:
                raise ConfigError(
                    f"{name}={a!r}: must be the same on all processes; is {b!r} on {process}"
                )


def shared_workdir(
    workdir: str | pathlib.Path, prepare: Callable[[str | pathlib.Path], pathlib.Path]
) -> pathlib.Path:
    """`prepare(workdir)` on process 0; makes sure that the others see it and can write there.

    Args:
      workdir: of the run.
      prepare: makes the directory and returns its path; raises ConfigError.

    Raises:
      ConfigError: on all processes.
    """
    if jax.process_count() == 1:
        return prepare(workdir)
    path, failed = files.path_of(workdir), ""
    token = secrets.randbits(30)
    if jax.process_index() == 0:
        try:
            path = prepare(workdir)
            files.create(_mark(path, token))
        except (ConfigError, OSError) as error:
            failed = str(error)
    token, failed = broadcast([token, failed])
    if failed:
        raise ConfigError(failed)
    mark = _mark(path, token)
    seen = wait_until_seen(mark) and (files.is_remote(path) or os.access(path, os.W_OK))
    blind = [str(p) for p, (sees,) in enumerate(_gather([seen])) if not sees]
    if jax.process_index() == 0:
        mark.unlink(missing_ok=True)
    if blind:
        raise ConfigError(
            f"workdir={str(workdir)!r}: must be a directory that all hosts share and can write to; "
            f"process {', '.join(blind)} does not see what process 0 has written there"
        )
    return path


def wait_until_seen(path: pathlib.Path) -> bool:
    """Whether this host sees what process 0 sees, within the time that file systems cache."""
    until = time.monotonic() + (_SEEN if is_multiprocess() else 0)
    while not path.exists():
        if time.monotonic() >= until:
            return False
        time.sleep(0.1)
    return True


def _mark(path: pathlib.Path, token: int) -> pathlib.Path:
    return path / f".seen-{token:x}"


def broadcast(value: Any) -> Any:
    """What process 0 has, of what `json` can write; each has to call it."""
    if jax.process_count() == 1:
        return value
    return json.loads(_gather_bytes(json.dumps(value).encode())[0])


def total(value: int, *, counts: bool = True) -> int:
    """The sum over the processes whose value `counts`; each has to call it."""
    return int(_gather([value if counts else 0]).sum())


def _gather(numbers: list[int]) -> np.ndarray:
    """int32[n] of each process -> int32[P, n]."""
    return np.asarray(multihost_utils.process_allgather(np.asarray(numbers, np.int32)))


def _gather_bytes(text: bytes) -> list[bytes]:
    lengths = _gather([len(text)])[:, 0]
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]


def is_multiprocess() -> bool:
    """Whether this is one of several processes that have met."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def lost(error: BaseException) -> str:
    """A line for an error that another process's end has caused; '' for any other error."""
    text = " ".join(str(error).split())
    theirs = isinstance(error, jax.errors.JaxRuntimeError | ValueError)
    if not (is_multiprocess() and theirs and any(word in text.lower() for word in _LOST)):
        return ""
    return (
        f"process {jax.process_index()} of {jax.process_count()} has lost another one, whose own "
        f"lines say why; the same command on all goes on from the last checkpoint ({text[:200]})"
    )


def leave_together(status: int, *, wait: bool = True) -> NoReturn:
    """Ends this process where all end in good order; does not `wait` where they may not.

    What Python does at its end is left out: it can crash, and give another status, where threads of
    jax still compile.
    """
    if wait and is_multiprocess():
        jax.distributed.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def leave(status: int) -> NoReturn:
    """Ends this process at an error: at once, where others would be waited for at exit."""
    if not is_multiprocess():
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:
        time.sleep(3)  # the others end with process 0, and should say first what they have to
    os._exit(status)
