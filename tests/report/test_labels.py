"""report.labels: names of points cover neither each other nor a point."""

import numpy as np
import pytest

from jaxsplit.report import labels
from jaxsplit.report.labels import Box

FRAME = Box(0, 0, 300, 230)


def marks(points) -> list[Box]:
    return [Box(x - 4, y - 4, x + 4, y + 4) for x, y in points]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["spread", "column", "one place"])
def test_no_name_covers_another_or_a_point(kind, seed):
    rng = np.random.default_rng(seed)
    points = rng.uniform((10, 10), (290, 220), (20, 2))
    if kind == "column":
        points[:, 0] = 150
    if kind == "one place":
        points = 150 + rng.normal(0, 4, (20, 2))
    names = [f"method{i} S=4" for i in range(20)]
    placed = labels.place(points, names, 8.0, FRAME)
    boxes = [box for box in placed if box is not None]
    assert len(boxes) == 20
    for i, box in enumerate(boxes):
        assert box.inside(FRAME)
        assert not any(box.meets(other) for other in boxes[:i])
        assert not any(box.meets(mark) for mark in marks(points))


def test_a_lone_name_stands_right_beside_its_point():
    (box,) = labels.place(np.array([[50.0, 60.0]]), ["single"], 10.0, FRAME)
    assert box is not None
    assert 0 < box.left - 50 < 12 and box.bottom < 60 < box.top
    assert box.right - box.left == pytest.approx(0.58 * 10 * 6)


def test_bars_are_left_free_where_there_is_room():
    bar = Box(54, 40, 200, 80)
    (box,) = labels.place(np.array([[50.0, 60.0]]), ["single"], 10.0, FRAME, [bar])
    assert box is not None and not box.meets(bar)


def test_a_name_without_room_is_left_out():
    small = Box(0, 0, 30, 30)
    assert labels.place(np.array([[15.0, 15.0]]), ["too long a name"], 10.0, small) == [None]
    assert labels.place(np.array([[15.0, 15.0]]), [""], 10.0, FRAME) == [None]


def test_drawn_names_are_those_that_have_room():
    from matplotlib.figure import Figure

    axes = Figure(figsize=(3, 2), layout="constrained").subplots()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    look = dict(color="#000000")
    left = labels.draw(axes, [(0.2, 0.2), (0.7, 0.7)], ["a", "x" * 90], [look, look])
    assert left == ["x" * 90]
    assert [text.get_text() for text in axes.texts if text.get_text()] == ["a"]
