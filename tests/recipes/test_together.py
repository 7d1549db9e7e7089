"""All parts of a recipe for vision transformers at once: they train, and a stopped run goes on."""

import math

import pytest

from jaxsplit import loop
from jaxsplit.errors import Stopped
from tests.support.nets import registered
from tests.support.runs import AskedAt, assert_same_bits, lines_of, state_at, tiny

RECIPE = dict(
    optim__name="adamw",
    optim__lr=1e-3,
    optim__weight_decay=0.05,
    optim__decay_norm=False,
    optim__layer_decay=0.75,
    optim__clip_norm=1.0,
    optim__accumulate=2,
    schedule__warmup="2 steps",
    schedule__warmup_lr=1e-6,
    schedule__end_lr=1e-5,
    ema=0.99,
    label_loss="bce_sum",
    label_smoothing=0.1,
    augment__repeats=3,  # copies of an image lie in two batches of 16
    augment__crop_padding=0,
    augment__random_resized_crop=True,
    augment__mixup=0.8,
    augment__cutmix=1.0,
    augment__erase_prob=0.25,
)


RANDAUGMENT = "rand-m9-mstd0.5-inc1"


@pytest.fixture(scope="module")
def arch():
    with registered("tiny_recipe", dropout=0.1) as name:
        yield name


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["", RANDAUGMENT])
def test_a_whole_recipe(arch, policy, tmp_path):
    fields = RECIPE | dict(augment__randaugment=policy)
    config = tiny(arch=arch, divide=False, lowering="dense", **fields)
    results = loop.train_and_evaluate(config, tmp_path / "whole")
    trained = [x for x in lines_of(tmp_path / "whole") if "train/loss" in x]
    first = trained[0]
    # Logits near 0 at the start: the classes' ten questions cost log 2 each, whatever the targets.
    assert first["train/net0/bce"] == pytest.approx(10 * math.log(2), rel=0.02)
    losses = first["train/net0/bce"] + first["train/net1/bce"] + first["train/exchange"]
    assert first["train/loss"] == pytest.approx(losses, rel=1e-5)
    assert len(trained) == 4 and all(math.isfinite(x["train/loss"]) for x in trained)
    with pytest.raises(Stopped):
        loop.train_and_evaluate(config, tmp_path / "stopped", AskedAt(3))
    assert loop.train_and_evaluate(config, tmp_path / "stopped") == results
    states = [state_at(config, tmp_path / name, 4) for name in ("whole", "stopped")]
    assert_same_bits(*states)
