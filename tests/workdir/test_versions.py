"""workdir.versions: what each start of a run was made with."""

import re
import subprocess

from jaxsplit.workdir import versions


def test_versions_are_kept_for_each_start(tmp_path):
    found = versions.now("cpu")
    assert {"jaxsplit", "python", "jax", "numpy", "device"} <= set(found)
    versions.record(tmp_path, 0, found)
    versions.record(tmp_path, 5, found)
    assert versions.read(tmp_path) == [{"step": 0, **found}]
    versions.record(tmp_path, 9, found | {"jax": "9.9"})
    assert [one["step"] for one in versions.read(tmp_path)] == [0, 9]
    (tmp_path / versions.NAME).write_text("[1]")
    assert versions.read(tmp_path) == []
    versions.record(tmp_path, 9, found)
    assert len(versions.read(tmp_path)) == 1


def test_commit_of_a_clone(tmp_path):
    folder = tmp_path / "clone" / "jaxsplit"
    folder.mkdir(parents=True)
    assert versions.commit(folder) == ""
    (folder / "a.py").write_text("1")
    git = ["git", "-C", str(folder.parent), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run([*git, *command], check=True)
    head = versions.commit(folder)
    assert re.fullmatch(r"[0-9a-f]{40}", head)
    (folder / "a.py").write_text("2")
    assert versions.commit(folder) == f"{head} with changes"
