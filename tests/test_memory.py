"""The memory of a run between its steps, against bytes counted by hand."""

import jax
import pytest

from jaxsplit import config as config_lib
from jaxsplit import costs, memory
from jaxsplit.errors import ConfigError
from jaxsplit.report import memory as texts
from tests.support.runs import one_network, tiny

IMAGE = 8 * 8 * 3  # bytes


def held(config) -> dict[str, tuple[int, int]]:
    """Name -> (bytes of all networks, bytes on each device), as printed."""
    rows = {}
    for line in memory.of_config(config).splitlines()[2:]:
        cells = line[22:].replace(",", "").split()
        if len(cells) == 6 and cells[2] == cells[5] == "MiB":
            rows[line[:22].strip()] = int(cells[0]), int(cells[3])
            shown = [float(cells[1]) * 2**20, float(cells[4]) * 2**20]
            assert shown == pytest.approx(rows[line[:22].strip()], abs=0.0051 * 2**20)
    *parts, (_, together) = rows.items()
    assert together == tuple(sum(column) for column in zip(*dict(parts).values(), strict=True))
    return rows


def cost_of(config) -> costs.Cost:
    """That of one network."""
    return costs.cost(config_lib.resolve(config).spec, num_classes=10, image_shape=(8, 8, 3))


def is_counters(count: int) -> bool:
    """Whether so many bytes are those of a few int32 that count steps."""
    return count % 4 == 0 and 0 <= count <= 16


def test_momentum_is_as_large_as_the_parameters():
    config = one_network()
    cost, rows = cost_of(config), held(config)
    assert rows["parameters"] == (4 * cost.params,) * 2  # float32
    assert rows["batch statistics"] == (4 * cost.stats,) * 2
    assert is_counters(rows["optimizer state"][0] - 4 * cost.params)
    assert rows["step, random key"] == (4 + 8,) * 2
    assert rows["training set"] == (2048 * (IMAGE + 4),) * 2  # pixels, and an int32 label
    assert "average of the weights" not in rows
    config.optim.momentum, config.optim.nesterov = 0.0, False
    assert is_counters(held(config)["optimizer state"][0])


def test_adam_and_the_average():
    """Two moments; the average holds statistics too. A quarter of the images is held out."""
    config = one_network(optim__name="adam", ema=0.9, data__validation=0.25)
    cost, rows = cost_of(config), held(config)
    assert is_counters(rows["optimizer state"][0] - 2 * 4 * cost.params)
    assert rows["average of the weights"] == (4 * (cost.params + cost.stats),) * 2
    assert rows["training set"] == (1536 * (IMAGE + 4),) * 2


def test_devices_divide_the_networks():
    """Nothing else: each has its own step, key and training set."""
    config = tiny(mesh__net=2, ema=0.9)
    cost, rows = cost_of(config), held(config)
    for name, count in (("parameters", cost.params), ("batch statistics", cost.stats)):
        assert rows[name] == (2 * 4 * count, 4 * count)
    total, each = rows["optimizer state"]
    assert total - each == 4 * cost.params and is_counters(each - 4 * cost.params)
    total, each = rows["average of the weights"]
    assert total == 2 * each == 2 * 4 * (cost.params + cost.stats)
    for name in ("step, random key", "training set"):
        assert rows[name][0] == rows[name][1]


def test_a_leader_lies_on_every_device():
    config = tiny(arch="wide_resnet10_1", method="ffsd", divide=False, mesh__net=2)
    cost, rows = cost_of(config), held(config)
    total, each = rows["parameters"]
    assert total - each == 4 * cost.params  # of one of two students
    assert total > 3 * 4 * cost.params  # with the leader and its fusion module


def test_more_devices_than_there_are():
    """Counting needs none of them; compiling does."""
    config = tiny(split=16, method="independent", divide=False, mesh__net=16)
    assert jax.device_count() < 16
    total, each = held(config)["parameters"]
    assert total == 16 * each
    with pytest.raises(ConfigError, match="^mesh.net=16: must be at most 8, the number of devices"):
        memory.of_programs(config)


@pytest.mark.parametrize("net", [0, 3])
def test_a_mesh_that_does_not_divide_the_networks(net):
    with pytest.raises(ConfigError, match=f"^mesh.net={net}: must divide the 2 networks: 1, 2"):
        memory.of_config(tiny(mesh__net=net))


def test_a_streamed_set_that_is_not_there(tmp_path):
    config = tiny(data__name="imagenet2012", data__image_size=16, data__dir=str(tmp_path))
    text = memory.of_config(config)
    assert text.splitlines()[-2:] == [
        "the training set (1,281,167 images) is streamed; a batch of 16 images in 2 views has",
        "24,576 bytes (0.02 MiB), divided among the devices, where two may lie",
    ]
    assert "training set" not in held(config)
    config.views = "same"
    assert "a batch of 16 images has\n12,288 bytes" in memory.of_config(config)


def test_a_set_too_large_for_the_device():
    config = tiny(data__resident_limit=0)
    assert "the training set (2,048 images) is streamed" in memory.of_config(config)


def test_the_table_of_a_program():
    made = texts.Program(arguments=100, results=60, in_place=50, temporary=2**20, code=0)
    assert made.total == 110 + 2**20
    lines = texts.program("the step", made).splitlines()
    assert lines[0] == "the step, on each device by XLA's count"
    assert [line.split()[-3:] for line in lines[1:]] == [
        ["100", "0.00", "MiB"],
        ["60", "0.00", "MiB"],
        ["-50", "-0.00", "MiB"],
        ["1,048,576", "1.00", "MiB"],
        ["1,048,686", "1.00", "MiB"],
    ]
    assert texts.program("a", None) == "a: XLA gives no figures on this platform"
