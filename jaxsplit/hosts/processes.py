"""The processes of one run: they connect, check that they agree, and exit together.

Every process calls `initialize` before any computation. All other functions also work in a run of
one process.
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

# Seconds without a sign of life after which a process counts as dead and all others exit. With
# jax's own 100 they would wait for longer than a minute.
HEARTBEAT = 30
# Seconds that processes wait for the slowest one at the end of a run.
_SHUTDOWN = 60
# Seconds until all processes must have started; machines of a cluster start one after another.
MEET = 300
_CONNECT = 60  # seconds for jax to connect the processes that have met
_SEEN = 15  # seconds until every host must see a new file; file systems cache
_NAMES = {  # flag: variable of the environment
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
# Substrings of errors that JAX raises when a peer dies.
_LOST = ("gloo", "nccl", "connection closed", "connection reset", "heartbeat", "unhealthy")


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = MEET,
) -> None:
    """Connects the processes of the run; returns when all are connected.

    Without arguments it reads JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. If
    these are not set, jax detects TPU pods, Slurm, Open MPI and an indexed Job or JobSet of
    Kubernetes. On a single machine it does nothing. `num_processes=1` alone forces a run of one
    process.

    Args:
      coordinator: host:port on which process 0 listens and which the others can reach.
      num_processes: of the run.
      process_id: of this process, 0 .. num_processes - 1.
      timeout: seconds until all must have started.

    Raises:
      ConfigError: a wrong value, or a process is missing: see `rendezvous.meet`.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    if num_processes == 1 and coordinator is None and process_id is None:
        return
    if all(value is None for value in given.values()):
        given = {name: os.environ.get(variable) for name, variable in _NAMES.items()}
        if None in given.values() and cluster():
            return _initialize_in_cluster(timeout)
        if given["num_processes"] is None and given["process_id"] is None:
            return  # an address alone does not describe a run of several processes
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
    """The cluster that started this process: 'slurm', 'mpi', 'tpu', 'kubernetes'; '': none."""
    env = os.environ
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in env for name in slurm):
        return "slurm" if int(env.get("SLURM_NTASKS", 1)) > 1 else ""
    if int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return "mpi"
    platforms = env.get("JAX_PLATFORMS", "")
    if not platforms or "tpu" in platforms:
        # jax asks Google's metadata server; without a TPU it finds no cluster.
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
        # Raised on a machine with TPUs outside a pod, on Kubernetes without its Python package, and
        # with Open MPI 5, whose variables jax does not know.
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
    """Indices of this process's GPUs among those it sees; None: jax's choice, one a process."""
    if os.environ.get("JAX_LOCAL_DEVICE_IDS"):
        return None
    visible = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    # jax takes the GPU whose index is the process's number on its node. That is one of eight GPUs
    # if a process has the whole node, and none if Slurm shows each process only its own GPU.
    alone = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split("(")[0] == "1"
    if visible and (alone or len(visible) == 1):
        return list(range(len(visible)))
    return None


def _meet(notice: str, **options) -> None:
    """Calls jax.distributed.initialize; prints `notice` if it takes long."""
    line = threading.Timer(rendezvous.NOTICE, lambda: print(notice, file=sys.stderr, flush=True))
    line.daemon = True
    line.start()
    try:
        jax.distributed.initialize(
            heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=_SHUTDOWN, **options
        )
        jax.devices()  # exchanges the devices of all processes
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
    """Checks that all processes have the same values. Collective.

    Args:
      values: name -> JSON value of any length.

    Raises:
      ConfigError: on all processes; names the first value that differs, and shows both.
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
    """Prepares the workdir on process 0; checks that the others see it and can write. Collective.

    Args:
      workdir: of the run.
      prepare: makes the directory and returns its path; may raise ConfigError.

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
    """Whether this host sees the path of process 0, within the time that file systems cache."""
    until = time.monotonic() + (_SEEN if is_multiprocess() else 0)
    while not path.exists():
        if time.monotonic() >= until:
            return False
        time.sleep(0.1)
    return True


def _mark(path: pathlib.Path, token: int) -> pathlib.Path:
    return path / f".seen-{token:x}"


def broadcast(value: Any) -> Any:
    """Broadcasts process 0's JSON value. Collective."""
    if jax.process_count() == 1:
        return value
    return json.loads(_gather_bytes(json.dumps(value).encode())[0])


def total(value: int) -> int:
    """The sum of all processes' values. Collective."""
    return int(_gather([value]).sum())


def _gather(numbers: list[int]) -> np.ndarray:
    """Gathers int32[n] of each of P processes: int32[P, n]. Collective."""
    return np.asarray(multihost_utils.process_allgather(np.asarray(numbers, np.int32)))


def _gather_bytes(text: bytes) -> list[bytes]:
    lengths = _gather([len(text)])[:, 0]
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]


def is_multiprocess() -> bool:
    """Whether this is one of several connected processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def lost(error: BaseException) -> str:
    """The message for an error caused by the end of another process; '' for other errors."""
    text = " ".join(str(error).split())
    theirs = isinstance(error, jax.errors.JaxRuntimeError | ValueError)
    if not (is_multiprocess() and theirs and any(word in text.lower() for word in _LOST)):
        return ""
    return (
        f"process {jax.process_index()} of {jax.process_count()} lost contact with another process "
        f"(see its log); rerun the same command on every host to resume ({text[:200]})"
    )


def leave_together(status: int) -> NoReturn:
    """Waits for the other processes, then exits as `leave_now` does."""
    if is_multiprocess():
        jax.distributed.shutdown()
    leave_now(status)


def leave_now(status: int) -> NoReturn:
    """Exits without waiting for the other processes.

    Skips Python's own shutdown, which can crash and change the status while threads of jax compile.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def leave(status: int) -> NoReturn:
    """Exits after an error; in a run of several processes it does not wait for the others."""
    if not is_multiprocess():
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:
        time.sleep(3)  # process 0 ends the others, which should print their errors first
    leave_now(status)
