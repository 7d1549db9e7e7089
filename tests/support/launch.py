"""What the tests of launch/ share: they run its scripts with the commands around them replaced."""

import json
import os
import pathlib
import shlex
import subprocess
import sys
import time

from tests.support.paths import ROOT

LAUNCH = ROOT / "launch"


def run(name, *args, path=None, cwd=ROOT, **env) -> subprocess.CompletedProcess:
    """A script of launch/ with nothing in its environment but `env`; `path`: what hides others."""
    base = {k: os.environ[k] for k in ("PATH", "HOME") if k in os.environ}
    if path is not None:
        base["PATH"] = f"{path}:{base['PATH']}"
    return subprocess.run(
        ["bash", str(LAUNCH / name), *args],
        cwd=cwd,
        env=base | env,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def printed(name, *args, **env) -> list[str]:
    """The lines of a dry run."""
    done = run(name, *args, **env)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def refused(name, *args, status=2, **env) -> str:
    """The one line of an error."""
    done = run(name, *args, **env)
    assert done.returncode == status and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def commands(folder: pathlib.Path, **bodies: str) -> pathlib.Path:
    """A folder of commands to put in front of PATH. Each notes its words in calls.jsonl, then runs
    its body (shell)."""
    folder.mkdir(parents=True, exist_ok=True)
    note = "import json, sys; open(sys.argv[1], 'a').write(json.dumps(sys.argv[2:]) + chr(10))"
    for name, body in bodies.items():
        file = folder / name
        file.write_text(
            f"#!/usr/bin/env bash\n{shlex.quote(sys.executable)} -S -c {shlex.quote(note)} "
            f'{shlex.quote(str(folder / "calls.jsonl"))} {name} "$@"\n{body}\n'
        )
        file.chmod(0o755)
    return folder


def calls(folder: pathlib.Path) -> list[list[str]]:
    file = folder / "calls.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)
