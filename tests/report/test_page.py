"""report.page: a report is one page that can be read, of every kind of run; bad input."""

import json
import math
import re
import statistics
from xml.etree import ElementTree

import numpy as np
import pytest

from jaxsplit.errors import ConfigError
from jaxsplit.evaluation import predictions
from jaxsplit.report import examples, figures, page, reproduce, results, runs, sections
from jaxsplit.report.charts import confused_pairs
from jaxsplit.workdir import versions
from tests.support import reports
from tests.support.reports import Checked, written
from tests.support.runs import lines_of, one_network, tiny

EVIL = "<b>\"&' $x_1$ #0072b2"


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Two seeds of co-training and one of another method."""
    folder = tmp_path_factory.mktemp("three")
    return [
        reports.workdir(folder / "seed0", reports.digits(seed=0)),
        reports.workdir(folder / "seed1", reports.digits(seed=1, log_every="3 steps")),
        reports.workdir(folder / "dml", reports.digits(seed=0, method="dml")),
    ]


@pytest.fixture(scope="module")
def text(three) -> str:
    return written(*three)


# ---- The page


def test_the_page_is_whole_html_without_script_or_network(text):
    found = Checked(text)
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert '<meta name="viewport" content="width=device-width' in text
    assert not {"script", "link", "iframe", "object"} & set(found.tags)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in found.links)
    assert not re.search(r"https?://|url\((?!#)|@import", text)
    assert len(found.ids) == len(set(found.ids))
    local = {link[1:] for link in found.links if link.startswith("#")}
    local |= set(re.findall(r"url\(#([^)]+)\)", text))
    assert local and local <= set(found.ids)
    assert len(text.encode()) < 2e6


def test_headings_come_in_order_and_heads_of_tables_say_of_what(text):
    levels = [int(level) for level in re.findall(r"<h(\d)>", text)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))
    assert all(given.get("scope") in ("col", "row", "rowgroup") for _, given in Checked(text).cells)
    assert text.count("<table") == text.count("<caption>")


def test_every_figure_is_xml_and_is_described(text):
    drawn = re.findall(r'<svg class="plot".*?</svg>', text, re.S)
    assert len(drawn) >= 3 * 7
    for one in drawn:
        root = ElementTree.fromstring(one)
        assert root.get("role") == "img"
        title, desc = root.find("title"), root.find("desc")
        assert title is not None and desc is not None
        assert root.get("aria-labelledby") == f"{title.get('id')} {desc.get('id')}"
        assert len(title.text) > 10 and len(desc.text) > 20
        assert root.find(".//{*}metadata") is None and root.find(".//{*}style") is None
        assert "currentColor" in one and "DejaVu" not in one
    assert "<date>" not in text and "Matplotlib" not in text


def test_the_same_input_gives_the_same_bytes_whatever_the_settings_of_the_user(three, tmp_path):
    import matplotlib

    first = written(three[0], out=tmp_path / "first.html")
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path"}):
        assert written(three[0], out=tmp_path / "again.html") == first
        assert matplotlib.rcParams["font.size"] == 30


def test_seeds_are_one_row_by_mean_and_deviation(three, text):
    values = []
    for path in three[:2]:
        scored = json.loads((path / runs.EVAL).read_text())
        values.append(scored["splits"]["test"]["answers"]["net1"]["top1"])
    mean, off = sum(values) / 2, abs(values[0] - values[1]) / math.sqrt(2)
    row = re.search(r"seed0, seed1 \(seeds 0, 1\).*?>net1</th><td>(.*?)</td>", text, re.S)
    assert row[1] == f"{100 * mean:.2f} ± {100 * off:.2f}"
    alone = re.search(r">dml: one_block.*?>net1</th><td>(.*?)</td>", text, re.S)
    assert "±" not in alone[1]
    said = Checked(text).text
    assert "Over 2 runs that differ in the seed only, the ensemble of 2 networks answers" in said
    assert "of the 60 test images right" in said


def test_the_deviation_is_that_of_a_sample():
    assert results.spread([0.90, 0.92, 0.97], results.SCORES["top1"].text) == "93.00 ± 3.61"
    assert results.spread([0.5], results.SCORES["nll"].text) == "0.5000"
    assert results.spread([0.5, None], results.SCORES["nll"].text) == "-"
    assert results.spread([0.5, math.nan], results.SCORES["nll"].text) == "-"
    assert statistics.stdev([90, 92, 97]) == pytest.approx(3.6056, abs=1e-4)


def test_differences_and_commands_train_the_same_again(three):
    found = runs.read(three)
    heads, rows = reproduce.differences(found)
    assert heads == ["field", "seed0", "seed1", "dml"]
    assert {row[0]: row[1:] for row in rows} == {
        "seed": ["0", "1", "0"],
        "log_every": ["1 steps", "3 steps", "1 steps"],
        "method": ["cotrain", "cotrain", "dml"],
    }
    name, others = reproduce.nearest(found[2].config)
    from jaxsplit.recipes import experiments

    made = experiments.get_config(*name.split(":"))
    made.update_from_flattened_dict(others)
    left = {
        k
        for k, v in reproduce.command_fields(found[2].config).items()
        if reproduce.command_fields(made)[k] != v
    }
    assert left == set()
    assert reproduce.command(found[1]).startswith(f"jaxsplit train --config={name} ")
    assert "--config.seed=1" in reproduce.command(found[1])


def test_one_run_is_compared_with_the_defaults(three):
    heads, rows = reproduce.differences(runs.read(three[:1]))
    assert heads == ["field", "seed0", "default"]
    assert ["arch", "one_block", "wide_resnet28_10"] in rows


# ---- Kinds of runs


def test_names_are_escaped(tmp_path):
    config = reports.digits()
    config.data.dir = EVIL
    classes = (EVIL, "\x1b[31m\x00", "犬", *map(str, range(7)))
    path = reports.workdir(tmp_path / 'a"&<i>', config, classes=classes)
    said = written(path, out=tmp_path / "out.html")
    found = Checked(said)
    assert not {"b", "i"} & set(found.tags)
    assert "\x1b" not in said and "\x00" not in said
    assert "<b>\"&' $x_1$ #0072b2" in found.text and "犬" in found.text
    for one in re.findall(r'<svg class="plot".*?</svg>', said, re.S):
        ElementTree.fromstring(one)


def test_one_network(tmp_path):
    config = one_network(data__name="digits", data__image_size=0)
    said = Checked(written(reports.workdir(tmp_path / "a", config, names=("net0",)))).text
    assert "The network answers" in said
    assert "has one network" not in said and "Diversity" not in said and "cascade" not in said


def test_no_cascade_of_the_outputs_of_one_network(tmp_path, undrawn):
    path = reports.workdir(tmp_path / "a", reports.digits(method="mimo"))
    assert "cascade" not in Checked(written(path)).text


def test_one_network_beside_two(three, tmp_path, undrawn):
    config = one_network(data__name="digits", data__image_size=0)
    path = reports.workdir(tmp_path / "alone", config, names=("net0",))
    said = Checked(written(three[0], path, out=tmp_path / "out.html")).text
    assert "alone has one network, so there is nothing to differ." in said


def test_ffsd_is_judged_by_its_leader(tmp_path):
    config = reports.digits(method="ffsd", arch="resnet20", divide=False)
    names = ("net0", "net1", "ensemble", "fusion", "leader")
    text = written(reports.workdir(tmp_path / "a", config, names=names))
    said = Checked(text).text
    assert "The leader answers" in said and "reliability of leader" in said
    assert "<strong>leader</strong></th>" in text
    assert re.search(r"<th scope=\"row\">fusion</th>", text)


def test_without_metrics_and_images(tmp_path, undrawn):
    """Imported weights, of a data set that is not there."""
    config = tiny(data__name="cifar10", data__dir=str(tmp_path / "none"), data__image_size=0)
    path = reports.workdir(tmp_path / "a", config, lines=False, shape=(32, 32, 3))
    text = written(path)
    said = Checked(text).text
    assert "No metrics.jsonl, so no curves: a." in said
    assert "No pictures: " in said and "<img" not in text
    assert re.search(r"test image \d+", said)


def test_data_sets_that_differ(three, tmp_path, undrawn):
    config = tiny(data__name="synthetic")
    path = reports.workdir(tmp_path / "other", config, shape=(8, 8, 3))
    said = Checked(written(three[0], path, out=tmp_path / "out.html")).text
    assert "different data sets (digits, synthetic): their scores cannot be compared" in said


@pytest.mark.parametrize(
    ("classes", "block"), [(260, 2), pytest.param(1000, 4, marks=pytest.mark.slow)]
)
def test_many_classes_stay_small(classes, block, tmp_path):
    labels = np.arange(2 * classes) % classes
    config = tiny(data__name="imagenet2012", data__image_size=64, arch="resnet50", divide=False)
    names = tuple(f"class {i}" for i in range(classes))
    shape = (64, 64, 3)
    path = reports.workdir(tmp_path / "a", config, labels=labels, classes=names, shape=shape)
    text = written(path)
    said = Checked(text).text
    assert len(text.encode()) < 6e5
    assert f"Each pixel stands for {block} by {block} classes." in said
    assert "The pairs of classes most often confused." in said
    assert f"The {classes - 10} classes in the middle are left out." in said


def test_without_evaluation_the_log_is_shown(tmp_path, undrawn):
    path = reports.workdir(tmp_path / "a", reports.digits(), evaluated=False)
    said = Checked(written(path)).text
    assert "a: scores are the last of metrics.jsonl." in said
    assert "answers 87.50 % of the 60 test images right" in said


def test_what_is_published_stands_below_the_table(tmp_path, undrawn):
    config = tiny(data__name="cifar10", arch="wide_resnet28_10", data__dir=str(tmp_path / "none"))
    path = reports.workdir(tmp_path / "a", config, lines=False, shape=(32, 32, 3))
    assert "the paper reports 97.94 % (300 epochs" in Checked(written(path)).text


def test_other_data_and_corruptions(tmp_path, undrawn):
    path = reports.workdir(tmp_path / "a", reports.digits())
    scored = json.loads((path / runs.EVAL).read_text())
    detected = {"auroc": 0.5, "aupr_out": 0.25, "aupr_in": None, "fpr95": 1.0}
    scored["ood"] = {
        "data": "<mnist>",
        "note": "resized",
        "count": 60,
        "foreign_count": 1234,
        "answers": {"ensemble": {"entropy": detected}},
        "networks": {"mutual_information": detected},
    }
    scored["corruptions"] = {
        "count": 60,
        "answers": {"net0": {"mean_corruption_error": 0.3, "nll": 1.5, "ece": 0.1}},
        "kinds": {
            "snow_fall": {
                "definition": "approximation",
                "answers": {"ensemble": {"top1": [0.9, 0.8, None, 0.6, 0.5]}},
            }
        },
    }
    (path / runs.EVAL).write_text(json.dumps(scored))
    text = written(path)
    said = Checked(text).text
    assert "1,234 images of <mnist> (resized) told from 60 test images" in said
    row = '<th scope="row">{}</th><td>{}</td></tr>'
    cells = "50.00</td><td>25.00</td><td>-</td><td>100.00"
    assert row.format("ensemble, entropy", cells) in text
    assert row.format("networks together, mutual information", cells) in text
    assert row.format("net0", "30.00</td><td>1.5000</td><td>10.00") in text
    cells = "10.00</td><td>20.00</td><td>-</td><td>40.00</td><td>50.00"
    assert row.format("snow fall (approximation)", cells) in text


# ---- Evaluated first


@pytest.fixture
def unevaluated(tmp_path):
    path = reports.workdir(tmp_path / "a", reports.digits(), evaluated=False)
    (path / "checkpoints" / "40").mkdir(parents=True)
    return path


def test_a_run_is_evaluated_first(unevaluated, tmp_path, undrawn):
    asked = []

    def evaluate(run) -> str:
        asked.append(run.name)
        made = reports.workdir(tmp_path / "made", reports.digits())
        for name in (runs.EVAL, predictions.FILE):
            (unevaluated / name).write_bytes((made / name).read_bytes())
        return ""

    said = Checked(written(unevaluated, evaluate=evaluate)).text
    assert asked == ["a"]
    assert "a had no evaluation; it was evaluated for this report." in said
    assert "Calibration" in said
    written(unevaluated)  # not again
    (unevaluated / "checkpoints" / "80").mkdir()
    with pytest.raises(AssertionError, match="a is evaluated"):
        written(unevaluated)


def test_a_run_that_cannot_be_evaluated(unevaluated, undrawn):
    def evaluate(run) -> str:
        raise ConfigError("data.dir='/none': holds no digits")

    said = Checked(written(unevaluated, evaluate=evaluate)).text
    assert "a had no evaluation, and cannot be evaluated: data.dir='/none'" in said
    assert "a: scores are the last of metrics.jsonl." in said


@pytest.mark.parametrize(
    "unwritten, why", [("/a/eval.json (no space)",) * 2, ("", "its files are not there")]
)
def test_an_evaluation_that_was_not_written(unevaluated, undrawn, unwritten, why):
    said = Checked(written(unevaluated, evaluate=lambda run: unwritten)).text
    assert f"a had no evaluation, and its evaluation was not written: {why}" in said
    assert "it was evaluated for this report" not in said


# ---- Pieces


def test_the_most_confident_wrong_answers_come_first(three):
    (run,) = runs.read(three[:1])
    its = page.predictions_of(run)["test"]
    found = examples.most_confident(run, its, 5)
    logits = its.logits["ensemble"].astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wrong = [i for i in range(60) if p[i].argmax() != its.labels[i]]
    order = sorted(wrong, key=lambda i: -p[i].max())[:5]
    assert [one.index for one in found] == order
    assert found[0].answer.confidence == pytest.approx(p[order[0]].max())
    assert [vote.name for vote in found[0].networks] == ["net0", "net1"]
    for one in found:
        for vote in one.networks:
            assert vote.label == its.logits[vote.name][one.index].argmax()


def test_nan_logits_answer_none():
    logits = np.array([[0.0, np.nan], [0.0, 1.0]])
    its = examples.answered(logits)
    assert its.labels.tolist() == [-1, 1] and its.confidence[0] == 0
    assert runs.Run(path=None, name="", config=None).class_name(-1) == "none"


def test_confused_pairs():
    counts = np.array([[5, 2, 0], [0, 4, 7], [1, 0, 3]])
    assert confused_pairs(counts, 2) == [(1, 2, 7), (0, 1, 2)]
    assert confused_pairs(np.diag([1, 2]), 3) == []


def test_names_tell_runs_apart(tmp_path):
    paths = [tmp_path / "a" / "x", tmp_path / "b" / "x", tmp_path / "c"]
    assert runs.names(paths[:1]) == ["x"]
    assert runs.names(paths[:2]) == ["a/x", "b/x"]
    assert len(set(runs.names(paths))) == 3


def test_log_axis_without_positive_values():
    def draw(axes) -> None:
        axes.plot([1, 2], [0.0, -1.0])
        figures.log_axis(axes)

    ElementTree.fromstring(figures.svg("x", "a title", "a text", draw))


def test_broken_lines_of_metrics_are_left_out(tmp_path):
    path = reports.workdir(tmp_path / "a", reports.digits())
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "test/net0/')
    (run,) = runs.read([path])
    assert len(run.lines) == 6 and run.lines == lines_of_whole(path)


def lines_of_whole(path) -> list[dict]:
    whole = path / "metrics.jsonl"
    whole.write_text("\n".join(whole.read_text().splitlines()[:-1]))
    return lines_of(path)


def test_a_table_without_rows_is_left_out():
    assert sections.diversity([]) == "" and sections.wrong([], {}, 3) == ""


def test_versions_of_training_and_evaluation(three):
    (run,) = runs.read(three[:1])
    versions.record(run.path, 0, {"jaxsplit": "0.1.0", "commit": "abc", "jax": "0.1"})
    found = reproduce.versions(run)
    (run.path / versions.NAME).unlink()
    assert found["commit"] == "abc" and found["jax"].startswith("0.1, evaluated with ")
    assert found["jaxsplit"] == "0.1.0"
