"""Figures as SVG inside a page: matplotlib draws them, the page's style gives text and colours.

`SERIES`, `INK` and the like are stand-ins: `svg` replaces each by a variable of CSS, so that one
drawing can be read on white, in the dark and on paper.
"""

import io
import itertools
import re
import warnings
from collections.abc import Callable, Iterator
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsplit.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, LINE = "#010203", "#040506", "#070809"
# Colours that people who do not see red or green tell apart (Okabe and Ito 2008); `style` has them.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
RIGHT, WRONG = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)  # of pictures, which CSS does not reach
_VARIABLES = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    **{colour: f"var(--c{i})" for i, colour in enumerate(SERIES)},
}
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 3)))
_POINTS = 200  # of a line; more cannot be seen
_SIZE = (5.0, 3.3)  # inches: 360 by 238 points, so that text has its size on a phone

_PARAMETERS = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may hold $
    "font.size": 11,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "image.interpolation": "none",
}


def need_matplotlib() -> None:
    """Raises ConfigError where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError(
            "report: needs matplotlib, which is not installed; pip install 'matplotlib>=3.9'"
        ) from None


def svg(
    name: str,
    title: str,
    text: str,
    draw: Callable[["Axes"], None],
    size: tuple[float, float] = _SIZE,
) -> str:
    """An <svg> element; the same drawing gives the same bytes.

    Args:
      name: begins every id of the figure; of no other figure of the page.
      title: of the figure, in a few words.
      text: what it shows, for those who do not see it.
      draw: draws on the axes that it gets.
      size: width and height in inches.
    """
    import matplotlib
    from matplotlib.figure import Figure

    file = io.StringIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has the letters
        matplotlib.rcdefaults()  # whatever the user's own settings are
        matplotlib.rcParams.update(_PARAMETERS | {"svg.hashsalt": name})
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _inline(file.getvalue(), name, title, text, size)


def _inline(drawn: str, name: str, title: str, text: str, size: tuple[float, float]) -> str:
    inside = re.search(r"<svg[^>]*>(.*)</svg>", drawn, re.S)
    box = re.search(r'viewBox="([^"]*)"', drawn)
    assert inside is not None and box is not None
    body = re.sub(r"<(metadata|style)\b.*?</\1>", "", inside[1], flags=re.S)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.S).replace("xlink:href", "href")
    body = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r'(?<= style=")[^"]*', _themed, body)
    body = re.sub(r"\n\s*", "\n", body).strip()
    return (
        f'<svg class="plot" viewBox="{box[1]}" role="img" style="max-width:{size[0] * 118:.0f}px" '
        f'aria-labelledby="{name}-t {name}-d">\n'
        f'<title id="{name}-t">{escape(title)}</title>\n<desc id="{name}-d">{escape(text)}</desc>\n'
        f"{body}\n</svg>"
    )


def _themed(style: re.Match) -> str:
    text = re.sub(r"#[0-9a-f]{6}", lambda m: _VARIABLES.get(m[0], m[0]), style[0])
    # matplotlib names its own font, as `font:` up to 3.10; without one the page's own is taken.
    text = re.sub(r"font: ([\w. ]*?)([\d.]+)px [^;]*", r"font-size: \2px", text)
    return re.sub(r"font-family: [^;]*(; |$)", "", text)


# ---- Lines


def looks(names: list[str]) -> dict[str, dict[str, Any]]:
    """Name -> colour and dashes: networks each their own, common answers in the text's colour."""
    numbers, others = itertools.count(), itertools.count()
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        if name.startswith("net"):
            i = next(numbers)
            dashes = _DASHES[(i + i // len(SERIES)) % len(_DASHES)]
            found[name] = dict(color=SERIES[i % len(SERIES)], linestyle=dashes, linewidth=1.4)
        else:
            dashes = _DASHES[next(others) % len(_DASHES)]
            found[name] = dict(color=INK, linestyle=dashes, linewidth=2.2)
    return found


def series(count: int) -> Iterator[dict[str, Any]]:
    """Colour and dashes of so many lines of equal rank."""
    for i in range(count):
        dashes = _DASHES[(i + i // len(SERIES)) % len(_DASHES)]
        yield dict(color=SERIES[i % len(SERIES)], linestyle=dashes)


def line(axes: "Axes", x: Any, y: Any, label: str, look: dict[str, Any]) -> None:
    """A line of at most `_POINTS` points, with a mark at each where they are few."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) > _POINTS:
        at = np.unique(np.linspace(0, len(x) - 1, _POINTS).round().astype(int))
        x, y = x[at], y[at]
    marker = "o" if len(x) <= 12 else ""
    axes.plot(x, y, label=label, marker=marker, markersize=3, **look)


def legend_below(axes: "Axes", columns: int = 3) -> None:
    """The legend under the axes, where it hides nothing; at most so many columns."""
    count = len(axes.get_legend_handles_labels()[1])
    if count > 1:
        columns = -(-count // -(-count // columns))  # rows that are equally full
        where = "outside lower center"
        axes.figure.legend(loc=where, ncols=columns, handlelength=2.2, columnspacing=1.2)


def error_axis(axes: "Axes") -> None:
    """A y axis of errors in percent on which 0.5 and 50 can both be read."""
    axes.set_yscale("symlog", linthresh=1, linscale=0.5)
    top = axes.get_ylim()[1]
    ticks = [t for t in (0, 0.5, 1, 2, 5, 10, 20, 50, 100) if t <= max(top, 1)]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_ylim(bottom=0)


def log_axis(axes: "Axes") -> None:
    """A logarithmic y axis with numbers as they are read; what is not positive lies at its foot."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    shown = np.concatenate([np.asarray(one.get_ydata(), float) for one in axes.lines] or [[1.0]])
    shown = shown[np.isfinite(shown) & (shown > 0)]
    if not len(shown):
        return
    axes.set_yscale("log", nonpositive="clip")
    low, high = shown.min() / 1.15, shown.max() * 1.15
    axes.set_ylim(low, high)
    decades = np.log10(high / low)
    subs = (1.0,) if decades > 4 else (1.0, 3.0) if decades > 1.5 else (1.0, 2.0, 5.0)
    if decades < 0.6:
        subs = tuple(float(i) for i in range(1, 10))
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


# ---- Matrices


def shaded(right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """uint8[n, m, 4]: blue by `right`, orange by `wrong` (both in 0..1), on nothing.

    What is small is lifted, so that one example among hundreds shows. The colours stay thin enough
    for text of either theme.
    """
    out = np.zeros((*right.shape, 4), np.uint8)
    for colour, values in ((RIGHT, right), (WRONG, wrong)):
        alpha = np.where(values > 0, 0.1 + 0.5 * np.sqrt(np.clip(values, 0, 1)), 0)
        shown = alpha > 0
        out[shown, :3] = colour
        out[shown, 3] = np.round(255 * alpha[shown]).astype(np.uint8)
    return out


def matrix(
    axes: "Axes",
    picture: np.ndarray,
    texts: list[list[str]] | None,
    rows: list[str],
    columns: list[str],
) -> None:
    """A picture of cells with the texts in them, and names at the left and below."""
    axes.imshow(picture, aspect="equal")
    for spine in axes.spines.values():
        spine.set_visible(True)
    small = 10 if len(rows) <= 6 else 8 if len(rows) <= 12 else 6
    names = [name if len(name) <= 14 else f"{name[:13]}…" for name in columns]
    turn = 90 if max(map(len, names), default=0) > 4 else 0
    axes.set_xticks(range(len(names)), names, fontsize=small, rotation=turn)
    names = [name if len(name) <= 14 else f"{name[:13]}…" for name in rows]
    axes.set_yticks(range(len(names)), names, fontsize=small)
    axes.tick_params(length=0)
    for i, row in enumerate(texts or []):
        for j, text in enumerate(row):
            if text:
                axes.text(j, i, text, ha="center", va="center", fontsize=small)
