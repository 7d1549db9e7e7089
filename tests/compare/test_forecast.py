"""compare.forecast: the table of a dry run."""

import itertools

from jaxsplit.compare import forecast
from jaxsplit.errors import ConfigError
from tests.support.grids import planned


def test_groups_that_are_not_measured_are_scaled(tmp_path):
    plan = planned(tmp_path, ("single", "independent"), (1, 2, 4), seeds=(0, 1))
    measured, said = [], []

    def measure(group):
        measured.append(group.name)
        return 0.5, 10.0, 100

    found = forecast.times(plan, measure, lambda group: 100, patience=-1.0, say=said.append)
    assert measured == ["single-s1"] and said == ["single-s1: 500.0 ms a step, compiled in 10.0 s"]
    assert [found[g.name].run for g in plan.groups] == [50.0, 100.0, 200.0]
    assert [found[g.name].like for g in plan.groups] == ["", "single-s1", "single-s1"]
    text = forecast.table(plan, found).splitlines()
    assert text[1].split() == ["single-s1", "10", "100", "1,000", "50", "s"]
    assert text[3].split()[-2:] == ["3.3", "minutes*"]
    assert text[4] == "6 runs: 3 groups at seeds 0, 1"
    # Each of two seeds takes 350 s, each group 10 s of compilation.
    assert text[5] == "about 12.2 minutes of training in all, one run after another"
    assert text[7].startswith("* not measured: ")
    assert text[8].startswith("left out: independent-s1: split=1: must be 2 or more")


def test_all_are_measured_if_there_is_time(tmp_path):
    plan = planned(tmp_path, splits=(1, 2, 4))
    steps = itertools.count(1)
    found = forecast.times(
        plan, lambda group: (next(steps), 0.0, 2), lambda group: 2, say=lambda line: None
    )
    assert [found[g.name].run for g in plan.groups] == [2, 4, 6]
    assert "not measured" not in forecast.table(plan, found)


def test_unknown_times(tmp_path):
    text = forecast.table(planned(tmp_path), {})
    assert text.count("unknown") == 2 and "about" not in text


def test_a_group_that_cannot_be_measured(tmp_path):
    """Its teacher is not trained yet, for example."""
    plan = planned(tmp_path)

    def measure(group):
        if group.split == 1:
            raise ConfigError("no teacher")
        return 1.0, 0.0, 5

    found = forecast.times(plan, measure, lambda group: 5, say=lambda line: None)
    assert found["single-s1"] == forecast.Time(0.5, 0.0, 5, "independent-s2")
    alone = planned(tmp_path, ("single",), (1,))
    assert forecast.times(alone, measure, lambda group: 5, say=lambda line: None) == {}
