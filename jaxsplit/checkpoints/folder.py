"""The folder <workdir>/checkpoints: which steps it holds, and whether it is writable."""

import pathlib

from jaxsplit.workdir import files
from jaxsplit.workdir.folder import make_writable

FOLDER = "checkpoints"


def exists(workdir: str | pathlib.Path) -> bool:
    """Whether a workdir holds a checkpoint."""
    return bool(steps_in(files.path_of(workdir) / FOLDER))


def weights_only(workdir: str | pathlib.Path) -> bool:
    """Whether the newest checkpoint of a workdir holds weights, but no state to resume from."""
    folder = files.path_of(workdir) / FOLDER
    # Training never saves step 0. A missing item `opt` alone may also be damage.
    return max(steps_in(folder), default=None) == 0 and not (folder / "0" / "opt").is_dir()


def make_room(workdir: pathlib.Path) -> None:
    """Removes what interrupted saves have left; no other run may write into the workdir.

    Orbax does the same, but too late: on a full disk nothing can be written before.
    """
    folder = workdir / FOLDER
    if not files.is_remote(folder) and folder.is_dir():
        for path in folder.glob("*.orbax-checkpoint-tmp*"):
            files.remove(path)


def check(workdir: pathlib.Path) -> None:
    """Makes the folder of the checkpoints and checks that it is writable.

    Raises:
      ConfigError: the folder is not writable.
    """
    make_writable(workdir / FOLDER, f"workdir={str(workdir)!r}: its {FOLDER}")


def steps_in(folder: pathlib.Path) -> list[int]:
    """Steps of the finished checkpoints in a folder."""
    if not folder.is_dir():
        return []
    steps = [path for path in folder.iterdir() if path.name.isdecimal()]
    if files.is_remote(
        folder
    ):  # in a bucket a folder has its name from the start; this file comes last
        steps = [path for path in steps if (path / "commit_success.txt").exists()]
    return [int(path.name) for path in steps]
