"""Files that systems and archivers leave behind, beside all that begin with a dot."""

_NAMES = {
    "__macosx",
    "thumbs.db",
    "desktop.ini",
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "system volume information",
    "lost+found",
}


def is_junk(name: str) -> bool:
    """Whether a file or folder of that name is no part of any data set."""
    return name.startswith(".") or name.casefold() in _NAMES
