"""report.compare: the page of a comparison; report.compare_charts: its figures."""

import json
import re
import shlex
from xml.etree import ElementTree

import numpy as np
import pytest

from jaxsplit.compare import collect, flags, verdict
from jaxsplit.errors import ConfigError
from jaxsplit.report import compare, compare_charts
from tests.support import comparisons
from tests.support.reports import Checked
from tests.support.runs import tiny

EVIL = "<b>\"&' $x_1$"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two seeds of single, cotrain at three weights, DML; one failed, one stopped, one to come."""
    path = tmp_path_factory.mktemp("page")
    made = []
    for seed in range(2):
        kept = dict(count=100, latency_ms=(0.8, 0.6) if seed == 0 else None)
        made.append(comparisons.run(path, "single", 1, seed, top1=0.8, seconds=40.0, **kept))
        for weight in (0.0, 0.1, 0.5):
            axes = {"cotrain.weight": weight}
            made.append(comparisons.run(path, "cotrain", 2, seed, axes=axes, **kept))
        made.append(comparisons.run(path, "dml", 2, seed, one_of_several=True, **kept))
    made += [
        comparisons.run(path, "independent", 2, 0, status="failed", error=f"loss is NaN {EVIL}"),
        comparisons.run(path, "independent", 2, 1, status="stopped"),
        comparisons.run(path, "independent", 4, 0, status="waiting"),
    ]
    (path / made[0]["name"] / "report.html").write_text("")
    return comparisons.write(path, made, axes={"cotrain.weight": [0.0, 0.1, 0.5]})


@pytest.fixture(scope="module")
def text(folder) -> str:
    return compare.write(folder).read_text()


def test_the_page_is_whole_html_without_script_or_network(text):
    found = Checked(text)
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert not {"script", "link", "iframe", "object", "b"} & set(found.tags)
    assert not re.search(r"https?://|url\((?!#)|@import", text)
    assert len(found.ids) == len(set(found.ids))
    local = {link[1:] for link in found.links if link.startswith("#")}
    assert local and local <= set(found.ids)


def test_files_of_its_folder_are_linked_and_exist(text, folder):
    links = {link for link in Checked(text).links if not link.startswith("#")}
    assert {"compare.csv", "metrics.csv", "single-s1-seed0/report.html"} <= links
    assert "cotrain-s2-weight%3D0.1-seed0/" in links
    for link in links:
        assert (folder / link.replace("%3D", "=")).exists(), link
    assert not any(link.startswith("independent-s4") for link in links)


def test_the_paragraph_comes_first(text, folder):
    answer = verdict.of(collect.read(folder))
    assert answer.answer == verdict.UNCLEAR
    words = Checked(text).text
    said = words.index("Not enough seeds to tell.")
    assert words.index("Should I divide?") < said < words.index("Results")
    for sentence in answer.sentences[1:]:
        assert sentence in words


def test_tables_hold_the_numbers_of_groups_and_runs(text, folder):
    words = Checked(text).text
    found = collect.read(folder)
    for group in found.groups:
        assert group.name in words
        if spread := group.spread(collect.top1):
            assert f"{100 * spread.mean:.2f} ± {100 * spread.deviation:.2f}" in words
        if its := group.difference:
            assert f"{verdict.points(its.lower)} to {verdict.points(its.upper)}" in words
    for run in found.runs:
        assert run.name in words
    assert f"failed - - - 60 s folder loss is NaN {EVIL}" in words
    assert "0, 1 failed, 1 to come" in words
    assert "independent-s4-seed0 waiting" in words


def test_every_figure_is_xml_and_is_described(text):
    drawn = re.findall(r'<svg class="plot".*?</svg>', text, re.S)
    titles = []
    for one in drawn:
        root = ElementTree.fromstring(one)
        title, desc = root.find("title"), root.find("desc")
        assert title is not None and desc is not None and title.text and desc.text
        assert len(desc.text) > 20
        titles.append(title.text)
    assert titles == [
        "Difference to the undivided network",
        "Accuracy against parameters",
        "Accuracy against multiply-adds",
        "Accuracy against training time",
        "Accuracy against latency",
        "Accuracy by cotrain.weight",
        "Diversity against the accuracy of single networks",
    ]
    assert all("cotrain S=2 weight=0.1" in one for one in drawn if "Accuracy against" in one)


def test_the_same_runs_give_the_same_bytes(text, folder):
    assert compare.write(folder).read_text() == text


def test_the_command_makes_the_same_grid(folder, text):
    found = compare.command(collect.read(folder))
    assert found.startswith("jaxsplit compare --config=")
    assert "--compare.methods=single,cotrain,dml,independent --compare.splits=1,2,4" in found
    assert "--compare.seeds=0,1 " in found
    assert "--compare.axis=cotrain.weight=0,0.1,0.5" in found
    assert "--config.method" not in found and "--config.split" not in found
    assert found in Checked(text).text


def test_one_seed_is_named_in_the_command(tmp_path):
    made = [comparisons.run(tmp_path, "single", 1, 5, status="waiting")]
    found = compare.command(collect.read(comparisons.write(tmp_path, made)))
    assert "--compare.seeds=1 --config.seed=5" in found


def test_the_command_holds_tuples_and_the_teacher(tmp_path):
    made = [comparisons.run(tmp_path, "single", 1, 0, status="waiting")]
    axes = {"augment.erase_area": [[0.02, 0.3], [0.1, 0.4]]}
    folder = comparisons.write(tmp_path, made, axes=axes, teacher="cotrain:2")
    record = json.loads((folder / "compare.json").read_text())
    record["config"] |= {"method": "dml"}
    (folder / "compare.json").write_text(json.dumps(record))
    words = shlex.split(compare.command(collect.read(folder)))
    (axis,) = (word.partition("=")[2] for word in words if word.startswith("--compare.axis="))
    given = dict(methods="single", splits="1", seeds="1", axes=[axis])
    values = flags.grid(tiny(), **given).axes["augment.erase_area"]
    assert values == ((0.02, 0.3), (0.1, 0.4))
    assert "--compare.teacher=cotrain:2" in words and "--config.method=dml" in words


def test_a_grid_without_a_finished_run_has_a_page(tmp_path):
    made = [comparisons.run(tmp_path, "single", 1, 0, status="waiting")]
    words = Checked(compare.write(comparisons.write(tmp_path, made)).read_text()).text
    assert "No run has finished yet" in words and "0 of 1 runs count here" in words


def test_one_seed_is_marked_as_of_images_only(tmp_path):
    made = [
        comparisons.run(tmp_path, m, s, 0, count=60) for m, s in (("single", 1), ("cotrain", 2))
    ]
    text = compare.write(comparisons.write(tmp_path, made)).read_text()
    assert "(images only)" in text and "Hollow marks: of one seed" in text


def test_a_page_that_cannot_be_written_is_one_line(tmp_path):
    made = [comparisons.run(tmp_path, "single", 1, 0, status="waiting")]
    comparisons.write(tmp_path, made)
    (tmp_path / compare.FILE).mkdir()
    with pytest.raises(ConfigError, match=r"compare\.html: cannot be written"):
        compare.write(tmp_path)


def test_the_front_is_what_no_other_beats():
    points = [(1.0, 5.0), (2.0, 4.0), (2.0, 7.0), (3.0, 7.0), (4.0, 8.0), (1.0, 4.0)]
    assert compare_charts.front(points) == [0, 2, 4]
    rng = np.random.default_rng(0)
    many = rng.integers(0, 8, (40, 2)).tolist()
    kept = {tuple(many[i]) for i in compare_charts.front(many)}
    better = [
        p
        for p in map(tuple, many)
        if not any(q[0] <= p[0] and q[1] >= p[1] and tuple(q) != p for q in many)
    ]
    assert kept == set(better)


def test_latency_is_in_milliseconds_where_the_undivided_networks_differ(tmp_path, folder):
    both = (("single", 1, "a"), ("cotrain", 2, "a"), ("single", 1, "b"), ("cotrain", 2, "b"))
    made = [
        comparisons.run(tmp_path, m, s, 0, axes={"arch": a}, count=40, latency_ms=(2, 1))
        for m, s, a in both
    ]
    found = collect.read(comparisons.write(tmp_path, made))
    cost = compare_charts.costs(found)[-1]
    drawn = compare_charts.pareto(found, cost)
    assert drawn is not None and "latency, ms" in drawn.svg and "at 2.00 ms" in drawn.svg
    beside = compare_charts.pareto(collect.read(folder), compare_charts.COSTS[-1])
    assert beside is not None and "at 0.80 times the undivided network" in beside.svg


def test_costs_that_span_much_are_drawn_on_a_logarithmic_axis(tmp_path):
    made = [
        comparisons.run(tmp_path, m, s, 0, count=40, seconds=t)
        for m, s, t in (("single", 1, 40.0), ("cotrain", 2, 30_000.0), ("cotrain", 4, 4000.0))
    ]
    found = collect.read(comparisons.write(tmp_path, made))
    drawn = compare_charts.pareto(found, compare_charts.COSTS[2])
    assert drawn is not None and "training time, hours" in drawn.svg
    ticks = re.findall(r">([\d.]+)</text>", drawn.svg)
    assert {"0.01", "0.1", "1"} <= set(ticks)
