"""Cascades: hand-computed points, thresholds, and that a compacted run equals the definition."""

import jax
import numpy as np
import pytest

import jaxsplit
from jaxsplit import losses
from jaxsplit.errors import ConfigError
from jaxsplit.inference import cascade, cascade_fit
from tests.support.inference import write_untrained
from tests.support.runs import tiny


def logits_of(probabilities) -> np.ndarray:
    return np.log(np.asarray(probabilities, np.float64))


# Two networks, three images, two classes. With mean_probs the second step has the means: 0.9,
# 0.7 (for class 1), 0.55.
TWO = logits_of(
    [
        [[0.9, 0.1], [0.4, 0.6], [0.6, 0.4]],
        [[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]],
    ]
)
LABELS = np.array([0, 1, 1])


def test_points_computed_by_hand():
    found = cascade.steps(TWO, "mean_probs")
    np.testing.assert_allclose(found.confidence, [[0.9, 0.6, 0.6], [0.9, 0.7, 0.55]])
    np.testing.assert_array_equal(found.answer, [[0, 1, 0], [0, 1, 0]])
    costs = (10, 30)
    one = cascade.point(found, LABELS, costs, 0.0)
    assert (one.accuracy, one.cost, one.share) == (2 / 3, 10, 0.25) and one.exits == (1, 0)
    some = cascade.point(found, LABELS, costs, 0.8)
    assert some.cost == pytest.approx((10 + 40 + 40) / 3)
    assert some.exits == pytest.approx((1 / 3, 2 / 3))
    every = cascade.point(found, LABELS, costs, cascade.ALL)
    assert (every.cost, every.share, every.exits) == (40, 1, (0, 1))


@pytest.mark.parametrize("how", losses.ENSEMBLES)
def test_combinations_are_those_of_ensembles(how):
    logits = np.random.default_rng(0).normal(0, 4, (3, 20, 5)).astype(np.float32)
    expected = jax.nn.log_softmax(losses.ensemble(logits, how) / 1.5)
    np.testing.assert_allclose(
        cascade.log_probabilities(logits, how, 1.5), expected, rtol=1e-4, atol=1e-5
    )


def made(n=400, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Three networks that are right the more often the surer they are."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    hard = rng.uniform(0, 3, n)
    logits = rng.normal(0, 1.0, (3, n, 4))
    logits[:, np.arange(n), labels] += hard
    return logits.astype(np.float32), labels


def test_a_curve_goes_from_one_network_to_all():
    logits, labels = made()
    found, costs = cascade.steps(logits), [1.0, 1.0, 2.0]
    points = cascade.curve(found, labels, costs)
    assert [p.cost for p in points] == sorted(p.cost for p in points)
    first, last = points[0], points[-1]
    assert (first.cost, last.cost) == (1.0, 4.0)
    assert first.accuracy == (logits[0].argmax(-1) == labels).mean()
    assert last.accuracy == (logits.mean(0).argmax(-1) == labels).mean()
    assert all(sum(p.exits) == pytest.approx(1) for p in points)


def test_fitted_thresholds_keep_what_was_wanted():
    logits, labels = made()
    found, costs = cascade.steps(logits), np.ones(3)
    points = cascade.curve(found, labels, costs)
    wanted = (points[0].accuracy + points[-1].accuracy) / 2
    by_accuracy = cascade.fit(found, labels, costs, accuracy=wanted)
    assert by_accuracy.accuracy >= wanted
    assert not [p for p in points if p.accuracy >= wanted and p.cost < by_accuracy.cost]
    by_cost = cascade.fit(found, labels, costs, share=0.5)
    assert by_cost.share <= 0.5
    assert not [p for p in points if p.share <= 0.5 and p.accuracy > by_cost.accuracy]


def test_cross_fitting_scores_on_other_images():
    logits, labels = made(900)
    found, costs = cascade.steps(logits), np.ones(3)
    whole = cascade.fit(found, labels, costs, share=0.5)
    fitted = cascade.cross_fitted(found, labels, costs, share=0.5)
    assert fitted.threshold == whole.threshold == fitted.expected.threshold
    assert fitted.expected.share == pytest.approx(0.5, abs=0.05)
    # Where labels say nothing, no threshold can be expected to reach what it was fitted to.
    noise = np.random.default_rng(1).integers(0, 4, 900)
    lucky = cascade.fit(found, noise, costs, share=0.5)
    fair = cascade.cross_fitted(found, noise, costs, share=0.5)
    assert lucky.accuracy > fair.expected.accuracy
    with pytest.raises(ConfigError, match="3 images, must be at least 5"):
        cascade.cross_fitted(cascade.steps(TWO), LABELS, [1, 1], share=0.9)


@pytest.mark.parametrize(
    "wanted, line",
    [
        ({}, "accuracy or cost must be given, one of them"),
        (dict(accuracy=0.5, share=0.5), "accuracy or cost must be given, one of them"),
        (dict(accuracy=1.5), "cascade: accuracy=1.5: must be in (0, 1]"),
        (dict(share=0.0), "cascade: cost=0.0: must be in (0, 1]"),
        (dict(accuracy=0.9), "no threshold reaches it; the highest is 0.6667"),
        (dict(share=0.1), "cost=0.1: must be at least 0.25, that of the first network alone"),
    ],
)
def test_wanted_what_cannot_be(wanted, line):
    with pytest.raises(ConfigError) as caught:
        cascade.fit(cascade.steps(TWO, "mean_probs"), LABELS, [10, 30], **wanted)
    assert line in str(caught.value)


def test_degenerate_logits():
    """One network; one class that all are sure of; logits that are NaN."""
    single = cascade.steps(TWO[:1])
    (only,) = {p.cost for p in cascade.curve(single, LABELS, [7.0])}
    assert only == 7
    same = np.zeros((2, 4, 3))
    same[..., 1] = 50
    found = cascade.steps(same)
    assert {p.cost for p in cascade.curve(found, np.ones(4, int), [1, 1])} == {1, 2}
    broken = np.full((2, 2, 3), np.nan)
    exits = cascade.steps(broken).exits(0.5)
    np.testing.assert_array_equal(exits, [2, 2])


def test_order():
    logits, labels = made()
    worse = logits.copy()
    worse[1] = -worse[1]
    right = (worse.argmax(-1) == labels).mean(-1)
    assert cascade.order(worse, labels) == sorted(range(3), key=lambda i: -right[i])


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.7, cascade.ALL])
def test_a_compacted_run_is_the_definition(threshold):
    logits, _ = made(50)
    seen, rows = [], np.arange(50)

    def run(k, kept):
        nonlocal rows
        rows = rows if kept is None else rows[kept]
        seen.append(len(rows))
        return logits[k, rows]

    found = cascade.compact(run, 50, 3, threshold, how="mean_probs")
    left = cascade.steps(logits, "mean_probs").exits(threshold)
    np.testing.assert_array_equal(found.used, left)
    assert seen == [n for n in ((left > k).sum() for k in range(3)) if n]
    for i, k in enumerate(left):
        expected = cascade.log_probabilities(logits[:k, i : i + 1], "mean_probs")[0]
        np.testing.assert_allclose(found.log_probabilities[i], expected)
        np.testing.assert_array_equal(found.logits[:k, i], logits[:k, i])
        assert np.isnan(found.logits[k:, i]).all()


# ---- Of a workdir


@pytest.fixture(scope="module")
def stacked(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("cascade") / "run"
    exp = write_untrained(tiny(), workdir)
    return workdir, jaxsplit.load(workdir, batch_size=8), exp.dataset.test


def test_a_predictor_that_cascades(stacked):
    _, predictor, test = stacked
    images = test.images[:21]
    whole = predictor.predict(images)
    own = whole.networks["net0"]
    threshold = float(np.sort(own.max(-1))[10:12].mean())  # between two
    found = predictor.predict(images, cascade=threshold)
    early = own.max(-1) >= threshold
    np.testing.assert_array_equal(found.used, np.where(early, 1, 2))
    expected = np.where(early[:, None], own, whole.probabilities)
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.networks["net0"], own, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(np.isnan(found.networks["net1"]).all(-1), early)
    every = predictor.predict(images, cascade=cascade.ALL, networks=[1, 0])
    assert list(every.networks) == ["net1", "net0"]
    np.testing.assert_allclose(every.probabilities, whole.probabilities, rtol=1e-4, atol=1e-6)
    assert predictor.predict([], cascade=0.5).used.shape == (0,)
    with pytest.raises(ConfigError, match="cascade=-1: must be a threshold of 0 or more"):
        predictor.using(cascade=-1)


def test_batches_of_what_is_left(stacked):
    forward = stacked[1].forward
    assert forward.pieces(70, 128) == [64, 6]
    assert forward.pieces(128, 128) == [128] and forward.pieces(300, 128) == [128, 128, 32, 12]
    assert forward.pieces(100, 128) == [100] and forward.pieces(5, 128) == [5]
    for n in range(1, 200):
        sizes = forward.pieces(n, 64)
        assert sum(sizes) == n and max(sizes) <= 64
        assert sum(map(forward.padded, sizes)) <= max(8, 1.34 * n)


def test_a_threshold_of_what_an_evaluation_wrote(stacked):
    workdir, predictor, test = stacked
    with pytest.raises(ConfigError, match="cascade: .*predictions.npz: cannot be read"):
        predictor.fit_cascade(cost=0.6)
    logits = predictor.logits(test.images)

    def write(step=0, **splits):
        arrays = {"step": np.int64(step)}
        for split, part in splits.items():
            arrays |= {f"{split}/labels": test.labels[part]}
            arrays |= {f"{split}/logits/{name}": z[part] for name, z in logits.items()}
        np.savez(workdir / cascade_fit.PREDICTIONS, **arrays)

    write(step=3, test=slice(None))
    with pytest.raises(ConfigError, match="is of checkpoint 3, this is 0"):
        predictor.fit_cascade(cost=0.6)
    write(test=slice(0, 256), validation=slice(256, 512))
    fitted = predictor.fit_cascade(cost=0.6)
    both = np.stack([logits["net0"], logits["net1"]])
    held = cascade.steps(both[:, 256:])
    assert fitted.threshold == cascade.fit(held, test.labels[256:], [1, 1], share=0.6).threshold
    used = predictor.predict(test.images[:256], cascade=fitted.threshold).used
    assert fitted.expected.share == pytest.approx(used.mean() / 2, abs=0.01)
    write(test=slice(None))
    crossed = predictor.fit_cascade(cost=0.6)
    assert crossed.expected.share == pytest.approx(0.6, abs=0.1)
    assert crossed.expected.cost == pytest.approx(
        crossed.expected.share * cascade_fit.network_costs(predictor.restored, ["net0"] * 2).sum()
    )
