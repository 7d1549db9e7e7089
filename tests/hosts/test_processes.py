"""Several processes give the results of one, agree on errors, and resume after a kill."""

import json
import os
import pathlib
import shutil
import signal
import socket
import tempfile
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import digits_wrn16_4_x4
from jaxsplit import config as config_lib
from jaxsplit import loop
from jaxsplit.checkpoints import store
from jaxsplit.errors import ConfigError
from jaxsplit.evaluation import predictions
from jaxsplit.hosts import processes as distributed
from tests.support.processes import FIELDS, STEPS, free_port, training


def lines(workdir):
    text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def weights(workdir, step=STEPS):
    """The arrays of a checkpoint, on the host."""
    folder = pathlib.Path(workdir) / store.FOLDER / str(step) / "model"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        saved = reader.metadata(folder).item_metadata.tree
        whole = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        return reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=whole))


def assert_same_run(workdir, other):
    """Metrics and final weights must agree within 1e-5."""
    a, b = lines(workdir), lines(other)
    assert [line["step"] for line in a] == [line["step"] for line in b]
    for line, like in zip(a, b, strict=True):
        assert line.keys() == like.keys()
        for name in line.keys() - {"images_per_second"}:
            assert line[name] == pytest.approx(like[name], rel=1e-5, abs=1e-5), (line["step"], name)
    for (path, x), y in zip(
        jax.tree.leaves_with_path(weights(workdir)),
        jax.tree.leaves(weights(other)),
        strict=True,
    ):
        assert np.abs(x - y).max() <= 1e-5 * max(1.0, np.abs(y).max()), path


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Workdirs of runs with one process and one device, by number of networks."""
    made = {}

    def alone_(split):
        if split not in made:
            made[split] = tmp_path_factory.mktemp("alone")
            config = digits_wrn16_4_x4.get_config()
            with config.unlocked():
                for name, value in (FIELDS | {"split": split, "mesh.data": 1}).items():
                    config.update_from_flattened_dict({name: value})
            loop.train_and_evaluate(config, made[split])
        return made[split]

    return alone_


# ---- The results of one process


MESHES = {  # processes, data, net, split
    "2 along the batch": (2, 2, 1, 2),
    "2 groups of networks": (2, 1, 2, 2),
    "4 along the batch": (4, 4, 1, 4),
    "4 as 2 x 2": (4, 2, 2, 4),
    "4 groups of networks": (4, 1, 4, 4),
}


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_processes_do_what_one_does(mesh, start, alone, tmp_path):
    count, data, net, split = MESHES[mesh]
    workdir = tmp_path / "run"
    fields = {"mesh.data": data, "mesh.net": net, "split": split}
    processes = start(count, training(count, workdir, **fields))
    for process in processes:
        assert process.wait() == 0, process.said
    assert_same_run(workdir, alone(split))
    # Only the first one speaks; the library of the collectives has a line of its own in each.
    assert f"step {STEPS}/{STEPS}" in processes[0].said and "ensemble" in processes[0].said
    for other in processes[1:]:
        assert [line for line in other.said.splitlines() if not line.startswith("[Gloo]")] == []
    assert {path.name for path in workdir.iterdir()} <= {
        "config.json",
        "dataset.json",
        "metrics.jsonl",
        "versions.json",
        store.FOLDER,
        *(path.name for path in workdir.glob("events.out.tfevents.*")),
    }
    assert len(list(workdir.glob("events.out.tfevents.*"))) == 1


@pytest.mark.slow
def test_evaluation_by_processes_writes_what_one_writes(start, alone, tmp_path):
    one, two = (shutil.copytree(alone(2), tmp_path / name) for name in ("one", "two"))
    results = loop.evaluate_checkpoint(config_lib.load(one), one)
    command = training(2, two, **{"mesh.data": 2})
    for process in start(2, lambda i: command(i, "--mode=eval")):
        assert process.wait() == 0, process.said
    mine, theirs = (predictions.read(w / predictions.FILE).splits for w in (one, two))
    assert mine.keys() == theirs.keys() == {"test", "train"}
    for split, its in mine.items():
        np.testing.assert_array_equal(its.index, theirs[split].index)
        np.testing.assert_array_equal(its.labels, theirs[split].labels)
        for name, logits in its.logits.items():
            np.testing.assert_allclose(logits, theirs[split].logits[name], rtol=1e-4, atol=1e-4)
    scored = json.loads((two / "eval.json").read_text())["splits"]["test"]["answers"]
    assert scored["ensemble"]["ece"] == pytest.approx(results["test/ensemble/ece"], abs=1e-2)


# ---- One is killed


# Long enough that none ends before it is killed.
LONG = {
    "duration": "60 steps",
    "trackers": "()",  # whose libraries take seconds to start
    "log_every": "20 steps",
    "checkpoint.every": "10 steps",
    "eval.every": "60 steps",
}


@pytest.fixture(scope="module")
def undisturbed():
    """The workdir of an undisturbed run of two processes; the first test that needs it runs it."""
    with tempfile.TemporaryDirectory() as folder:
        yield pathlib.Path(folder) / "run"


@pytest.mark.parametrize(
    "victim, how, compare",
    [
        pytest.param(1, signal.SIGKILL, False, id="killed", marks=pytest.mark.slow),
        pytest.param(0, signal.SIGKILL, True, id="the first killed", marks=pytest.mark.slow),
        # As a host that is cut off.
        pytest.param(1, signal.SIGSTOP, True, id="frozen", marks=pytest.mark.slow),
    ],
)
def test_one_is_lost(victim, how, compare, start, undisturbed, tmp_path):
    if compare and not undisturbed.exists():
        for process in start(2, training(2, undisturbed, **LONG)):
            assert process.wait() == 0, process.said
    workdir = tmp_path / "run"
    processes = start(2, training(2, workdir, **LONG))
    until = time.monotonic() + 200
    while not (workdir / store.FOLDER / "10").is_dir():
        assert time.monotonic() < until, processes[0].said
        assert processes[0].popen.poll() is None, processes[0].said
        time.sleep(0.005)
    os.kill(processes[victim].popen.pid, how)
    lost = time.monotonic()
    other = processes[1 - victim]
    assert other.wait(60) not in (0, -signal.SIGKILL)
    assert time.monotonic() - lost < 60
    assert "lost contact with another process" in other.said or "another task died" in other.said
    processes[victim].popen.kill()
    again = start(2, training(2, workdir, **LONG))
    for process in again:
        assert process.wait() == 0, process.said
    assert "resumed at step" in again[0].said
    # A line for each log point, and one for the evaluation at the end.
    assert [line["step"] for line in lines(workdir)] == [20, 40, 60, 60]
    if compare:
        got, want = (jax.tree.leaves(weights(run, 60)) for run in (workdir, undisturbed))
        for x, y in zip(got, want, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_damage_that_one_process_reads(start, alone, tmp_path):
    """One process finds the damage; all resume from the checkpoint before, with the same result."""
    workdir = tmp_path / "run"
    command = training(2, workdir, **{"mesh.net": 2})
    for process in start(2, command):
        assert process.wait() == 0, process.said
    own = workdir / store.FOLDER / "6" / "model" / "ocdbt.process_1" / "d"
    largest = max(own.iterdir(), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    again = start(2, command)
    for process in again:
        assert process.wait() == 0, process.said
    assert "set aside as damaged-6, resuming from step 4" in again[0].said
    assert "resumed at step 4" in again[0].said
    assert (workdir / store.FOLDER / "damaged-6").is_dir()
    assert_same_run(workdir, alone(2))


# ---- They disagree


CHECKS = """
import pathlib, sys
from jaxsplit import config
from jaxsplit.hosts import processes as distributed
from jaxsplit.errors import ConfigError
distributed._SEEN = 1
me, port, folder = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
distributed.initialize(f"localhost:{port}", 2, me)

def refused(check, *args):
    try:
        check(*args)
    except ConfigError as error:
        print("refused", error, flush=True)
    else:
        print("fine", flush=True)

refused(distributed.check_same, {"a": 1, "b": "x" * 5000})
refused(distributed.check_same, {"a": 1, "b": "x" * me})
refused(distributed.check_same, {"a": 1} | ({"new": 2} if me else {}))
refused(distributed.shared_workdir, folder / "both", config.prepare_workdir)
refused(distributed.shared_workdir, folder / str(me), config.prepare_workdir)
(folder / "file").touch()
refused(distributed.shared_workdir, folder / "file", config.prepare_workdir)
print(distributed.total(10 + me))
print(distributed.broadcast([me, "x" * (5 + me)]))
print(distributed.lost(ValueError("Gloo AllGather failed: Connection closed by peer")))
distributed.leave(7)
"""


@pytest.mark.slow
def test_what_they_have_to_agree_on(start, tmp_path, monkeypatch):
    port = free_port()
    processes = start(2, lambda i: ["-c", CHECKS, str(i), str(port), str(tmp_path)])
    assert [process.wait(120) for process in processes] == [7, 7], processes[0].said
    for me, process in enumerate(processes):
        said = [line for line in process.said.splitlines() if not line.startswith("[Gloo]")]
        other = str(tmp_path / str(me))
        expected = [
            "fine",
            "refused b='': must be the same on all processes; is 'x' on 1",
            "refused new='missing': must be the same on all processes; is 2 on 1",
            "fine",
            f"refused workdir='{other}': must be a directory that all hosts share and can write "
            "to; process 1 does not see what process 0 has written there",
        ]
        assert said[:5] == expected
        assert said[5].startswith(f"refused workdir='{tmp_path / 'file'}': ")
        assert said[6] == "21"
        assert said[7] == "[0, 'xxxxx']"
        assert said[8].startswith(f"process {me} of 2 lost contact with another process")
        assert said[8].endswith("(Gloo AllGather failed: Connection closed by peer)")
    assert list((tmp_path / "both").iterdir()) == []


@pytest.mark.slow
def test_other_configs(start, tmp_path):
    command = training(2, tmp_path / "run")
    more = [("--config.data.threads=1",), ("--config.data.threads=2", "--config.optim.lr=0.3")]
    for process in start(2, lambda i: command(i, *more[i])):
        assert process.wait() == 2
        said = [line for line in process.said.splitlines() if not line.startswith("[Gloo]")]
        expected = "error: optim.lr='0.1': must be the same on all processes; is '0.3' on 1"
        assert said == [expected]
    assert not (tmp_path / "run").exists()


# ---- How they meet


@pytest.fixture
def met(monkeypatch):
    """The arguments of calls to jax.distributed.initialize, in an environment without a cluster."""
    calls = []
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "TPU_", "KUBERNETES_")):
            monkeypatch.delenv(name)
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr("glob.glob", lambda pattern: [])
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: calls.append(options))
    return calls


def test_a_single_machine_meets_nobody(met, monkeypatch):
    distributed.initialize()
    distributed.initialize(num_processes=1)
    monkeypatch.setenv("SLURM_JOB_ID", "1")  # a batch script, outside of srun
    monkeypatch.setenv("SLURM_NTASKS", "8")
    distributed.initialize()
    assert met == [] and not distributed.is_multiprocess() and distributed.total(3) == 3
    distributed.check_same({"a": 1})


def test_flags(met, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 1)
    port = free_port()
    distributed.initialize(f"localhost:{port}", 1, 0)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", f"localhost:{port}")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    distributed.initialize()
    for call in met:
        address = call["coordinator_address"], call["num_processes"], call["process_id"]
        assert address == (f"localhost:{port}", 1, 0)
        assert call["cluster_detection_method"] == "deactivate"
        assert call["heartbeat_timeout_seconds"] < 60
    assert len(met) == 2


@pytest.mark.parametrize(
    "environment, kind, devices",
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "CUDA_VISIBLE_DEVICES": "0,1"}, "slurm", None),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "CUDA_VISIBLE_DEVICES": "0,1"}, "slurm", [0, 1]),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "CUDA_VISIBLE_DEVICES": "5"}, "slurm", [0]),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, "slurm", None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpi", None),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "KUBERNETES_SERVICE_HOST": "x"}, "tpu", None),
        ({"KUBERNETES_SERVICE_HOST": "x", "JOB_COMPLETION_INDEX": "0"}, "kubernetes", None),
    ],
)
def test_clusters(met, monkeypatch, environment, kind, devices):
    if kind == "slurm":
        names = ("JOB_ID", "STEP_NODELIST", "PROCID", "LOCALID")
        environment = environment | {f"SLURM_{name}": "0" for name in names} | {"SLURM_NTASKS": "2"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert distributed.cluster() == kind
    distributed.initialize()
    (call,) = met
    assert call.get("local_device_ids") == devices
    assert "coordinator_address" not in call and call["initialization_timeout"] == distributed.MEET


def test_a_pod_that_jax_knows_nothing_of_is_an_error(met, monkeypatch):
    def unknown(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", unknown)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "x")
    distributed.initialize()  # a notebook
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    with pytest.raises(ConfigError, match="^coordinator=None: must be given .* kubernetes"):
        distributed.initialize()
    distributed.initialize(num_processes=1)
    monkeypatch.delenv("JOB_COMPLETION_INDEX")
    monkeypatch.setattr("glob.glob", lambda pattern: ["/dev/accel0"])
    distributed.initialize()  # a machine with TPUs of its own


@pytest.mark.parametrize(
    "given, line",
    [
        (("a:1", None, None), "num_processes: must be given, too, with coordinator=a:1"),
        (("a:1", 2, None), "process_id: must be given, too, with coordinator=a:1, num_processes=2"),
        ((None, 2, 1), "coordinator: must be given, too, with num_processes=2, process_id=1"),
        (("a:1", 2, 2), "process_id=2: must be 0 to 1 with num_processes=2"),
        (("a:1", 2, -1), "process_id=-1: must be a number from 0"),
        (("a:1", 0, 0), "num_processes=0: must be a number from 1"),
        (("a", 2, 0), "coordinator='a': must be host:port, as node1:1234"),
        (("a:99999", 2, 0), "coordinator='a:99999': must be host:port, as node1:1234"),
    ],
)
def test_wrong_flags(met, given, line):
    with pytest.raises(ConfigError) as caught:
        distributed.initialize(*given)
    assert str(caught.value) == line and met == []


def test_wrong_variables(met, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "a:1")
    distributed.initialize()  # alone it says nothing
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(ConfigError, match="^num_processes=two: must be a number from 1"):
        distributed.initialize()


def test_a_port_in_use(met):
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        line = f"^coordinator='localhost:{port}': port {port} is in use on this machine"
        with pytest.raises(ConfigError, match=line):
            distributed.initialize(f"localhost:{port}", 2, 0)
    assert met == []


@pytest.mark.slow
def test_nobody_at_the_coordinator(met):
    port = free_port()
    line = f"^coordinator='localhost:{port}': must be reachable; process 0 has not answered for 1 s"
    with pytest.raises(ConfigError, match=line):
        distributed.initialize(f"localhost:{port}", 2, 1, timeout=1)
    assert met == []
