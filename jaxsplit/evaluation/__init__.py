"""Evaluation: the table of metrics, the step that sums them, the pass over a split."""

from jaxsplit.evaluation.metrics import METRICS, Metric
from jaxsplit.evaluation.run import evaluate
from jaxsplit.evaluation.step import make_eval_step

__all__ = ["METRICS", "Metric", "evaluate", "make_eval_step"]
