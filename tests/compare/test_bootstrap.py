"""compare.bootstrap: intervals by hand, against a plain loop, and their coverage."""

import math

import numpy as np
import pytest

from jaxsplit.compare import bootstrap
from jaxsplit.compare.bootstrap import Difference


def answers(rng, seeds: int, images: int, effect: float, of_seeds: float) -> tuple:
    """(ours, theirs) bool[R, N]: hard images are hard for all; each seed has its own skill."""
    difficulty = rng.normal(1.5, 1.5, images)

    def right(shift: float) -> np.ndarray:
        skill = shift + of_seeds * rng.normal(size=(seeds, 1))
        return rng.random((seeds, images)) < 1 / (1 + np.exp(-difficulty - skill))

    return right(effect), right(0.0)


def test_mean_and_deviation_of_a_sample():
    found = bootstrap.spread([0.5, 0.7, 0.6])
    assert found is not None
    assert (found.mean, found.deviation, found.count) == (pytest.approx(0.6), pytest.approx(0.1), 3)
    one = bootstrap.spread([0.5, math.nan])
    assert one is not None and one.count == 1 and math.isnan(one.deviation)
    assert bootstrap.spread([]) is None


@pytest.mark.parametrize("seeds", [1, 3])
def test_equal_runs_differ_by_nothing(seeds):
    right = np.random.default_rng(0).random((seeds, 50)) < 0.8
    found = bootstrap.paired(right, right)
    assert (found.mean, found.lower, found.upper) == (0, 0, 0)


def test_variances_by_hand():
    # Seeds' means 1/4 and 3/4, so s^2 / R = (1/8) / 2. Images' means 1/2 each but the last two:
    # 1/2, 1/2, 1, 0, so MS_images = 2 * (0.25 + 0.25) / 3 = 1/3. What is left of each value,
    # d - seed - image + mean, is 0.25 in size: the sum of its squares is 0.5, MS_rest = 0.5 / 3.
    ours = np.array([[0.0, 0, 1, 0], [1, 1, 1, 0]])
    found = bootstrap.paired(ours, np.zeros_like(ours))
    left = ours - ours.mean(1, keepdims=True) - ours.mean(0) + 0.5
    assert (left**2).sum() == pytest.approx(0.5)
    assert found.mean == 0.5
    assert found.of_seeds == pytest.approx(1 / 16)
    assert found.of_images == pytest.approx((1 / 3 - 0.5 / 3) / 8)


def test_one_seed_resamples_images_only_and_says_so():
    rng = np.random.default_rng(0)
    ours = (rng.random((1, 400)) < 0.8).astype(float)
    found = bootstrap.paired(ours, np.zeros_like(ours))
    p = ours.mean()
    error = 1.96 * math.sqrt(p * (1 - p) / 399)
    assert found.over == "test images only" and math.isnan(found.of_seeds)
    assert found.upper - found.mean == pytest.approx(error, rel=0.1)
    assert bootstrap.paired(ours.repeat(2, 0), np.zeros((2, 400))).over == "seeds and test images"


def test_agrees_with_a_loop_over_drawn_seeds_and_images():
    rng = np.random.default_rng(3)
    # So many seeds that the t of few seeds is near the percentiles, and no images' noise within.
    seeds, images = 60, 80
    apart = 0.1 * rng.normal(size=(seeds, 1)) + 0.3 * rng.normal(size=images)
    found = bootstrap.paired(apart, np.zeros_like(apart), draws=10_000)
    drawn = []
    for _ in range(10_000):
        rows = rng.integers(0, seeds, seeds)
        columns = rng.integers(0, images, images)
        drawn.append(apart[rows].mean(0)[columns].mean())
    lower, upper = np.quantile(drawn, (0.025, 0.975))
    assert found.mean == pytest.approx(apart.mean())
    assert found.lower == pytest.approx(lower, abs=0.06 * (upper - lower))
    assert found.upper == pytest.approx(upper, abs=0.06 * (upper - lower))


@pytest.mark.parametrize("of_seeds", [0.0, 0.3])
@pytest.mark.parametrize("seeds", [3, 5])
def test_holds_the_truth_in_about_95_of_100_cases(seeds, of_seeds):
    rng = np.random.default_rng(0)
    difficulty = rng.normal(1.5, 1.5, (200, 1000))
    skill = of_seeds * rng.normal(size=(2, 200, 1))
    ours, theirs = (1 / (1 + np.exp(-difficulty - s)) for s in (0.2 + skill[0], skill[1]))
    truth = ours.mean() - theirs.mean()
    hits = 0
    for _ in range(300):
        found = bootstrap.paired(*answers(rng, seeds, 500, 0.2, of_seeds), draws=500)
        hits += found.lower <= truth <= found.upper
    assert 0.89 <= hits / 300 <= 0.985


def test_is_the_same_each_time():
    ours, theirs = answers(np.random.default_rng(0), 5, 10_000, 0.2, 0.1)
    assert bootstrap.paired(ours, theirs) == bootstrap.paired(ours, theirs)


def test_values_of_many_kinds_are_drawn_in_parts():
    rng = np.random.default_rng(0)
    found = bootstrap.paired(rng.normal(1.0, 1.0, (1, 6000)), np.zeros((1, 6000)), draws=1000)
    assert found.upper - found.lower == pytest.approx(2 * 1.96 / math.sqrt(6000), rel=0.1)


def test_few_seeds_widen_the_interval():
    def width(seeds: int) -> float:
        spread = np.linspace(-1, 1, seeds)[:, None]
        apart = 0.01 * spread / spread.std(ddof=1) * np.ones((1, 50)) * math.sqrt(seeds)
        found = bootstrap.paired(apart, np.zeros_like(apart))  # the same variance of the mean
        assert found.of_seeds == pytest.approx(1e-4)
        return found.upper - found.lower

    assert width(3) > 1.5 * width(30)


def test_seeds_that_would_do():
    # t(df) * sqrt(1e-4 / n) < 0.0245 first holds at n = 4: 3.18 * 0.005 = 0.016; at 3: 4.30 *
    # 0.00577 = 0.0248.
    found = Difference(0.0245, 0, 0, 2, 10**6, 0.5e-4, 0.0)
    assert bootstrap.seeds_needed(found) == 4
    assert bootstrap.half_width(found, 3) == pytest.approx(4.3027 * math.sqrt(1e-4 / 3), rel=1e-3)
    images = Difference(0.001, 0, 0, 3, 1000, 1e-6, 1e-5)
    assert bootstrap.seeds_needed(images) is None
    assert bootstrap.seeds_needed(Difference(0.1, 0, 0, 1, 100, math.nan, 1e-6)) is None


@pytest.mark.parametrize("shapes", [((2, 3), (3, 2)), ((0, 3), (0, 3)), ((3,), (3,))])
def test_wrong_shapes(shapes):
    with pytest.raises(ValueError, match="must be the same"):
        bootstrap.paired(*(np.zeros(shape) for shape in shapes))
