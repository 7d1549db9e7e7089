"""A bucket, `gs://...`, that is a folder: epath and orbax as they are, but for where bytes go.

As a bucket, it has no files that can be appended to or created exclusively.
"""

import pathlib
import shutil

from etils.epath import backend, gpath, stat_utils
from orbax.checkpoint._src.path import gcs_utils

from jaxsplit.workdir import files


class Backend(backend.Backend):
    """What epath asks of a file system, of `gs://name/...` as `folder/name/...`."""

    def __init__(self, folder: pathlib.Path):
        self._folder, self.written = folder, []

    def at(self, path) -> pathlib.Path:
        scheme, _, rest = str(path).partition("://")
        assert scheme == "gs", path
        return self._folder / rest

    def open(self, path, mode):
        assert mode in ("r", "rb", "w", "wb"), mode
        if "w" in mode:
            self.written.append(str(path))
            self.at(path).parent.mkdir(parents=True, exist_ok=True)
        return self.at(path).open(mode)

    def exists(self, path):
        return self.at(path).exists()

    def isdir(self, path):
        return self.at(path).is_dir()

    def listdir(self, path):
        return [f"{p.name}/" if p.is_dir() else p.name for p in self.at(path).iterdir()]

    def glob(self, path):
        found = self._folder.glob(str(path).partition("://")[2])
        return [f"gs://{p.relative_to(self._folder)}" for p in found]

    def walk(self, top, *, top_down=True, on_error=None):
        for root, dirs, names in self.at(top).walk(top_down=top_down, on_error=on_error):
            yield f"gs://{root.relative_to(self._folder)}", dirs, names

    def makedirs(self, path, *, exist_ok=False, mode=None):
        self.at(path).mkdir(parents=True, exist_ok=exist_ok)

    mkdir = makedirs

    def rmtree(self, path):
        if self.at(path).is_dir():
            shutil.rmtree(self.at(path))
        else:
            self.remove(path)

    def remove(self, path):
        self.at(path).unlink()

    def rename(self, path, dst):
        assert not self.at(dst).exists()
        self.at(path).rename(self.at(dst))

    def replace(self, path, dst):
        self.at(path).replace(self.at(dst))

    def copy(self, path, dst, overwrite):
        shutil.copyfile(self.at(path), self.at(dst))

    def stat(self, path):
        status = self.at(path).stat()
        return stat_utils.StatResult(
            is_directory=self.at(path).is_dir(),
            length=status.st_size,
            mtime=int(status.st_mtime),
            owner=None,
            group=None,
            mode=None,
        )


def install(monkeypatch, folder: pathlib.Path) -> Backend:
    """Until the end of the test `gs://` is `folder`."""
    fake = Backend(folder)
    monkeypatch.setattr(files, "missing_libraries", lambda: "")
    monkeypatch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False)
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", fake)
    monkeypatch.setattr(
        gcs_utils,
        "get_kvstore_for_gcs",
        lambda path: {"driver": "file", "path": str(fake.at(path))},
    )
    return fake
