"""Augmentation on the device: ops, policies, the views built from them, mixup and CutMix."""

from jaxsplit.augment.mixing import cutmix, mix, mixup, mixup_or_cutmix
from jaxsplit.augment.views import eval_view, make_views, pipeline

__all__ = ["cutmix", "eval_view", "make_views", "mix", "mixup", "mixup_or_cutmix", "pipeline"]
