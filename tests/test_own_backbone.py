"""The backbone of README, as a user would write it."""

import pathlib
import re
import subprocess
import sys

import pytest

from jaxsplit import models
from jaxsplit.models import resnet

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def example(tmp_path) -> pathlib.Path:
    """The code of README in a file."""
    section = (ROOT / "README.md").read_text().split("## A backbone of your own")[1]
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


def test_training_and_evaluation(example, tmp_path):
    short = ("--config.duration=30 steps", "--config.schedule.warmup=5 steps")
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
    with pytest.raises(ValueError, match="arch='resnet50': there is one of that name already"):
        models.register(spec, resnet.divide, resnet.build)
    own = resnet.Spec("own", (1,), 8, splits=(1, 2))
    for _ in range(2):  # as when a notebook's cell is run again
        models.register(own, lambda spec, s: spec, resnet.build)
    assert models.divided("own", 2) == own
    assert "own" in models.names()
