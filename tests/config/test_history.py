"""config.history: what may change in a run that goes on, the record of it, older configs."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from jaxsplit import config as config_lib
from jaxsplit import loop, optim
from jaxsplit.config import history
from jaxsplit.errors import ConfigError, Stopped
from tests.support.runs import (
    AskedAt,
    assert_same_bits,
    lines_of,
    one_network,
    state_at,
    steps_in,
    tiny,
)


def run(old, new, resume_with="", check=config_lib.check_identity):
    """What `check` gives for configs with these fields changed."""
    configs = []
    for changes in (old, new):
        config = common.get_config()
        config.update_from_flattened_dict(changes)
        configs.append(config)
    configs[1].resume_with = resume_with
    return check(*configs, "runs/a")


DECAY = 0.75
CHANGES = {"optim.lr": 0.05, "schedule.name": "step", "augment.mixup": 0.0, "cotrain.weight": 0.25}


def test_what_may_change_is_named():
    assert run({}, CHANGES, "changed") == {
        "augment.mixup": (0.2, 0.0),
        "cotrain.weight": (0.5, 0.25),
        "optim.lr": (0.1, 0.05),
        "schedule.name": ("cosine", "step"),
    }
    assert run({}, {}, "changed") == {}


def test_a_refusal_names_the_way_where_there_is_one():
    start = "workdir='runs/a': holds another experiment; changed are optim.lr: 0.1 -> 0.2"
    end = ". Choose another workdir, or the old values"
    way = "; or resume with the new values: --config.resume_with=changed"
    evaluation = config_lib.check_evaluation
    for new, more, fields, last in (
        ({}, "", {}, way),
        ({"seed": 1}, "; seed: 0 -> 1", {}, ""),
        ({}, "", dict(check=evaluation), ""),
        ({}, "", dict(check=evaluation, resume_with="changed"), ""),
    ):
        with pytest.raises(ConfigError) as caught:
            run({}, {"optim.lr": 0.2} | new, **fields)
        assert str(caught.value) == start + more + end + last


@pytest.mark.parametrize(
    ("field", "before", "after"),
    [
        ("arch", "wide_resnet28_10", "wide_resnet40_10"),
        ("split", 4, 2),
        ("method", "cotrain", "dml"),
        ("seed", 0, 1),
        ("batch_size", 128, 64),
        ("data.name", "cifar10", "cifar100"),
        ("eval.ensemble", "mean_logits", "mean_probs"),
        ("optim.name", "sgd", "adamw"),
        ("optim.momentum", 0.9, 0.0),
        ("optim.clip_norm", 0.0, 1.0),
        ("augment.repeats", 1, 3),
        ("ema", 0.0, 0.99),
        ("ema", 0.9, 0.99),
        ("ffsd.leader", "", "resnet56"),
    ],
)
def test_what_may_never_change(field, before, after):
    with pytest.raises(ConfigError) as caught:
        run({field: before}, {field: after} | CHANGES, "changed")
    assert str(caught.value) == (
        f"workdir='runs/a': resume_with='changed' does not allow changes of {field}: {before!r} -> "
        f"{after!r}. Choose another workdir, or the old values"
    )


def shapes(config):
    """Of the optimizer's state."""
    layer = {"kernel": jnp.zeros((2, 3)), "scale": jnp.zeros((2, 3))}
    params = {"stack": {"stage1_block1": layer}}
    made = optim.build(config.optim, lambda step: 0.1, params, 2)
    return jax.tree.map(lambda x: (x.shape, str(x.dtype)), jax.eval_shape(made.init, params))


@pytest.mark.parametrize("field", [k for k in common.get_config().optim if k != "name"])
def test_what_may_change_leaves_the_state_of_every_optimizer_as_it_is(field):
    differs, full = False, f"optim.{field}"
    for name in optim.OPTIMIZERS:
        before, after = common.get_config(), common.get_config()
        before.optim.name = after.optim.name = name
        before.optim.nesterov = after.optim.nesterov = False
        value = before.optim[field]
        after.optim[field] = (not value) if isinstance(value, bool) else type(value)(value / 2)
        if full in history.ON_OR_OFF:
            after.optim[field] = (not value) if isinstance(value, bool) else 0.5 * (not value)
            assert not history.may_change(full, value, after.optim[field])
        differs |= shapes(before) != shapes(after)
        if history.may_change(full, value, after.optim[field]):
            assert shapes(before) == shapes(after), name
    assert differs == (full in history.ON_OR_OFF)


# ---- The record


def test_the_record_grows(tmp_path):
    file = tmp_path / "config.json"
    for step, changes in (
        (0, {}),
        (20, {"optim.lr": (0.1, 0.05)}),
        (30, {}),
        (40, {"views": "ab"}),
    ):
        config = common.get_config()
        config_lib.save(config, tmp_path, history.more(file, step, changes))
        assert config_lib.load(tmp_path) == config
    assert json.loads(file.read_text())["history"] == [
        {"step": 20, "changed": {"optim.lr": [0.1, 0.05]}},
        {"step": 40, "changed": {"views": ["a", "b"]}},
    ]


def test_a_change_is_recorded_and_the_run_goes_on(tmp_path, capsys):
    with pytest.raises(Stopped):
        loop.train_and_evaluate(tiny(), tmp_path, AskedAt(2))
    changed = dict(optim__lr=0.2, augment__flip=False)
    with pytest.raises(ConfigError, match="augment.flip: True -> False; optim.lr: 0.1 -> 0.2. Cho"):
        loop.train_and_evaluate(tiny(**changed), tmp_path)
    with pytest.raises(ConfigError, match="'changed' does not allow changes of split: 2"):
        loop.train_and_evaluate(tiny(split=4, resume_with="changed", **changed), tmp_path)
    capsys.readouterr()
    before = [line["lr"] for line in lines_of(tmp_path) if "lr" in line]
    loop.train_and_evaluate(tiny(resume_with="changed", **changed), tmp_path)
    said = capsys.readouterr().out
    assert "resumed at step 2 in" in said
    assert "from step 2 on: augment.flip: True -> False; optim.lr: 0.1 -> 0.2\n" in said
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["history"] == [
        {"step": 2, "changed": {"augment.flip": [True, False], "optim.lr": [0.1, 0.2]}}
    ]
    # Of a cosine over 4 steps, the first of which warms up, at 16 of 128 images.
    want = [
        max(x / 8 * (1 + np.cos(np.pi * (s - 1) / 3)) / 2, 1e-4 / 8)
        for x, s in ((0.2, 2), (0.2, 3))
    ]
    rates = [line["lr"] for line in lines_of(tmp_path) if "lr" in line]
    assert rates == pytest.approx(before + want, rel=1e-5)
    assert steps_in(tmp_path) == [2, 4]
    # It holds for this start only; the new values are now those of the workdir.
    assert fields["resume_with"] == "" and config_lib.load(tmp_path).optim.lr == 0.2
    assert config_lib.check_identity(config_lib.load(tmp_path), tiny(**changed), "w") == {}


# ---- Older configs


@pytest.mark.slow
def test_a_run_that_was_begun_without_a_warmup_goes_on_so(tmp_path, capsys):
    """Its config.json lacks the field, whose default is another now."""
    constant = one_network(ema=DECAY, ema_warmup=False)
    loop.train_and_evaluate(constant, tmp_path / "whole")
    old, file = tmp_path / "old", tmp_path / "old" / "config.json"
    with pytest.raises(Stopped):
        loop.train_and_evaluate(one_network(ema=DECAY, ema_warmup=False), old, AskedAt(2))
    for stop in (AskedAt(3), None):
        fields = json.loads(file.read_text())
        fields.pop("ema_warmup", None)  # of the first; the second lacks it already
        file.write_text(json.dumps(fields))
        try:
            loop.train_and_evaluate(one_network(ema=DECAY), old, stop)
        except Stopped:
            pass
        assert "ema_warmup" not in json.loads(file.read_text())
    assert_same_bits(*(state_at(constant, tmp_path / run, 4) for run in ("old", "whole")))
    said = capsys.readouterr().out
    # 0.75 ** 4
    assert said.count("ema=0.75: 31.64% of the average is still the initial weights\n") == 2
    assert config_lib.load(old).ema_warmup is False
    results = loop.evaluate_checkpoint(one_network(ema=DECAY), old)
    assert results["step"] == 4
    with pytest.raises(ConfigError, match="ema_warmup: False -> True"):  # of one that has the field
        loop.train_and_evaluate(one_network(ema=DECAY), tmp_path / "whole")


def test_nothing_is_adopted_where_there_is_no_run(tmp_path):
    config = types.SimpleNamespace()
    history.adopt(config, tmp_path / "config.json")
    assert vars(config) == {}
    assert history.more(tmp_path / "config.json", 4, {}) == history.More([], ())
    # Nor of a file whose run was killed before its first checkpoint.
    (tmp_path / "config.json").write_text('{"ema": 0.9, "history": [{}]}')
    assert history.more(tmp_path / "config.json", 0, {}) == history.More([], ())
    assert history.more(tmp_path / "config.json", 4, {}) == history.More([{}], ("ema_warmup",))
