"""compare.collect: folders of runs become rows; failed, missing and broken ones are shown."""

import csv
import dataclasses
import json
import math
import statistics

import numpy as np
import pytest

from jaxsplit.compare import collect, runs
from jaxsplit.errors import ConfigError
from jaxsplit.evaluation import predictions, record
from tests.support import comparisons

COUNT = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three seeds of single, an ensemble and DML; a failed run, one to come."""
    path = tmp_path_factory.mktemp("compare")
    entries = []
    for seed in range(3):
        made = dict(count=COUNT, seconds=60.0 + seed)
        first = (0.5, 0.25) if seed == 0 else None
        entries += [
            comparisons.run(path, "single", 1, seed, top1=0.8, latency_ms=(1, 1), **made),
            comparisons.run(path, "cotrain", 2, seed, top1=0.85, latency_ms=first, **made),
            comparisons.run(path, "dml", 2, seed, one_of_several=True, **made),
        ]
    lost = dict(axes={"cotrain.weight": 0.5}, status="failed", error="the loss is NaN, at step 3")
    entries.append(comparisons.run(path, "cotrain", 2, 0, **lost))
    entries.append(comparisons.run(path, "cotrain", 2, 1, axes=lost["axes"], status="waiting"))
    return comparisons.write(path, entries, axes={"cotrain.weight": [0.1, 0.5]})


@pytest.fixture(scope="module")
def found(folder):
    return collect.write(folder)


def group(found, name: str) -> collect.Group:
    return next(one for one in found.groups if one.name == name)


def rows(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_groups_are_runs_that_differ_in_the_seed(found):
    names = [one.name for one in found.groups]
    assert names == ["single", "cotrain S=2", "dml S=2", "cotrain S=2 weight=0.5"]
    assert [len(one.runs) for one in found.groups] == [3, 3, 3, 2]
    kinds = ["undivided", "together", "one of several"]
    assert [one.kind for one in found.groups[:3]] == kinds


def test_scores_are_those_of_the_evaluation(found, folder):
    one = next(run for run in found.runs if run.name == "cotrain-s2-seed1")
    evaluation = json.loads((one.path / record.FILE).read_text())
    test = evaluation["splits"]["test"]
    scaled = evaluation["temperature"]["answers"]["ensemble"]["after"]
    assert one.scores is not None and one.scores.images is not None
    assert one.scores.top1 == test["answers"]["ensemble"]["top1"] == one.scores.images.right.mean()
    assert (one.scores.nll, one.scores.ece) == (scaled["nll"], scaled["ece"])
    alone = [test["answers"][name]["top1"] for name in ("net0", "net1")]
    assert one.scores.networks_top1 == pytest.approx(statistics.fmean(alone))
    apart = evaluation["diversity_gap"]["disagreement"]
    assert (one.scores.disagreement, one.scores.gap) == (apart["test"], apart["gap"])


def test_one_network_is_compared_where_one_is_deployed(found):
    dml = group(found, "dml S=2")
    assert {run.answer for run in dml.runs} == {"net0"}
    evaluation = json.loads((dml.runs[0].path / record.FILE).read_text())
    alone = evaluation["splits"]["test"]["answers"]["net0"]["top1"]
    assert collect.top1(dml.runs[0]) == alone
    assert collect.cascade_top1(dml.runs[0]) is None  # it has nothing to ask next


def test_the_difference_is_of_the_same_seeds_and_images(found):
    its = group(found, "cotrain S=2").difference
    means = []
    for seed in range(3):
        both = [r for r in found.runs if r.seed == seed and r.name.startswith(("single", "cot"))]
        single, divided = (collect.top1(run) for run in both[:2])
        means.append(divided - single)
    assert its is not None and (its.seeds, its.images) == (3, COUNT)
    assert its.mean == pytest.approx(statistics.fmean(means))
    assert its.of_seeds == pytest.approx(statistics.variance(means) / 3)
    assert group(found, "single").difference is None


def test_differences_of_probabilities(found):
    """NLL over seeds and images; an ECE is of a whole test set, so over the seeds alone."""
    its = group(found, "cotrain S=2")
    assert its.nll_difference is not None and its.ece_difference is not None
    assert its.nll_difference.mean == pytest.approx(statistics.fmean(its.nll_differences), abs=1e-6)
    assert (its.nll_difference.seeds, its.nll_difference.images) == (3, COUNT)
    deviation = statistics.stdev(its.ece_differences) / 3**0.5
    width = its.ece_difference.upper - its.ece_difference.lower
    assert 0.5 * 2 * 4.3 * deviation < width < 2 * 4.3 * deviation * 1.1  # t at two degrees: 4.3
    one = dataclasses.replace(its, ece_differences=its.ece_differences[:1])
    assert one.ece_difference is None


def test_latency_of_one_network_that_answers_for_several(tmp_path):
    """MIMO: it costs a little more than the undivided network, timed beside it."""
    entry = comparisons.run(tmp_path, "mimo", 4, 0, macs=comparisons.MACS + 1000)
    path = tmp_path / entry["name"]
    comparisons.timed(path, 1, comparisons.MACS, 1.0, 1.0)
    record_ = json.loads((path / "latency.json").read_text())
    row = record_["candidates"][0] | {"name": "one network", "macs": comparisons.MACS + 1000}
    record_["candidates"].append(row)
    for cell in list(record_["cells"]):
        slower = {name: 2 * value for name, value in cell["seconds"].items()}
        record_["cells"].append(cell | {"candidate": "one network", "seconds": slower})
    (path / "latency.json").write_text(json.dumps(record_))
    (run,) = collect.read(comparisons.write(tmp_path, [entry | {"answer": "ensemble"}])).runs
    assert not run.one_of_several
    assert collect.latency_ratio(run) == pytest.approx(2)


def test_cascade_is_as_accurate_as_its_share_of_multiply_adds_allows(found):
    for run in group(found, "cotrain S=2").runs:
        macs, top1 = collect.cascade_macs(run), collect.cascade_top1(run)
        assert macs is not None and top1 is not None and run.macs is not None
        assert 0.5 * run.macs <= macs <= run.macs
        assert abs(top1 - collect.top1(run)) < 0.05


def test_latency_is_that_of_the_answer_on_one_device(found):
    first = group(found, "cotrain S=2").runs[0]
    assert first.latency is not None and first.latency.batch == 1
    assert first.latency.where == "a CPU with 2 cores"
    assert collect.latency(first) == pytest.approx(0.5e-3)
    assert collect.latency_ratio(first) == pytest.approx(0.5)
    assert collect.cascade_latency(first) == pytest.approx(0.25e-3)
    assert collect.latency(group(found, "single").runs[0]) == pytest.approx(1e-3)
    assert group(found, "dml S=2").runs[0].latency is None


def test_failed_and_missing_runs_are_shown(found):
    weight = group(found, "cotrain S=2 weight=0.5")
    assert [run.status for run in weight.runs] == ["failed", "waiting"]
    assert weight.counted == [] and weight.difference is None
    assert weight.runs[0].error == "the loss is NaN, at step 3"
    assert weight.spread(collect.top1) is None


def test_files_hold_full_precision(found, folder):
    by_run = {row["run"]: row for row in rows(folder / collect.RUNS)}
    assert list(by_run) == [run.name for run in found.runs]
    for run in found.runs:
        row = by_run[run.name]
        assert row["top1"] == ("" if run.scores is None else repr(run.scores.top1))
        assert row["status"] == run.status
    assert by_run["cotrain-s2-weight=0.5-seed0"]["error"] == "the loss is NaN, at step 3"
    by_group = rows(folder / collect.GROUPS)
    cotrain, single = by_group[1], by_group[0]
    its = group(found, "cotrain S=2")
    assert its.difference is not None
    assert float(cotrain["difference_lower"]) == its.difference.lower
    assert cotrain["difference_over"] == "seeds and test images"
    assert (cotrain["seeds"], cotrain["failed"], cotrain["waiting"]) == ("3", "0", "0")
    assert (by_group[3]["seeds"], by_group[3]["failed"], by_group[3]["waiting"]) == ("0", "1", "1")
    assert by_group[3]["cotrain.weight"] == "0.5" and cotrain["cotrain.weight"] == ""
    assert single["difference"] == "" and single["params"] == str(comparisons.MACS // 8)
    values = [collect.top1(run) for run in its.runs]
    assert float(cotrain["top1"]) == pytest.approx(statistics.fmean(values))
    assert float(cotrain["top1_deviation"]) == pytest.approx(statistics.stdev(values))
    assert single["seconds_deviation"] == "1.0"


def test_a_second_reading_gives_the_same(found, folder):
    again = collect.read(folder)
    assert [g.difference for g in again.groups] == [g.difference for g in found.groups]


def test_an_axis_of_all_methods_has_an_undivided_network_at_each_value(tmp_path):
    made = [
        comparisons.run(tmp_path, method, split, 0, axes={"optim.lr": lr}, top1=top1, count=50)
        for method, split, tops in (("single", 1, (0.6, 0.8)), ("cotrain", 2, (0.7, 0.7)))
        for lr, top1 in zip((0.1, 0.2), tops, strict=True)
    ]
    found = collect.read(comparisons.write(tmp_path, made))
    for lr in (0.1, 0.2):
        its = next(g for g in found.groups if g.method == "cotrain" and g.axes[0][1] == lr)
        assert [run.axes for run in its.reference] == [(("optim.lr", lr),)]
        assert its.difference is not None
        assert its.difference.mean == pytest.approx(
            collect.top1(its.runs[0]) - collect.top1(its.reference[0])
        )


def test_images_that_one_run_has_skipped_count_nowhere(tmp_path):
    made = [
        comparisons.run(tmp_path, m, s, 0, count=50) for m, s in (("single", 1), ("cotrain", 2))
    ]
    path = tmp_path / "cotrain-s2-seed0" / predictions.FILE
    whole = predictions.read(path)
    kept = np.arange(50) != 7
    test = whole.splits["test"]
    part = predictions.SplitPredictions(
        test.labels[kept], test.index[kept], {k: v[kept] for k, v in test.logits.items()}
    )
    predictions.write(path, predictions.Predictions(whole.step, {"test": part}))
    its = collect.read(comparisons.write(tmp_path, made)).groups[1].difference
    single = predictions.read(tmp_path / "single-s1-seed0" / predictions.FILE).splits["test"]
    theirs = (single.logits["net0"].argmax(1) == single.labels)[kept].mean()
    ours = (part.logits["ensemble"].argmax(1) == part.labels).mean()
    assert its is not None and its.images == 49
    assert its.mean == pytest.approx(ours - theirs)


# ---- Files that are not as they should be


@pytest.fixture
def one(tmp_path):
    """(folder, path of its only run)."""
    entry = comparisons.run(tmp_path, "cotrain", 2, 0, count=30)
    return comparisons.write(tmp_path, [entry]), tmp_path / entry["name"]


def only(folder) -> runs.Run:
    (run,) = collect.write(folder).runs
    return run


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        (record.FILE, "{", "Expecting"),
        (record.FILE, '{"format": 9}', "format=9: must be 1"),
        (record.FILE, '{"format": 1}', "answer"),
        (runs.STATUS, "[]", "cannot be read"),
        (runs.STATUS, '{"status": "done"}', "must be one of finished, failed"),
        (predictions.FILE, "no zip", ""),
        ("latency.json", "{}", "jaxsplit latency"),
    ],
)
def test_broken_files_make_a_run_one_that_failed(one, file, text, reason):
    folder, path = one
    (path / file).write_text(text)
    run = only(folder)
    assert run.status == "failed" and not run.counts
    assert reason in run.error and "\n" not in run.error and run.error


def test_a_finished_run_without_evaluation_has_failed(one):
    folder, path = one
    (path / record.FILE).unlink()
    assert only(folder).error == "eval.json is missing"


def test_an_nll_that_is_not_finite_is_a_failure(one):
    folder, path = one
    found = json.loads((path / record.FILE).read_text())
    found["splits"]["test"]["answers"]["ensemble"]["nll"] = None
    (path / record.FILE).write_text(json.dumps(found))
    assert only(folder).error == "its NLL on the test set is not finite"


def test_predictions_of_another_checkpoint_are_no_images(one):
    folder, path = one
    its = predictions.read(path / predictions.FILE)
    predictions.write(path / predictions.FILE, predictions.Predictions(3, its.splits))
    run = only(folder)
    assert run.scores is not None and run.scores.images is None


def test_a_run_whose_status_is_lost_counts_once_it_is_evaluated(one):
    folder, path = one
    (path / runs.STATUS).unlink()
    assert only(folder).status == "finished"


def test_a_new_evaluation_is_read_anew(one):
    folder, path = one
    before = only(folder)
    its = predictions.read(path / predictions.FILE)
    its.splits["test"].logits["ensemble"][:] = -its.splits["test"].logits["ensemble"]
    predictions.write(path / predictions.FILE, its)
    after = only(folder)
    assert before.scores is not None and after.scores is not None
    assert before.scores.images is not None and after.scores.images is not None
    assert after.scores.images.right.sum() < before.scores.images.right.sum()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "does not exist; `jaxsplit compare` writes it"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"version": 1}', "runs is missing"),
        ('{"version": 2, "runs": []}', "version=2: must be 1"),
        ('{"version": 1, "runs": [{"name": "../x"}]}', "must be the name of a folder"),
        ('{"version": 1, "runs": [{"name": "x"}]}', "cannot be read"),
    ],
)
def test_a_broken_record_is_one_line(tmp_path, text, reason):
    if text is not None:
        (tmp_path / collect.NAME).write_text(text)
    with pytest.raises(ConfigError, match=".") as error:
        collect.write(tmp_path)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_text_of_values():
    assert [collect.text(v) for v in (0.1, 1e-4, 1 / 3, True, "3 epochs", (1, 0.5))] == [
        "0.1",
        "0.0001",
        repr(1 / 3),
        "True",
        "3 epochs",
        "1,0.5",
    ]
    assert math.isclose(float(collect.text(2 / 3)), 2 / 3)
