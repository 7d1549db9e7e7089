"""jaxsplit.workdir.compile_cache: where compiled programs lie, and who must own the folder."""

import contextlib
import os

import jax
import numpy as np
import pytest

from jaxsplit import loop
from jaxsplit.errors import Stopped
from jaxsplit.hosts import signals
from jaxsplit.workdir import compile_cache
from tests.support.runs import tiny


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The default cache folder; jax's settings are restored at the end."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in zip(names, (None, 0.0), strict=True):
        jax.config.update(name, value)
    yield compile_cache.folder()
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)


def compile_one():
    jax.clear_caches()
    jax.jit(lambda x: x * 2)(np.arange(3.0, dtype=np.float32))


@pytest.mark.parametrize("base", ["", "relative"])
def test_where(monkeypatch, base):
    monkeypatch.setenv("XDG_CACHE_HOME", base)
    monkeypatch.setenv("HOME", "/me")
    assert str(compile_cache.folder()) == "/me/.cache/jaxsplit/jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "/big")
    assert str(compile_cache.folder()) == "/big/jaxsplit/jax"


def test_without_a_home_nothing_is_kept(cache, monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    said = []
    with compile_cache.kept(said.append):
        assert jax.config.jax_compilation_cache_dir is None
    (line,) = said
    assert line.startswith("compiled programs are not kept: ~/.cache/") and "no home" in line
    assert list(tmp_path.iterdir()) == []


def test_programs_of_all_runs_are_the_owners_alone(cache):
    said = []
    for _ in range(2):
        with compile_cache.kept(said.append):
            compile_one()
        assert jax.config.jax_compilation_cache_dir is None
    files = [
        path.name for path in cache.iterdir() if "lambda" in path.name and "atime" not in path.name
    ]
    assert len(files) == 1 and said == []  # the second time it was found
    assert [path.stat().st_mode & 0o777 for path in (cache.parent, cache)] == [0o700, 0o700]


def test_a_folder_that_is_given_stays(cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    with compile_cache.kept():
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
    assert not cache.parent.exists()


def others_may_write(cache):
    cache.mkdir(parents=True, mode=0o700)
    cache.chmod(0o770)


def others_may_write_above(cache):
    cache.mkdir(parents=True, mode=0o700)
    cache.parent.chmod(0o777)


def link(cache):
    cache.parent.mkdir(parents=True, mode=0o700)
    (cache.parent.parent / "elsewhere").mkdir()
    cache.symlink_to(cache.parent.parent / "elsewhere")


def file(cache):
    cache.parent.mkdir(parents=True, mode=0o700)
    cache.write_text("")


@pytest.mark.parametrize(
    "make, reason",
    [
        (others_may_write, "(jax) can be written by others; chmod go-w it"),
        (others_may_write_above, "(jaxsplit) can be written by others; chmod go-w it"),
        (link, "(jax) must be a directory, no link"),
        (file, "cannot be made (["),
    ],
)
def test_a_folder_that_is_not_the_owners_alone_is_not_used(cache, make, reason):
    make(cache)
    said = []
    with compile_cache.kept(said.append):
        assert jax.config.jax_compilation_cache_dir is None
        compile_one()
    (line,) = said
    assert line.startswith(f"compiled programs are not kept: {cache} {reason}")


def test_a_folder_of_another_user_is_not_used(cache, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    said = []
    with compile_cache.kept(said.append):
        assert jax.config.jax_compilation_cache_dir is None
    assert said == [f"compiled programs are not kept: {cache} (jaxsplit) belongs to another user"]


@pytest.mark.slow
def test_the_next_seed_finds_the_compiled_programs(cache, tmp_path):
    """Another run in another workdir reads them; no workdir holds compiled programs."""

    class StopsAfterTwo(signals.Stop):
        def after(self, step):
            return step == 2

    found = []
    for seed in (0, 1):
        jax.clear_caches()
        workdir = tmp_path / f"run{seed}"
        with contextlib.suppress(Stopped):
            loop.train_and_evaluate(tiny(seed=seed), workdir, StopsAfterTwo())
        found.append({path.name for path in cache.iterdir() if "_step-" in path.name})
        assert {path.name for path in workdir.iterdir()} == {
            "config.json",
            "dataset.json",
            "metrics.jsonl",
            "versions.json",
            "checkpoints",
        }
    names = {name.split("-")[0] for name in found[0]}
    assert names == {"jit_train_step", "jit_eval_step"}
    assert {n for n in found[0] if "-cache" in n} == {n for n in found[1] if "-cache" in n}
