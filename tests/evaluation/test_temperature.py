"""evaluation.temperature: the minimum of the NLL, cross-fitting, and where there is no minimum."""

import numpy as np
import pytest
from scipy import optimize

from jaxsplit.evaluation import scores, temperature
from jaxsplit.evaluation.temperature import MOST

RNG = np.random.Generator(np.random.Philox(7))


def draw(count: int, true: float):
    """(logits float32[N, 5], labels) whose best temperature is `true`, but for chance."""
    logits = RNG.normal(size=(count, 5)) * 2
    p = np.exp(scores.log_softmax(logits))
    labels = (RNG.random((count, 1)) > p.cumsum(1)).sum(1).clip(max=4)
    return (logits * true).astype(np.float32), labels


def nll_at(logits, labels, t):
    return scores.nll(scores.log_softmax(logits / np.float64(t)), labels)


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_it_is_where_the_nll_is_least(true):
    logits, labels = draw(4000, true)
    found = temperature.fit(logits, labels)
    assert found == pytest.approx(true, rel=0.1)
    best = optimize.minimize_scalar(
        lambda log_t: nll_at(logits, labels, np.exp(log_t)), bounds=(-4, 4), method="bounded"
    )
    assert nll_at(logits, labels, found) <= best.fun + 1e-12
    for other in (0.99 * found, 1.01 * found):
        assert nll_at(logits, labels, found) < nll_at(logits, labels, other)


def test_part_by_part(monkeypatch):
    logits, labels = draw(300, 2.0)
    whole = temperature.fit(logits, labels)
    monkeypatch.setattr(temperature, "CHUNK", 70)
    assert temperature.fit(logits, labels) == pytest.approx(whole, rel=1e-9)


def test_on_log_probabilities_as_on_logits():
    logits, labels = draw(300, 2.0)
    log_p = scores.log_softmax(logits)
    assert temperature.fit(log_p, labels) == pytest.approx(temperature.fit(logits, labels))


def test_where_there_is_no_minimum():
    logits, right = np.eye(3) * 2, np.arange(3)
    assert temperature.fit(logits, right) == 1  # all right: it would be 0
    assert temperature.fit(logits, (right + 1) % 3) == MOST  # all wrong
    assert temperature.fit(logits[:1], right[:1]) == 1  # one example
    assert temperature.fit(logits[:1], right[1:2]) == MOST
    assert temperature.fit(np.ones((4, 3)), np.zeros(4, int)) == 1  # all equal
    assert temperature.fit(np.zeros((0, 3)), np.zeros(0, int)) == 1


def test_logits_that_are_not_finite_are_left_out():
    logits, labels = draw(200, 2.0)
    whole = temperature.fit(logits, labels)
    more = np.concatenate([logits, [[np.nan] * 5, [np.inf, 0, 0, 0, 0], [-np.inf, 0, 0, 0, 1]]])
    assert temperature.fit(more, np.append(labels, [0, 0, 0])) == whole


def test_from_other_examples():
    held, labels = draw(2000, 3.0)
    scaled = temperature.from_validation(10, held, labels)
    assert scaled.folds == () and scaled.temperature == temperature.fit(held, labels)
    np.testing.assert_array_equal(scaled.each, [scaled.temperature] * 10)


def test_no_example_is_scored_by_its_own_fit():
    logits, labels = draw(401, 3.0)
    scaled = temperature.cross_fitted(logits, labels)
    halves = [scaled.each == fold for fold in scaled.folds]
    assert (halves[0] ^ halves[1]).all() and {h.sum() for h in halves} == {200, 201}
    for fold, mine, other in zip(scaled.folds, halves, halves[::-1], strict=True):
        assert fold == temperature.fit(logits[other], labels[other])
        assert fold != temperature.fit(logits[mine], labels[mine])
    assert scaled.temperature == pytest.approx(np.sqrt(np.prod(scaled.folds)))
    again = temperature.cross_fitted(logits, labels)
    assert again.folds == scaled.folds


def test_cross_fitting_of_few():
    one = temperature.cross_fitted(np.array([[1.0, 0.0]]), np.array([0]))
    assert one.folds == (1, 1) and one.temperature == 1
    two = temperature.cross_fitted(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([1, 0]))
    assert two.folds == (MOST, MOST) and two.each.tolist() == [MOST, MOST]
