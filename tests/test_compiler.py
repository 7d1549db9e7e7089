"""What programs are compiled with, and that a program gives the same numbers every time."""

import os
import subprocess
import sys

import jax
import jaxlib
import pytest

from jaxsplit import compiler, sharding

# Prints how many calls of YNNPACK a program of jax holds, and those of a run.
COUNT = """
import jax
from configs import digits_wrn16_4_x4
from jaxsplit import experiment, state

config = digits_wrn16_4_x4.get_config()
config.arch, config.split, config.mesh.data, config.batch_size = "wide_resnet10_1", 2, 1, 8
exp = experiment.build(config)
data = exp.feed.resident
resident = dict(images=data.images, labels=data.labels)
batches = exp.feed.batches(0)
batch = experiment.put_batch(exp, next(batches))
batches.close()
start = state.init(exp.method, exp.optimizer, 0, exp.dataset.image_shape, exp.sharding)
train_step, _ = experiment.compile_step(exp, start, resident, batch)
evaluated = dict(images=data.images[:8], labels=data.labels[:8], mask=data.labels[:8] >= 0)
eval_step = exp.eval_step.lower(start.variables, evaluated).compile()
maps = jax.ShapeDtypeStruct((32, 8, 8, 16), "float32")
plain = jax.jit(lambda x: x - x.mean((0, 1, 2))).lower(maps).compile()
print(*(compiled.as_text().count("__ynn_fusion") for compiled in (plain, train_step, eval_step)))
"""


@pytest.fixture(autouse=True)
def no_flags(monkeypatch):
    """XLA_FLAGS as a user has it who sets nothing."""
    jax.devices()  # has read those of the tests
    monkeypatch.setenv("XLA_FLAGS", "")


@pytest.mark.parametrize(
    "version, races", [("0.10.2", True), ("0.11.2", False), ("0.12.0.1", False)]
)
def test_the_sums_that_race_are_off(monkeypatch, version, races):
    monkeypatch.setattr(jaxlib, "__version__", version)
    assert compiler.races() == races
    by_ynnpack = compiler.options("cpu")["xla_cpu_experimental_ynn_fusion_type"]
    assert by_ynnpack == ("" if races else "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT")


def test_only_the_cpu_has_options():
    for platform in ("gpu", "tpu"):
        assert compiler.options(platform) is compiler.fast_options(platform) is None


def test_what_the_user_sets_stays(monkeypatch):
    flags = "--xla_dump_to=x --xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_REDUCE"
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert compiler.options("cpu") == {"xla_disable_hlo_passes": "cse_barrier_expander"}
    monkeypatch.setenv("XLA_FLAGS", flags + " --xla_disable_hlo_passes=fusion")
    assert compiler.options("cpu") is None


def test_a_program_is_traced_for_the_devices_of_its_mesh(monkeypatch):
    """Whatever jax's default is: a mesh may be one of a topology that is only compiled for."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    mesh = sharding.make(2, 1, num_networks=1, batch_size=2)
    seen = []
    jax.eval_shape(
        mesh.map(lambda x: seen.append(compiler.platform()) or x, (mesh.batch,), mesh.batch),
        jax.ShapeDtypeStruct((2,), "float32"),
    )
    assert seen == ["cpu"] and compiler.platform() == "gpu"


@pytest.mark.slow
def test_a_run_calls_nothing_that_races():
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    env = os.environ | {"XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", COUNT], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    plain, *ours = map(int, done.stdout.split())
    if compiler.races():
        assert plain > 0 and ours == [0, 0]
