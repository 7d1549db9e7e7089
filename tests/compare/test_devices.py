"""compare.devices: what a process sees of the machine's accelerators."""

import pytest

from jaxsplit.compare import devices
from jaxsplit.errors import ConfigError


@pytest.mark.parametrize(
    ("environ", "shown"),
    [
        ({}, {"CUDA_VISIBLE_DEVICES": "1"}),
        ({"CUDA_VISIBLE_DEVICES": "4,6"}, {"CUDA_VISIBLE_DEVICES": "6"}),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a, GPU-b"}, {"CUDA_VISIBLE_DEVICES": "GPU-b"}),
        (
            {"HIP_VISIBLE_DEVICES": "2,3"},
            {"CUDA_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "3"},
        ),
    ],
)
def test_the_second_gpu(environ, shown):
    assert devices.of_device("gpu", 1, environ) == shown


def test_one_chip_of_a_tpu_host():
    assert devices.of_device("tpu", 3, {}) == {
        "TPU_VISIBLE_CHIPS": "3",
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }


@pytest.mark.parametrize(
    ("text", "platform", "count", "made"),
    [
        ("all", "gpu", 2, ["0", "1"]),
        ("1", "gpu", 2, ["0"]),
        ("all", "cpu", 8, [None]),
        ("1", "cpu", 8, [None]),
    ],
)
def test_environments(text, platform, count, made, monkeypatch):
    monkeypatch.setattr(devices, "found", lambda: (platform, count))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = devices.environments(text)
    assert [variables.get("CUDA_VISIBLE_DEVICES") for variables in found] == made


def test_without_the_flag_a_run_sees_all_devices():
    assert devices.environments("") == [{}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0", "compare.devices='0': must be a number of 1 or more, or all"),
        ("some", "compare.devices='some': must be a number of 1 or more, or all"),
        ("3", "compare.devices='3': must be at most 2, all that are here"),
    ],
)
def test_bad_input(text, said, monkeypatch):
    monkeypatch.setattr(devices, "found", lambda: ("gpu", 2))
    with pytest.raises(ConfigError, match=said):
        devices.environments(text)


def test_processes_do_not_share_a_cpu(monkeypatch):
    monkeypatch.setattr(devices, "found", lambda: ("cpu", 2))
    with pytest.raises(ConfigError, match="there is no accelerator"):
        devices.environments("2")


def test_several_processes_share_each_gpu(monkeypatch):
    asked = []
    monkeypatch.setattr(devices, "found", lambda: asked.append(1) or ("gpu", 2))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = devices.environments("", per_device=3)
    assert len(asked) == 1  # a process that starts jax
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == ["0", "1"] * 3
    assert {one["XLA_PYTHON_CLIENT_PREALLOCATE"] for one in found} == {"false"}
    assert len(devices.environments("1", per_device=2)) == 2
    with pytest.raises(ConfigError, match="compare.per_device=0: must be a number of 1 or more"):
        devices.environments("", per_device=0)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_processes_share_nothing_but_a_gpu(platform, monkeypatch):
    monkeypatch.setattr(devices, "found", lambda: (platform, 1))
    with pytest.raises(ConfigError, match=f"per_device=2: must be 1; this is a {platform}"):
        devices.environments("", per_device=2)


def test_devices_of_this_machine():
    platform, count = devices.found()
    assert platform == "cpu" and count >= 1
