"""configs/folder.py: an own folder of images, prepared and trained on."""

import re

import numpy as np
import pytest

from configs import folder
from jaxsplit import config as config_lib
from jaxsplit import durations, loop
from jaxsplit.config import advice
from jaxsplit.data import prepare
from jaxsplit.errors import ConfigError
from tests.support.runs import lines_of
from tests.support.tfds import encode, picture


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """The folder of a prepared set of three classes, of photographs of two sizes."""
    where = tmp_path_factory.mktemp("birds")
    for i in range(36):
        path = where / "source" / "auk crow wren".split()[i % 3] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(i, 40 + 8 * (i % 2), 48, 3), "JPEG"))
    prepare.prepare("birds", where / "source", where / "data", holdout=0.25)
    return where / "data"


@pytest.mark.slow
def test_two_steps(birds, tmp_path, capsys):
    config = folder.get_config("name=birds,arch=wide_resnet10_1,split=2,epochs=2")
    config.divide_anyway = True  # one that is tiny already
    config.data.dir, config.mesh.data, config.data.threads = str(birds), 1, 2
    config.batch_size, config.trackers = 16, ()  # of 27 images
    results = loop.train_and_evaluate(config, tmp_path)
    assert results["step"] == 2 and results["test/count"] == 9
    losses = [line["train/loss"] for line in lines_of(tmp_path) if "train/loss" in line]
    assert len(losses) == 2 and losses[0] == pytest.approx(2 * np.log(3), rel=0.1)
    said = capsys.readouterr().out
    assert "top-1 %" in said and "top-5 %" not in said
    # The division of a tiny network; a checkpoint every five epochs is none in two; nothing else.
    warned = re.findall("^warning: (.*?)=", said, re.M)
    assert warned == ["split", "checkpoint.every"]


def test_the_recipe(birds):
    config = folder.get_config("name=birds")
    config.data.dir = str(birds)
    config_lib.check(config)
    assert (config.data.name, config.arch, config.split) == ("birds", "resnet18", 2)
    assert (config.method, config.data.image_size) == ("cotrain", 224)
    alone = folder.get_config("name=birds,arch=wide_resnet16_4,split=1,epochs=30")
    alone.data.dir = str(birds)
    config_lib.check(alone)
    assert (alone.method, alone.duration, alone.data.image_size) == ("single", "30 epochs", 32)


@pytest.mark.parametrize("arch", ["vit_s16", "convnext_atto"])
def test_networks_with_layer_norm_take_adamw(birds, arch):
    """At the rates that docs/weights.md fine-tunes with, too, the rate starts and ends at 0."""
    config = folder.get_config(f"name=birds,arch={arch},epochs=30")
    config.data.dir = str(birds)
    config_lib.check(config)
    its = config.optim
    assert (its.name, its.lr, its.weight_decay, its.decay_norm) == ("adamw", 2e-4, 0.05, False)
    for lr in (2e-4, 2e-5):
        config.optim.lr = lr
        plan = durations.plan(config, 100)
        assert not [line for line in advice.lines(config, plan) if "rate" in line]
        rate, total = plan.schedule(config), plan.total_steps
        rates = [float(rate(step)) for step in (0, plan.warmup_steps, total)]
        assert rates == pytest.approx([0, lr, 0], abs=1e-10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "config argument name: must be given, as in folder.py:name=birds ('')"),
        ("arch=resnet18", "config argument name: must be given"),
        ("name=", "config argument 'name=': must be name=VALUE"),
        ("name=a,ach=resnet18", "config argument 'ach=resnet18': must be one of name, arch, split"),
        ("name=a,split=x", "config argument 'split=x': must be a whole number above 0"),
        ("name=a,split=3", "split=3: resnet18 can be divided into"),
        ("name=a,arch=resnet19", "arch='resnet19': unknown"),
    ],
)
def test_a_wrong_argument(text, message):
    with pytest.raises(ConfigError) as caught:
        folder.get_config(text)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
