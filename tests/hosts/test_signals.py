"""hosts.signals: how SIGTERM, SIGHUP and SIGINT end a run, and with which status."""

import os
import pty
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from jaxsplit import config as config_lib
from jaxsplit.errors import Stopped
from jaxsplit.hosts import signals
from tests.support.paths import ROOT
from tests.support.processes import training
from tests.support.runs import state_at, steps_in


@pytest.fixture(autouse=True, scope="module")
def hang_up_counts():
    """Under nohup SIGHUP is ignored, also by the processes that the tests start."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


TINY = (
    f"--config={ROOT / 'configs' / 'digits_wrn16_4_x4.py'}",
    "--config.arch=wide_resnet10_1",
    "--config.split=2",
    "--config.divide_anyway=True",
    "--config.batch_size=16",
    "--config.mesh.data=1",
    "--config.duration=20000 steps",
    "--config.log_every=1 steps",
    "--config.checkpoint.every=1000 steps",
    "--config.eval.every=20000 steps",
    "--config.trackers=()",  # whose libraries take seconds to start
)


def started(*args: str) -> subprocess.Popen:
    # As another program, in a group of its own; TensorFlow takes seconds to import.
    return subprocess.Popen(
        [sys.executable, *args],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def until(process: subprocess.Popen, text: str) -> list[str]:
    """Reads the output up to a line that contains `text`."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"ended with {process.wait()}:\n{''.join(lines)}")


def ended(process: subprocess.Popen) -> tuple[int, list[str]]:
    try:
        said, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, said.splitlines()


HEAD = """
import hashlib, os, signal, threading, time
from jaxsplit.hosts import signals

def me(signum):
    os.kill(os.getpid(), signum)

def later(seconds, signum):
    threading.Timer(seconds, me, (signum,)).start()

def compile():  # as jax does: minutes in C, without the lock of Python
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

with signals.Stop() as stop:
"""


def raised(body: str) -> tuple[int, list[str]]:
    """(status, lines) of a small program without jax around `body`, in which `stop` is a Stop."""
    inside = textwrap.indent(textwrap.dedent(body).strip(), "    ")
    return ended(started("-c", f"{HEAD}{inside}\n    print('end')"))


# ---- Stop alone


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_step_is_finished(name):
    status, said = raised(
        f"""
        stop.hold()
        assert not stop.after(1)
        me(signal.{name})
        time.sleep(0.1)
        assert stop.after(2) and stop.after(3)
        stopped = stop.stopped("step 2 is saved")
        print(stopped, stopped.status)
        """
    )
    assert status == 0 and said[-1] == "end"
    assert f"{name}: finishing this step, then saving; Ctrl-C (again) stops at once" in said
    assert f"stopped by {name}: step 2 is saved {signals.STATUS[signal.Signals[name]]}" in said


@pytest.mark.parametrize("moment", ["before", "meanwhile"])
def test_nothing_to_lose_is_ended_by_an_exception(moment):
    """The exception closes files; a signal that came while the run was held raises it too."""
    status, said = raised(
        f"""
        try:
            if {moment == "meanwhile"}:
                stop.hold()
            me(signal.SIGTERM)
            time.sleep(0.1)
            stop.release()
            time.sleep(60)
        except Exception:
            print("taken for an error")
        except BaseException as stopped:
            print(type(stopped).__name__, stopped.status)
        """
    )
    assert status == 0 and said[-2:] == ["Stopped 75", "end"]


@pytest.mark.parametrize("first", ["INT", "TERM"])
def test_a_sigint_after_another_signal_ends_at_once(first):
    """Even while Python runs C code, during which its own handlers cannot run."""
    status, said = raised(
        f"""
        stop.hold()
        later(0.1, signal.SIG{first})
        later(0.4, signal.SIGINT)
        compile()
        """
    )
    assert status == 130
    assert said[-1].startswith("stopped by SIGINT: at once; the same command resumes from")


def test_a_second_sigterm_is_not_at_once():
    status, said = raised(
        """
        stop.hold()
        for _ in range(3):
            me(signal.SIGTERM)
            time.sleep(0.1)
        print("still here")
        """
    )
    assert status == 0 and said[-2:] == ["still here", "end"]


def test_a_compilation_is_not_waited_for():
    status, said = raised("signals._PATIENCE = 0.3; later(0.1, signal.SIGTERM); compile()")
    assert status == 75
    assert said[-1].startswith("stopped by SIGTERM: at once")


def test_handlers_come_back():
    before = [signal.getsignal(s) for s in signals.STATUS]
    with signals.Stop():
        assert [signal.getsignal(s) for s in signals.STATUS] != before
    assert [signal.getsignal(s) for s in signals.STATUS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_another_thread_than_the_main_one():
    """Python handles signals only in its main thread; in another thread `Stop` does nothing."""
    import threading

    seen = []

    def work():
        with signals.Stop() as stop:
            stop.hold()
            seen.append(stop.after(1))
            stop.release()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_stopped_is_no_exception():
    assert issubclass(Stopped, BaseException) and not issubclass(Stopped, Exception)


@pytest.mark.parametrize("name, status", [("SIGTERM", 75), ("SIGINT", 130), ("SIGHUP", 75)])
def test_early(name, status):
    """Signals take effect from the first line of main.py, before anything needs saving."""
    code = "import os, signal; from jaxsplit.hosts import signals; signals.early(); "
    code += f"os.kill(os.getpid(), signal.{name})"
    got, (line,) = ended(started("-c", code))
    assert got == status
    assert line.startswith(f"stopped by {name}: at once")


@pytest.mark.parametrize("taken", ["signals.early()", "signals.Stop().__enter__()"])
def test_nohup_stays_nohup(taken):
    """If the caller has the program ignore SIGHUP, it stays ignored."""
    code = "import os, signal; from jaxsplit.hosts import signals; "
    code += "signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    code += f"{taken}; os.kill(os.getpid(), signal.SIGHUP); print('still here')"
    assert ended(started("-c", code)) == (0, ["still here"])


CLOSED = """
import fcntl, os, pathlib, sys, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # its controlling terminal
from jaxsplit.hosts import signals
with signals.Stop() as stop:
    stop.hold()
    print("ready", flush=True)
    while not stop.after(1):
        time.sleep(0.01)
    for _ in range(3):
        print("x" * 100, flush=True)
        print("x" * 100, file=sys.stderr, flush=True)
    pathlib.Path(sys.argv[1]).write_text("saved")
    os._exit(stop.stopped("step 1 is saved").status)
"""


def test_a_terminal_that_is_closed(tmp_path):
    """The program still saves although it can no longer write to the terminal."""
    terminal, end = pty.openpty()
    command = [sys.executable, "-c", CLOSED, str(tmp_path / "saved")]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=end, stdout=end, stderr=end, start_new_session=True
    )
    os.close(end)
    said = b""
    while b"ready\r\n" not in said:  # the whole line, else its end meets a closed terminal
        said += os.read(terminal, 1000)
    os.close(terminal)  # the kernel sends SIGHUP
    assert process.wait(60) == 75
    assert (tmp_path / "saved").read_text() == "saved"


UNREAD = """
import pathlib, sys
from jaxsplit.hosts import signals
signals.ignore_lost_readers()
print("ready", flush=True)
sys.stdin.readline()
for _ in range(2):
    print("x" * 100_000, flush=True)
pathlib.Path(sys.argv[1]).write_text("saved")
"""


def test_a_reader_that_goes_away(tmp_path):
    """As in `jaxsplit train ... | tee log` after tee has been killed."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-c", UNREAD, str(tmp_path / "saved")]
    process = subprocess.Popen(command, cwd=ROOT, **pipes)
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()
    _, said = process.communicate(b"\n", timeout=60)
    assert (process.returncode, said) == (0, b"")
    assert (tmp_path / "saved").read_text() == "saved"


# ---- main.py


def test_main_in_the_shell(tmp_path):
    """Ctrl-C during training; the tests with several processes cover SIGTERM."""
    process = started(str(ROOT / "main.py"), *TINY, f"--workdir={tmp_path}")
    until(process, "step 2/")
    process.send_signal(signal.SIGINT)
    status, said = ended(process)
    assert status == 130, said
    assert not any("Traceback" in line for line in said)
    (step,) = steps_in(tmp_path)
    assert 2 < step < 1000
    assert said[-1] == (
        f"stopped by SIGINT: step {step} of 20000 is saved in {tmp_path}; {signals.AGAIN}"
    )


@pytest.mark.slow
def test_several_processes_stop_together(start, tmp_path):
    """All processes stop at the same step although only one gets the signal."""
    fields = {"duration": "20000 steps", "checkpoint.every": "1000 steps", "mesh.net": 2}
    fields |= {"eval.every": "20000 steps"}
    workdir = tmp_path / "run"
    processes = start(2, training(2, workdir, **fields))
    until_said(processes[0], "step 3/")
    processes[1].popen.send_signal(signal.SIGTERM)
    assert [process.wait() for process in processes] == [75, 75], processes[0].said
    (step,) = steps_in(workdir)
    text = f"stopped by SIGTERM: step {step} of 20000 is saved in {workdir}; {signals.AGAIN}"
    assert all(text in process.said for process in processes)
    # The optimizer state and checksums of each network are from another process.
    config = config_lib.load(workdir)
    config.mesh.net = 1
    assert int(state_at(config, workdir, step).step) == step


def until_said(process, text: str) -> None:
    end = time.monotonic() + 240
    while text not in process.said:
        assert process.popen.poll() is None and time.monotonic() < end, process.said
        time.sleep(0.05)
