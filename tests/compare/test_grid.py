"""compare.grid: which combinations are run, in which order, with which fields."""

import pathlib

import pytest

from jaxsplit import config as config_lib
from jaxsplit import methods
from jaxsplit.compare import grid, names
from jaxsplit.errors import ConfigError
from tests.support.grids import cost, planned
from tests.support.runs import tiny

HERE = pathlib.Path("/grid")


def test_seed_by_seed():
    found = planned(HERE, ("single", "independent", "cotrain"), (1, 2), seeds=(3, 5))
    of_seed = ("single-s1", "independent-s2", "cotrain-s2")
    assert [run.name for run in found.runs] == [
        f"{name}-seed{seed}" for seed in (3, 5) for name in of_seed
    ]
    assert [(one.name, one.reason[:8]) for one in found.left_out] == [
        ("independent-s1", "split=1:"),
        ("cotrain-s1", "split=1:"),
    ]
    assert [run.answer for run in found.runs[:3]] == ["net0", "ensemble", "ensemble"]
    assert found.groups[1].cost == grid.Cost(20, 200, 2000)


def test_single_is_there_without_its_number():
    """One network is one network, whatever numbers are asked for."""
    found = planned(HERE, ("single", "independent"), (2, 4), seeds=(0,))
    assert [group.name for group in found.groups] == [
        "single-s1",
        "independent-s2",
        "independent-s4",
    ]


@pytest.mark.parametrize(
    ("method", "divide", "answer"),
    [
        ("independent", True, "ensemble"),
        ("cotrain", True, "ensemble"),
        ("one", True, "gated"),
        ("dml", False, "net0"),
        ("kdcl", False, "net0"),
        ("codistill", False, "net0"),
        ("cl_ilr", False, "net0"),
        ("okddip", False, "leader"),
        ("ffsd", False, "leader"),
    ],
)
def test_methods_that_keep_one_network_do_not_divide(method, divide, answer):
    (run,) = planned(HERE, (method,), (4,), seeds=(0,)).runs
    assert (run.config.divide, run.answer) == (divide, answer)
    assert config_lib.resolve(run.config).divided_in == (4 if divide else 1)
    assert f"--config.divide={divide}" in run.flags and "--config.seed=0" in run.flags


def test_what_is_deployed():
    """A method that keeps one network names it, and it can be extracted."""
    config = tiny(split=3)
    for name, entry in methods.METHODS.items():
        if entry.kept:
            assert entry.whole and entry.kept in entry.networks(config), name
        assert entry.deployed == entry.kept or entry.deployed == entry.answer


def test_an_axis_of_a_method_is_not_one_of_others():
    axes = {"cotrain.weight": (0.0, 0.5), "optim.lr": (0.1, 0.2)}
    found = planned(HERE, ("single", "cotrain"), (1, 2), seeds=(0,), axes=axes)
    assert [group.name for group in found.groups] == [
        "single-s1-lr=0.1",
        "single-s1-lr=0.2",
        "cotrain-s2-weight=0-lr=0.1",
        "cotrain-s2-weight=0-lr=0.2",
        "cotrain-s2-weight=0.5-lr=0.1",
        "cotrain-s2-weight=0.5-lr=0.2",
    ]
    last = found.runs[-1].config
    assert (last.cotrain.weight, last.optim.lr, last.seed) == (0.5, 0.2, 0)
    assert found.groups[0].axes == {"optim.lr": 0.1}


def test_a_division_that_costs_too_much_is_left_out():
    """The published WRN-16-4 divides in 4; WRN-10-1 in 2 costs over 1.5 times as much."""
    config = tiny(divide_anyway=False)
    asked = grid.Grid(("single", "independent"), (1, 2), (0,))
    found = grid.plan(config, asked, cost)
    assert [group.name for group in found.groups] == ["single-s1"]
    assert "at most 1.5 times are allowed" in found.left_out[-1].reason


def test_nothing_is_left():
    with pytest.raises(
        ConfigError, match=r"^compare: no run is left: cotrain-s1: split=1: must be"
    ):
        planned(HERE, ("cotrain",), (1,))


def test_a_base_config_of_parts_of_a_division():
    """`divide_in` of the base config does not make the undivided network a part."""
    asked = grid.Grid(("single", "independent"), (1, 2), (0,))
    for run in grid.plan(tiny(divide_in=4), asked, cost).runs:
        assert config_lib.resolve(run.config).divided_in == run.group.split


def test_known_costs_are_not_counted_again():
    known = {"single-s1": grid.Cost(1, 2, 3)}
    asked = grid.Grid(("single", "independent"), (1, 2), (0,))
    found = grid.plan(tiny(), asked, cost, known=known)
    assert [group.cost.macs for group in found.groups] == [2, 200]


# ---- Runs that learn from other runs


@pytest.fixture
def taught(monkeypatch):
    """A method `distill_from` with a teacher, as far as a grid sees it."""
    entry = methods.Entry(
        methods.METHODS["single"].make,
        answer="net0",
        fields={"teacher": ""},
        teacher=("teacher",),
        least=1,
    )
    monkeypatch.setitem(methods.METHODS, "distill_from", entry)


def test_pupils_come_after_their_teachers(taught):
    asked = ("distill_from", "single", "independent", "cotrain")
    found = planned(HERE, asked, (2, 4), seeds=(0, 1))
    names_ = [run.name for run in found.runs]
    assert names_[5] == "distill_from-s1-seed0" and names_[-1] == "distill_from-s1-seed1"
    pupil = found.runs[-1]
    assert (pupil.teacher, pupil.answer) == ("cotrain-s4-seed1", "net0")
    assert pupil.config.distill_from.teacher == str(HERE / "cotrain-s4-seed1")
    assert pupil.group.cost == grid.Cost(10, 100, 1000 + 400)  # its teacher answers, too


def test_the_teacher_is_chosen(taught):
    asked = ("independent", "cotrain", "distill_from")
    found = planned(HERE, asked, (2, 4), seeds=(0,), teacher=("independent", 2))
    assert found.runs[-1].teacher == "independent-s2-seed0"
    only = planned(HERE, ("independent", "distill_from"), (2, 4), seeds=(0,))
    assert only.runs[-1].teacher == "independent-s4-seed0"


def test_no_teacher(taught):
    found = planned(HERE, ("single", "distill_from"), (1,))
    assert "distill_from.teacher='': must be a workdir" in found.left_out[0].reason
    found = planned(HERE, ("cotrain", "distill_from"), (2,), teacher=("dml", 2))
    assert found.left_out[0].reason.startswith("compare.teacher='dml:2': must be in the grid, whi")


def test_a_teacher_has_the_values_of_its_pupil(taught):
    axes = {"optim.lr": (0.1, 0.2), "cotrain.weight": (0.1, 0.5)}
    found = planned(HERE, ("cotrain", "distill_from"), (2,), seeds=(0,), axes=axes)
    assert tiny().cotrain.weight == 0.5  # which the teacher has
    assert {run.group.axes["optim.lr"]: run.teacher for run in found.runs if run.teacher} == {
        0.1: "cotrain-s2-lr=0.1-weight=0.5-seed0",
        0.2: "cotrain-s2-lr=0.2-weight=0.5-seed0",
    }


def test_a_teacher_that_could_be_several(taught):
    axes = {"cotrain.weight": (0.1, 0.2)}
    found = planned(HERE, ("cotrain", "distill_from"), (2,), seeds=(0,), axes=axes)
    assert found.left_out[0].reason == (
        "distill_from.teacher='': several could teach (cotrain-s2-weight=0.1, "
        "cotrain-s2-weight=0.2); the axis must hold the value of the config, which is the teacher's"
    )


def test_all_networks_of_a_teacher_cost(taught):
    """DML deploys one network, and all of them teach."""

    def dear(config):
        return grid.Cost(10, 100, 1000, 400 if config.method == "dml" else 0)

    asked = grid.Grid(("dml", "distill_from"), (4,), (0,), teacher=("dml", 4))
    found = grid.plan(tiny(arch="wide_resnet10_1"), asked, dear)
    assert found.groups[-1].cost.train_macs == 1000 + 400


def test_an_axis_that_no_method_reads():
    with pytest.raises(ConfigError, match=r"compare.axis='ffsd.fusion': must be read by a method"):
        planned(HERE, ("single", "cotrain"), (2,), axes={"ffsd.fusion": (1.0, 10.0)})


# ---- Names


def test_names():
    assert names.of_group("cotrain", 2, {}) == "cotrain-s2"
    assert names.of_group("dml", 4, {"optim.lr": 0.05, "augment.flip": True}) == (
        "dml-s4-lr=0.05-flip=True"
    )
    assert names.of_group("dml", 4, {"cotrain.weight": 1.0, "distill.weight": 0.5}) == (
        "dml-s4-cotrain.weight=1-distill.weight=0.5"
    )
    assert names.of_group("dml", 4, {"duration": "4 steps", "lr": 1e20}) == (
        "dml-s4-duration=4+steps-lr=1e20"
    )
    assert names.of_run("dml-s4", 3) == "dml-s4-seed3"


def test_names_are_safe_and_unique():
    values = ["a/b", "a_b", "a b", "../x", "é", "", "x" * 300, "y" * 300, 1e-12, 1 / 3, 0.3333333]
    found = [names.of_group("dml", 4, {"f": value}) for value in values]
    assert len(set(found)) == len(values)
    assert all(len(name) <= 120 and not set(name) & set("/\\ \n") for name in found)
