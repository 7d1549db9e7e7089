"""report.tables: the tables at the end of a run."""

from types import SimpleNamespace

import pytest

from configs import cifar100
from jaxsplit import config as config_lib
from jaxsplit.costs import Cost
from jaxsplit.evaluation import EXAMPLES, NETWORKS, SplitResults
from jaxsplit.recipes import published
from jaxsplit.report import tables


def results(*names: str, count: float = 8.0, **of_networks: float) -> SplitResults:
    values = {
        name: {"top1": 0.9 + i / 100, "top5": 0.99, "nll": 0.25 + i} for i, name in enumerate(names)
    }
    return values | {NETWORKS: of_networks, EXAMPLES: {"count": count}}


SMALL, LARGE = Cost(1000, 10, 50_000, {}), Cost(4100, 20, 210_000, {})


def test_results_table():
    values = results("net0", "net1", "ensemble", disagreement=0.125, oracle=0.95, count=360.0)
    lines = tables.results_table("a title", values, (SMALL, LARGE), 2).splitlines()
    assert lines[0] == "a title"
    cells = [line.split() for line in lines[1:-1]]
    assert cells == [
        ["top-1", "%", "top-5", "%", "NLL", "parameters", "mult-adds"],
        ["net0", "90.00", "99.00", "0.2500", "1,000", "50,000"],
        ["net1", "91.00", "99.00", "1.2500", "1,000", "50,000"],
        ["ensemble", "92.00", "99.00", "2.2500", "2,000", "100,000"],
        ["undivided", "-", "-", "-", "4,100", "210,000"],
    ]
    assert len({len(line) for line in lines[1:-1]}) == 1  # columns stand under their heads
    assert lines[-1] == (
        "mean pairwise disagreement of the networks: 12.50%; any of them right (oracle): 95.00%"
    )


def test_calibration_has_a_column_where_it_is_known():
    values = results("net0", "net1", "ensemble")
    for its in (values["net0"], values["net1"]):
        its["ece"] = 0.03125
    without = tables.results_table("t", values, (SMALL, LARGE), 2)
    assert "ECE" not in without  # it is not of all of them
    values["ensemble"]["ece"] = 0.125
    lines = tables.results_table("t", values, (SMALL, LARGE), 2).splitlines()
    assert [line.split()[-3] for line in lines[2:6]] == ["3.12", "3.12", "12.50", "-"]
    assert lines[1].split()[5:7] == ["ECE", "%"]
    assert len({len(line) for line in lines[1:]}) == 1


def test_without_top5():
    values = results("net0", "net1", "ensemble")
    lines = tables.results_table("t", values, (SMALL, LARGE), 2, num_classes=5).splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["top-1", "%", "NLL", "parameters", "mult-adds"],
        ["net0", "90.00", "0.2500", "1,000", "50,000"],
    ]
    assert lines[5].split() == ["undivided", "-", "-", "4,100", "210,000"]
    assert len({len(line) for line in lines[1:]}) == 1


@pytest.mark.parametrize("names", [("net0", "net1", "ensemble"), ("ensemble", "net0", "net1")])
def test_networks_come_in_order_and_the_answer_last(names):
    values = results(*names, disagreement=0.5, oracle=1.0)
    lines = tables.results_table("t", values, (SMALL, LARGE), 2).splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["net0", "net1", "ensemble"]


def test_more_than_ten_networks_are_sorted_by_number():
    names = sorted(f"net{i}" for i in range(12))  # net0, net1, net10, net11, net2 ...
    lines = tables.results_table("t", results(*names), (SMALL, LARGE), 12).splitlines()
    assert [line.split()[0] for line in lines[2:14]] == [f"net{i}" for i in range(12)]


def test_a_single_network():
    lines = tables.results_table("t", results("net0", count=8.0), (LARGE, LARGE), 1).splitlines()
    assert len(lines) == 3
    assert lines[2].split() == ["net0", "90.00", "99.00", "0.2500", "4,100", "210,000"]


def test_published_results_stand_below():
    same = dict(dataset="cifar100", method="cotrain", arch="wide_resnet40_10", split=2)
    values = results("net0", "net1", "ensemble", disagreement=0.5, oracle=1.0)
    text = tables.results_table("t", values, (SMALL, LARGE), 2, published.find(**same))
    assert text.splitlines()[-3:] == [
        "mean pairwise disagreement of the networks: 50.00%; any of them right (oracle): 100.00%",
        "published: 85.72 % (300 epochs, batch 128, 32 pixels; best epoch on the test set)",
        "published: 85.91 % (1800 epochs, batch 128, 32 pixels, weight decay by Eq. (6); "
        "best epoch on the test set)",
    ]
    assert "published" not in tables.results_table("t", values, (SMALL, LARGE), 2)


def test_tables_of_an_experiment(monkeypatch):
    """The published figure stands under that of the test set of the same experiment only."""
    monkeypatch.setattr(tables, "config_costs", lambda *_, **__: (SMALL, LARGE))
    config = cifar100.get_config("arch=resnet110,split=2")
    exp = SimpleNamespace(
        config=config,
        resolved=config_lib.resolve(config),
        dataset=SimpleNamespace(num_classes=100, image_shape=(32, 32, 3)),
        eval_split=("validation", None),
        method=SimpleNamespace(answer="ensemble"),
    )
    values = results("net0", "ensemble", count=10.0)
    both = {"validation": values, "test": values}
    text = tables.tables(exp, both, "step 9, the last", tables.best_line(exp, 7, 0.75))
    validation, test, best = text.split("\n\n")
    assert validation.startswith("cifar100 validation (10 images), resnet110 divided in 2, cotrain")
    assert test.startswith("cifar100 test (10 images), resnet110 divided in 2, cotrain; checkpoint")
    assert "published" not in validation
    assert test.splitlines()[-1].startswith("published: 81.68 % (300 epochs, batch 128")
    assert best == "best: step 7, ensemble top-1 75.00%, chosen on the training part held out"
    assert "top-5 %" in test
    for classes in (5, 6):
        exp.dataset.num_classes = classes
        assert ("top-5 %" in tables.tables(exp, both, "step 9, the last")) == (classes == 6)
    config.divide = False
    whole = tables.tables(exp, both, "step 9, the last")
    assert "2 x resnet110" in whole and "published" not in whole
