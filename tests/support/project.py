"""The files of the project."""

import pathlib
import shutil
import subprocess

from tests.support.paths import ROOT


def project_files() -> list[pathlib.Path]:
    """The files of the repository: tracked ones and new ones that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if shutil.which("git") and (ROOT / ".git").exists():
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        # An unpacked archive: everything but what tools and runs leave behind.
        left = {".venv", ".cache", ".pytest_cache", ".ruff_cache", "__pycache__", "runs", "build"}
        paths = [p for p in ROOT.rglob("*") if not left & set(p.relative_to(ROOT).parts)]
    return [path for path in paths if path.is_file()]
