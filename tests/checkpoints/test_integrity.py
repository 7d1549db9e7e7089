"""checkpoints.integrity and checksums: damage is found and named; the run uses an older one."""

import errno
import json
import resource
import shutil
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import common
from jaxsplit import sharding
from jaxsplit.checkpoints import checksums, integrity, read, resume, store
from jaxsplit.errors import ConfigError, DamagedError, SaveError, disk_full
from tests.support.checkpoints import METRIC, assert_same, like, make_state, save
from tests.support.samples import every

# If one read or write fails, orbax does not wait for the others.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]
EXAMPLES = 100  # size of the training set, given to `save`


def resumed(checkpoints, **fields):
    said = []
    found = resume.newest(checkpoints, like(make_state(1)), EXAMPLES, say=said.append, **fields)
    return *found, said


def folder_of(workdir, step):
    return workdir / store.FOLDER / str(step)


def flip(path, place: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def files_in(folder) -> list:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


# ---- Checksums


def test_by_hand():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    rows = " ".join(f"{zlib.crc32(row.tobytes()):08x}" for row in x)
    tree = {"a": {"b": x}, "long": np.zeros(65, np.int8), "one": np.float32(2), "none": x[:0]}
    assert checksums.of_arrays(tree) == {
        "a/b": f"float32[2,3] {rows}",
        "long": f"int8[65] {zlib.crc32(bytes(65)):08x}",
        "none": "float32[0,3] 00000000",
        "one": f"float32[] {zlib.crc32(x[0, 2].tobytes()):08x}",
    }
    assert checksums.shape(f"float32[2,3] {rows}") == (2, 3)
    assert checksums.shape("float32[] 00000000") == ()


def test_the_same_on_any_mesh():
    rng = np.random.default_rng(0)
    tree = {"kernel": rng.normal(size=(4, 3, 3, 2)).astype(np.float32), "b": np.ones(4, np.float16)}
    want = checksums.of_arrays(tree)
    for data, net in ((1, 1), (2, 4), (8, 1), (4, 2)):
        mesh = sharding.make(data, net, num_networks=4)
        for spec in (mesh.networks, mesh.replicated):
            assert checksums.of_arrays(mesh.put(tree, spec)) == want
            assert checksums.differing(want, mesh.put(tree, spec)) == []
    # For any byte order in memory, and for bfloat16.
    assert checksums.of_arrays({"x": tree["kernel"].T.copy().T}) == checksums.of_arrays(
        {"x": tree["kernel"]}
    )
    assert checksums.of_arrays({"x": jnp.ones(3, jnp.bfloat16)})["x"].startswith("bfloat16[3] ")


def test_differing():
    tree = {"a": np.ones((2, 3), np.float32), "b": np.zeros(2, np.int32)}
    saved = checksums.of_arrays(tree)
    changed = jax.tree.map(np.copy, tree)
    changed["a"].view(np.uint8)[1, 5] ^= 64
    assert checksums.differing(saved, changed) == ["a"]
    assert checksums.differing(saved, {"a": tree["a"][:, :2]}) == ["a"]
    assert checksums.differing({"b": saved["b"]}, tree) == ["a"]  # it was not saved
    # An array read as another dtype cannot be compared.
    assert checksums.differing(saved, {"a": tree["a"].astype(np.float16)}) == []


# ---- Damage


def test_a_flipped_byte_of_an_array_is_found_and_named(opened, tmp_path):
    """Orbax reads this byte without an error, because it stores small arrays uncompressed."""
    checkpoints = opened()
    save(checkpoints, 1)
    state = make_state(1)
    kernel = np.asarray(state.params["stack"]["kernel"])
    changed = state.replace(
        params={"stack": dict(state.params["stack"], kernel=jnp.asarray(kernel).at[1, 2, 3].add(1))}
    )
    other = store.Checkpoints(tmp_path / "other", best_metric=METRIC)
    other.save(changed, common.get_config(), EXAMPLES)
    other.close()
    shutil.rmtree(folder_of(tmp_path, 1) / "model")
    shutil.copytree(folder_of(tmp_path / "other", 1) / "model", folder_of(tmp_path, 1) / "model")
    for restore in (read.restore, read.restore_model):
        with pytest.raises(DamagedError) as caught:
            restore(checkpoints.path(1), like(state))
        assert str(caught.value) == (
            f"checkpoint=1 in {tmp_path / 'checkpoints'}: is damaged "
            "(model: params/stack/kernel: checksum differs)"
        )
    with pytest.raises(DamagedError, match="params/stack/kernel: checksum differs"):
        read.restore_some(checkpoints.path(1), like(state).variables)


def test_any_flipped_byte_is_found_or_does_no_harm(opened, tmp_path):
    """Flips random bits in every file of a checkpoint."""
    save(opened(), 1)
    save(opened(), 2)
    state, rng, found = make_state(2), np.random.default_rng(0), 0
    files = files_in(folder_of(tmp_path, 2))
    for k, path in enumerate(files):
        workdir = shutil.copytree(tmp_path, tmp_path.parent / f"flip{k}")
        place, bit = rng.integers(path.stat().st_size), int(rng.integers(8))
        flip(workdir / path.relative_to(tmp_path), place, bit)
        checkpoints = store.Checkpoints(workdir, best_metric=METRIC)
        step, got, _, said = resumed(checkpoints)
        checkpoints.close()
        assert_same(got, make_state(step))
        assert step == (1 if said else 2), path
        found += bool(said)
    assert found >= 5
    assert_same(read.restore(opened().path(2), like(state)), state)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "largest file cut": lambda at: cut(max(files_in(at), key=lambda p: p.stat().st_size)),
    "every file cut": lambda at: [cut(path) for path in files_in(at)],
    "every file empty": lambda at: [path.write_bytes(b"") for path in files_in(at)],
    "no file": lambda at: [path.unlink() for path in files_in(at)],
    "empty folder": lambda at: (shutil.rmtree(at), at.mkdir()),
    "no model": lambda at: shutil.rmtree(at / "model"),
    "no opt": lambda at: shutil.rmtree(at / "opt"),
    "no data": lambda at: shutil.rmtree(at / "data"),
    "no checksums": lambda at: shutil.rmtree(at / "checksums"),
    "no metrics": lambda at: shutil.rmtree(at / "metrics"),
    "metrics": lambda at: (at / "metrics" / "metrics").write_text("{"),
    "data": lambda at: (at / "data" / "metadata").write_text('{"step": 4, "train_examples": 10}'),
    "checksums": lambda at: (at / "checksums" / "metadata").write_text("{}"),
}


@pytest.mark.parametrize("name", every(3, DAMAGES))
def test_the_checkpoint_before_a_damaged_one(opened, tmp_path, name):
    save(opened(), 2, 0.25)
    save(opened(), 4, 0.5)
    DAMAGES[name](folder_of(tmp_path, 4))
    assert not store.weights_only(tmp_path)
    checkpoints = opened()
    with pytest.raises(DamagedError, match="checkpoint=4 .*on_corrupt='previous' .* from step 2$"):
        resumed(checkpoints, on_corrupt="error")
    assert checkpoints.steps() == [2, 4]
    step, state, _, (said,) = resumed(checkpoints)
    assert step == 2
    assert_same(state, make_state(2))
    assert said.startswith(f"checkpoint=4 in {tmp_path / 'checkpoints'}: is damaged (")
    assert said.endswith("; set aside as damaged-4, resuming from step 2")
    assert len(said.splitlines()) == 1
    # Its step is free and can be saved again.
    assert checkpoints.steps() == [2] and checkpoints.best() == (2, {METRIC: 0.25, "test/count": 8})
    assert (tmp_path / "checkpoints" / "damaged-4").is_dir()
    save(checkpoints, 4, 0.5)
    assert opened().steps() == [2, 4]
    assert_same(read.restore(opened().path(4), like(state)), make_state(4))
    # A second time, after one was set aside before.
    DAMAGES["empty folder"](folder_of(tmp_path, 4))
    assert resumed(opened())[0] == 2


def test_where_none_is_whole(opened, tmp_path):
    checkpoints = opened()
    for step in (2, 4):
        save(checkpoints, step)
        DAMAGES["no model"](folder_of(tmp_path, step))
    with pytest.raises(
        DamagedError, match="checkpoint=2 .*; no checkpoint is intact; train again in"
    ):
        resumed(checkpoints)
    # They stay: without a checkpoint, the same command would start again and overwrite metrics.
    assert checkpoints.steps() == opened().steps() == [2, 4]


def test_what_does_not_fit_is_not_damage(opened):
    checkpoints = opened()
    save(checkpoints, 2)
    save(checkpoints, 4)
    with pytest.raises(ConfigError, match="training set has 99 examples"):
        resume.newest(checkpoints, like(make_state(1)), EXAMPLES - 1)
    with pytest.raises(ConfigError, match="checkpoint=4 .* should be") as caught:
        resume.newest(checkpoints, like(make_state(1, features=5)), EXAMPLES)
    assert not isinstance(caught.value, DamagedError)
    assert checkpoints.steps() == [2, 4]


# ---- Formats


def set_format(workdir, step: int, form) -> None:
    """Changes a checkpoint to the format of another version; format 1 has no checksums."""
    at = folder_of(workdir, step)
    position = json.loads((at / "data" / "metadata").read_text())
    sums = json.loads((at / "checksums" / "metadata").read_text())
    del position["format"], sums["checksums"]
    if form == 1:
        shutil.rmtree(at / "checksums")
    else:
        position["format"] = form
        sums["data"] = checksums.of_json(position)
        sums["checksums"] = checksums.of_json(sums)
        (at / "checksums" / "metadata").write_text(json.dumps(sums))
    (at / "data" / "metadata").write_text(json.dumps(position))


def test_format_1_is_read_as_ever(opened, tmp_path):
    save(opened(), 2)
    set_format(tmp_path, 2, 1)
    checkpoints = opened()
    step, state, _, said = resumed(checkpoints)
    assert (step, said) == (2, [])
    assert_same(state, make_state(2))
    assert_same(read.restore_model(checkpoints.path(2), like(state)), state.variables)
    with pytest.raises(ConfigError, match="is damaged or of another architecture"):
        read.restore(checkpoints.path(2), like(make_state(1, features=5)))
    save(checkpoints, 4)  # one of today beside it
    assert resumed(opened())[0] == 4


@pytest.mark.parametrize("form", [integrity.FORMAT + 1, 99, "3", None])
def test_an_unknown_format_says_what_to_do(opened, tmp_path, form):
    save(opened(), 2)
    save(opened(), 4)
    set_format(tmp_path, 4, form)
    checkpoints, state = opened(), make_state(4)
    for reading in (
        lambda: resumed(checkpoints),  # it does not use an older one, which would undo steps
        lambda: read.restore(checkpoints.path(4), like(state)),
        lambda: read.restore_model(checkpoints.path(4), like(state)),
        lambda: read.model_shapes(checkpoints.path(4)),
    ):
        with pytest.raises(ConfigError) as caught:
            reading()
        assert str(caught.value) == (
            f"checkpoint=4 in {tmp_path / 'checkpoints'}: has format {form!r}, must be at most "
            f"{integrity.FORMAT}; use the version of jaxsplit that saved it, or a newer one"
        )
        assert not isinstance(caught.value, DamagedError)
    assert checkpoints.steps() == [2, 4]


# ---- A full disk


def test_a_disk_that_is_full(opened, tmp_path, monkeypatch):
    checkpoints = opened(keep=1)
    save(checkpoints, 2)

    async def full(self, item, directory):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ocp.JsonCheckpointHandler, "_save_fn", full)
        with pytest.raises(SaveError) as caught:
            save(checkpoints, 4)
    assert str(caught.value) == (
        f"saving a checkpoint in {tmp_path / 'checkpoints'} failed: the disk is full; "
        "the last good one is 2"
    )
    checkpoints.close()  # reports the error only once
    assert opened().steps() == [2]  # the unfinished save of step 4 is removed
    assert_same(read.restore(opened().path(2), like(make_state(2))), make_state(2))


def test_a_write_that_fails_in_the_middle(opened, tmp_path):
    """A real failure: a limit keeps this process's files below 64 KiB for a while."""
    big = make_state(1, features=20_000)
    checkpoints = opened()
    save(checkpoints, 1)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limit[1]))
    try:
        with pytest.raises(SaveError, match="failed: .*; the last good one is 1$"):
            checkpoints.save(big.replace(step=jnp.int32(3)), common.get_config(), EXAMPLES)
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    checkpoints.close()
    assert opened().steps() == [1]
    assert_same(read.restore(opened().path(1), like(make_state(1))), make_state(1))


def test_what_says_that_a_disk_is_full():
    wrapped = ValueError("orbax")
    wrapped.__cause__ = OSError(errno.ENOSPC, "?")
    texts = ("write: No space left on device [x.cc:1]", "Disk quota exceeded")
    assert disk_full(wrapped) and all(disk_full(Exception(text)) for text in texts)
    assert not disk_full(OSError(errno.EIO, "?")) and not disk_full(ValueError("full"))
