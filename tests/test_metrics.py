"""jaxsplit.metrics: sums between two log points, and metrics.jsonl."""

import json

import jax
import jax.numpy as jnp
import pytest

from jaxsplit import metrics


def read(path) -> list[dict]:
    return [json.loads(line) for line in (path / metrics.JSONL).read_text().splitlines()]


def add_all(values, losses, first_step: int = 0) -> metrics.Totals:
    totals = metrics.empty()
    for i, (value, loss) in enumerate(zip(values, losses, strict=True)):
        named = {"loss": jnp.float32(loss), "top1": jnp.asarray(value, jnp.float32)}
        step = jnp.int32(first_step + i)
        totals = jax.jit(metrics.add)(totals, named, jnp.isfinite(loss), step)
    return totals


def test_means():
    totals = add_all([[0.0, 0.5], [1.0, 0.5], [0.5, 0.5]], [3.0, 2.0, 4.0])
    assert metrics.means(totals) == {"loss": 3.0, "net0/top1": 0.5, "net1/top1": 0.5}
    assert int(totals.count) == 3
    assert int(totals.bad_step) == -1


def test_zeros_start_again():
    totals = add_all([[0.0, 1.0]], [float("nan")])
    fresh = metrics.zeros(totals)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), fresh) == jax.tree.map(
        lambda x: (x.shape, x.dtype), totals
    )
    assert metrics.means(fresh) == {"loss": 0.0, "net0/top1": 0.0, "net1/top1": 0.0}
    assert (int(fresh.count), int(fresh.bad_step)) == (0, -1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_the_first_step_with_a_bad_loss_is_remembered(bad):
    values = [[0.0]] * 5
    assert int(add_all(values, [1.0, 2.0, bad, 1.0, bad], first_step=40).bad_step) == 42
    assert int(add_all(values, [bad] * 5, first_step=0).bad_step) == 0
    assert int(add_all(values, [1.0] * 5).bad_step) == -1


def test_each_line_is_on_disk_at_once(tmp_path):
    writer = metrics.Writer(tmp_path)
    writer.write(1, {"a": 1.0})
    assert read(tmp_path) == [{"step": 1, "a": 1.0}]
    writer.close()


def test_numbers_that_are_not_finite_are_null(tmp_path):
    writer = metrics.Writer(tmp_path)
    writer.write(1, {"a": float("nan"), "b": float("inf"), "c": 2.0})
    writer.close()

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    text = (tmp_path / metrics.JSONL).read_text()
    assert json.loads(text, parse_constant=refuse) == {"step": 1, "a": None, "b": None, "c": 2.0}


def test_lines_after_the_restored_step_are_dropped(tmp_path):
    writer = metrics.Writer(tmp_path)
    for step in (1, 2, 2, 3, 4):
        writer.write(step, {"a": float(step)})
    writer.close()
    writer = metrics.Writer(tmp_path, start=2)
    writer.write(3, {"a": 30.0})
    writer.close()
    assert [(line["step"], line["a"]) for line in read(tmp_path)] == [
        (1, 1.0),
        (2, 2.0),
        (2, 2.0),
        (3, 30.0),
    ]
    assert [path.name for path in tmp_path.iterdir()] == [metrics.JSONL]


def test_a_new_run_drops_all_lines(tmp_path):
    (tmp_path / metrics.JSONL).write_text('{"step": 1, "a": 1.0}\n')
    metrics.Writer(tmp_path, start=0).close()
    assert read(tmp_path) == []


@pytest.mark.parametrize("cut", ['{"step": 3, "a": 0.', '{"step', "{", "", '{"a": 1.0}'])
def test_a_last_line_that_was_cut_short(tmp_path, cut):
    whole = '{"step": 1, "a": 1.0}\n{"step": 2, "a": 2.0}\n'
    (tmp_path / metrics.JSONL).write_text(whole + cut)
    writer = metrics.Writer(tmp_path, start=2)
    writer.write(3, {"a": 3.0})
    writer.close()
    assert (tmp_path / metrics.JSONL).read_text() == whole + '{"step": 3, "a": 3.0}\n'


def test_only_the_active_process_writes(tmp_path):
    writer = metrics.Writer(tmp_path, active=False)
    writer.write(1, {"a": 1.0})
    writer.close()
    assert not list(tmp_path.iterdir())


WHOLE = '{"step": 1, "a": 1.0}\n{"step": 2, "a": 2.0}\n'


@pytest.mark.parametrize(
    "damage, reason",
    [
        (b"5", "such as b'5'"),
        (b"5\n", "such as b'5'"),
        (b"null\n", "such as b'null'"),
        (b"[]\n", "such as b'[]'"),
        (b'{"step": null}\n', "such as b'{\"step\": null}'"),
        (b'{"step": true}\n', "such as b'{\"step\": true}'"),
        (b'{"step": 1.5, "a": 1}\n', 'such as b\'{"step": 1.5, "a": 1}\''),
        (b'{"a": 1}\n', "such as b'{\"a\": 1}'"),
        (b"\x00\xff\x80" * 20, f"such as {(bytes((0, 255, 128)) * 20)[:40]!r}"),
        (b"[" * 100_000 + b"\n", f"such as {b'[' * 40!r}"),
    ],
    ids=range(10),
)
def test_a_log_that_is_damaged_blocks_nothing(tmp_path, damage, reason):
    (tmp_path / metrics.JSONL).write_bytes(WHOLE.encode() + damage)
    said = []
    writer = metrics.Writer(tmp_path, start=1, say=said.append)
    writer.write(2, {"a": 20.0})
    writer.close()
    assert read(tmp_path) == [{"step": 1, "a": 1.0}, {"step": 2, "a": 20.0}]
    assert said == [
        f"{tmp_path / metrics.JSONL} is damaged ({reason}); moved to "
        "metrics.jsonl.damaged, and the 2 lines that can be read are kept"
    ]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == WHOLE.encode() + damage


def test_a_folder_in_the_place_of_the_log(tmp_path):
    """Earlier damaged files stay."""
    for name in ("", ".damaged", ".damaged2"):
        (tmp_path / f"{metrics.JSONL}{name}").mkdir()
    said = []
    metrics.Writer(tmp_path, say=said.append).close()
    assert read(tmp_path) == [] and (tmp_path / "metrics.jsonl.damaged3").is_dir()
    (line,) = said
    assert "moved to metrics.jsonl.damaged3, and the 0 lines that can be read are kept" in line


@pytest.mark.parametrize("exists", [True, False])
def test_links_are_not_followed(tmp_path, exists):
    """What somebody has placed there before leads to nobody else's file."""
    workdir, other = tmp_path / "run", tmp_path / "precious"
    workdir.mkdir()
    if exists:
        other.write_text(WHOLE)
    for name in (metrics.JSONL, "metrics.tmp", "metrics.jsonl.tmp"):
        (workdir / name).symlink_to(other)
    writer = metrics.Writer(workdir)
    writer.write(1, {"a": 1.0})
    writer.close()
    assert not (workdir / metrics.JSONL).is_symlink() and read(workdir) == [{"step": 1, "a": 1.0}]
    assert other.read_text() == WHOLE if exists else not other.exists()
