"""Benchmarks run to their end at small sizes and print their figures; no value is asserted."""

import importlib.util
import json
import math
import sys

import jax
import numpy as np
import pytest

from bench import (
    Results,
    augment,
    cascade,
    compiler_options,
    device,
    errors_in_one_line,
    passes,
    peers,
    plots,
    programs,
    remat,
    stack_overhead,
    tpu,
    train_step,
)
from jaxsplit.errors import ConfigError

SMALL = programs.Case("wide_resnet10_1", 2, 4, 8, 1, 10)


@pytest.fixture
def call(monkeypatch, capsys):
    """(main, *arguments) -> what it prints."""

    def run(main, *arguments) -> str:
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_train_step(call, tmp_path):
    """The table, a line of JSON for each row, and a plot of a series of them."""
    out = call(train_step.main, "--quick", "--rounds", 1, "--out", tmp_path / "figures.md")
    assert out.count("| wide_resnet10_1/") == 2 and "Time to the first row's: 1.00, " in out
    assert "MFU" in (tmp_path / "figures.md").read_text()
    rows = [json.loads(line) for line in (tmp_path / "figures.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["seconds"] > 0 and row["model_gflops"] > 0 and row["commit"]
        assert row["mfu"] is None  # nobody knows the peak of a CPU
    plots.draw("networks", rows, tmp_path / "networks.svg")
    assert "networks S that replace one" in (tmp_path / "networks.svg").read_text()


def test_curves_of_a_run(tmp_path, call):
    (tmp_path / "digits").mkdir()
    lines = [{"step": s, "test/net0/top1": 0.9, "test/ensemble/top1": 1.0} for s in (1, 2)]
    text = "".join(json.dumps(line) + "\n" for line in [{"step": 1, "train/loss": 1.0}, *lines])
    (tmp_path / "digits" / "metrics.jsonl").write_text(text)
    call(plots.main, "--run", tmp_path / "digits", "--out", tmp_path)
    drawn = (tmp_path / "digits.svg").read_text()
    assert "test error, %" in drawn and "net0" in drawn and "ensemble" in drawn


def test_model_flops_are_six_a_multiply_add():
    """By hand: one 3x3 convolution of 16 channels, four blocks ..."""
    one = programs.train_flops(programs.changed(SMALL, split=1, batch=1))
    assert programs.train_flops(programs.changed(SMALL, split=1, batch=5)) == 5 * one
    macs = 64 * 9 * 16  # the stem, on 8x8 with one channel
    for side, c, features in ((8, 16, 16), (4, 16, 32), (2, 32, 64)):
        macs += side**2 * 9 * (c * features + features**2)
        macs += side**2 * c * features * (c != features)  # the shortcut
    assert one == 6 * (macs + 64 * 10)


def test_a_peak_is_known_or_left_out():
    assert programs.peak("NVIDIA H100 80GB HBM3", "bfloat16") == 989.4e12
    assert math.isnan(programs.peak("cpu", "float32"))
    assert math.isnan(programs.peak("Tesla V100-SXM2-16GB", "bfloat16"))


@pytest.mark.slow
def test_the_step_is_that_of_a_run():
    """It learns: the loss falls."""
    program = programs.compile_case(programs.changed(SMALL, views=True, channels=3))
    program.run()
    first = program.loss()
    for _ in range(5):
        program.run()
    # `loss` is the mean of all steps so far.
    assert np.isfinite(first) and program.loss() < first


@pytest.mark.slow
def test_peers(call):
    """With PyTorch or without it: a line says which."""
    out = call(peers.main, "--quick", "--rounds", 1, "--torch-python", sys.executable)
    assert out.count("| wide_resnet") == 2
    has_torch = not peers._lacks_torch(sys.executable)
    assert ("jaxsplit alone is measured" in out) != has_torch


def test_passes(call):
    out = call(passes.main, "--quick", "--rounds", 1, "--torch-python", sys.executable)
    assert out.count("| 8, 8, 4 |") == 3


@pytest.mark.slow
def test_compiler_options(call):
    out = call(compiler_options.main, "--quick")
    assert "| nothing | 1.00 (" in out and "| dots |" in out


@pytest.mark.slow
def test_device(call, tmp_path):
    """Every part leaves its figures, or a line that says why not."""
    parts = [part for part in device.PARTS if part not in ("step", "flags")]  # as lowering
    arguments = ("--tiny", "--out", tmp_path, "--seconds", 300, "--parts", *parts)
    out = call(device.main, *arguments)
    rows = [json.loads(line) for line in (tmp_path / "device.jsonl").read_text().splitlines()]
    assert not [row for row in rows if "error" in row]
    assert {row["part"] for row in rows} == {"device", "part", "kernels", *parts}
    names = [row["lowering"] for row in rows if row["part"] == "lowering"]
    assert names == ["alone", "dense", "packed"]
    for row in rows:
        if row["part"] == "parity" and row["precision"] == "float32 highest":
            assert row["logits_error"] < 1e-5 and row["gradient_error"] < 1e-4
    assert out.rstrip().endswith(device.TARGETS)


def test_a_part_that_fails_leaves_the_others(monkeypatch):
    def fail(run):
        raise RuntimeError("no memory")

    monkeypatch.setitem(device.PARTS, "parity", (0.1, fail))
    run = device.Run(Results(None), True, sys.executable)
    device.run_parts(run, ["parity", "shapes"], 100)
    found = [(row["part"], row.get("name"), row.get("error")) for row in run.results.rows]
    assert found[0] == ("part", "parity", "RuntimeError: no memory")
    assert [part for part, *_ in found[1:]] == ["shapes", "part"]


# ---- TPU


def test_tpu_lists_topologies(call):
    out = call(tpu.main, "--list")
    assert "| v5e:4x4 | 16 | 16 | 197 |" in out and "v6e:16x16" in out


def test_a_wrong_value_is_one_line(capsys):
    with pytest.raises(SystemExit, match="2"), errors_in_one_line():
        programs.build(programs.changed(SMALL, lowering="vmap"))
    line = "error: lowering='vmap': must be one of auto, dense, unrolled, packed, grouped"
    assert capsys.readouterr().err == line + "\n"


@pytest.mark.parametrize("topology", ["v5e", "v9:2x2", "v5e:two"])
def test_an_unknown_topology_lists_those_that_there_are(topology):
    with pytest.raises(ConfigError, match=rf"^topology='{topology}': must be one like .*v5e:4x4"):
        tpu.chip_of(topology)


def test_fields_of_a_config_are_set():
    name = "configs/cifar10.py:arch=resnet110,split=2"
    config = tpu.load_config(name, ["batch_size=64", "mesh.net=2", "dtype=bfloat16"])
    assert (config.arch, config.batch_size, config.mesh.net) == ("resnet110", 64, 2)
    assert config.dtype == "bfloat16"
    with pytest.raises(ConfigError, match="^batchsize='64': no such field"):
        tpu.load_config(name, ["batchsize=64"])


@pytest.mark.slow
def test_the_step_of_streamed_images_is_lowered():
    """On a mesh of any devices: the data set of the config is not needed."""
    fields = ["batch_size=8", "mesh.net=2", "data.image_size=32", "lowering=packed"]
    config = tpu.load_config("configs/imagenet.py:arch=resnet18,split=2", fields)
    lowered = tpu.lower(tpu.build(config, jax.devices()[:4]))
    assert "tensor<2x8x32x32x3xui8>" in lowered.as_text()


def test_padding_counts_tiles():
    """By hand: 3 of 128 lanes, 5 of 8 rows; a scalar has no tile."""
    text = """
ENTRY %main {
  %a = f32[2,5,3]{2,1,0:T(8,128)} parameter(0)
  %b = bf16[128,16]{0,1:T(8,128)} add(%a)
  %c = f32[] constant(0)
}
"""
    held = 4 * 30 + 2 * 128 * 16
    tiled = 4 * 2 * 8 * 128 + 2 * 128 * 16
    assert tpu.padding(text) == tiled / held


if importlib.util.find_spec("libtpu"):

    @pytest.mark.slow
    def test_a_step_is_compiled_for_a_tpu():
        """By the TPU's own compiler; minutes."""
        fields = ["batch_size=8", "arch=wide_resnet10_1"]
        config = tpu.load_config("configs/digits_wrn16_4_x4.py", fields)
        row = tpu.measure(config, "v5e:2x2")
        assert row["fits"] and row["gathers_of_activations"] == 0 and row["padding"] > 1

    @pytest.mark.slow
    def test_a_topology_that_libtpu_does_not_know_lists_those_it_does():
        with pytest.raises(ConfigError, match="libtpu does not know it .*it knows .*v5e:2x2"):
            tpu.devices_of("v5e:3x5")

    @pytest.mark.slow
    @pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
    def test_a_chip_is_one_device(topology):
        """libtpu counts the two cores of a v4 unless it is told not to."""
        assert len(tpu.devices_of(topology)) == 4


@pytest.mark.slow
def test_cascade(call, tmp_path):
    small = "--arch wide_resnet10_1 --split 2 --batch 8 --size 8 --rounds 1 --images 24".split()
    call(cascade.main, *small, "--out", tmp_path / "figures.md")
    rows = [json.loads(line) for line in (tmp_path / "figures.jsonl").read_text().splitlines()]
    shares = {row["leave"]: row["macs_share"] for row in rows}
    assert shares.pop("whole ensemble") == shares.pop("0%") == 1
    # What leaves after one of two networks takes half.
    for name, share in shares.items():
        assert share == pytest.approx(1 - float(name.rstrip("%")) / 200, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("bench", [augment, remat, stack_overhead], ids=lambda m: m.__name__)
def test_other_shares_of_a_step(call, tmp_path, bench):
    """Their tables have a row for each way, and the JSON lines the same figures."""
    small = "--arch wide_resnet10_1 --split 2 --batch 4 --size 8 --rounds 1".split()
    ways = {augment: ("--networks", 2), remat: ("--stages", "", "all")}
    ways[stack_overhead] = ("--lowerings", "dense")
    call(bench.main, *small, *ways[bench], "--out", tmp_path / "figures.md")
    rows = [json.loads(line) for line in (tmp_path / "figures.jsonl").read_text().splitlines()]
    assert len(rows) == (1 if bench is augment else 2)
    table = [line for line in (tmp_path / "figures.md").read_text().splitlines() if "|" in line]
    assert len(table) == 2 + len(rows)
