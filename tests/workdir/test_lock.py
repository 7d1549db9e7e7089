"""jaxsplit.workdir.lock: one run at a time in a workdir; whose lock is stale."""

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from jaxsplit.errors import ConfigError, SaveError
from jaxsplit.workdir import files, lock


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.1)
    monkeypatch.setattr(lock, "STALE", 1.0)


@pytest.fixture
def child():
    """A process that sleeps."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def leave(folder, **fields) -> None:
    """Writes a lock as another process would leave it."""
    owner = lock._me() | {"token": "other"} | fields
    (folder / lock.FILE).write_text(json.dumps(owner))


def taken(folder) -> list[str]:
    said = []
    lock.take(folder, said.append).release()
    assert list(folder.iterdir()) == []
    return said


def test_a_lock_is_a_file_that_goes_away(tmp_path):
    held = lock.take(tmp_path)
    (path,) = tmp_path.iterdir()
    owner = json.loads(path.read_text())
    assert path.name == ".lock" and owner["pid"] == os.getpid()
    first = path.stat().st_mtime_ns
    until = time.monotonic() + 10
    while path.stat().st_mtime_ns == first:
        assert time.monotonic() < until
    held.check()
    held.release()
    assert list(tmp_path.iterdir()) == []
    assert taken(tmp_path) == []


def test_a_second_run_is_refused(tmp_path):
    held = lock.take(tmp_path)
    owner = json.loads((tmp_path / lock.FILE).read_text())
    with pytest.raises(ConfigError) as caught:
        lock.take(tmp_path)
    assert str(caught.value) == (
        f"workdir={str(tmp_path)!r}: another run is at work there: process {os.getpid()} on "
        f"{owner['host']}, since {owner['since']} (that process is alive; a lock is stale when its "
        "process is gone or, from another machine, .lock has not changed for 1 s). Wait for its "
        "end, or choose another workdir"
    )
    held.release()


def test_a_process_that_is_gone_keeps_nothing(tmp_path, child):
    leave(tmp_path, pid=child.pid, started=lock._started(child.pid), since="then", host="here")
    with pytest.raises(ConfigError, match=f"process {child.pid} on here, since then"):
        lock.take(tmp_path)
    os.kill(child.pid, signal.SIGKILL)
    while lock._started(child.pid):  # a zombie is gone, too
        time.sleep(0.01)
    (line,) = taken(tmp_path)
    assert line == (
        f"took {tmp_path} over from process {child.pid} on here, since then: that process is gone"
    )


def test_a_process_id_that_was_used_again(tmp_path, child):
    leave(tmp_path, pid=child.pid, started="1")
    (line,) = taken(tmp_path)
    assert line.endswith("that process is gone")


def test_of_another_machine_only_changes_count(tmp_path):
    """Only changes count, not the clock: the file's time is a day ahead."""
    leave(tmp_path, machine="another", host="there", pid=os.getpid())
    os.utime(tmp_path / lock.FILE, (time.time() + 86400,) * 2)
    waiting, line = taken(tmp_path)
    assert waiting.startswith(
        f"{tmp_path / '.lock'} belongs to process {os.getpid()} on there, since"
    )
    assert waiting.endswith("; waiting up to 1 s for it to change")
    assert line.endswith(": .lock has not changed for 1 s")


def test_an_old_lock_of_another_machine_is_not_waited_for(tmp_path):
    leave(tmp_path, machine="another")
    os.utime(tmp_path / lock.FILE, (time.time() - 60,) * 2)
    (line,) = taken(tmp_path)
    assert line.startswith("took ")


BEATS = """
import sys, time, pathlib
from jaxsplit.workdir import files, lock
lock.BEAT, lock.this_machine = 0.2, lambda: "another"
lock.take(pathlib.Path(sys.argv[1]))
print("taken", flush=True)
time.sleep(60)
"""


def test_of_another_machine_that_is_alive(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", BEATS, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "taken\n"
        with pytest.raises(ConfigError, match="it touches .lock every 0 s;"):
            lock.take(tmp_path, lambda line: None)
        process.kill()
        process.wait()
        assert len(taken(tmp_path)) == 2
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("text", ["", "5", "[]", "{", "\0", "{}"])
def test_a_lock_that_says_nothing(tmp_path, text):
    (tmp_path / lock.FILE).write_text(text)
    os.utime(tmp_path / lock.FILE, (time.time() - 60,) * 2)
    (line,) = taken(tmp_path)
    assert line.startswith(f"took {tmp_path} over from process ? on ?, since ?")


def test_a_link_is_not_followed(tmp_path):
    folder, other = tmp_path / "run", tmp_path / "precious"
    folder.mkdir()
    (folder / lock.FILE).symlink_to(other)
    os.utime(folder / lock.FILE, (1, 1), follow_symlinks=False)
    lock.take(folder, lambda line: None).release()
    assert not other.exists() and list(folder.iterdir()) == []


def test_a_run_that_stood_still_for_long_saves_nothing(tmp_path):
    held = lock.take(tmp_path)
    leave(tmp_path, host="there", pid=7, since="now")
    with pytest.raises(SaveError) as caught:
        held.check()
    assert str(caught.value) == (
        f"workdir={str(tmp_path)!r}: was taken over by process 7 on there, since now while this "
        "run was suspended; nothing was saved since"
    )
    held.release()
    assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == 7  # is not removed


def test_a_lock_that_was_removed_comes_back(tmp_path):
    held = lock.take(tmp_path)
    (tmp_path / lock.FILE).unlink()
    held.check()
    with pytest.raises(ConfigError, match="another run is at work there"):
        lock.take(tmp_path)
    lock.release_all()
    assert list(tmp_path.iterdir()) == []


def test_a_beat_during_the_release_leaves_no_lock(tmp_path):
    """In a notebook the process lives on, and would refuse its next run."""
    held = lock.take(tmp_path)
    held.release()
    held._look()
    assert list(tmp_path.iterdir()) == []


def test_of_two_runs_that_find_a_stale_lock_one_takes_it(tmp_path, child, monkeypatch):
    """The other has put its file in place, and not yet written its name into it."""
    path = tmp_path / lock.FILE
    leave(tmp_path, pid=child.pid, started="1")
    rename = pathlib.Path.rename

    def late(self, aside):
        self.write_text("")
        return rename(self, aside)

    monkeypatch.setattr(pathlib.Path, "rename", late)
    with pytest.raises(ConfigError, match="it has just started"):
        lock.take(tmp_path)
    assert path.exists()


def test_a_full_disk_is_made_room_on(tmp_path, monkeypatch):
    """Only after an empty lock file, which needs no block, has locked the workdir."""
    written, room = files.write_text, []

    def full(path, text):
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written(path, text)

    def make_room(folder):
        assert (folder / lock.FILE).read_bytes() == b""
        room.append(folder)

    monkeypatch.setattr(files, "write_text", full)
    held = lock.take(tmp_path, make_room=make_room)
    assert room == [tmp_path] and json.loads((tmp_path / lock.FILE).read_text())["pid"]
    held.release()


def test_a_disk_that_stays_full_leaves_no_lock(tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        lock.take(tmp_path)
    assert list(tmp_path.iterdir()) == []


ENDED = """
import os, pathlib, signal, sys
from jaxsplit.hosts import signals
from jaxsplit.workdir import lock
signals.early()
lock.take(pathlib.Path(sys.argv[1]))
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_signal_that_ends_a_run_at_once_releases_its_lock(tmp_path):
    assert subprocess.run([sys.executable, "-c", ENDED, str(tmp_path)]).returncode == 75
    assert list(tmp_path.iterdir()) == []
