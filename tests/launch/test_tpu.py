"""launch/tpu_pod.sh and tpu_host.sh: dry runs word by word, and runs with gcloud replaced."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess

import pytest

from tests.support.launch import LAUNCH, calls, commands, printed, refused, run, wait_for

TPU = {"PROJECT": "p1", "ZONE": "z1", "NFS": "10.0.0.2:/vol", "TMPDIR": "/var/tmp"}

WHERE = "--project=p1 --zone=z1"
SSH = f"gcloud compute tpus tpu-vm ssh jaxsplit {WHERE}"
QUEUED = "gcloud compute tpus queued-resources"
CREATE = [
    f"{QUEUED} create jaxsplit --node-id=jaxsplit {WHERE} --accelerator-type=v6e-16 "
    "--runtime-version=v2-alpha-tpuv6e",
    f"{QUEUED} describe jaxsplit {WHERE} --format='value(state.state)'",
]
INSTALL = [
    "git archive --format=tar.gz --prefix=jaxsplit/ "
    "--output=/var/tmp/jaxsplit-jaxsplit.tar.gz HEAD",
    "gcloud compute tpus tpu-vm scp /var/tmp/jaxsplit-jaxsplit.tar.gz jaxsplit:jaxsplit.tar.gz "
    f"{WHERE} --worker=all",
    f"{SSH} --worker=all --command='tar -xzf jaxsplit.tar.gz && jaxsplit/launch/tpu_host.sh "
    "install 10.0.0.2:/vol /mnt/jaxsplit 3.12'",
]
RUN = [
    f"{SSH} --worker=all --command='jaxsplit/launch/tpu_host.sh run 10.0.0.2:/vol /mnt/jaxsplit "
    "--config=configs/cifar100.py:arch=resnet110,split=2 --workdir=/mnt/jaxsplit/runs/jaxsplit'"
]
DELETE = [f"{QUEUED} delete jaxsplit {WHERE} --force --quiet"]


@pytest.mark.parametrize(
    "action, lines",
    [
        ("create", CREATE),
        ("install", INSTALL),
        ("run", RUN),
        ("logs", [f"{SSH} --worker=0 --command='jaxsplit/launch/tpu_host.sh logs'"]),
        ("stop", [f"{SSH} --worker=all --command='jaxsplit/launch/tpu_host.sh stop'"]),
        ("status", CREATE[1:]),
        ("resume", DELETE + CREATE + INSTALL + RUN),
        ("delete", DELETE),
    ],
)
def test_tpu_pod_dry_run(action, lines):
    config = "configs/cifar100.py:arch=resnet110,split=2"
    assert printed("tpu_pod.sh", "--dry-run", action, **TPU, CONFIG=config) == lines


def test_tpu_pod_knobs():
    lines = printed(
        "tpu_pod.sh",
        "--dry-run",
        "create",
        **TPU,
        NAME="big",
        ACCELERATOR="v5litepod-64",
        SPOT="yes",
        VALID_UNTIL="6h",
        NETWORK="n",
        SUBNETWORK="s",
        SERVICE_ACCOUNT="a@b",
        CREATE_FLAGS="--internal-ips --labels=team=x",
        GCLOUD="gcloud alpha",
    )
    assert lines[0] == (
        f"gcloud alpha compute tpus queued-resources create big --node-id=big {WHERE} "
        "--accelerator-type=v5litepod-64 --runtime-version=v2-alpha-tpuv5-lite --spot "
        "--valid-until-duration=6h --network=n --subnetwork=s --service-account=a@b "
        "--internal-ips --labels=team=x"
    )
    (line,) = printed(
        "tpu_pod.sh",
        "--dry-run",
        "run",
        "--config.duration=3 epochs",
        **TPU | {"NFS": "none"},
        CONFIG="my configs/a.py",
        WORKDIR="/data/it's here",
        SHARE="/data",
        SSH_FLAGS="--tunnel-through-iap",
    )
    words = shlex.split(line)
    assert words[-2] == "--tunnel-through-iap"
    # As the host's shell takes it apart.
    assert shlex.split(words[-1].removeprefix("--command=")) == [
        "jaxsplit/launch/tpu_host.sh",
        "run",
        "none",
        "/data",
        "--config=my configs/a.py",
        "--workdir=/data/it's here",
        "--config.duration=3 epochs",
    ]
    (line,) = printed("tpu_pod.sh", "--dry-run", "logs", **TPU, WORKER="3")
    assert "--worker=3" in line.split()
    archive = printed("tpu_pod.sh", "--dry-run", "install", **TPU, ARCHIVE="/x.tgz", PYTHON="3.13")
    assert "--output=/x.tgz" in archive[0] and archive[2].endswith(" /mnt/jaxsplit 3.13'")


@pytest.mark.parametrize(
    "accelerator, runtime",
    [
        ("v6e-8", "v2-alpha-tpuv6e"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v4-32", "tpu-ubuntu2204-base"),
    ],
)
def test_tpu_runtime_follows_from_the_accelerator(accelerator, runtime):
    lines = printed("tpu_pod.sh", "--dry-run", "create", **TPU, ACCELERATOR=accelerator)
    assert lines[0].endswith(f"--accelerator-type={accelerator} --runtime-version={runtime}")
    lines = printed("tpu_pod.sh", "--dry-run", "create", **TPU, RUNTIME="own")
    assert lines[0].endswith("--runtime-version=own")


@pytest.mark.parametrize(
    "args, env, line",
    [
        (["create"], {"PROJECT": ""}, "PROJECT: must be set for create"),
        (["delete"], {"ZONE": ""}, "ZONE: must be set for delete"),
        (["run"], {}, "CONFIG: must be set for run"),
        (["install"], {"NFS": ""}, "NFS: must be set for install"),
        (["install"], {"NFS": "bucket"}, "NFS=bucket: must be HOST:/PATH or none"),
        (["create"], {"SPOT": "1"}, "SPOT=1: must be yes or no"),
        (["delete", "--force"], {}, "--force: delete takes no flags"),
        (
            ["start"],
            {},
            "start: must be one of create, install, run, logs, stop, status, resume, delete",
        ),
        (
            ["create"],
            {"ACCELERATOR": "tpu7x-8"},
            "ACCELERATOR=tpu7x-8: must be v2, v3, v4, v5litepod, v5p or v6e, - and a size; "
            "newer TPUs come through GKE (docs/launch/gke.md)",
        ),
    ],
)
def test_tpu_pod_bad_input(args, env, line):
    assert refused("tpu_pod.sh", "--dry-run", *args, **TPU | env) == line


def test_usage_names_every_variable():
    for name in ("tpu_pod.sh", "local.sh"):
        text = (LAUNCH / name).read_text()
        told = run(name, "--help").stdout
        used = set(re.findall(r"\$\{([A-Z_]+)(?::?-|:-\})", text)) - {"TMPDIR", "JAX_PLATFORMS"}
        assert len(used) >= 5
        missing = sorted(v for v in used if not re.search(rf"\b{v}\b", told))
        assert not missing, f"{name}: {missing}"


GCLOUD = """
case "$*" in
  *' describe '*)
    next=$(head -n 1 "$STATES")
    sed -i 1d "$STATES"
    [[ $next != gone ]] || { echo 'ERROR: NOT_FOUND: no such resource' >&2; exit 1; }
    [[ $next != broken ]] || { echo 'ERROR: no permission' >&2; exit 1; }
    echo "$next" ;;
  *'test -e '*) [[ -z ${BARE:-} ]] ;;
esac
"""


@pytest.mark.parametrize(
    "states, steps",
    [
        ("ACTIVE", ["describe", "ssh look", "ssh run"]),
        ("ACTIVE bare", ["describe", "ssh look", "scp", "ssh install", "ssh run"]),
        (
            "SUSPENDING SUSPENDED WAITING_FOR_RESOURCES PROVISIONING ACTIVE",
            ["describe", "describe", "delete", "create", "describe", "describe", "describe"]
            + ["scp", "ssh install", "ssh run"],
        ),
        ("gone ACTIVE", ["describe", "create", "describe", "scp", "ssh install", "ssh run"]),
        ("PROVISIONING ACTIVE", ["describe", "describe", "scp", "ssh install", "ssh run"]),
        # A look that fails does not end the wait.
        (
            "PROVISIONING broken ACTIVE",
            ["describe", "describe", "describe", "scp", "ssh install", "ssh run"],
        ),
    ],
)
def test_tpu_pod_resumes_from_every_state(tmp_path, states, steps):
    bin_ = commands(tmp_path / "bin", gcloud=GCLOUD, git="")
    (tmp_path / "states").write_text("\n".join(states.split()) + "\n")
    env = TPU | {"TMPDIR": str(tmp_path), "STATES": str(tmp_path / "states"), "POLL": "0"}
    env |= {"BARE": "yes"} if "bare" in states else {}
    done = run("tpu_pod.sh", "resume", path=bin_, **env)
    assert done.returncode == 0
    assert done.stderr == ("ERROR: no permission\n" if "broken" in states else "")
    made = [call for call in calls(bin_) if call[0] == "gcloud"]
    kinds = []
    for call in made:
        kind = call[4]
        if kind == "ssh":
            what = {" install ": "install", "test -e": "look"}
            kind += " " + next((v for k, v in what.items() if k in call[-1]), "run")
        kinds.append(kind)
    assert kinds == steps
    # The workdir has the config.
    assert made[-1][-1] == (
        "--command=jaxsplit/launch/tpu_host.sh run 10.0.0.2:/vol /mnt/jaxsplit "
        "--workdir=/mnt/jaxsplit/runs/jaxsplit"
    )
    assert list(tmp_path.glob("tmp.*")) == []


def test_tpu_pod_stops_where_nothing_will_come(tmp_path):
    bin_ = commands(tmp_path / "bin", gcloud=GCLOUD)
    states = tmp_path / "states"
    env = TPU | {"STATES": str(states), "POLL": "0"}
    states.write_text("WAITING_FOR_RESOURCES\nFAILED\n")
    done = run("tpu_pod.sh", "create", path=bin_, **env)
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["jaxsplit: WAITING_FOR_RESOURCES", "jaxsplit: FAILED"]
    assert done.stderr == (
        "error: the queued resource jaxsplit is FAILED; launch/tpu_pod.sh delete removes it\n"
    )
    states.write_text("broken\n")  # what gcloud says is passed on, nothing is deleted or made
    done = run("tpu_pod.sh", "resume", path=bin_, **env)
    assert done.returncode != 0 and done.stderr == "ERROR: no permission\n"
    assert [call[4] for call in calls(bin_)] == ["create", "describe", "describe", "describe"]


@pytest.fixture
def host(tmp_path):
    """A host of a TPU: its home, with jaxsplit/ unpacked and commands in front of PATH."""
    bin_ = commands(
        tmp_path / "bin",
        sudo="",
        mountpoint='[[ -e "$MOUNTED" ]]',
        hostname="echo host-0",
        python3='mkdir -p "$3/bin" && cp "$FAKES/uv" "$FAKES/python" "$3/bin"',
    )
    made = 'if [[ $1 == venv ]]; then mkdir -p .venv/bin; cp "$FAKES/python" .venv/bin; fi'
    commands(tmp_path / "fakes", uv=made, python='[[ $1 != --version ]] || echo "Python 3.12.9"')
    shutil.copytree(LAUNCH, tmp_path / "home" / "jaxsplit" / "launch")
    env = {"HOME": tmp_path / "home", "FAKES": tmp_path / "fakes", "MOUNTED": tmp_path / "mounted"}

    def do(*args):
        return subprocess.run(
            ["bash", "jaxsplit/launch/tpu_host.sh", *args],
            cwd=tmp_path / "home",
            env={"PATH": f"{bin_}:{os.environ['PATH']}"} | {k: str(v) for k, v in env.items()},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return tmp_path, do


def test_tpu_host_installs(host):
    folder, do = host
    done = do("install", "10.0.0.2:/vol", "/mnt/jaxsplit", "3.12")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "host-0: installed, Python 3.12.9\n"
    apt = "env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=900".split()
    uv = str(folder / "home" / ".jaxsplit-uv")
    assert calls(folder / "bin") == [
        ["hostname"],
        ["sudo", *apt, "update"],
        ["sudo", *apt, "install", "-y", "nfs-common", "python3-venv"],
        ["mountpoint", "-q", "/mnt/jaxsplit"],
        ["sudo", "mkdir", "-p", "/mnt/jaxsplit"],
        ["sudo", "mount", "-t", "nfs", "10.0.0.2:/vol", "/mnt/jaxsplit"],
        ["sudo", "chmod", "a+rwx", "/mnt/jaxsplit"],
        ["python3", "-m", "venv", uv],
    ]
    assert calls(folder / "fakes") == [
        ["python", "-m", "pip", "install", "--quiet", "uv"],
        ["uv", "venv", "--quiet", "--clear", "--python", "3.12", ".venv"],
        ["uv", "pip", "install", "--quiet", "-r", "requirements-tpu.txt"],
        ["python", "--version"],
    ]
    (folder / "mounted").touch()  # a second time nothing is mounted over it
    (folder / "bin" / "calls.jsonl").unlink()
    assert do("install", "10.0.0.2:/vol", "/mnt/jaxsplit", "3.12").returncode == 0
    assert not [call for call in calls(folder / "bin") if "mount" in call]


def test_tpu_host_runs_once_and_stops_with_the_status(host):
    folder, do = host
    home = folder / "home"
    python = home / "jaxsplit" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/usr/bin/env bash\n"
        "trap 'echo saved; exit 75' TERM\n"
        'printf "%s|" "$@"; echo\n'
        "while true; do sleep 0.05; done\n"
    )
    python.chmod(0o755)
    log = home / "jaxsplit.log"
    (folder / "mounted").touch()
    done = do("run", "10.0.0.2:/vol", "/mnt/jaxsplit", "--config=a.py", "--workdir=/x y")
    pid = int((home / "jaxsplit.pid").read_text())
    try:
        assert done.stdout == f"host-0: started as process {pid}\n"
        wait_for(lambda: log.exists() and "|" in log.read_text())
        assert log.read_text() == "main.py|--config=a.py|--workdir=/x y|\n"
        again = do("run", "10.0.0.2:/vol", "/mnt/jaxsplit")
        assert again.returncode == 1
        assert again.stderr == (
            f"error: host-0: process {pid} is still running; launch/tpu_pod.sh stop ends it\n"
        )
        assert do("stop").stdout == "host-0: told to save and end\n"
        followed = do("logs").stdout.splitlines()  # until the process ends
        assert followed[-2:] == ["saved", "exit status 75"]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    assert do("stop").stdout == "host-0: nothing is running\n"
