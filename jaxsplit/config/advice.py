"""Warnings about settings that are valid but have no effect in a run of this length.

Every warning follows from the schedule and the lengths of the run; none is a guess.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from jaxsplit import averaging, methods
from jaxsplit.durations import Plan

# A smaller share of the initial weights in the average is not worth a warning.
_NEGLIGIBLE = 0.01


def lines(config: ConfigDict, plan: Plan) -> list[str]:
    """A warning for each setting without effect, if the run goes from its start to its end."""
    found = (_average, _rate, _labels, _method, _intervals, _stop)
    return [f"warning: {line}" for of in found for line in of(config, plan)]


def share_of_start(config: ConfigDict, steps: int) -> str:
    """A line on the share of the initial weights in the average after `steps` steps; '' if tiny."""
    share = averaging.share_of_start(config.ema, steps, warmup=config.ema_warmup)
    if not config.ema or share < 1e-4:
        return ""
    return f"ema={config.ema:g}: {share:.2%} of the average is still the initial weights"


def _average(config: ConfigDict, plan: Plan) -> Iterator[str]:
    share = averaging.share_of_start(config.ema, plan.total_steps, warmup=config.ema_warmup)
    if config.ema and share > _NEGLIGIBLE:
        yield (
            f"ema={config.ema:g}: the average is evaluated and saved, and after the "
            f"{plan.total_steps} steps of the run {share:.1%} of it will still be the initial "
            "weights; ema_warmup=True avoids that"
        )


def _rate(config: ConfigDict, plan: Plan) -> Iterator[str]:
    its, total, lr = config.schedule, plan.total_steps, config.optim.lr
    if plan.warmup_steps >= total:
        yield (
            f"schedule.warmup={its.warmup!r}: as long as the run of {total} steps, so the learning "
            "rate never falls"
        )
    if plan.warmup_steps and its.warmup_lr > lr:
        yield (
            f"schedule.warmup_lr={its.warmup_lr:g}: above optim.lr={lr:g}, so the learning rate "
            "falls during the warm-up"
        )
    if its.end_lr >= lr:
        yield (
            f"schedule.end_lr={its.end_lr:g}: not below optim.lr={lr:g}; the learning rate never "
            "falls below end_lr, so it does not decay"
        )
    after = [m for m in plan.milestones_steps if m >= total]
    if its.name == "step" and after:
        never = ", so the learning rate never falls"
        yield (
            f"schedule.milestones={tuple(its.milestones)!r}: {len(after)} of "
            f"{len(plan.milestones_steps)} are not before the end of the run, step {total}"
            f"{never if len(after) == len(plan.milestones_steps) else ''}"
        )
    hidden = [m for m in plan.milestones_steps if m <= plan.warmup_steps]
    if its.name == "step" and plan.warmup_steps and hidden:
        yield (
            f"schedule.milestones={tuple(its.milestones)!r}: {len(hidden)} of "
            f"{len(plan.milestones_steps)} are not after the warm-up, which ends at step "
            f"{plan.warmup_steps}; the learning rate falls at once when it ends"
        )
    if its.name == "exponential" and its.staircase:
        if plan.warmup_steps + plan.decay_every_steps >= total:
            yield (
                f"schedule.decay_every={its.decay_every!r}: the first decay would not come "
                f"before the end of the run, step {total}"
            )


def _labels(config: ConfigDict, plan: Plan) -> Iterator[str]:
    if config.label_loss == "bce" and not methods.METHODS[config.method].labels_only:
        yield (
            "label_loss='bce': is a mean over K classes, beside which the other losses of "
            f"method={config.method!r} weigh K times as much as beside cross_entropy; "
            "label_loss='bce_sum' avoids that"
        )


def _method(config: ConfigDict, plan: Plan) -> Iterator[str]:
    yield from methods.METHODS[config.method].advice(config, plan)


def _intervals(config: ConfigDict, plan: Plan) -> Iterator[str]:
    run = f"longer than the run of {plan.total_steps} steps, so"
    if plan.log_every > plan.total_steps:
        yield f"log_every={config.log_every!r}: {run} metrics are logged at its end only"
    if plan.eval_every > plan.total_steps:
        yield (
            f"eval.every={config.eval.every!r}: {run} it is evaluated at its end only, and the "
            "best checkpoint is the last one"
        )
    if plan.checkpoint_every > plan.total_steps:
        # The best evaluation so far is saved as well.
        saved = "it is saved at its end only, and a killed run starts again from the beginning"
        if plan.eval_every < plan.total_steps:
            saved = "it is saved at its end and at its best evaluations only"
        yield f"checkpoint.every={config.checkpoint.every!r}: {run} {saved}"


def _stop(config: ConfigDict, plan: Plan) -> Iterator[str]:
    patience = config.stop.patience
    evaluations = -(-plan.total_steps // plan.eval_every)
    # The first evaluation sets the value that the others have to exceed.
    if patience and patience + 1 >= evaluations:
        yield (
            f"stop.patience={patience}: cannot end the run early, which is evaluated only "
            f"{evaluations} times (eval.every={config.eval.every!r})"
        )
