"""Evaluation: the table of metrics, the step that sums them, the pass over a split."""

from jaxsplit.evaluation.metrics import METRICS, Metric
from jaxsplit.evaluation.results import EXAMPLES, NETWORKS, Results, SplitResults, flatten
from jaxsplit.evaluation.run import evaluate, try_first
from jaxsplit.evaluation.step import make_eval_step

__all__ = [
    "EXAMPLES",
    "METRICS",
    "Metric",
    "NETWORKS",
    "Results",
    "SplitResults",
    "evaluate",
    "flatten",
    "make_eval_step",
    "try_first",
]
