"""Names beside the points of a figure, placed so that none covers another name or a point."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _HEIGHT = 0.58, 1.15  # of a letter, as shares of the font's size; browsers' fonts differ
_MARK = 4.5  # points around the middle of a mark
_NEAR = 12.0  # points; a name farther away gets a line to its mark
_RADII = (8, 12, 18, 26, 36, 48, 62, 78, 96, 116, 138, 162, 190)
_ANGLES = 24


class Box(NamedTuple):
    """A rectangle in points."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: "Box") -> bool:
        """Whether two boxes share an area."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.bottom < other.top
            and other.bottom < self.top
        )

    def inside(self, other: "Box") -> bool:
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.bottom >= other.bottom
            and self.top <= other.top
        )


def place(
    points: np.ndarray, names: Sequence[str], size: float, bounds: Box, avoid: Sequence[Box] = ()
) -> list[Box | None]:
    """Where the names of some points go, in points; None where one finds no room.

    Args:
      points: float[n, 2], the marks.
      names: n of them; '' needs no room and stays None.
      size: of the font.
      bounds: every name lies inside.
      avoid: what is covered only where there is no other room, such as error bars.
    """
    marks = [Box(x - _MARK, y - _MARK, x + _MARK, y + _MARK) for x, y in points]
    placed: list[Box | None] = [None] * len(names)
    taken: list[Box] = []
    crowd = [sum(math.dist(p, q) < 40 for q in points) for p in points]
    for i in sorted(range(len(names)), key=lambda i: (crowd[i], -points[i][1], points[i][0])):
        if not names[i]:
            continue
        found = None
        for cost, box in _candidates(points[i], names[i], size):
            if found and cost >= found[0]:
                continue
            if not box.inside(bounds) or any(box.meets(other) for other in (*taken, *marks)):
                continue
            cost += 45.0 * any(box.meets(other) for other in avoid)
            if found is None or cost < found[0]:
                found = cost, box
        if found:
            placed[i] = found[1]
            taken.append(found[1])
    return placed


def _candidates(point: np.ndarray, name: str, size: float) -> list[tuple[float, Box]]:
    """(cost, box) of places around a mark, at the right first."""
    width, height = _WIDTH * size * len(name), _HEIGHT * size
    found = []
    for radius in _RADII:
        for k in range(_ANGLES):
            angle = 2 * math.pi * k / _ANGLES
            x, y = point[0] + radius * math.cos(angle), point[1] + radius * math.sin(angle)
            left = x - width * (1 - math.cos(angle)) / 2
            bottom = y - height * (1 - math.sin(angle)) / 2
            turn = min(k, _ANGLES - k) / _ANGLES
            found.append((radius + 4 * turn, Box(left, bottom, left + width, bottom + height)))
    return found


def draw(
    axes: "Axes",
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    looks: Sequence[dict[str, Any]],
    size: float = 9.0,
    bars: Sequence[tuple[tuple[float, float], tuple[float, float]]] = (),
) -> list[str]:
    """Writes names beside points of the axes; returns those for which there was no room.

    Call it last: limits and scales of the axes must be set.

    Args:
      points: (x, y) in the units of the axes.
      names: '' for a point without a name.
      looks: `color` of each name.
      bars: ends of lines that names should not cover.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # so that the layout has its size
    scale = 72 / figure.dpi
    at = scale * axes.transData.transform(np.asarray(points, float))
    frame = axes.get_window_extent()
    bounds = Box(*(scale * v for v in (frame.x0, frame.y0, frame.x1, frame.y1)))
    avoid = []
    for one in bars:
        (x0, y0), (x1, y1) = scale * axes.transData.transform(np.asarray(one, float))
        left, right, low, high = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
        avoid.append(Box(left - 1, low - 1, right + 1, high + 1))
    placed = place(at, names, size, bounds, avoid)
    for point, name, look, box in zip(at, names, looks, placed, strict=True):
        if box is not None:
            _write(axes, point, name, look, box, size)
    return [name for name, box in zip(names, placed, strict=True) if name and box is None]


def _write(
    axes: "Axes", point: np.ndarray, name: str, look: dict[str, Any], box: Box, size: float
) -> None:
    x, y = point
    near = (min(max(x, box.left), box.right), min(max(y, box.bottom), box.top))
    figure = axes.get_figure(root=True)
    assert figure is not None
    pixels = [figure.dpi / 72 * v for v in point]
    across, up = axes.transData.inverted().transform(pixels).tolist()
    kind: dict[str, Any] = dict(xy=(across, up), textcoords="offset points", annotation_clip=False)
    if math.dist(point, near) > _NEAR:
        line = axes.annotate(
            "",
            xytext=(near[0] - x, near[1] - y),
            arrowprops=dict(arrowstyle="-", color=look["color"], linewidth=0.7, shrinkB=4),
            **kind,
        )
        line.set_in_layout(False)
    middle = (box.left + box.right) / 2
    side = "left" if middle > x + 4 else "right" if middle < x - 4 else "center"
    edge = {"left": box.left, "right": box.right, "center": middle}[side]
    written = axes.annotate(
        name,
        xytext=(edge - x, (box.bottom + box.top) / 2 - y),
        ha=side,
        va="center_baseline",
        fontsize=size,
        color=look["color"],
        **kind,
    )
    written.set_in_layout(False)
