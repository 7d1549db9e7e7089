"""evaluation.diversity: against SciPy and NumPy pair by pair, and degenerate input."""

import itertools

import numpy as np
import pytest
from scipy import stats

from jaxsplit import losses
from jaxsplit.evaluation import diversity, scores

RNG = np.random.Generator(np.random.Philox(6))
LOGITS = RNG.normal(size=(3, 50, 4)).astype(np.float32)
PAIRS = list(itertools.permutations(range(3), 2))


def test_disagreement():
    answer = LOGITS.argmax(-1)
    matrix = diversity.pairwise_disagreement(answer)
    assert matrix[0, 2] == (answer[0] != answer[2]).mean() and (np.diag(matrix) == 0).all()
    wanted = float(losses.pairwise_disagreement(LOGITS).mean())
    assert diversity.mean_of_pairs(matrix) == pytest.approx(wanted)


@pytest.mark.parametrize("chunk", [None, 20])
def test_pairwise_kl(monkeypatch, chunk):
    if chunk:
        monkeypatch.setattr(diversity, "CHUNK", chunk)
    p = np.exp(scores.log_softmax(LOGITS))
    matrix = diversity.pairwise_kl(LOGITS)
    for i, j in PAIRS:
        assert matrix[i, j] == pytest.approx(stats.entropy(p[i].T, p[j].T).mean())
    assert (np.diag(matrix) == 0).all() and (matrix >= 0).all()


def test_pairwise_kl_of_impossible_classes():
    logits = np.array([[[0.0, -np.inf]], [[0.0, 0.0]]])
    matrix = diversity.pairwise_kl(logits)
    np.testing.assert_allclose(matrix, [[0, np.log(2)], [np.inf, 0]])


def test_error_correlation():
    right = RNG.random((3, 50)) < 0.6
    np.testing.assert_allclose(diversity.error_correlation(right), np.corrcoef(~right))


def test_error_correlation_without_errors():
    right = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0]], bool)
    matrix = diversity.error_correlation(right)
    assert np.isnan(matrix[0]).all() and np.isnan(matrix[:, 0]).all()
    assert matrix[1, 2] == pytest.approx(-1)
    assert diversity.mean_of_pairs(matrix) == pytest.approx(-1)
    assert np.isnan(diversity.mean_of_pairs(diversity.error_correlation(right[:2])))
    assert np.isnan(diversity.mean_of_pairs(np.zeros((1, 1))))


def test_uncertainty():
    p = np.exp(scores.log_softmax(LOGITS))
    entropy, information = diversity.uncertainty(LOGITS)
    of_mean = stats.entropy(p.mean(0), axis=-1)
    assert entropy == pytest.approx(of_mean.mean())
    assert information == pytest.approx((of_mean - stats.entropy(p, axis=-1).mean(0)).mean())
    # Two that are sure of different classes: the whole entropy is what they disagree about.
    apart = np.array([[[60.0, 0.0]], [[0.0, 60.0]]])
    assert diversity.uncertainty(apart) == pytest.approx((np.log(2), np.log(2)))
    # Equal ones disagree about nothing, and never about less.
    same = np.stack([LOGITS[0]] * 3)
    assert 0 <= diversity.uncertainty(same)[1] < 1e-12


def test_mean_probabilities():
    log_p = scores.log_softmax(LOGITS)
    np.testing.assert_allclose(np.exp(diversity.mean_probabilities(log_p)), np.exp(log_p).mean(0))
    never = np.array([[[0.0, -np.inf]], [[0.0, -np.inf]]])
    np.testing.assert_array_equal(diversity.mean_probabilities(never), [[0, -np.inf]])


def test_oracle():
    assert diversity.oracle(np.array([[1, 0, 0, 0], [0, 1, 0, 0]], bool)) == 0.5


def test_nan_is_left_out():
    broken = np.concatenate([LOGITS, LOGITS[:, :1]], 1)
    broken[1, -1, 2] = np.nan
    np.testing.assert_allclose(diversity.pairwise_kl(broken), diversity.pairwise_kl(LOGITS))
    assert diversity.uncertainty(broken) == pytest.approx(diversity.uncertainty(LOGITS))
    assert np.isnan(diversity.pairwise_kl(broken[:, -1:])).all()
    assert np.isnan(diversity.uncertainty(broken[:, -1:])).all()
