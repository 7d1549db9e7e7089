"""compare.verdict: every answer that the paragraph can give, with its figures."""

import dataclasses
import pathlib

import numpy as np
import pytest

from jaxsplit.compare import collect, runs, verdict
from jaxsplit.compare.collect import Found
from jaxsplit.compare.runs import Images, Latency, Run, Scores
from jaxsplit.inference.cascade import Point

COUNT, MACS = 1000, 1_000_000


def run(method: str, split: int, seed: int, wrong: int, **fields) -> Run:
    """A finished run that answers the last `wrong` of 1000 images wrong."""
    right = (np.arange(COUNT) < COUNT - wrong).astype(float)
    cascade = fields.pop("cascade", None)
    nll = fields.pop("nll", 0.3)
    scores = Scores(1 - wrong / COUNT, nll, 0.02, None, None, None, None)
    images = Images(np.arange(COUNT), right, cascade)
    made = Run(
        name=f"{method}-s{split}-seed{seed}",
        path=pathlib.Path("none"),
        method=method,
        split=split,
        seed=seed,
        axes=(),
        status=runs.FINISHED,
        error="",
        params=10,
        macs=MACS,
        train_macs=MACS,
        seconds=100.0,
        answer="ensemble" if split > 1 else "net0",
        scores=dataclasses.replace(scores, images=images),
        latency=None,
    )
    return dataclasses.replace(made, **fields)


def lost(one: Run, status: str = runs.FAILED) -> Run:
    return dataclasses.replace(one, status=status, scores=None)


def judged(*every: Run) -> verdict.Verdict:
    folder = pathlib.Path("none")
    return verdict.of(Found(folder, {}, every, tuple(collect.groups(every))))


def grid(singles: list[int], divided: list[int], **fields) -> list[Run]:
    """Runs of seeds 0, 1 ... with so many wrong images."""
    return [run("single", 1, i, n) for i, n in enumerate(singles)] + [
        run("cotrain", 4, i, n, **fields) for i, n in enumerate(divided)
    ]


def test_yes():
    found = judged(*grid([100, 102, 98], [60, 61, 59], seconds=150.0, nll=0.25))
    assert found.answer == verdict.YES
    assert found.text.startswith("Yes, divide. The best divided network at equal cost (1.00 times")
    assert "cotrain S=4: it answers 94.00 ± 0.10 % of the test images right" in found.text
    assert "the undivided network 90.00 ± 0.20 %" in found.text
    assert "The difference is +4.00 percentage points" in found.text
    assert "over 3 seeds and 1,000 test images" in found.text
    assert "trains 1.50 times as long (2.5 minutes, not 1.7 minutes)" in found.text
    assert "after temperature scaling its NLL is 0.0500 ± 0.0000 nats lower" in found.text
    assert "lower in 3 of 3 seeds" in found.text


def test_no_where_the_whole_interval_lies_below_zero():
    found = judged(*grid([60, 61, 59], [100, 102, 98]))
    assert found.answer == verdict.NO
    assert found.text.startswith("No, do not divide.") and "lies below zero" in found.text
    assert "The difference is \N{MINUS SIGN}4.00 percentage points" in found.text
    assert "No group is as accurate as the undivided network" in found.text


def test_no_where_a_useful_gain_is_unlikely():
    found = judged(*grid([60, 61, 60], [61, 61, 60]))
    assert found.answer == verdict.NO
    assert found.text.startswith("No, dividing does not pay here.")
    assert "A gain of more than +0.20 points is unlikely." in found.text


def test_a_wide_interval_around_no_gain_tells_nothing():
    found = judged(*grid([60, 90, 75], [60, 93, 73]))
    assert found.answer == verdict.UNCLEAR
    assert found.text.startswith("Not enough seeds to tell.")


@pytest.mark.parametrize(("seeds", "more"), [(1, "run 2 more"), (2, "run 1 more")])
def test_fewer_than_three_seeds_never_tell(seeds, more):
    found = judged(*grid([100] * seeds, [20] * seeds))
    assert found.answer == verdict.UNCLEAR
    assert found.text.startswith("Not enough seeds to tell.") and more in found.text


def test_not_enough_seeds_says_how_many_more():
    found = judged(*grid([80, 90, 100], [70, 90, 90]))
    assert found.answer == verdict.UNCLEAR
    assert "The interval holds zero." in found.text
    assert "more seeds would probably tell" in found.text


def test_not_enough_test_images():
    # The same few images in every seed: more seeds do not narrow what they say.
    found = judged(*grid([10, 10, 10], [9, 9, 9]))
    assert found.answer == verdict.UNCLEAR
    assert "It needs more test images." in found.text


def test_runs_that_failed_are_named_and_the_others_count():
    every = grid([100, 102, 98, 100], [60, 61, 59])
    found = judged(*every, lost(run("cotrain", 4, 3, 0)))
    assert found.answer == verdict.YES
    assert "The run cotrain-s4-seed3 failed; the others count." in found.text
    assert "over 3 seeds" in found.text
    two = judged(*every, lost(run("cotrain", 4, 3, 0)), lost(run("single", 1, 4, 0)))
    assert "2 runs failed (single-s1-seed4, cotrain-s4-seed3)" in two.text


def test_runs_to_come_are_counted():
    every = grid([100, 102, 98], [60, 61, 59])
    waiting = lost(run("independent", 4, 0, 0), runs.WAITING)
    assert "1 of 7 runs is not started yet." in judged(*every, waiting).text
    stopped = lost(run("independent", 4, 1, 0), "stopped")
    assert "2 of 8 runs are not finished yet." in judged(*every, waiting, stopped).text


def test_networks_that_cost_more_are_no_answer():
    dear = [run("cotrain", 4, i, 20, macs=2 * MACS, train_macs=2 * MACS) for i in range(3)]
    found = judged(*(run("single", 1, i, 100) for i in range(3)), *dear)
    assert found.answer == verdict.NOTHING
    assert "cotrain S=4 2.00 times its multiply-adds" in found.text
    assert "At its higher cost cotrain S=4 is +8.00 percentage points" in found.text
    fair = [run("independent", 2, i, 80) for i in range(3)]
    best = judged(*(run("single", 1, i, 100) for i in range(3)), *dear, *fair).best
    assert best is not None and best.method == "independent"


def test_one_network_that_others_trained_is_named_beside():
    every = grid([100, 102, 98], [60, 61, 59])
    peers = dict(answer="net0", train_macs=4 * MACS)
    dml = [run("dml", 4, i, 30, **peers) for i in range(3)]
    found = judged(*every, *dml)
    assert found.best is not None and found.best.method == "cotrain"
    assert "More accurate at this cost is dml S=4" in found.text and "+7.00 points" in found.text
    worse = [run("dml", 4, i, 70, **peers) for i in range(3)]
    assert "dml" not in judged(*every, *worse).text


@pytest.mark.parametrize(
    ("wrong", "answer", "opening"),
    [
        ([60, 61, 59], verdict.YES, "Yes, let others teach it. "),
        ([140, 141, 139], verdict.NO, "No, train it alone. "),
        ([99, 104, 97], verdict.UNCLEAR, "Not enough seeds to tell. "),
    ],
)
def test_a_grid_without_a_divided_network_tells_whether_teaching_pays(wrong, answer, opening):
    every = [run("single", 1, i, n) for i, n in enumerate([100, 102, 98])]
    taught = dict(answer="leader", train_macs=4 * MACS)
    every += [run("ffsd", 2, i, n, **taught) for i, n in enumerate(wrong)]
    found = judged(*every, *(run("dml", 2, i, 200, **taught) for i in range(3)))
    assert found.answer == answer and found.text.startswith(opening)
    assert "(4.00 times the multiply-adds in training) is ffsd S=2: it answers " in found.text
    assert "chosen among 2" in found.text and "More accurate at this cost" not in found.text


@pytest.mark.parametrize(
    ("answer", "split", "share", "one"),
    [
        ("net0", 1, 1.0, False),
        ("ensemble", 4, 1.0, False),
        ("gated", 4, 1.0, False),  # an answer of all networks by another name
        ("leader", 4, 0.24, True),  # FFSD: four students and a fusion module train
        ("leader", 4, 0.6, True),  # OKDDip on a shared trunk
        ("net0", 4, 1.0, True),
        ("ensemble", 4, 0.25, False),  # MIMO shows each image 4 times in a step
    ],
)
def test_whether_one_of_several_networks_answers(answer, split, share, one):
    made = run("any", split, 0, 0, answer=answer, macs=int(share * MACS))
    assert made.one_of_several == one


def test_latency_and_cascade():
    quick = Latency(1, 0.5e-3, 1e-3, 0.3e-3, "a CPU with 2 cores")
    point = Point(0.9, 0.95, 0.4 * MACS, 0.4, (1.0,))
    found = judged(*grid([100, 102, 98], [60, 61, 59], latency=quick, cascade=point))
    assert "answers a batch of 1 in 0.50 times the time on one device" in found.text
    assert "The quickest group" in found.text and "cotrain S=4, at 0.50 times" in found.text
    assert "As a cascade cotrain S=4 answers 95.00 % right at 40 %" in found.text
    slow = dataclasses.replace(quick, answer=2e-3)
    text = judged(*grid([100, 102, 98], [60, 61, 59], latency=slow)).text
    assert "quicker; the quickest as accurate is cotrain S=4, at 2.00 times its latency" in text
    assert "No latency was measured" in judged(*grid([100, 102, 98], [60, 61, 59])).text


def test_best_of_several_is_said():
    more = [run("independent", 2, i, 80) for i in range(3)]
    text = judged(*grid([100, 102, 98], [60, 61, 59]), *more).text
    assert "chosen among 2" in text


@pytest.mark.parametrize(
    ("every", "text"),
    [
        ([lost(run("single", 1, 0, 0), runs.WAITING)], "No run has finished yet"),
        ([run("cotrain", 4, 0, 0)], "no undivided network"),
        ([lost(run("single", 1, 0, 0)), run("cotrain", 4, 0, 0)], "No run of the undivided"),
        ([run("single", 1, 0, 0), lost(run("cotrain", 4, 0, 0))], "No divided network has"),
        ([run("single", 1, 0, 0), run("cotrain", 4, 1, 0)], "No seed has both"),
        ([run("single", 1, 0, 0), run("distill_from", 1, 1, 0)], "No seed has both a taught"),
        ([run("single", 1, 0, 0)], "has neither a divided nor a taught"),
    ],
)
def test_nothing_to_compare(every, text):
    found = judged(*every)
    assert found.answer == verdict.NOTHING and found.best is None
    assert text in found.text


def test_points():
    assert verdict.points(0.01234) == "+1.23"
    assert verdict.points(-0.01) == "\N{MINUS SIGN}1.00"
    assert verdict.points(-1e-9) == "0.00"
