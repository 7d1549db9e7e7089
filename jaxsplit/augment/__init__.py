"""Views made on the device: image ops (`ops`); views and mixup built from them (`views`)."""

from jaxsplit.augment.views import eval_view, make_views, mix, mixup, pipeline

__all__ = ["eval_view", "make_views", "mix", "mixup", "pipeline"]
