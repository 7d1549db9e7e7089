"""config.advice: a line for each setting that a run makes nothing of, and none otherwise."""

import importlib
import pathlib

import pytest

from configs import common
from jaxsplit import durations
from jaxsplit.config import advice
from jaxsplit.report import curves

TOTAL = 60  # steps of the run, of which an epoch has 20
NAMES = sorted(
    path.stem
    for path in pathlib.Path(common.__file__).parent.glob("*.py")
    if path.stem not in ("__init__", "arguments", "common", "recipes", "saved")
)


def said(**fields) -> list[str]:
    """Of a run of 60 steps with nothing to say of, but for these fields."""
    config = common.get_config()
    config.duration = f"{TOTAL} steps"
    config.schedule.warmup = config.cotrain.warmup = "10%"
    config.log_every = config.eval.every = config.checkpoint.every = "10 steps"
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return advice.lines(config, durations.plan(config, 20))


CASES = [
    (
        dict(ema=0.9999, ema_warmup=False),
        "ema=0.9999: the average is evaluated and saved, and after the 60 steps of the run 99.4% "
        "of it will still be the initial weights; ema_warmup=True avoids that",
    ),
    (
        dict(label_loss="bce"),
        "label_loss='bce': is a mean over K classes, beside which the other losses of "
        "method='cotrain' weigh K times as much as beside cross_entropy; label_loss='bce_sum' "
        "avoids that",
    ),
    (
        dict(schedule__warmup="60 steps"),
        "schedule.warmup='60 steps': as long as the run of 60 steps, so the learning rate never "
        "falls",
    ),
    (
        dict(optim__lr=0.001),
        "schedule.warmup_lr=0.005: above optim.lr=0.001, so the learning rate falls during "
        "the warm-up",
    ),
    (
        dict(optim__lr=1e-4, schedule__warmup_lr=0.0),
        "schedule.end_lr=0.0001: not below optim.lr=0.0001; the learning rate never falls "
        "below end_lr, so it does not decay",
    ),
    (
        dict(schedule__name="step", schedule__milestones=("50%", "60 steps")),
        "schedule.milestones=('50%', '60 steps'): 1 of 2 are not before the end of the "
        "run, step 60",
    ),
    (
        dict(schedule__name="step"),
        "schedule.milestones=('100 epochs', '225 epochs'): 2 of 2 are not before the end of the "
        "run, step 60, so the learning rate never falls",
    ),
    (
        dict(schedule__name="step", schedule__milestones=("6 steps", "50%")),
        "schedule.milestones=('6 steps', '50%'): 1 of 2 are not after the warm-up, which "
        "ends at step 6; the learning rate falls at once when it ends",
    ),
    (
        dict(schedule__name="exponential", schedule__decay_every="2.7 epochs"),
        "schedule.decay_every='2.7 epochs': the first decay would not come before the end of "
        "the run, step 60",
    ),
    (
        dict(cotrain__warmup="40 epochs"),
        "cotrain.warmup='40 epochs': longer than the run of 60 steps, so that the weight ends at "
        "0.0369 of cotrain.weight=0.5",
    ),
    (
        dict(cotrain__warmup="40 epochs", cotrain__floor=0.1),
        "cotrain.warmup='40 epochs': longer than the run of 60 steps, so that the weight never "
        "leaves its floor of 0.1, cotrain.weight=0.5",
    ),
    (
        dict(method="ffsd"),
        "ffsd.warmup='5 epochs': longer than the run of 60 steps, so that the weights of "
        "config.ffsd end at 44.9% of their values",  # exp(-5 (1 - 3 / 5)^2)
    ),
    (
        dict(method="codistill", codistill__every=60),
        "codistill.every=60: not less than the run of 60 steps, so that the networks learn from "
        "each other in the first step only",
    ),
    (
        dict(log_every="61 steps"),
        "log_every='61 steps': longer than the run of 60 steps, so metrics are logged at its end "
        "only",
    ),
    (
        dict(eval__every="4 epochs"),
        "eval.every='4 epochs': longer than the run of 60 steps, so it is evaluated at its end "
        "only, and the best checkpoint is the last one",
    ),
    (
        dict(checkpoint__every="4 epochs"),
        "checkpoint.every='4 epochs': longer than the run of 60 steps, so it is saved at its end "
        "and at its best evaluations only",
    ),
    (
        dict(checkpoint__every="4 epochs", eval__every="60 steps"),
        "checkpoint.every='4 epochs': longer than the run of 60 steps, so it is saved at its end "
        "only, and a killed run starts again from the beginning",
    ),
    (
        dict(stop__patience=5),
        "stop.patience=5: cannot end the run early, which is evaluated only 6 times "
        "(eval.every='10 steps')",
    ),
]


@pytest.mark.parametrize(("fields", "line"), CASES, ids=[line[:40] for _, line in CASES])
def test_a_line(fields, line):
    assert said(**fields) == [f"warning: {line}"]


@pytest.mark.parametrize(
    "fields",
    [
        dict(),
        dict(ema=0.9999),
        dict(ema=0.9, ema_warmup=False),
        dict(schedule__warmup="59 steps"),
        dict(schedule__warmup="0 steps", optim__lr=0.001),  # there is no warm-up
        dict(schedule__name="step", schedule__milestones=("59 steps",)),
        dict(schedule__name="step", schedule__milestones=("7 steps",)),
        dict(schedule__name="exponential", schedule__decay_every="2 epochs"),
        dict(schedule__milestones=("100 epochs",)),  # of a cosine
        dict(cotrain__warmup="60 steps"),
        dict(cotrain__warmup="40 epochs", cotrain__floor=0.5),  # the weight from the start
        dict(cotrain__warmup="40 epochs", method="independent"),
        dict(method="ffsd", ffsd__warmup="3 epochs"),
        dict(method="codistill", codistill__every=59),
        dict(log_every="60 steps", eval__every="60 steps", checkpoint__every="60 steps"),
        dict(stop__patience=4),
    ],
    ids=lambda fields: ",".join(fields) or "none",
)
def test_no_line_where_the_setting_does_something(fields):
    assert said(**fields) == []


@pytest.mark.parametrize("name", NAMES)
def test_no_config_of_ours_is_warned_of(name):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config(*(["name=birds"] if name == "folder" else []))
    examples = curves.TRAIN_EXAMPLES.get(config.data.name, 1000)
    assert advice.lines(config, durations.plan(config, max(examples // config.batch_size, 1))) == []


def test_the_share_that_is_left_at_the_end():
    config = common.get_config()
    config.ema, config.ema_warmup = 0.99, False
    line = "ema=0.99: 54.72% of the average is still the initial weights"
    assert advice.share_of_start(config, 60) == line
    assert advice.share_of_start(config, 2000) == ""
    config.ema_warmup = True
    assert advice.share_of_start(config, 60) == ""
    config.ema, config.ema_warmup = 0.0, False
    assert advice.share_of_start(config, 60) == ""
