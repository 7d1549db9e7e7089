"""A workdir of the commit before the rooms, 932a4fa: it is evaluated and resumed as it was meant.

Made there, without the event files and compiled programs, by `main.py` with
configs/digits_wrn16_4_x4.py, arch=wide_resnet10_1, split=1, method=single, duration='3 steps',
schedule.warmup='1 steps', checkpoint.keep=1 and augment.mixup=0.
"""

import json
import tarfile

import pytest

from jaxsplit import config as config_lib
from jaxsplit import loop
from tests.support.paths import GOLDEN

ARCHIVE = GOLDEN / "workdir_before_rooms.tar.xz"


@pytest.fixture
def workdir(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "run", filter="data")
    return tmp_path / "run"


def test_it_is_evaluated_and_resumed(workdir, capsys):
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    config = config_lib.load(workdir)
    assert (config.arch, config.views, config.ema_warmup) == ("wide_resnet10_1", "paper", False)
    results = loop.evaluate_checkpoint(config, workdir)
    assert results["step"] == 3
    # Another thread count and compiler change the last digits.
    for name in ("test/net0/nll", "test/net0/top1", "test/count"):
        assert results[name] == pytest.approx(last[name], rel=1e-4)
    config.duration = "5 steps"
    resumed = loop.train_and_evaluate(config, workdir)
    assert resumed["step"] == 5 and resumed["test/count"] == 360
    assert f"resumed at step 3 in {workdir}" in capsys.readouterr().out
