"""Means over seeds, and the paired difference of two methods with its 95 % interval.

A difference of accuracies varies for two reasons: another seed gives other networks, another test
set holds other images. All seeds answer the same test images, so the two are crossed: the
differences are float[R, N], of R seeds and N images. The interval is a bootstrap of both levels:
each draw takes R seeds and N images with replacement (the pigeonhole bootstrap; McCullagh 2000,
"Resampling and exchangeable arrays"; Owen 2007, arXiv 0712.1111).

Taken as it is, that bootstrap counts what belongs to a seed and an image together three times
(Owen 2007) and the deviation of R seeds too small by sqrt((R - 1) / R) (Hesterberg 2015,
arXiv 1411.5279). So a draw adds up two parts, each scaled to its unbiased variance:

- the seeds: their R means, with the variance s^2 / R that every mean over seeds has. It holds what
  images add to a single seed.
- the images: the means over seeds of each image. Only what all seeds share counts here, the
  variance component (MS_images - MS_rest) / R of a two-way analysis of variance.

R seeds estimate their own deviation from R values. Therefore the interval is stretched around the
mean by t / z, with the degrees of freedom of Welch and Satterthwaite: with 3 seeds that differ much
it is twice as wide as percentiles alone, with 20 seeds as wide.

Limits. With one seed nothing is known about other seeds: only images are resampled, and the result
says so. With two or three seeds the interval is honest but wide. The interval is of one difference;
the best of many differences looks better than it is.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

DRAWS = 4000
LEVEL = 0.95
_SEED = 2012
_FEW = 4096  # distinct values that are drawn by their counts


@dataclasses.dataclass(frozen=True)
class Spread:
    """A mean over seeds.

    deviation: of a sample (n - 1); NaN of one value.
    """

    mean: float
    deviation: float
    count: int


@dataclasses.dataclass(frozen=True)
class Difference:
    """The mean difference of two methods, over seeds and test images, with its interval.

    mean, lower, upper: in the unit of what is compared; shares are 0..1.
    seeds, images: R and N.
    of_seeds: variance of the mean that more seeds reduce; NaN of one seed, which cannot tell.
    of_images: variance of the mean that only more test images reduce.
    """

    mean: float
    lower: float
    upper: float
    seeds: int
    images: int
    of_seeds: float
    of_images: float

    @property
    def over(self) -> str:
        """What was resampled."""
        return "seeds and test images" if self.seeds > 1 else "test images only"


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and deviation of finite values; None without one."""
    known = [float(v) for v in values if math.isfinite(v)]
    if not known:
        return None
    deviation = float(np.std(known, ddof=1)) if len(known) > 1 else math.nan
    return Spread(float(np.mean(known)), deviation, len(known))


def paired(ours: np.ndarray, theirs: np.ndarray, draws: int = DRAWS) -> Difference:
    """How much more `ours` scores than `theirs`; the same arrays give the same numbers.

    Args:
      ours: float[R, N], such as 1 where a seed answers an image right and 0 elsewhere.
      theirs: float[R, N], of the same seeds and images in the same order.
      draws: of the bootstrap.

    Raises:
      ValueError: the shapes differ or hold nothing.
    """
    if ours.shape != theirs.shape or ours.ndim != 2 or not ours.size:
        raise ValueError(f"shapes {ours.shape} and {theirs.shape}: must be the same [R, N]")
    found = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    mean, by_seed, by_image = float(found.mean()), found.mean(1), found.mean(0)
    seeds, images = found.shape
    of_seeds, of_images = _variances(found)
    rng = np.random.Generator(np.random.Philox(_SEED))
    drawn = np.full(draws, mean)
    for values, wanted in ((by_seed, of_seeds), (by_image, of_images)):
        off = values - mean
        plain = float((off**2).mean()) / len(off)  # the variance of a draw as it is
        if plain > 0 and wanted > 0:
            drawn += math.sqrt(wanted / plain) * _resampled(off, draws, rng)
    tail = (1 - LEVEL) / 2
    ends = np.quantile(drawn, (tail, 1 - tail))
    wider = _stretch(of_seeds, of_images, seeds, images)
    lower, upper = (float(mean + wider * (end - mean)) for end in ends)
    said = of_seeds if seeds > 1 else math.nan
    return Difference(mean, lower, upper, seeds, images, said, of_images)


def seeds_needed(found: Difference, most: int = 100) -> int | None:
    """So many seeds in all that the interval would probably not hold zero.

    It takes the mean and the variances as they are now. None: more than `most`, or one seed only,
    which does not show how seeds differ.
    """
    if not math.isfinite(found.of_seeds):
        return None
    one = found.of_seeds * found.seeds
    for count in range(2, most + 1):
        error = math.sqrt(one / count + found.of_images)
        if _quantile(one / count, found.of_images, count, found.images) * error < abs(found.mean):
            return count
    return None


def half_width(found: Difference, seeds: int) -> float:
    """The interval's half width with so many seeds, 2 or more, of the same deviation."""
    one = found.of_seeds * found.seeds / seeds
    error = math.sqrt(one + found.of_images)
    return _quantile(one, found.of_images, seeds, found.images) * error


def _variances(found: np.ndarray) -> tuple[float, float]:
    """(of the seeds' part, of the images' part) of the mean of float[R, N]; unbiased or 0."""
    seeds, images = found.shape
    mean, by_seed, by_image = found.mean(), found.mean(1), found.mean(0)
    of_seeds = float(by_seed.var(ddof=1)) / seeds if seeds > 1 else 0.0
    if images == 1:
        return of_seeds, 0.0
    square_of_images = seeds * float(((by_image - mean) ** 2).sum()) / (images - 1)
    rest = 0.0
    if seeds > 1:
        left = found - by_seed[:, None] - by_image + mean
        rest = float((left**2).sum()) / ((seeds - 1) * (images - 1))
    return of_seeds, max(square_of_images - rest, 0.0) / (seeds * images)


def _resampled(off: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """float[draws]: means of n of the n values, taken with replacement."""
    size = len(off)
    values, counts = np.unique(off, return_counts=True)
    if len(values) <= _FEW:  # shares of right answers over R seeds take few values
        return rng.multinomial(size, counts / size, draws) @ values / size
    # The mean of so many is normal.
    return rng.normal(off.mean(), off.std() / math.sqrt(size), draws)


def _stretch(of_seeds: float, of_images: float, seeds: int, images: int) -> float:
    """By how much an interval of few seeds is wider than percentiles: t / z."""
    from scipy import stats

    if seeds == 1 or of_seeds + of_images <= 0:
        return 1.0
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    return _quantile(of_seeds, of_images, seeds, images) / z


def _quantile(of_seeds: float, of_images: float, seeds: int, images: int) -> float:
    """Student's t at the degrees of freedom of two variances (Welch 1947, Satterthwaite 1946)."""
    from scipy import stats

    whole = of_seeds + of_images
    parts = of_seeds**2 / max(seeds - 1, 1) + of_images**2 / max(images - 1, 1)
    freedom = whole**2 / parts if parts > 0 else math.inf
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))
