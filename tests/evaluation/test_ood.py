"""Scores of uncertainties beside scikit-learn's and hand-computed values."""

import numpy as np
import pytest
from sklearn import metrics as sk

from jaxsplit.evaluation import ood, scores


def cases():
    rng = np.random.default_rng(0)
    yield "random", rng.normal(size=300), rng.normal(0.7, 1.3, 200)
    yield "tied", rng.integers(0, 4, 90).astype(float), rng.integers(1, 6, 50).astype(float)
    yield "equal", np.zeros(7), np.zeros(5)
    yield "tiny", np.array([0.2]), np.array([0.1])
    yield "apart", np.arange(5.0), np.arange(5.0) + 10
    yield "infinite", np.array([0.0, 1, np.inf]), np.array([1.0, np.inf])


@pytest.mark.parametrize(
    "name,inside,outside", list(cases()), ids=lambda x: x if isinstance(x, str) else ""
)
def test_detection_is_scikit_learns(name, inside, outside):
    inside, outside = (np.nan_to_num(x, posinf=1e6) for x in (inside, outside))
    values = np.concatenate([inside, outside])
    foreign = np.concatenate([np.zeros(len(inside)), np.ones(len(outside))])
    got = ood.detection(inside, outside)
    assert got.auroc == pytest.approx(sk.roc_auc_score(foreign, values), abs=1e-12)
    assert got.aupr_out == pytest.approx(sk.average_precision_score(foreign, values), abs=1e-12)
    assert got.aupr_in == pytest.approx(sk.average_precision_score(1 - foreign, -values), abs=1e-12)
    fpr, tpr, _ = sk.roc_curve(1 - foreign, -values, drop_intermediate=False)
    assert got.fpr95 == pytest.approx(fpr[tpr >= 0.95].min(), abs=1e-12)


def test_by_hand():
    got = ood.detection(np.array([1.0, 2, 3, 4]), np.array([4.0, 5]))
    assert got.auroc == 7.5 / 8  # one tie among 8 pairs
    assert got.fpr95 == 0.5  # all four pass up to 4, and one of two foreign ones with them
    assert got.aupr_out == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_nan_is_the_most_uncertain_and_an_empty_set_has_no_score():
    assert ood.detection(np.array([1.0, 2]), np.array([np.nan])).auroc == 1
    assert np.isnan(ood.detection(np.array([1.0]), np.zeros(0))).all()
    assert np.isnan(ood.detection(np.zeros(0), np.array([1.0]))).all()


def test_uncertainties():
    sure, open_ = np.array([20.0, 0, 0]), np.zeros(3)
    log_p = scores.log_softmax(np.stack([sure, open_]))
    for of in ood.UNCERTAINTIES.values():
        low, high = of(log_p)
        assert low < 1e-6 and high == pytest.approx(np.log(3))
    # Two networks that agree, and two that are sure of different classes: one bit.
    other = np.array([0.0, 20, 0])
    networks = scores.log_softmax(np.stack([np.stack([sure, sure]), np.stack([sure, other])]))
    got = ood.mutual_information(networks)
    np.testing.assert_allclose(got, [0, np.log(2)], atol=1e-6)
