"""The paragraph that answers "should I divide?" with the figures of a comparison.

Where the grid holds no divided network, it answers "should others teach mine?".
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence

from jaxsplit.compare import bootstrap, collect
from jaxsplit.compare.bootstrap import Difference
from jaxsplit.compare.collect import Found, Group
from jaxsplit.compare.runs import WAITING, Run
from jaxsplit.durations import in_words

YES, NO, UNCLEAR, NOTHING = "yes", "no", "not enough seeds", "nothing to compare"
# Multiply-adds up to so many times the undivided network's count as equal: whole channels do not
# divide exactly, and WRN-16-4 in two costs 1.14 times as much.
EQUAL = 1.2
LEAST_SEEDS = 3
USEFUL = 0.002  # gain of accuracy that would be worth having; the interval must not reach beyond
_MOST_SEEDS = 100


@dataclasses.dataclass(frozen=True)
class Verdict:
    """answer: YES, NO, UNCLEAR or NOTHING. sentences: the paragraph.

    best: the group that the answer is about; None with NOTHING.
    """

    answer: str
    sentences: tuple[str, ...]
    best: Group | None = None

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


def of(found: Found) -> Verdict:
    """The answer as far as the runs have come."""
    caveats = [*_failed(found.groups), *_waiting(found.groups)]
    candidates, why = _candidates(found.groups)
    if why:
        return Verdict(NOTHING, (why, *caveats))
    best = max(candidates, key=lambda group: group.difference.mean if group.difference else -1.0)
    assert best.difference is not None
    answer, first = _answer(best, best.difference)
    sentences = [first, *_price(best), *_chosen(best, candidates), *_calibration(best)]
    sentences += [*_rival(found.groups, best), *_cheapest(found.groups), *caveats]
    return Verdict(answer, tuple(sentences), best)


def _candidates(groups: Sequence[Group]) -> tuple[list[Group], str]:
    """(groups that cost no more in use than the undivided network, why there is none).

    The groups are divided networks, or single networks that others taught if the grid has no other.
    """
    if not any(group.counted for group in groups):
        return [], "No run has finished yet, so there is nothing to compare."
    singles = [group for group in groups if group.is_single]
    if not singles:
        return [], (
            "The grid has no undivided network (method single), so nothing says whether dividing "
            "pays."
        )
    if not any(group.counted for group in singles):
        return [], "No run of the undivided network has finished, so there is nothing to compare."
    divided = [group for group in groups if group.kind == "together"]
    # A grid of mutual learning or distillation alone asks whether teaching pays.
    kind = "divided" if divided else "taught"
    others = divided or [group for group in groups if not group.is_single]
    if not others:
        return [], "The grid has neither a divided nor a taught network beside the undivided one."
    finished = [group for group in others if group.counted]
    if not finished:
        return [], f"No {kind} network has finished, so there is nothing to compare."
    fair = [group for group in finished if _costs_no_more(group)]
    if not fair:
        return [], _too_dear(finished, kind)
    paired = [group for group in fair if group.difference]
    if not paired:
        return [], (
            f"No seed has both a {kind} and an undivided network with predictions, so nothing can "
            "be compared yet."
        )
    most = max(group.difference.seeds for group in paired if group.difference)
    wanted = min(most, LEAST_SEEDS)
    return [g for g in paired if g.difference and g.difference.seeds >= wanted], ""


def _too_dear(every: Sequence[Group], kind: str) -> str:
    """What is said where every divided (or taught) network costs more than the undivided one."""
    each = ", ".join(f"{group.name} {_ratio(group):.2f} times" for group in every)
    text = (
        f"Every {kind} network costs more than the undivided one: {each} its multiply-adds. A "
        "fair answer needs networks of the same cost."
    )
    found = [(its.mean, group, its) for group in every if (its := group.difference)]
    if not found:
        return text
    _, best, its = max(found, key=lambda item: item[0])
    return (
        f"{text} At its higher cost {best.name} is {points(its.mean)} percentage points from the "
        f"undivided network, with a 95 % interval from {points(its.lower)} to {points(its.upper)} "
        f"over {_seeds(its.seeds)}."
    )


def _answer(best: Group, its: Difference) -> tuple[str, str]:
    """The verdict, and the sentences that say it."""
    divide = best.kind == "together"
    which = (
        f"The best divided network at equal cost ({_times(_ratio(best))} the multiply-adds)"
        if divide
        else f"The best network that others taught ({_times(_training_ratio(best))} the "
        "multiply-adds in training)"
    )
    where = (
        f"{which} is {best.name}: it answers "
        f"{_of(best)} % of the test images right, the undivided network {_of_reference(best)} %. "
        f"The difference is {points(its.mean)} percentage points, with a 95 % interval from "
        f"{points(its.lower)} to {points(its.upper)} over {_seeds(its.seeds)} and "
        f"{its.images:,} test images."
    )
    if its.seeds < LEAST_SEEDS:
        short = LEAST_SEEDS - its.seeds
        return UNCLEAR, (
            f"Not enough seeds to tell. {where} {_seeds(its.seeds).capitalize()} cannot show how "
            f"much seeds differ; run {short} more at least."
        )
    if its.lower > 0:
        return YES, f"Yes, {'divide' if divide else 'let others teach it'}. {where}"
    if its.upper < 0:
        how = "do not divide" if divide else "train it alone"
        return NO, f"No, {how}. {where} The whole interval lies below zero."
    if its.upper <= USEFUL:
        what = "dividing" if divide else "teaching"
        return NO, (
            f"No, {what} does not pay here. {where} A gain of more than {points(USEFUL)} points "
            "is unlikely."
        )
    return UNCLEAR, f"Not enough seeds to tell. {where} The interval holds zero. {_more_seeds(its)}"


def _more_seeds(its: Difference) -> str:
    needed = bootstrap.seeds_needed(its, _MOST_SEEDS)
    if needed is not None and needed > its.seeds:
        more = needed - its.seeds
        return (
            f"If the difference and the deviation stay as they are, about {more} more "
            f"seed{'s' * (more != 1)} would probably tell."
        )
    limit = bootstrap.half_width(its, _MOST_SEEDS)
    return (
        f"More seeds would hardly tell either: with {_MOST_SEEDS} the interval would still reach "
        f"{100 * limit:.2f} points to both sides. It needs more test images."
        if its.of_images > its.of_seeds * its.seeds / _MOST_SEEDS
        else f"Even {_MOST_SEEDS} seeds would hardly tell so small a difference."
    )


def _price(best: Group) -> list[str]:
    """At what training time and latency."""
    parts = []
    ours, theirs = best.mean(collect.seconds), _reference_mean(best, collect.seconds)
    if ours and theirs:
        parts.append(
            f"trains {_times(ours / theirs)} as long ({in_words(ours)}, not {in_words(theirs)})"
        )
    if ratio := best.mean(collect.latency_ratio):
        its = next(run.latency for run in best.counted if run.latency)
        parts.append(
            f"answers a batch of {its.batch:,} in {_times(ratio)} the time on one device "
            f"({its.where})"
        )
    return [f"Beside the undivided network it {' and '.join(parts)}."] if parts else []


def _chosen(best: Group, candidates: Sequence[Group]) -> list[str]:
    if len(candidates) < 2:
        return []
    return [
        f"It was chosen among {len(candidates)} by these results, which makes it look a little "
        "better than it is."
    ]


def _calibration(best: Group) -> list[str]:
    """NLL after temperature scaling, of the same seeds."""
    found = best.nll_differences
    if not found:
        return []
    mean, lower = statistics.fmean(found), sum(one < 0 for one in found)
    spread = f" ± {statistics.stdev(found):.4f}" if len(found) > 1 else ""
    interval = ""
    if its := best.nll_difference:
        interval = f", 95 % interval of the difference from {nats(its.lower)} to {nats(its.upper)}"
    how = "better" if mean < 0 else "no better" if mean == 0 else "worse"
    return [
        f"Its probabilities are {how}: after temperature scaling its NLL is "
        f"{abs(mean):.4f}{spread} nats {'lower' if mean < 0 else 'higher'} than that of the "
        f"undivided network{interval}, and lower in {lower} of {_seeds(len(found))}."
    ]


def _rival(groups: Sequence[Group], best: Group) -> list[str]:
    """A group of the same deployed cost that is more accurate, where one network answers."""
    assert best.difference is not None
    rivals = [
        group
        for group in groups
        if best.kind == "together"  # otherwise the best is such a group itself
        if group.kind == "one of several" and group.difference and _costs_no_more(group)
        if group.difference.seeds >= min(LEAST_SEEDS, best.difference.seeds)
        if group.difference.mean > max(best.difference.mean, 0.0)
    ]
    if not rivals:
        return []
    first = max(rivals, key=lambda group: group.difference.mean if group.difference else -1.0)
    assert first.difference is not None
    return [
        f"More accurate at this cost is {first.name}, one network that others helped to train: "
        f"{points(first.difference.mean)} points to the undivided network, 95 % interval from "
        f"{points(first.difference.lower)} to {points(first.difference.upper)}."
    ]


def _cheapest(groups: Sequence[Group]) -> list[str]:
    """The quickest group, and the cheapest cascade, that are as accurate as the undivided."""
    singles = [group for group in groups if group.is_single and group.counted]
    level = [_level(group) for group in singles]
    as_good = [
        group
        for group in groups
        if not group.is_single and group.counted and _level(group) >= _of_level(group, level)
    ]
    if not as_good:
        return ["No group is as accurate as the undivided network, at any latency."]
    return [*_quickest(as_good), *_cheapest_cascade(groups, level)]


def _quickest(as_good: Sequence[Group]) -> list[str]:
    timed = [(ratio, group) for group in as_good if (ratio := group.mean(collect.latency_ratio))]
    if not timed:
        return ["No latency was measured of a group that is as accurate as the undivided network."]
    ratio, quickest = min(timed, key=lambda item: item[0])
    if ratio >= 1:
        return [
            "No group is both as accurate as the undivided network and quicker; the quickest as "
            f"accurate is {quickest.name}, at {_times(ratio)} its latency."
        ]
    return [
        f"The quickest group that is as accurate as the undivided network is {quickest.name}, at "
        f"{_times(ratio)} its latency."
    ]


def _cheapest_cascade(groups: Sequence[Group], level: Sequence[float]) -> list[str]:
    found = []
    for group in groups:
        accuracy, macs = group.mean(collect.cascade_top1), group.mean(collect.cascade_macs)
        theirs = _reference_macs(group)
        if accuracy is None or macs is None or not theirs:
            continue
        if accuracy >= _of_level(group, level):
            found.append((macs / theirs, accuracy, group))
    if not found:
        return []
    share, accuracy, group = min(found, key=lambda item: item[0])
    return [
        f"As a cascade {group.name} answers {100 * accuracy:.2f} % right at {100 * share:.0f} % of "
        "the undivided network's multiply-adds on average."
    ]


def _level(group: Group) -> float:
    found = group.mean(collect.top1)
    return -math.inf if found is None else found


def _of_level(group: Group, level: Sequence[float]) -> float:
    """The accuracy of the undivided network that the group is compared with."""
    found = _reference_mean(group, collect.top1)
    return max(level) if found is None else found


# ---- What is missing


def _failed(groups: Sequence[Group]) -> list[str]:
    found = [run.name for group in groups for run in group.failed]
    if not found:
        return []
    others = "the others count"
    if len(found) == 1:
        return [f"The run {found[0]} failed; {others}."]
    return [f"{len(found)} runs failed ({', '.join(found)}); {others}."]


def _waiting(groups: Sequence[Group]) -> list[str]:
    every = [run for group in groups for run in group.runs]
    left = [run for run in every if not run.counts and run not in _all_failed(groups)]
    if not left:
        return []
    state = "not started" if all(run.status == WAITING for run in left) else "not finished"
    return [f"{len(left)} of {len(every)} runs {'is' if len(left) == 1 else 'are'} {state} yet."]


def _all_failed(groups: Sequence[Group]) -> list:
    return [run for group in groups for run in group.failed]


# ---- Numbers


def points(difference: float) -> str:
    """A difference of shares in percentage points: '+0.83', '-0.10', '0.00'."""
    return _signed(100 * difference, 2)


def nats(difference: float) -> str:
    """A difference of NLLs: '+0.0083', '-0.0010', '0.0000'."""
    return _signed(difference, 4)


def _signed(value: float, digits: int) -> str:
    text = f"{value:+.{digits}f}"
    if not text.strip("+-0."):
        return text[1:]
    return text.replace("-", "\N{MINUS SIGN}")


def _of(group: Group) -> str:
    found = group.spread(collect.top1)
    assert found is not None
    return _percent(found.mean, found.deviation)


def _of_reference(group: Group) -> str:
    found = bootstrap.spread([v for r in group.reference if (v := collect.top1(r)) is not None])
    assert found is not None
    return _percent(found.mean, found.deviation)


def _percent(mean: float, deviation: float) -> str:
    spread = "" if math.isnan(deviation) else f" ± {100 * deviation:.2f}"
    return f"{100 * mean:.2f}{spread}"


def _reference_mean(group: Group, take: Callable[[Run], float | None]) -> float | None:
    values = [value for run in group.reference if run.counts and (value := take(run)) is not None]
    return statistics.fmean(values) if values else None


def _reference_macs(group: Group) -> int | None:
    return group.reference[0].macs if group.reference else None


def _ratio(group: Group) -> float:
    """Multiply-adds beside those of the undivided network; 1 where they are not known."""
    theirs = _reference_macs(group)
    return group.cost.macs / theirs if group.cost.macs and theirs else 1.0


def _training_ratio(group: Group) -> float:
    """The same in training."""
    theirs = group.reference[0].train_macs if group.reference else None
    return group.cost.train_macs / theirs if group.cost.train_macs and theirs else 1.0


def _costs_no_more(group: Group) -> bool:
    return _ratio(group) <= EQUAL


def _times(ratio: float) -> str:
    return f"{ratio:.2f} times"


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"
