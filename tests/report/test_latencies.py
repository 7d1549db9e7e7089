"""report.latencies: the section on latency.json; its sentences, its table and its figure."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from jaxsplit import stack
from jaxsplit.inference import latency
from jaxsplit.inference.latency import Candidate, Cell, Found
from jaxsplit.inference.timing import Times
from jaxsplit.report import figures, latencies, runs
from tests.support import reports
from tests.support.reports import Checked, written

CPU = {"platform": "cpu", "device": "cpu", "cores": 2, "devices": 1}
ABOUT = CPU | {
    "arch": "wide_resnet16_4",
    "split": 4,
    "method": "cotrain",
    "dtype": "float32",
    "image_shape": [8, 8, 1],
    "num_classes": 10,
    "seconds": 0.5,
    "jax": "0.1",
    "jaxsplit": "0.1",
}
WHY = "a call would take about 32 s"


def candidate(name, networks=1, devices=1):
    lowering = name if name in ("dense", "packed") else "dense"
    return Candidate(name, "wide_resnet16_4", networks, lowering, devices, 1000, 5000)


UNDIVIDED, ONE = candidate("undivided"), candidate("one network")
FOUR = (candidate("dense", 4), candidate("packed", 4))
OVER = candidate("2 devices", 4, 2)
CASCADE = Candidate("cascade", "wide_resnet16_4", 4, "", 1, 1000, None)


def of(candidates, medians, **about):
    """`medians`: batch -> ms of each candidate; None: left out. Quartiles: a tenth off."""
    cells = []
    for batch, row in medians.items():
        for one, ms in zip(candidates, row, strict=True):
            s = (ms or 0) / 1000
            times = Times(s, 0.9 * s, 1.1 * s, 0.8 * s, 7) if ms else None
            cells.append(Cell(one.name, batch, times, "" if times else WHY))
    return Found(tuple(candidates), tuple(medians), tuple(cells), ABOUT | about)


EVERY = of(
    (UNDIVIDED, ONE, *FOUR, CASCADE),
    {1: (4, 1, 5, 6, 2), 8: (5, 2, 7, 8, 3), 64: (80, 20, 70, 62, 20)},
)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            EVERY,
            "on a CPU with 2 cores, a batch of 1 takes the 4 networks together 5.00 ms at best "
            "(dense), 1.25 times the 4.00 ms of the undivided network. A batch of 64 takes the 4 "
            "networks together 62.00 ms at best (packed), 0.78 times the 80.00 ms of the undivided "
            "network.",
        ),
        (
            of(
                (UNDIVIDED, ONE, *FOUR, OVER),
                {2: (4, 1, 4.5, 4.4, 2)},
                platform="gpu",
                device="Fast\x00 9",
            ),
            "on Fast\N{REPLACEMENT CHARACTER} 9, a batch of 2 takes the 4 networks together "
            "4.40 ms at best (packed), 1.10 times the 4.00 ms of the undivided network (their "
            "quartile ranges overlap); over 2 devices 2.00 ms, 0.50 times.",
        ),
        (
            of((UNDIVIDED, *FOUR), {1: (None, 5, 6), 1024: (1500, None, None)}, cores=1),
            "on a CPU with 1 core, a batch of 1 takes the 4 networks together 5.00 ms at best "
            "(dense); the undivided network was left out. A batch of 1,024 takes the undivided "
            "network 1.50 s; the 4 networks together were left out.",
        ),
        (
            of((UNDIVIDED, ONE), {1: (4, 1), 2: (None, None)}, cores=None),
            "on a CPU, a batch of 1 takes the divided network 1.00 ms, 0.25 times the 4.00 ms of "
            "the undivided network. A batch of 2 was left out.",
        ),
        (
            of((UNDIVIDED,), {1: (4,), 2: (None,)}),
            "on a CPU with 2 cores, a batch of 1 takes the network 4.00 ms. A batch of 2 was left "
            "out.",
        ),
    ],
)
def test_sentences(found, said):
    assert latencies.sentences(found) == said


def test_the_page_has_a_sentence_a_figure_and_a_table(tmp_path):
    path = reports.workdir(tmp_path / "a", reports.digits())
    latency.write(EVERY, path)
    text = written(path)
    part = re.search(r'<section id="latency">.*?</section>', text, re.S)[0]
    assert '<a href="#latency">Latency</a>' in text
    said = Checked(part).text
    assert f"a: {latencies.sentences(EVERY)}" in said
    assert "a: wide_resnet16_4, images 8x8x1, float32, on a CPU with 2 cores." in said
    assert "dense, packed: ways to compute all 4 networks on one device." in said
    row = '<th scope="row">undivided</th><td>4.00</td><td>250</td>'
    assert f"{row}<td>80.00</td><td>800</td>" in part
    assert "batch 8" not in said and part.count('<th scope="row">') == 5
    (drawn,) = re.findall(r'<svg class="plot".*?</svg>', part, re.S)
    root = ElementTree.fromstring(drawn)
    words = [one.text for one in root.iter() if one.tag.endswith("text")]
    names = ["undivided", "one network", "dense", "packed", "cascade"]
    assert {"1", "8", "64", "images of a batch", "time of a batch, ms", *names} <= set(words)
    assert "packed 6.00 ms at 1, 62.00 ms at 64" in root.find("desc").text


@pytest.fixture
def drawn_of(monkeypatch):
    """A function: what was measured -> the axes on which `latencies.chart` draws it."""
    from matplotlib.figure import Figure

    def drawn(found):
        axes = Figure().subplots()
        monkeypatch.setattr(figures, "svg", lambda name, title, text, draw, size: draw(axes) or "")
        latencies.chart(runs.Run(path=None, name="a", config=None), 0, found)
        return axes

    return drawn


def test_lines_and_bars_lie_on_axes_of_both_logarithms(drawn_of):
    found = of((UNDIVIDED, *FOUR), {1: (4, None, 6), 64: (80, 70, None)})
    axes = drawn_of(found)
    assert axes.get_xscale() == axes.get_yscale() == "log"
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines["undivided"] == [[1, 4], [64, 80]]
    assert lines["dense"] == [[64, 70]] and lines["packed"] == [[1, 6]]
    bars = [bar for one in axes.collections for bar in one.get_segments()]
    np.testing.assert_allclose([bar[:, 1] for bar in bars[:2]], [[3.6, 4.4], [72, 88]])
    low, high = axes.get_ylim()
    assert low < 3.6 and high > 88


def test_no_two_lines_look_alike_in_colours_or_without_them():
    coloured, dark = ["one network", *stack.LOWERINGS[1:]], ["undivided", "2 devices", "cascade"]
    found = latencies.looks(dark[:1] + coloured + dark[1:])
    assert {found[name]["color"] for name in dark} == {figures.INK}
    assert len({found[name]["color"] for name in coloured} | {figures.INK}) == 6
    for names in (coloured, dark):
        assert len({str(found[name]["linestyle"]) for name in names}) == len(names)


def test_batch_sizes_that_have_no_room_are_not_named(drawn_of):
    found = of((UNDIVIDED,), {batch: (batch,) for batch in range(1, 65)})
    axes = drawn_of(found)
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names[:3] == ["1", "2", "4"] and len(names) <= 11
    axes = drawn_of(of((UNDIVIDED,), {1024: (5,)}))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1,024"]


def test_what_was_left_out_stands_with_its_reason(tmp_path, undrawn):
    path = reports.workdir(tmp_path / "a", reports.digits())
    latency.write(of((UNDIVIDED, ONE, *FOUR), {1: (4, 1, 5, 6), 64: (80, 20, None, None)}), path)
    text = written(path)
    assert f"Left out at batch 64: dense ({WHY}), packed ({WHY})." in Checked(text).text
    row = '<th scope="row">dense</th><td>5.00</td><td>200</td>'
    assert f"{row}<td>left out</td><td>-</td>" in text


def test_all_left_out_gives_no_figure(tmp_path):
    found = of((UNDIVIDED, *FOUR), {1: (None, None, None)})
    assert latencies.chart(runs.Run(path=None, name="a", config=None), 0, found) is None
    latency.write(found, tmp_path)
    (said,) = latencies.left_out(latency.read(tmp_path))
    assert said.startswith(f"Left out at batch 1: undivided ({WHY}), dense")


def test_without_latency_there_is_no_section(tmp_path, undrawn):
    path = reports.workdir(tmp_path / "a", reports.digits())
    assert "Latency" not in Checked(written(path)).text


@pytest.mark.parametrize(
    ("broken", "why"),
    [('{"format": 1, "arch": ', "cannot be read"), ('{"format": 0}', "format=0: must be 1")],
)
def test_a_broken_file_is_a_note_beside_a_whole_one(broken, why, tmp_path, undrawn):
    paths = [reports.workdir(tmp_path / name, reports.digits()) for name in ("a", "b")]
    (paths[0] / latency.NAME).write_text(broken)
    latency.write(EVERY, paths[1])
    said = Checked(written(*paths, out=tmp_path / "out.html")).text
    assert "No latency of a: " in said and why in said
    assert "`jaxsplit latency` writes it anew." in said
    assert "b: on a CPU with 2 cores, a batch of 1 takes" in said


def test_names_are_escaped(tmp_path):
    evil = candidate("<b>\x1b&$x$", 4)
    path = reports.workdir(tmp_path / "a", reports.digits())
    latency.write(of((UNDIVIDED, evil), {1: (4, 5), 2: (5, None)}, arch="<i>"), path)
    text = written(path)
    found = Checked(text)
    assert not {"b", "i"} & set(found.tags) and "\x1b" not in text
    assert "(<b>\N{REPLACEMENT CHARACTER}&$x$)" in found.text
