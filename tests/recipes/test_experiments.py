"""Two steps of every published recipe, each network with one block a stage."""

import numpy as np
import pytest

from jaxsplit import durations, loop, models
from jaxsplit.errors import ConfigError
from jaxsplit.recipes import published
from tests.support.runs import config_of, lines_of, shallow

RECIPES = sorted(
    {(r.dataset, r.arch, r.split) for r in published.RESULTS if r.method != "ffsd"}
    | {("svhn", "wide_resnet16_8", 4)},  # nothing was published, but there is a recipe
    key=str,
)
CONFIGS = {"imagenet2012": "imagenet"}


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("imagenet_vit_s16_x4", (1e-6, 1e-3, 1e-5)),  # DeiT scales 5e-4 by 1024 / 512
        ("imagenet_convnext_tiny_x4", (0.0, 4e-3, 1e-6)),
    ],
)
def test_rates_of_the_papers(name, rates):
    """At the start of the warm-up, at its end and at that of the run, scaled to the batch."""
    config = config_of(name)
    its, scale = config.schedule, durations.plan(config, 100).lr_scale
    found = [rate * scale for rate in (its.warmup_lr, config.optim.lr, its.end_lr)]
    assert found == pytest.approx(rates)


@pytest.mark.parametrize(
    ("arguments", "crop", "batch", "eq6"),
    [
        ("arch=efficientnetb7,split=2,epochs=30", 320, 256, False),
        ("arch=se_resnext101_64x4d,split=2,epochs=30", 416, 128, False),
        ("arch=wide_resnet50_3,split=2,epochs=30", 224, 256, True),
    ],
)
def test_another_length_changes_nothing_else(arguments, crop, batch, eq6):
    config = config_of(f"imagenet:{arguments}")
    assert config.duration == "30 epochs" and config.data.image_size == crop
    assert config.batch_size == batch and config.optim.divide_weight_decay == eq6


@pytest.mark.parametrize("arguments", ["cifar100:", "folder:name=birds,"])
def test_a_split_that_is_no_division_may_be_of_whole_networks(arguments):
    with pytest.raises(ConfigError) as caught:
        config_of(f"{arguments}arch=resnet20,split=3")
    assert str(caught.value) == (
        "split=3: resnet20 can be divided into 1, 2, 4; for whole networks give --config.split=3 "
        "--config.divide=False instead"
    )
    with pytest.raises(ConfigError, match="arch='resnet21'"):
        config_of(f"{arguments}arch=resnet21,split=3")


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "arch", "split"), RECIPES)
def test_two_steps(dataset, arch, split, prepared, tmp_path, monkeypatch):
    family, spec = models.known(arch)
    monkeypatch.setitem(family.specs, arch, shallow(spec))
    config = config_of(f"{CONFIGS.get(dataset, dataset)}:arch={arch},split={split}")
    config.data.dir = str(prepared)
    config.batch_size = config.eval.batch_size = 4
    config.mesh.data, config.data.threads, config.lowering = 1, 2, "dense"
    config.trackers = ()
    config.divide_anyway = True  # so shallow networks round to other widths
    config.duration, config.log_every = "2 steps", "1 steps"
    config.schedule.warmup = config.cotrain.warmup = "1 steps"
    classes = {"cifar100": 100, "imagenet2012": 1000}.get(dataset, 10)
    if dataset == "imagenet2012":
        config.data.image_size = 32
    scale = 4 / config.optim.base_batch_size
    results = loop.train_and_evaluate(config, tmp_path)
    assert results["step"] == 2
    answer = "ensemble" if split > 1 else "net0"
    assert np.isfinite(results[f"test/{answer}/nll"])
    lines = [line for line in lines_of(tmp_path) if "train/loss" in line]
    assert len(lines) == 2 and all(np.isfinite(line["train/loss"]) for line in lines)
    # Untrained networks know nothing: log K each.
    assert lines[0]["train/loss"] == pytest.approx(split * np.log(classes), rel=0.05)
    # The answer is that of the networks: far from log K only where the network is broken.
    assert results[f"test/{answer}/nll"] == pytest.approx(np.log(classes), rel=0.3)
    lr = [line["lr"] for line in lines]
    assert lr[0] == pytest.approx(max(config.schedule.warmup_lr, config.schedule.end_lr) * scale)
