"""Names of files that operating systems and archivers leave behind."""

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
    """Whether a file or folder of that name never belongs to a data set."""
    return name.startswith(".") or name.casefold() in _NAMES
