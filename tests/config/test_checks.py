"""jaxsplit.config: durations, what is derived, every wrong value, saving and identity."""

import json
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common, digits_wrn16_4_x4
from jaxsplit import config as config_lib
from jaxsplit import durations, experiment, models, schedules
from jaxsplit.config import renamed
from jaxsplit.errors import ConfigError

EXPERIMENTS = sorted(
    path.stem
    for path in pathlib.Path(common.__file__).parent.glob("*.py")
    if path.stem not in ("__init__", "arguments", "common", "folder", "recipes", "saved")
)


def changed(**fields) -> ConfigDict:
    """The digits config of 12 epochs, fields changed; 'optim.lr' is written optim__lr."""
    config = digits_wrn16_4_x4.get_config()
    config.duration, config.schedule.warmup = "12 epochs", "10%"
    config.optim.lr, config.optim.base_batch_size, config.eval.batch_size = 0.1, 64, 360
    for field, value in fields.items():
        *groups, name = field.split("__")
        group = config
        for part in groups:
            group = group[part]
        setattr(group, name, value)
    return config


def message_of(run) -> str:
    """The one-line message of the ConfigError that `run` raises."""
    with pytest.raises(ConfigError) as caught:
        run()
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


# ---- Durations


@pytest.mark.parametrize(
    "text, steps",
    [
        ("3 epochs", 60),
        ("1 epoch", 20),
        ("0.5 epochs", 10),
        ("7 steps", 7),
        ("1 step", 1),
        ("1e2 steps", 100),
        ("320 examples", 10),
        ("1.6e3 examples", 50),
        ("10%", 30),
        ("2.5 percent", 8),  # 7.5 to the even neighbour
        ("100 %", 300),
        ("  4   steps ", 4),
    ],
)
def test_duration_in_steps(text, steps):
    duration = durations.parse("eval.every", text)
    assert duration.steps(batch_size=32, steps_per_epoch=20, total_steps=300) == steps


@pytest.mark.parametrize(
    "text",
    ["", "3", "epochs", "3 hours", "-3 epochs", "3 epochs 2 steps", "1..2 steps", "1e999 steps", 5],
)
def test_malformed_duration(text):
    message = message_of(lambda: durations.parse("eval.every", text))
    assert message.startswith(f"eval.every={text!r}: must be a number of steps, epochs, examples")


def test_percent_refers_to_the_whole_run():
    plan = durations.plan(changed(duration="200 steps", schedule__warmup="10%"), 22)
    assert (plan.total_steps, plan.warmup_steps) == (200, 20)


@pytest.mark.parametrize("text", ["10%", "50 percent"])
def test_duration_itself_is_not_in_percent(text):
    config = changed(duration=text)
    allowed = "must be in steps, epochs or examples"
    assert message_of(lambda: config_lib.check(config)) == f"duration={text!r}: {allowed}"
    assert allowed in message_of(lambda: durations.plan(config, 22))


@pytest.mark.parametrize("text", ["0 epochs", "0 steps", "0 examples"])
def test_duration_of_nothing(text):
    message = message_of(lambda: config_lib.check(changed(duration=text)))
    assert message == f"duration={text!r}: must be at least one step"


def test_duration_that_rounds_to_no_step():
    message = message_of(lambda: durations.plan(changed(duration="0.01 epochs"), 22))
    assert message == "duration='0.01 epochs': must be at least one step"


def test_warmup_longer_than_the_run():
    config = changed(duration="20 steps", schedule__warmup="1 epochs")
    message = message_of(lambda: durations.plan(config, 22))
    assert message.startswith("schedule.warmup='1 epochs': must not be longer than duration")


def test_units_may_be_mixed_whatever_an_epoch_is():
    # Which of the two is longer depends on the data set, so `check` must not guess.
    config = changed(duration="200 steps", schedule__warmup="1 epochs")
    config_lib.check(config)
    assert durations.plan(config, 22).warmup_steps == 22
    config = changed(
        duration="200 steps",
        schedule__name="step",
        schedule__milestones=("2 epochs", "100 steps"),
    )
    config_lib.check(config)
    assert durations.plan(config, 22).milestones_steps == (44, 100)


# ---- What is derived


def test_rates_follow_the_batch_size():
    config = changed(optim__lr=0.2, optim__base_batch_size=64, schedule__warmup_lr=0.02)
    for batch_size, steps_per_epoch in ((64, 22), (32, 44), (256, 5)):
        config.batch_size = batch_size  # an override of one field, nothing else
        plan = durations.plan(config, steps_per_epoch)
        schedule = plan.schedule(config)
        scale = batch_size / 64
        assert plan.lr_scale == scale
        assert plan.total_steps == 12 * steps_per_epoch
        assert plan.warmup_steps == round(1.2 * steps_per_epoch)
        assert float(schedule(0)) == pytest.approx(0.02 * scale)
        assert float(schedule(plan.warmup_steps)) == pytest.approx(0.2 * scale)
        assert float(schedule(plan.total_steps)) == pytest.approx(1e-4 * scale)
        assert plan.eval_batch_size == 360
        config.eval.batch_size = 0
        assert durations.plan(config, steps_per_epoch).eval_batch_size == batch_size
        config.eval.batch_size = 360


def test_lengths_follow_duration_and_epoch():
    config = changed(
        duration="10 epochs",
        schedule__name="step",
        schedule__milestones=("50%", "9 epochs"),
        schedule__warmup="1 epochs",
        cotrain__warmup="20%",
    )
    for steps_per_epoch in (10, 100):
        plan = durations.plan(config, steps_per_epoch)
        assert plan.milestones_steps == (5 * steps_per_epoch, 9 * steps_per_epoch)
        assert plan.method_steps["cotrain.warmup"] == 2 * steps_per_epoch
        rates = [float(plan.schedule(config)(n * steps_per_epoch)) for n in (1, 4, 5, 9)]
        assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001])
    config.duration = "20 epochs"
    config.schedule.milestones = ("50%", "95%")
    plan = durations.plan(config, 10)
    assert plan.milestones_steps == (100, 190)
    assert plan.method_steps["cotrain.warmup"] == 40
    assert plan.total_steps == 200


def test_intervals_are_at_least_a_step():
    plan = durations.plan(changed(log_every="1 examples", eval__every="0.001%"), 22)
    assert plan.log_every == 1
    assert plan.eval_every == 1


def test_configs_hold_primary_values_only():
    # Deriving leaves the config as it was: there is no field that could go stale.
    config = changed(mesh__data=1)
    before = config.to_json()
    experiment.build(config)
    assert config.to_json() == before
    names = dict(config_lib.flat(common.get_config()))
    assert not [name for name in names if re.search(r"(^|[._])(steps|total|scaled)($|[._])", name)]


def test_override_reaches_the_schedule_of_the_built_experiment():
    config = changed(mesh__data=1, duration="2 epochs")
    config.batch_size = 128
    exp = experiment.build(config)
    assert exp.plan.steps_per_epoch == 1437 // 128
    assert exp.plan.total_steps == 2 * (1437 // 128)
    assert float(exp.schedule(exp.plan.warmup_steps)) == pytest.approx(0.2)  # 0.1 x 128 / 64


# ---- Wrong values


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_passes(name):
    module = __import__(f"configs.{name}", fromlist=["get_config"])
    config = module.get_config()
    config_lib.check(config)
    assert f"--config={name}" in module.__doc__  # its command
    # A config that opens in one line can be made from the shell as well: nothing is hidden in it.
    assert dict(config_lib.flat(config)).keys() == dict(config_lib.flat(common.get_config())).keys()


def test_there_are_experiments():
    assert {
        "digits_wrn16_4_x4",
        "imagenet_seresnet101_x4",
        "fashion_mnist_wrn16_4_x4",
        "cifar10",
        "cifar100",
        "svhn",
        "imagenet",
    } <= set(EXPERIMENTS)


WRONG = [  # fields changed, how the message begins, what else it says
    (dict(arch="resnext1"), "arch='resnext1': unknown; nearest are ", ["resnet18"]),
    (
        dict(arch="wide_resnet17_4"),
        "arch='wide_resnet17_4': unknown; nearest are ",
        ["wide_resnet{6n+4}_{k}"],
    ),
    (dict(split=3), "split=3: wide_resnet16_4 can be divided into", ["1, 2, 4, 8, 16"]),
    (dict(split=0), "split=0: ", ["1, 2, 4, 8, 16"]),
    (dict(divide=False, split=0), "split=0: must be at least 1", []),
    (dict(divide=False, arch="resnext1"), "arch='resnext1': unknown", []),
    (dict(split=-4), "split=-4: ", ["1, 2, 4, 8, 16"]),
    (dict(split=1), "split=1: must be 2 or more with method='cotrain'", []),
    (dict(method="mutual"), "method='mutual': must be one of", ["single", "cotrain"]),
    (dict(method="single"), "split=4: must be 1 with method='single'", []),
    (dict(data__name="mnist"), "data.name='mnist': must be one of", ["digits", "imagenet2012"]),
    (dict(data__validation=1.0), "data.validation=1.0: must be in [0, 1)", []),
    (dict(data__validation=-0.1), "data.validation=-0.1: must be in [0, 1)", []),
    (dict(data__image_size=-1), "data.image_size=-1: must be 0", ["or more"]),
    (dict(data__threads=0), "data.threads=0: must be at least 1", []),
    (dict(data__scale_min=0.0), "data.scale_min=0.0: must be in (0, 1]", []),
    (dict(optim__lr=-0.1), "optim.lr=-0.1: must be positive", []),
    (dict(optim__lr=0.0), "optim.lr=0.0: must be positive", []),
    (dict(optim__lr=float("nan")), "optim.lr=nan: must be a finite number", []),
    (dict(optim__lr=float("inf")), "optim.lr=inf: must be a finite number", []),
    (dict(optim__name="adamax"), "optim.name='adamax': must be one of sgd", []),
    (dict(optim__weight_decay=-1e-4), "optim.weight_decay=-0.0001: must be 0 or more", []),
    (dict(optim__base_batch_size=0), "optim.base_batch_size=0: must be at least 1", []),
    (dict(schedule__name="poly"), "schedule.name='poly': must be one of cosine, step", []),
    (dict(schedule__factor=1.5), "schedule.factor=1.5: must be in (0, 1]", []),
    (dict(schedule__factor=0.0), "schedule.factor=0.0: must be in (0, 1]", []),
    (dict(schedule__warmup_lr=-1.0), "schedule.warmup_lr=-1.0: must be 0 or more", []),
    (dict(schedule__warmup="5"), "schedule.warmup='5': must be a number of steps", ["10%"]),
    (dict(schedule__milestones=("1 week",)), "schedule.milestones='1 week': must be", []),
    (dict(cotrain__loss="l2"), "cotrain.loss='l2': must be one of js, kl", []),
    (
        dict(views="any"),
        "views='any': must be different, same or paper (as in the method's paper)",
        [],
    ),
    (dict(cotrain__weight=-0.5), "cotrain.weight=-0.5: must be 0 or more", []),
    (dict(cotrain__warmup="soon"), "cotrain.warmup='soon': must be a number of steps", []),
    (dict(eval__ensemble="median"), "eval.ensemble='median': must be one of", ["mean_logits"]),
    (dict(eval__batch_size=-1), "eval.batch_size=-1: must be 0", ["or more"]),
    (dict(eval__every="often"), "eval.every='often': must be a number of steps", []),
    (dict(log_every="often"), "log_every='often': must be a number of steps", []),
    (dict(checkpoint__every="x"), "checkpoint.every='x': must be a number of steps", []),
    (dict(checkpoint__keep=0), "checkpoint.keep=0: must be at least 1", []),
    (dict(dtype="float16"), "dtype='float16': must be one of float32, bfloat16", []),
    (dict(batch_size=0), "batch_size=0: must be at least 1", []),
    (dict(seed=-1), "seed=-1: must be in 0 ... 4294967295", []),
    (dict(label_smoothing=1.0), "label_smoothing=1.0: must be in [0, 1)", []),
    (dict(label_loss="l2"), "label_loss='l2': must be one of cross_entropy, bce, bce_sum", []),
    (dict(bce_threshold=1.5), "bce_threshold=1.5: must be in [0, 1]; 1: off", []),
    (dict(bce_threshold=-0.5), "bce_threshold=-0.5: must be in [0, 1]; 1: off", []),
    (dict(bce_threshold=0.2), "bce_threshold=0.2: must be 1 (off) with label_loss='cross_entr", []),
    (
        dict(label_loss="bce", bce_threshold=0.0, label_smoothing=0.1),
        "label_smoothing=0.1: must be 0 with bce_threshold=0.0, which makes every target 0 or 1",
        [],
    ),
    (
        dict(label_loss="bce_sum", method="joint", joint__of="mean_probs"),
        "joint.of='mean_probs': must be mean_logits with label_loss='bce_sum'",
        [],
    ),
    (dict(optim__layer_decay=0.0), "optim.layer_decay=0.0: must be in (0, 1]; 1: off", []),
    (dict(augment__repeats=0), "augment.repeats=0: must be in 1 (off) ... batch_size=", []),
    (dict(augment__repeats=4097), "augment.repeats=4097: must be in 1 (off) ... batch_size=", []),
    (dict(augment__mixup=-0.1), "augment.mixup=-0.1: must be 0 or more", []),
    (dict(resume_with="all"), "resume_with='all': must be '' or 'changed'", []),
    (dict(stop__patience=-1), "stop.patience=-1: must be 0 (off) or more", []),
    (
        dict(stop__metric="test/net0/nll"),
        "stop.patience=0: must be at least 1 with stop.metric='test/net0/nll'",
        [],
    ),
    (dict(stop__patience=1, stop__min_delta=-0.1), "stop.min_delta=-0.1: must be 0 or more", []),
]


@pytest.mark.parametrize(
    "fields, start, parts",
    WRONG,
    ids=[",".join(f"{k}={v}" for k, v in f.items()) for f, _, _ in WRONG],
)
def test_wrong_value(fields, start, parts):
    message = message_of(lambda: config_lib.check(changed(**fields)))
    assert message.startswith(start)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "fields, start",
    [
        (dict(batch_size=12), "batch_size=12: must be divisible by the 8 devices"),
        (dict(mesh__net=3), "mesh.net=3: must divide the 4 networks: 1, 2, 4"),
        (dict(mesh__net=0), "mesh.net=0: must divide the 4 networks: 1, 2, 4"),
        (dict(mesh__data=9), "mesh.data=9, mesh.net=1: needs 9 devices, there are 8"),
        (dict(batch_size=2048), "batch_size=2048: must be at most 1437, the size of the training"),
        (dict(data__validation=0.0001), "data.validation=0.0001: holds out 0 of 1437"),
        (dict(data__image_size=9), "data.image_size=9: must be 0 or 8"),
        (dict(data__name="cifar10", data__dir="missing"), "data.dir=missing: no prepared"),
        (dict(lowering="fast"), "lowering='fast': must be one of auto, dense"),
        (dict(batch_norm="global"), "batch_norm='global': must be one of local, sync"),
        (dict(schedule__warmup="13 epochs"), "schedule.warmup='13 epochs': must not be longer"),
    ],
)
def test_wrong_value_for_the_data_or_the_devices(fields, start, monkeypatch):
    def compiled(*_, **__):
        raise AssertionError("a wrong value was found only after compilation")

    monkeypatch.setattr("jax.stages.Lowered.compile", compiled)
    message = message_of(lambda: experiment.build(changed(**fields)))
    assert message.startswith(start)


def test_missing_data_says_how_to_prepare_it(tmp_path):
    config = changed(data__name="cifar10", data__dir=str(tmp_path))
    message = message_of(lambda: experiment.build(config))
    assert f"data.dir={tmp_path}" in message
    assert "python -m jaxsplit.data.prepare cifar10 --source=" in message
    assert "--config.data.download=True" in message


@pytest.mark.parametrize(
    "field, near",
    [
        ("btch_size", "batch_size"),
        ("lr", "optim.lr"),
        ("optim.lrate", "optim.lr"),
        ("optim.xyzzy", "optim.lr"),
        ("xyzzy", "batch_size"),
    ],
)
def test_unknown_field(field, near):
    config = common.get_config()
    *group, name = field.split(".")
    setattr(config[group[0]] if group else config, name, 7)
    message = message_of(lambda: config_lib.check(config))
    assert message.startswith(f"{field}=7: no such field in jaxsplit/defaults.py; there are ")
    assert near in message.partition("there are ")[2].split(", ")
    assert message_of(lambda: config_lib.check_field(field, 7)) == message


def test_known_fields_and_groups_pass():
    for field in ("seed", "optim", "optim.lr", "data.dir"):
        config_lib.check_field(field, None)


def test_missing_field():
    config = common.get_config()
    del config.optim.momentum
    message = message_of(lambda: config_lib.check(config))
    assert message.startswith("optim.momentum: missing")


def test_type_of_a_field_cannot_change():
    with pytest.raises(TypeError):
        changed(batch_size="64")
    with pytest.raises(TypeError):
        changed(duration=300)


@pytest.mark.parametrize("divide", [True, False])
def test_only_divided_networks_have_a_divided_decay(divide):
    config = changed(
        split=2, divide=divide, optim__divide_weight_decay=True, optim__nesterov=False,
        optim__weight_decay=0.5, optim__momentum=0.0, mesh__data=1, schedule__warmup="0%",
    )  # fmt: skip
    exp = experiment.build(config)
    tx = exp.optimizer
    ones = {"stack": {"kernel": jnp.ones((2, 3))}}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, ones), tx.init(ones), ones)
    rate = float(exp.schedule(0)) * 0.5 * (math.exp(1 / 2 - 1) if divide else 1)
    np.testing.assert_allclose(updates["stack"]["kernel"], -rate, rtol=1e-6)


def test_networks_divided_or_whole():
    whole, half = (models.divided("wide_resnet16_4", s) for s in (1, 2))
    assert config_lib.resolve(changed(split=2)).spec == half != whole
    for split in (1, 2, 3):  # also a number that the architecture is not divided in
        config = changed(split=split, divide=False, method="independent" if split > 1 else "single")
        config_lib.check(config)
        assert config_lib.resolve(config).spec == whole
    built = (
        experiment.build(changed(split=2, divide=False, mesh__data=1))
        .state_shapes()
        .params["stack"]
    )
    assert built["stem_conv1"]["kernel"].shape[0] == 2
    assert built["stage1_block1"]["conv1"]["kernel"].shape[-1] == whole.width == 64


def test_resolve():
    config = changed(split=2, trunk="stage1", data__validation=0.1).lock()
    before = config.to_json()
    resolved = config_lib.resolve(config)
    assert resolved.spec == models.divided("wide_resnet16_4", 2)
    assert (resolved.num_networks, resolved.divided_in, resolved.num_views) == (2, 2, 2)
    assert (resolved.trunk, resolved.shared_view) == ("stage1", False)
    assert resolved.best_metric == "validation/ensemble/top1"
    assert config.to_json() == before
    resolved = config_lib.resolve(changed(split=2, divide_in=4, method="one"))
    assert resolved.spec == models.divided("wide_resnet16_4", 4)
    assert (resolved.num_networks, resolved.divided_in, resolved.num_views) == (2, 4, 1)
    assert (resolved.trunk, resolved.shared_view) == ("stage2", True)
    assert resolved.best_metric == "test/gated/top1"
    with pytest.raises(ConfigError, match="^method='two': must be one of single, "):
        config_lib.resolve(changed(method="two"))


def test_old_values_mean_as_in_the_paper(tmp_path, capfd):
    """Of views, trunk and a temperature, in a config and a workdir; one line says today's value."""
    renamed.say_once.cache_clear()
    new, old = changed(), changed(views="", trunk="", distill__temperature=0.0)
    assert (new.views, new.trunk, new.distill.temperature) == ("paper",) * 3
    checked = config_lib.check(old)
    config_lib.check(old)
    line = "note: views='' is called 'paper' now, trunk='' is called 'paper' now, "
    line += "distill.temperature=0.0 is called 'paper' now\n"
    assert capfd.readouterr().err == line
    assert dict(config_lib.flat(checked)) == dict(config_lib.flat(config_lib.check(new)))
    assert (old.views, old.trunk) == ("", "")  # the caller's stays as it is
    assert config_lib.resolve(old) == config_lib.resolve(new)
    assert old.distill.temperature == 0.0
    fields = json.loads(new.to_json()) | {"views": "", "trunk": ""}
    fields["distill"]["temperature"] = 0
    (tmp_path / "config.json").write_text(json.dumps(fields))
    loaded = config_lib.load(tmp_path)
    assert (loaded.views, loaded.trunk, loaded.distill.temperature) == ("paper",) * 3
    loaded.distill.temperature = 2.5  # a field that takes a word and a number
    loaded.distill.temperature = "paper"
    assert not config_lib.check_identity(loaded, new, tmp_path)
    config_lib.check_evaluation(loaded, old, tmp_path)


# ---- Workdirs


def test_save_and_load(tmp_path):
    config = changed(augment__erase_prob=0.5, schedule__milestones=("1 epochs", "50%"))
    config_lib.save(config, tmp_path)
    loaded = config_lib.load(tmp_path)
    assert dict(config_lib.flat(loaded)) == dict(config_lib.flat(config))
    assert loaded.augment.erase_area == (0.0625, 0.1)  # a tuple again
    config_lib.check(loaded)
    config_lib.check_identity(loaded, config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_load_from_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config_lib.save(changed(seed=3), config_lib.prepare_workdir("~/run"))
    assert config_lib.load("~/run").seed == 3


def test_a_user_that_there_is_not(tmp_path, monkeypatch):
    """`~user` of an unknown user stays as it is, as in a shell."""
    monkeypatch.chdir(tmp_path)
    config_lib.save(changed(seed=3), config_lib.prepare_workdir("~nosuchuser/run"))
    assert (tmp_path / "~nosuchuser" / "run" / "config.json").is_file()


@pytest.mark.parametrize("text", [None, "{", '{"seed": 0'])
def test_load_what_is_no_config(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    message = message_of(lambda: config_lib.load(tmp_path))
    assert message.startswith(f"workdir={str(tmp_path)!r}: holds no readable config.json")


def test_runtime_fields_may_change():
    old = changed()
    new = changed(
        lowering="dense",
        mesh__data=1,
        mesh__net=2,
        log_every="1 steps",
        eval__every="1 epochs",
        eval__batch_size=10,
        checkpoint__every="1 epochs",
        checkpoint__keep=9,
        data__dir="elsewhere",
        data__threads=1,
        duration="100 epochs",
    )
    config_lib.check_identity(old, new, "w")


def test_only_an_evaluation_may_change_the_answer():
    """`best` is chosen by it."""
    old, new = changed(), changed(eval__ensemble="mean_probs")
    config_lib.check_evaluation(old, new, "w")
    with pytest.raises(ConfigError, match="eval.ensemble: 'mean_logits' -> 'mean_probs'"):
        config_lib.check_identity(old, new, "w")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("augment.erase_area", (0.1,)),
        ("augment.erase_aspect", ("a", "b")),
        ("batch_norm", "global"),
        ("lowering", "vmap"),
        ("checkpoint.every", "0 steps"),
        ("checkpoint.on_corrupt", "best"),
        ("log_every", "0 epochs"),
        ("batch_size", True),
    ],
)
def test_values_that_only_the_run_would_find_wrong(field, value):
    config = common.get_config()
    with config.ignore_type():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(ConfigError, match=rf"^{re.escape(field)}=.*: must be "):
        config_lib.check(config)


def test_saved_config_of_wrong_types(tmp_path):
    (tmp_path / "config.json").write_text('{"batch_size": "x"}')
    with pytest.raises(ConfigError, match="config.json does not fit jaxsplit/defaults.py"):
        config_lib.load(tmp_path)


def test_all_differing_fields_are_named():
    old = changed()
    new = changed(
        arch="wide_resnet10_1",
        split=2,
        method="independent",
        data__name="synthetic",
        optim__lr=0.3,
        cotrain__weight=0.25,
        augment__erase_area=(0.1, 0.2),
        log_every="1 steps",
    )
    message = message_of(lambda: config_lib.check_identity(old, new, "runs/a"))
    assert message.startswith("workdir='runs/a': holds another experiment")
    for part in (
        "arch: 'wide_resnet16_4' -> 'wide_resnet10_1'",
        "split: 4 -> 2",
        "method: 'cotrain' -> 'independent'",
        "data.name: 'digits' -> 'synthetic'",
        "optim.lr: 0.1 -> 0.3",
        "cotrain.weight: 0.5 -> 0.25",
        "augment.erase_area: (0.0625, 0.1) -> (0.1, 0.2)",
    ):
        assert part in message
    assert "log_every" not in message


def test_every_field_is_runtime_or_identity():
    """A field counts as identity unless it is listed: each one that is changed is refused."""
    old = common.get_config()
    runtime = []
    for field, value in config_lib.flat(old):
        new = common.get_config()
        other = {bool: lambda v: not v, str: lambda v: v + "x", tuple: lambda v: (*v, *v) or (0.5,)}
        make = other.get(type(value), lambda v: v + 1)
        new.update_from_flattened_dict({field: make(value)})
        try:
            config_lib.check_identity(old, new, "w")
            runtime.append(field)
        except ConfigError as error:
            assert f" {field}: " in str(error)
    assert set(runtime) == {
        "duration",
        "lowering",
        "mesh.data",
        "mesh.net",
        "eval.batch_size",
        "eval.every",
        "eval.ood",
        "eval.corruptions",
        "log_every",
        "profile",
        "trackers",
        "checkpoint.every",
        "checkpoint.keep",
        "checkpoint.on_corrupt",
        "data.dir",
        "data.download",
        "data.resident",
        "data.resident_limit",
        "data.on_bad_record",
        "data.threads",
        "remat",
        "init_from",
        "stop.metric",
        "stop.patience",
        "stop.min_delta",
        "resume_with",
        "divide_anyway",
    }


def test_prepare_workdir(tmp_path):
    made = config_lib.prepare_workdir(tmp_path / "a" / "b")
    assert made == tmp_path / "a" / "b" and made.is_dir() and not list(made.iterdir())
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        message = message_of(lambda path=path: config_lib.prepare_workdir(path))
        assert message.startswith(f"workdir={str(path)!r}: must be a writable directory")


def test_schedules_are_those_that_plan_knows():
    for name in schedules.SCHEDULES:
        config = changed(schedule__name=name, schedule__milestones=("20%", "50%"))
        assert float(durations.plan(config, 22).schedule(config)(1)) > 0
