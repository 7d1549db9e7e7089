"""evaluation.scores: against scikit-learn, definitions written out, and degenerate input."""

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from jaxsplit.evaluation import scores

RNG = np.random.Generator(np.random.Philox(5))


def draw(count=500, classes=7, sharpness=2.0):
    """(logits float32[N, K], labels int32[N]) that are right more often than chance."""
    labels = RNG.integers(0, classes, count).astype(np.int32)
    logits = RNG.normal(size=(count, classes)) * sharpness
    logits[np.arange(count), labels] += 1.5
    return logits.astype(np.float32), labels


def sure_and_right(logits, labels):
    log_p = scores.log_softmax(logits)
    return scores.confidence(log_p), scores.predicted(log_p) == labels


NAN = np.array([[np.nan, 3.0], [0.0, 2.0]], np.float32)


# ---- Probabilities


def test_log_softmax_and_entropy():
    logits, labels = draw()
    log_p = scores.log_softmax(logits)
    assert log_p.dtype == np.float64
    np.testing.assert_allclose(np.exp(log_p).sum(1), 1, rtol=1e-12)
    assert scores.nll(log_p, labels) == pytest.approx(sk.log_loss(labels, np.exp(log_p)), rel=1e-9)
    np.testing.assert_allclose(
        scores.entropy(np.log([[0.25] * 4, [0.5, 0.5, 1e-300, 1e-300]])),
        [
            np.log(4),
            np.log(2),
        ],
    )
    far = scores.log_softmax(np.array([[1e4, 0.0], [-np.inf, 1.0]]))
    np.testing.assert_array_equal(far, [[0, -1e4], [-np.inf, 0]])
    np.testing.assert_array_equal(scores.entropy(far), [0, 0])


def test_nan_is_no_answer():
    log_p = scores.log_softmax(NAN)
    assert np.isnan(log_p[0]).all() and not np.isnan(log_p[1]).any()
    assert scores.predicted(log_p).tolist() == [-1, 1]
    assert scores.confidence(log_p)[0] == 0
    assert scores.predicted(scores.log_softmax(np.array([[np.inf, 0.0]]))).tolist() == [-1]
    labels = np.array([0, 1])
    assert np.isnan(scores.nll(log_p, labels))
    assert scores.brier(log_p, labels) == pytest.approx((1 + 2 / (1 + np.exp(2)) ** 2) / 2)
    assert scores.confusion(scores.predicted(log_p), labels, 2).tolist() == [[0, 0], [0, 1]]
    assert scores.per_class(scores.predicted(log_p), labels, 2).tolist() == [0, 1]
    # It is the first that a threshold of confidence turns away.
    coverage, risk = scores.risk_coverage(*sure_and_right(NAN, labels))
    assert coverage.tolist() == [0.5, 1] and risk.tolist() == [0, 0.5]


def test_scores_of_each_example(monkeypatch):
    """Those of the whole, part by part, each example with its own temperature."""
    logits, labels = draw(50)
    logits[7, 2] = np.nan
    own = RNG.uniform(0.5, 2, 50)
    log_p = scores.log_softmax(logits / own[:, None])
    monkeypatch.setattr(scores, "CHUNK", 30)  # of 7 classes
    each = scores.of_each(logits, labels, own)
    np.testing.assert_array_equal(each.predicted, scores.predicted(log_p))
    np.testing.assert_array_equal(scores.predicted(log_p), scores.predicted(logits))
    np.testing.assert_allclose(each.confidence, scores.confidence(log_p))
    np.testing.assert_allclose(each.entropy, scores.entropy(log_p))
    assert each.brier.mean() == pytest.approx(scores.brier(log_p, labels)) and each.brier[7] == 1
    good = np.arange(50) != 7
    assert each.nll[good].mean() == pytest.approx(scores.nll(log_p[good], labels[good]))
    assert np.isnan(each.nll[7])


def test_equal_logits_answer_the_first_class():
    assert scores.predicted(scores.log_softmax(np.zeros((2, 3)))).tolist() == [0, 0]


# ---- Brier, classes


def test_brier():
    logits, labels = draw()
    log_p = scores.log_softmax(logits)
    wanted = sk.brier_score_loss(labels, np.exp(log_p), labels=range(7), scale_by_half=False)
    assert scores.brier(log_p, labels) == pytest.approx(wanted, rel=1e-9)
    sure = scores.log_softmax(np.array([[50.0, -50.0]]))
    assert scores.brier(sure, np.array([0])) == pytest.approx(0, abs=1e-12)
    assert scores.brier(sure, np.array([1])) == pytest.approx(2, abs=1e-12)


def test_classes():
    logits, labels = draw()
    answer = scores.predicted(scores.log_softmax(logits))
    wanted = sk.confusion_matrix(labels, answer, labels=range(9))
    np.testing.assert_array_equal(scores.confusion(answer, labels, 9), wanted)
    found = scores.per_class(answer, labels, 9)
    np.testing.assert_allclose(found[:7], sk.recall_score(labels, answer, average=None))
    assert np.isnan(found[7:]).all()  # no such example


def test_one_class_and_one_example():
    answer, labels = np.array([0, 1, 0]), np.zeros(3, int)
    assert scores.per_class(answer, labels, 1 + 1)[0] == pytest.approx(2 / 3)
    assert scores.confusion(answer, labels, 2).tolist() == [[2, 1], [0, 0]]
    one = np.array([0.7]), np.array([True])
    assert scores.ece(*one) == scores.adaptive_ece(*one) == pytest.approx(0.3)
    assert scores.aurc(*one) == 0 and scores.aurc(one[0], ~one[1]) == 1


# ---- Calibration


def ece_by_definition(confidence, right, bins=15):
    """Guo et al. 2017, eq. (3), bin by bin."""
    edges, total = np.linspace(0, 1, bins + 1), 0.0
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


@pytest.mark.parametrize("count", [1, 7, 14, 500])
def test_ece(count):
    sure, right = sure_and_right(*draw(count))
    assert scores.ece(sure, right) == pytest.approx(ece_by_definition(sure, right), rel=1e-9)


def test_reliability():
    sure, right = sure_and_right(*draw())
    bins = scores.reliability(sure, right)
    accuracy, confidence = calibration_curve(right, sure, n_bins=15)
    full = bins.count > 0
    np.testing.assert_allclose(bins.accuracy[full], accuracy)
    np.testing.assert_allclose(bins.confidence[full], confidence)
    assert bins.count.sum() == 500 and np.isnan(bins.accuracy[~full]).all()


def test_bins_are_closed_on_the_right():
    sure = np.array([0.0, 0.1, 0.2, 0.2001, 1.0, 1 + 1e-12])
    assert scores.reliability(sure, sure > 2, bins=5).count.tolist() == [3, 1, 0, 0, 2]


def test_ece_by_hand():
    sure = np.array([0.9, 0.9, 0.6, 0.6])
    right = np.array([True, False, True, True])
    assert scores.ece(sure, right, bins=2) == pytest.approx(0.0)  # 0.75 right, 0.75 sure
    assert scores.ece(sure, right, bins=10) == pytest.approx(0.4)
    assert scores.adaptive_ece(sure, right, bins=2) == pytest.approx(0.4)
    assert scores.adaptive_ece(sure, right, bins=1) == pytest.approx(0.0)


def test_adaptive_ece():
    sure, right = sure_and_right(*draw(100))
    order = np.argsort(sure)
    parts = np.array_split(order, 15)
    assert {len(part) for part in parts} == {6, 7}
    wanted = sum(len(p) / 100 * abs(right[p].mean() - sure[p].mean()) for p in parts)
    assert scores.adaptive_ece(sure, right) == pytest.approx(wanted)


def test_all_equally_sure():
    sure, right = np.full(20, 0.5), np.arange(20) < 13
    for shuffled in (right, right[::-1], RNG.permutation(right)):
        assert scores.ece(sure, shuffled) == pytest.approx(0.15)
        assert scores.adaptive_ece(sure, shuffled) == pytest.approx(0.15)
        assert scores.aurc(sure, shuffled) == pytest.approx(0.35)


# ---- Ranking by confidence


def test_aurc_by_hand():
    sure = np.array([0.5, 0.9, 0.7, 0.6])
    right = np.array([False, True, False, True])
    coverage, risk = scores.risk_coverage(sure, right)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(risk, [0, 1 / 2, 1 / 3, 2 / 4])
    assert scores.aurc(sure, right) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)


def test_aurc_of_ties_is_the_mean_over_their_orders():
    sure = np.array([0.9, 0.5, 0.5, 0.5, 0.2])
    right = np.array([True, True, False, False, True])

    def of_order(middle):
        wrong = 1.0 - right[[0, *middle, 4]]
        return (wrong.cumsum() / np.arange(1, 6)).mean()

    orders = [(1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1)]
    assert scores.aurc(sure, right) == pytest.approx(np.mean([of_order(o) for o in orders]))


def test_the_end_of_the_risk_coverage_curve_is_the_error():
    sure, right = sure_and_right(*draw())
    assert scores.risk_coverage(sure, right)[1][-1] == pytest.approx(1 - right.mean())
    assert scores.aurc(sure, np.ones(500, bool)) == 0
    assert scores.aurc(sure, np.zeros(500, bool)) == 1
