"""Predicting with the networks of a workdir: no data set and no optimizer is needed.

`jaxsplit.load(workdir)` is `predictor.load`.
"""

from jaxsplit.inference.predictor import Prediction, Predictor, load

__all__ = ["Prediction", "Predictor", "load"]
