"""Settings that a run takes without an error but that do not do what they are there for.

Nothing is guessed: every line follows from the schedules and lengths of the run itself.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from jaxsplit import averaging, methods
from jaxsplit.durations import Plan

# Below this share of what it started from an average is as good as one that never held it.
_NEGLIGIBLE = 0.01


def lines(config: ConfigDict, plan: Plan) -> list[str]:
    """A line for each setting that the run, made from its start to its end, makes nothing of."""
    found = (_average, _rate, _method, _intervals, _stop)
    return [f"warning: {line}" for of in found for line in of(config, plan)]


def share_of_start(config: ConfigDict, steps: int) -> str:
    """A line on the average of the weights after so many steps; '' where it holds nothing of what
    it started from."""
    share = averaging.share_of_start(config.ema, steps, warmup=config.ema_warmup)
    if not config.ema or share < 1e-4:
        return ""
    return f"ema={config.ema:g}: {share:.2%} of the average is still what the run started from"


def _average(config: ConfigDict, plan: Plan) -> Iterator[str]:
    share = averaging.share_of_start(config.ema, plan.total_steps, warmup=config.ema_warmup)
    if config.ema and share > _NEGLIGIBLE:
        yield (
            f"ema={config.ema:g}: after the {plan.total_steps} steps of the run {share:.1%} of the "
            "average, which is evaluated and saved, will still be what it started from; "
            "ema_warmup=True avoids that"
        )


def _rate(config: ConfigDict, plan: Plan) -> Iterator[str]:
    its, total, lr = config.schedule, plan.total_steps, config.optim.lr
    if plan.warmup_steps >= total:
        yield (
            f"schedule.warmup={its.warmup!r}: as long as the run of {total} steps, so that the "
            "learning rate only rises"
        )
    if plan.warmup_steps and its.warmup_lr > lr:
        yield (
            f"schedule.warmup_lr={its.warmup_lr:g}: above optim.lr={lr:g}, so that the learning "
            "rate falls during the warm-up"
        )
    if its.end_lr >= lr:
        yield (
            f"schedule.end_lr={its.end_lr:g}: not below optim.lr={lr:g}; nothing of the schedule "
            "falls below it, so that the learning rate does not decay"
        )
    after = [m for m in plan.milestones_steps if m >= total]
    if its.name == "step" and after:
        never = ", so that the learning rate never falls"
        yield (
            f"schedule.milestones={tuple(its.milestones)!r}: {len(after)} of "
            f"{len(plan.milestones_steps)} not before the end of the run, step {total}"
            f"{never if len(after) == len(plan.milestones_steps) else ''}"
        )
    hidden = [m for m in plan.milestones_steps if m <= plan.warmup_steps]
    if its.name == "step" and plan.warmup_steps and hidden:
        yield (
            f"schedule.milestones={tuple(its.milestones)!r}: {len(hidden)} of "
            f"{len(plan.milestones_steps)} not after the warm-up, step {plan.warmup_steps}, at "
            "whose end the learning rate falls at once"
        )
    if its.name == "exponential" and its.staircase:
        if plan.warmup_steps + plan.decay_every_steps >= total:
            yield (
                f"schedule.decay_every={its.decay_every!r}: the first decay is not before the end "
                f"of the run, step {total}"
            )


def _method(config: ConfigDict, plan: Plan) -> Iterator[str]:
    yield from methods.METHODS[config.method].advice(config, plan)


def _intervals(config: ConfigDict, plan: Plan) -> Iterator[str]:
    run = f"longer than the run of {plan.total_steps} steps, so that"
    if plan.log_every > plan.total_steps:
        yield f"log_every={config.log_every!r}: {run} only its end is logged"
    if plan.eval_every > plan.total_steps:
        yield (
            f"eval.every={config.eval.every!r}: {run} only its end is evaluated, and `best` is the "
            "last checkpoint"
        )
    if plan.checkpoint_every > plan.total_steps:
        # An evaluation that is the best so far is saved, too.
        saved = "only its end is saved; one that is killed begins anew"
        if plan.eval_every < plan.total_steps:
            saved = "only its end and its best evaluations are saved"
        yield f"checkpoint.every={config.checkpoint.every!r}: {run} {saved}"


def _stop(config: ConfigDict, plan: Plan) -> Iterator[str]:
    patience = config.stop.patience
    evaluations = -(-plan.total_steps // plan.eval_every)
    # The first one sets what the others have to exceed.
    if patience and patience + 1 >= evaluations:
        yield (
            f"stop.patience={patience}: never ends the run before its end, as it is evaluated "
            f"{evaluations} times (eval.every={config.eval.every!r})"
        )
