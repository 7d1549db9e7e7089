"""Evaluation: the table of metrics, the step that sums them, the pass over a split.

Scores that need a whole split stand in `scores` (one answer), `diversity` (several networks) and
`temperature`; `predictions` holds the logits that they are computed from.
"""

from jaxsplit.evaluation.metrics import METRICS, Metric
from jaxsplit.evaluation.results import (
    EXAMPLES,
    NETWORKS,
    Results,
    SplitResults,
    answers,
    flatten,
)
from jaxsplit.evaluation.run import EvalPass, evaluate, try_first
from jaxsplit.evaluation.step import make_eval_step, make_predict_step

__all__ = [
    "EXAMPLES",
    "METRICS",
    "NETWORKS",
    "EvalPass",
    "Metric",
    "Results",
    "SplitResults",
    "answers",
    "evaluate",
    "flatten",
    "make_eval_step",
    "make_predict_step",
    "try_first",
]
