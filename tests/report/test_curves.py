"""Curves of a run as text: what is drawn, and that it follows the config alone."""

import numpy as np
import pytest

from configs import common, digits_wrn16_4_x4
from jaxsplit import data, durations
from jaxsplit.errors import ConfigError
from jaxsplit.report import curves, summary


def parse(text: str) -> tuple[str, float, np.ndarray, str]:
    """(title, label of the top, heights in eighths of a character, labels below)."""
    title, *rows, line, ticks = text.splitlines()
    assert len(rows) == curves.HEIGHT
    label, bars = zip(*(row.split("│") for row in rows), strict=True)
    assert label[-1].strip() == "0" and not "".join(label[1:-1]).strip()
    assert set(line.strip()) == {"└", "─"} and line.count("─") >= max(map(len, bars))
    heights = np.zeros(line.count("─"), int)
    for bar in bars:
        heights[: len(bar)] += np.asarray([curves._EIGHTHS.index(c) for c in bar], int)
    return title, float(label[0]), heights, ticks.strip()


def test_bars_by_hand():
    text = curves.draw("title", [0, 0.1, 1, 2, 4, 3.2], "0 2 5".split())
    title, top, heights, ticks = parse(text)
    assert (title, top, ticks.split()) == ("title", 4, ["0", "2", "5"])
    assert heights.tolist() == [0, 2, 16, 32, 64, 52]  # rounded up: what is not zero shows
    # A bar has no holes, and the last column ends where the last label ends.
    assert [row[12 + 4] for row in text.splitlines()[1:9]] == ["█"] * 8
    assert len(text.splitlines()[-1]) == 12 + 6


@pytest.mark.parametrize(("value", "height"), [(0.0, 0), (0.3, 64)])
def test_constant_curves(value, height):
    _, top, heights, _ = parse(curves.draw("t", [value] * 20, ("0", "1", "2 epochs")))
    assert top == value and (heights == height).all()


def config_of(**fields):
    config = common.get_config()
    config.data.name = "cifar10"
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


def test_curves_of_a_config():
    """300 epochs of 390 steps: warm-up of 20 epochs to 0.1; co-training warms up over 40."""
    lr, weight = map(parse, curves.of_config(config_of()).split("\n\n"))
    assert (lr[0], weight[0]) == ("learning rate", "weight of the co-training loss")
    assert (lr[1], weight[1]) == (0.1, 0.5)
    assert lr[3].split() == weight[3].split() == ["0", "150", "300", "epochs"]
    assert len(lr[2]) == len(weight[2]) == 60
    peak = lr[2].argmax()
    assert peak == 4 and lr[2][peak] == 64  # column 4 of 59 is epoch 20
    assert (np.diff(lr[2][:5]) > 0).all() and (np.diff(lr[2][4:]) <= 0).all()
    assert lr[2][0] == np.ceil(64 * 0.05) and lr[2][-1] == 1
    assert (weight[2][8:] == 64).all() and weight[2][4] == 32
    assert weight[2][6] == np.ceil(64 * 6 / 59 * 300 / 40)


@pytest.mark.parametrize("method", ["independent", "single"])
def test_only_cotraining_has_a_weight(method):
    text = curves.of_config(config_of(method=method, split=1 if method == "single" else 4))
    assert "\n\n" not in text and text.startswith("learning rate\n")


@pytest.mark.parametrize("name", ["cosine", "step", "polynomial", "htd", "exponential"])
def test_every_schedule_is_drawn(name):
    config = config_of(schedule__name=name, schedule__warmup="0 epochs")
    heights = parse(curves.of_config(config).split("\n\n")[0])[2]
    plan = durations.plan(config, 390)
    steps = np.linspace(0, plan.total_steps - 1, 60).round()
    rates = [float(plan.schedule(config)(int(s))) for s in steps]
    np.testing.assert_array_equal(heights, np.ceil(np.divide(rates, max(rates)) * 64 - 1e-6))
    assert len(set(heights)) > 2


def test_an_epoch_of_unknown_length_is_said():
    known = curves.of_config(config_of())
    unknown = config_of()
    unknown.data.name = "a_set_of_your_own"
    text = curves.of_config(unknown)
    assert text.replace(" (if an epoch has 1000 steps)", "") == known != text
    unknown.duration = "250 steps"
    unknown.schedule.warmup = unknown.cotrain.warmup = "10 steps"
    assert "0.25 epochs" in curves.of_config(unknown)


def test_known_numbers_of_examples():
    """Of those that can be read here; and names are those of data sets."""
    assert curves.TRAIN_EXAMPLES.keys() <= data.DATASETS.keys()
    for name in ("digits", "synthetic"):
        config = common.get_config()
        config.data.name = name
        assert len(data.load(config.data).train) == curves.TRAIN_EXAMPLES[name]


def test_summary_ends_with_the_curves():
    config = digits_wrn16_4_x4.get_config()
    config.arch = "wide_resnet10_1"
    text = summary.of_config(config)
    assert text.endswith("\n\n" + curves.of_config(config))
    config.schedule.warmup = "16 epochs"
    with pytest.raises(ConfigError, match="schedule.warmup='16 epochs': must not be longer"):
        summary.of_config(config)
