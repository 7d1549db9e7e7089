"""evaluation.results: the flat names under which results are written."""

from jaxsplit import evaluation
from jaxsplit.evaluation import EXAMPLES, NETWORKS


def test_flat_names():
    split = {
        "net0": {"top1": 0.5, "nll": 1.0},
        "ensemble": {"top1": 0.75},
        NETWORKS: {"oracle": 0.875},
        EXAMPLES: {"count": 8.0, "bad_records": 1.0},
    }
    assert evaluation.flatten({"test": split, "validation": {"net0": {"top1": 0.25}}}) == {
        "test/net0/top1": 0.5,
        "test/net0/nll": 1.0,
        "test/ensemble/top1": 0.75,
        "test/oracle": 0.875,
        "test/count": 8.0,
        "test/bad_records": 1.0,
        "validation/net0/top1": 0.25,
    }
