"""The backbone of docs/extending.md, as a user would write it."""

import dataclasses
import pathlib
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from flax import linen as nn

from configs import digits_wrn16_4_x4
from jaxsplit import costs, loop, models
from jaxsplit.models import layers, resnet
from tests.support.paths import ROOT


@pytest.fixture
def example(tmp_path) -> pathlib.Path:
    """The code of docs/extending.md in a file."""
    section = (ROOT / "docs" / "extending.md").read_text().split("## A backbone of your own")[1]
    code = re.search("```python\n(.*?)```", section, re.DOTALL)[1]
    backbone = code.split("def get_config")[0]
    assert sum(map(bool, map(str.strip, backbone.splitlines()))) <= 30
    path = tmp_path / "my_backbone.py"
    path.write_text(code)
    return path


def main(*arguments) -> str:
    command = [sys.executable, "main.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_summary(example):
    """Multiply-adds by hand: digits are 8x8x1; 64 / sqrt(4) = 32, 64 and 96 channels."""
    text = main(f"--config={example}", "--mode=summary")
    convs = 16 * 9 * 32 + 4 * 9 * 32 * 64 + 9 * 64 * 96
    macs = convs + 96 * 10
    assert re.search(rf"^one network +[\d,]+ +{macs:,}$", text, re.MULTILINE)
    undivided = 16 * 9 * 64 + 4 * 9 * 64 * 128 + 9 * 128 * 192 + 192 * 10
    assert re.search(rf"^undivided +[\d,]+ +{undivided:,}$", text, re.MULTILINE)


@pytest.mark.slow
def test_training_and_evaluation(example, tmp_path):
    short = ("--config.duration=30 steps", "--config.schedule.warmup=5 steps")
    short += ("--config.trackers=()",)  # whose libraries take seconds to start
    flags = (f"--config={example}", f"--workdir={tmp_path / 'run'}", *short)
    text = main(*flags)
    found = re.search(r"^ensemble +([\d.]+)", text, re.MULTILINE)
    assert float(found[1]) > 30  # of ten classes
    again = main(
        *flags, "--mode=eval", "--config.duration=30 steps", "--config.schedule.warmup=5 steps"
    )
    assert re.search(r"^ensemble +([\d.]+)", again, re.MULTILINE)[1] == found[1]


def test_a_name_is_taken_once(monkeypatch):
    monkeypatch.setattr(models, "FAMILIES", dict(models.FAMILIES))
    spec = resnet.SPECS["resnet50"]
    with pytest.raises(ValueError, match="arch='resnet50': another architecture has this"):
        models.register(spec, resnet.divide, resnet.build)
    own = resnet.Spec("own", (1,), 8, splits=(1, 2))
    with pytest.raises(ValueError, match="arch='own': splits=.* must include 1, the undiv"):
        models.register(dataclasses.replace(own, splits=(2, 4)), resnet.divide, resnet.build)
    with pytest.raises(ValueError, match="must have splits, image_size"):
        models.register(SimpleNamespace(arch="own"), resnet.divide, resnet.build)
    assert "own" not in models.names()
    for _ in range(2):  # as when a notebook's cell is run again
        models.register(own, lambda spec, s: spec, resnet.build)
    assert models.divided("own", 2) == own
    assert "own" in models.names()
    family = resnet.Spec("resnet", (1,), 8, splits=(1,))  # what a family is called is no arch
    models.register(family, lambda spec, s: spec, resnet.build)
    assert models.divided("resnet", 1) == family
    assert models.divided("resnet110", 1) == resnet.SPECS["resnet110"]


@dataclasses.dataclass(frozen=True)
class Bare:
    arch: str = "bare_net"
    image_size: int = 8
    splits: tuple = (1, 2)


class BareNet(nn.Module):
    """No BatchNorm; a product that no layer with parameters makes."""

    num_classes: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False, example_ids=None):
        x = layers.Conv(8, name="stem_conv")(x)
        flat = x.reshape(x.shape[0], -1, x.shape[-1])
        x = x + (nn.softmax(flat @ flat.swapaxes(1, 2)) @ flat).reshape(x.shape)
        return layers.classify(nn.relu(x), self.num_classes, train=train), {"final": x}


@pytest.mark.slow
def test_a_backbone_with_neither_statistics_nor_layers_for_all(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "FAMILIES", dict(models.FAMILIES))

    def build(spec, num_classes, axis_name, dtype):
        return BareNet(num_classes, axis_name)

    models.register(Bare(), lambda spec, s: spec, build)
    cost = costs.cost(Bare(), num_classes=10, image_shape=(8, 8, 1))
    assert cost.groups["other"] == (0, 2 * 64 * 64 * 8)
    assert (cost.stats, cost.macs) == (0, 64 * 9 * 8 + 2 * 64 * 64 * 8 + 80)
    config = digits_wrn16_4_x4.get_config()
    config.arch, config.split = "bare_net", 2
    config.duration, config.schedule.warmup = "3 steps", "0 steps"
    config.divide_anyway = True
    result = loop.train_and_evaluate(config, tmp_path)
    assert loop.evaluate_checkpoint(config, tmp_path)["test/ensemble/nll"] == pytest.approx(
        result["test/ensemble/nll"]
    )
