"""config.limits, config.division: memory, values that ruin a run, divisions of equal cost."""

import json
import pathlib

import jax
import pytest
from ml_collections import ConfigDict

from configs import digits_wrn16_4_x4
from jaxsplit import config as config_lib
from jaxsplit import durations, experiment, loop, schedules
from jaxsplit.config import division, limits
from jaxsplit.errors import ConfigError
from jaxsplit.recipes import published
from tests.support.paths import GOLDEN

DIGITS = (8, 8, 1)


def changed(**fields) -> ConfigDict:
    config = digits_wrn16_4_x4.get_config()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


def message_of(run) -> str:
    with pytest.raises(ConfigError) as caught:
        run()
    (line,) = str(caught.value).splitlines()
    return line


# ---- Memory


def test_host_memory_is_known_here():
    total = int(pathlib.Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < limits.host_memory() <= total * 1.01


@pytest.mark.parametrize(
    ("line", "name"),
    [("0::/jobs/7", "memory.max"), ("4:memory:/jobs/7", "memory/memory.limit_in_bytes")],
)
def test_the_least_limit_of_the_control_groups_counts(line, name, tmp_path, monkeypatch):
    for folder, limit in (("", "max"), ("jobs", "3000000"), ("jobs/7", "5000000")):
        root, _, file = name.rpartition("/")
        path = tmp_path / root / folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(limit + "\n")
    read = pathlib.Path.read_text
    groups = pathlib.Path("/proc/self/cgroup")
    monkeypatch.setattr(limits, "_CGROUP", tmp_path)
    monkeypatch.setattr(
        pathlib.Path, "read_text", lambda p, *a, **k: line if p == groups else read(p, *a, **k)
    )
    assert limits.host_memory() == 3_000_000


class Device:
    def __init__(self, stats):
        self.stats = stats

    def memory_stats(self):
        if isinstance(self.stats, Exception):
            raise self.stats
        return self.stats


def test_device_memory():
    assert limits.device_memory(Device({"bytes_limit": 7, "bytes_in_use": 1})) == 7
    for stats in (None, {}, RuntimeError("unimplemented")):
        assert limits.device_memory(Device(stats)) is None
    assert limits.device_memory(jax.devices()[0]) is None  # CPUs share the machine's


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.setattr(limits, "host_memory", lambda: 32 * 10**9)


def compiled(*_, **__):
    raise AssertionError("a wrong value was found only after compilation")


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            dict(eval__batch_size=10**9, mesh__data=1),
            "eval.batch_size=1000000000, data.image_size=0: must fit into memory; 1,000,000,000 "
            "images of 8 x 8 x 1 take 320.0 GB of the 32.0 GB of this machine",
        ),
        (
            dict(data__name="synthetic", data__image_size=100_000, mesh__data=1),
            "data.image_size=100000: must fit into memory; 2,560 synthetic images take "
            "76,800.0 GB of the 32.0 GB of this machine",
        ),
        (
            dict(batch_size=10**12),
            "batch_size=1000000000000: must be at most 1437, the size of the training set",
        ),
        (
            dict(arch="wide_resnet16_9999", split=1, method="single", mesh__data=1),
            "arch='wide_resnet16_9999', split=1: must fit into memory; the weights take "
            "68,287.3 GB of the 32.0 GB of this machine",
        ),
    ],
)
def test_what_cannot_fit_is_one_line(fields, line, memory, monkeypatch):
    monkeypatch.setattr("jax.stages.Lowered.compile", compiled)
    assert message_of(lambda: experiment.build(changed(**fields))) == line


def test_what_may_fit_is_not_refused(memory):
    """99.84 of 100 million images' bytes."""
    mesh = experiment.sharding.make(1, 1, num_networks=4)
    config = changed(eval__batch_size=99_990_000)
    limits.check_evaluation_memory(config, DIGITS, mesh)
    config.eval.batch_size = 100_010_000
    line = message_of(lambda: limits.check_evaluation_memory(config, DIGITS, mesh))
    assert line.startswith("eval.batch_size=100010000, data.image_size=0: must fit into memory")
    config.dtype = "bfloat16"
    limits.check_evaluation_memory(config, DIGITS, mesh)


def test_devices_hold_a_part_of_the_batch_each(memory, monkeypatch):
    mesh = experiment.sharding.make(8, 1, num_networks=4)
    config = changed(eval__batch_size=8 * 10**6)
    monkeypatch.setattr(limits, "device_memory", lambda device: 320_000_000)
    limits.check_evaluation_memory(config, DIGITS, mesh)
    config.eval.batch_size += 8
    line = message_of(lambda: limits.check_evaluation_memory(config, DIGITS, mesh))
    assert line.endswith("take 0.3 GB of the 0.3 GB of a device")


# ---- Steps fit into int32


@pytest.mark.parametrize(
    "field",
    ["duration", "schedule__milestones", "cotrain__warmup", "ffsd__warmup", "log_every"]
    + ["eval__every", "checkpoint__every", "schedule__decay_every"],
)
@pytest.mark.parametrize("text", ["1e18 epochs", "1e308 epochs", "2147483648 steps"])
def test_steps_beyond_int32(field, text):
    value = (text,) if field.endswith("milestones") else text
    config = changed(**{field: value})
    line = message_of(lambda: durations.plan(config, 22))
    start = f"{field.replace('__', '.')}={text!r}: must be at most 2147483647 steps, is "
    assert line.startswith(start)


def test_the_last_step_of_int32():
    plan = durations.plan(changed(duration="2147483647 steps"), 22)
    assert plan.total_steps == 2**31 - 1
    assert float(plan.schedule(changed())(2**31 - 1)) == pytest.approx(1e-4)


def test_stairs_without_end():
    fields = dict(lr=0.1, total_steps=2**31 - 1, every_steps=1.0)
    line = message_of(lambda: schedules.exponential(**fields))
    assert line == (
        "schedule.decay_every='1 steps': must be longer, or schedule.staircase False; the run has "
        "2147483647 stairs, at most 1000000 are allowed"
    )
    assert float(schedules.exponential(**fields, staircase=False)(10)) == pytest.approx(
        0.1 * 0.97**10
    )


# ---- Values that ruin a run in silence


def new_run(image_shape=DIGITS, crops_on="device", **fields) -> None:
    limits.check_new_run(config_lib.check(changed(**fields)), image_shape, crops_on=crops_on)


CROP = dict(augment__crop_padding=0, augment__random_resized_crop=True)
ERASE = dict(augment__erase_prob=1.0)
REFUSED = [  # fields, the line
    (dict(seed=2**32), "seed=4294967296: must be in 0 ... 4294967295"),
    (dict(seed=2**62), "seed=4611686018427387904: must be in 0 ... 4294967295"),
    (dict(label_smoothing=0.91), "label_smoothing=0.91: must be in [0, 0.9]"),
    (dict(augment__mixup=1e-30), "augment.mixup=1e-30: must be 0 (off) or in [0.001, 100]"),
    (dict(augment__mixup=101.0), "augment.mixup=101.0: must be 0 (off) or in [0.001, 100]"),
    (dict(augment__cutmix=1e30), "augment.cutmix=1e+30: must be 0 (off) or in [0.001, 100]"),
    (
        dict(augment__randaugment="rand-m9-mstd11"),
        "augment.randaugment='rand-m9-mstd11': must be with -mstd<0 to 10>, as magnitudes are in "
        "0 to 10",
    ),
    (
        dict(augment__crop_padding=8),
        "augment.crop_padding=8: must be below 8, the side of images of 8 x 8 pixels, so that "
        "each crop holds some of them",
    ),
    (dict(augment__cutout=8), "augment.cutout=8: must be below 8, of images of 8 x 8 pixels"),
    (
        CROP | dict(data__scale_min=0.01),
        "data.scale_min=0.01: must be at least 0.0156, one pixel of images of 8 x 8 pixels",
    ),
    (
        ERASE | dict(augment__erase_area=(0.1, 0.81)),
        "augment.erase_area=(0.1, 0.81): must be at most 0.8 of the image",
    ),
    (
        ERASE | dict(augment__erase_area=(0.001, 0.002)),
        "augment.erase_area=(0.001, 0.002): must be such that with augment.erase_aspect="
        "(0.99, 1.0) a rectangle of some pixels fits in images of 8 x 8 pixels",
    ),
    (
        ERASE | dict(augment__erase_area=(0.5, 0.6), augment__erase_aspect=(50.0, 60.0)),
        "augment.erase_area=(0.5, 0.6): must be such that with augment.erase_aspect="
        "(50.0, 60.0) a rectangle of some pixels fits in images of 8 x 8 pixels",
    ),
]


@pytest.mark.parametrize(("fields", "line"), REFUSED, ids=[r[1].split(":")[0] for r in REFUSED])
def test_refused_to_a_new_run(fields, line):
    assert message_of(lambda: new_run(**fields)) == line


@pytest.mark.parametrize(
    "fields",
    [
        dict(seed=2**32 - 1),
        dict(label_smoothing=0.9),
        dict(augment__mixup=0.001, augment__cutmix=100.0),
        dict(augment__randaugment="rand-m9-mstd10"),
        dict(augment__crop_padding=7, augment__cutout=7),
        dict(augment__crop_padding=1000, crops_on="host"),  # not used
        dict(augment__erase_area=(0.001, 0.002)),  # off
        CROP | dict(data__scale_min=1 / 64),
        ERASE | dict(augment__erase_area=(0.02, 0.8)),
        ERASE | dict(image_shape=(224, 224, 3), augment__erase_area=(0.001, 0.002)),
    ],
)
def test_at_the_limit(fields):
    new_run(**fields)


def test_the_shorter_side_counts():
    line = message_of(lambda: new_run(image_shape=(4, 16, 3), augment__cutout=4))
    assert line == "augment.cutout=4: must be below 4, of images of 4 x 16 pixels"


@pytest.mark.parametrize(
    ("fields", "start"),
    [
        (dict(seed=2**32), "seed=4294967296: must be in 0"),
        (dict(augment__crop_padding=1000), "augment.crop_padding=1000: must be below 8"),
        (dict(arch="wide_resnet10_1", split=8), "split=8: must be a division of about the same"),
    ],
)
def test_refused_before_the_workdir_is_made(fields, start, tmp_path, monkeypatch):
    monkeypatch.setattr("jax.stages.Lowered.compile", compiled)
    config = changed(mesh__data=1, **fields)
    line = message_of(lambda: loop.train_and_evaluate(config, tmp_path / "run"))
    assert line.startswith(start)
    assert not (tmp_path / "run").exists()


# ---- Divisions


def test_a_division_that_does_not_divide():
    fields = dict(num_classes=10, image_shape=DIGITS)
    config = changed(arch="wide_resnet10_1", split=8)
    cost = "8 networks cost 8.00 times the multiply-adds of wide_resnet10_1"
    assert message_of(lambda: division.check(config, **fields)) == (
        f"split=8: must be a division of about the same cost; {cost}, at most 1.5 times are "
        "allowed unless divide_anyway=True"
    )
    config.divide_anyway = True
    assert division.check(config, **fields) == f"warning: split=8: the {cost}"
    config.divide_anyway, config.divide = False, False  # whole networks, on purpose
    assert division.check(config, **fields) == ""
    config = changed(arch="wide_resnet10_1", split=3, divide_in=8)
    assert message_of(lambda: division.check(config, **fields)).startswith("divide_in=8: must be")
    assert division.check(changed(), **fields) == ""  # 1.03


def test_between_the_two_limits_it_is_said(monkeypatch):
    for ratio, said in ((1.2, ""), (1.21, "cost 1.21 times"), (1.5, "cost 1.50 times")):
        monkeypatch.setattr(division, "ratio", lambda *_, ratio=ratio, **__: ratio)
        line = division.check(changed(), num_classes=10, image_shape=DIGITS)
        assert said in line and bool(line) == bool(said)


def test_no_published_division_is_refused():
    """By the counts of test_counts.py, which tests those of `summary`."""
    rows = json.loads((GOLDEN / "counts.json").read_text())
    macs = {(arch, s, size): row[-1] for row in rows for arch, s, size in [row[:3]]}
    ratios = {}
    for r in published.RESULTS:
        if r.split == 1 or r.method == "ffsd":
            continue
        arch = r.arch
        size = r.crop if (arch, r.split, r.crop) in macs else 224
        ratios[arch, r.split] = r.split * macs[arch, r.split, size] / macs[arch, 1, size]
    assert len(ratios) > 30
    assert max(ratios.values()) == pytest.approx(ratios["pyramidnet272", 4])
    assert 1.35 < max(ratios.values()) < division.MOST
