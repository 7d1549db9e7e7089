"""Pieces of an HTML page. Text is escaped here and nowhere else: `Raw` is what already is HTML."""

from collections.abc import Iterable, Sequence
from html import escape


class Raw(str):
    """Text that is HTML."""


def text(value: object) -> str:
    """A value as HTML."""
    return value if isinstance(value, Raw) else escape(str(value))


def tag(name: str, inside: object, **attributes: object) -> Raw:
    """An element; an attribute `class_` is written class, `aria_label` aria-label."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value not in ("", None)
    )
    return Raw(f"<{name}{given}>{text(inside)}</{name}>")


def join(parts: Iterable[object], between: str = "\n") -> Raw:
    """Pieces one after another; empty ones are left out."""
    return Raw(between.join(text(part) for part in parts if part != "" and part is not None))


def paragraph(inside: object, class_: str = "") -> Raw:
    return tag("p", inside, class_=class_)


def code(inside: object) -> Raw:
    return tag("code", inside)


def bullets(items: Sequence[object]) -> Raw:
    """A list; '' without items."""
    return tag("ul", join(tag("li", item) for item in items)) if items else Raw("")


def table(
    caption: object,
    heads: Sequence[object],
    groups: Sequence[tuple[object, Sequence[Sequence[object]]]],
    kind: str = "numbers",
) -> Raw:
    """A table that scrolls inside its box.

    Args:
      caption: above it.
      heads: of the columns.
      groups: (head of the group, '' for none; rows). The first cell of a row is its head.
      kind: 'numbers', to the right; or 'words', to the left.
    """
    head = tag("tr", join((tag("th", h, scope="col") for h in heads), ""))
    bodies = []
    for name, rows in groups:
        lines = []
        if name:
            lines.append(
                tag(
                    "tr",
                    tag("th", tag("span", name), scope="rowgroup", colspan=len(heads)),
                    class_="group",
                )
            )
        for first, *others in rows:
            cells = [tag("th", first, scope="row"), *(tag("td", cell) for cell in others)]
            lines.append(tag("tr", join(cells, "")))
        bodies.append(tag("tbody", join(lines)))
    inside = join([tag("caption", tag("span", caption)), tag("thead", head), *bodies])
    # A box that scrolls can be reached by the keyboard.
    return tag(
        "div",
        tag("table", inside, class_=kind),
        class_="scroll",
        tabindex="0",
        role="group",
        aria_label=_plain(caption),
    )


def figure(inside: object, caption: object) -> Raw:
    return tag("figure", join([inside, tag("figcaption", caption)]))


def grid(figures: Sequence[object]) -> Raw:
    """Figures beside each other, as many as there is room for; '' without figures."""
    return tag("div", join(figures), class_="grid") if figures else Raw("")


def section(anchor: str, title: str, parts: Iterable[object]) -> Raw:
    """A part of the page with its heading; '' where it holds nothing."""
    inside = join(parts)
    if not inside:
        return Raw("")
    return tag("section", join([tag("h2", title), inside]), id=anchor)


def page(title: str, style: str, body: Raw) -> str:
    """A whole page, which needs no other file."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _plain(caption: object) -> str:
    import re
    from html import unescape

    return unescape(re.sub(r"<[^>]*>", "", caption)) if isinstance(caption, Raw) else str(caption)
