"""Puts the experiment files of configs/ into a wheel; all else stands in pyproject.toml.

There they lie in jaxsplit/recipes/configs, where `jaxsplit.recipes.experiments` finds them. An
editable install needs none of this: it reads configs/ of the clone.
"""

import pathlib

from setuptools import setup
from setuptools.command.build_py import build_py


class WithExperiments(build_py):
    def _files(self) -> dict[str, pathlib.Path]:
        """Path in configs/ -> path in the wheel."""
        into = pathlib.Path(self.build_lib) / "jaxsplit" / "recipes" / "configs"
        paths = sorted(pathlib.Path("configs").glob("*.py"))
        return {str(p): into / p.name for p in paths if p.stem not in ("__init__", "common")}

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for path, copy in self._files().items():
            self.mkpath(str(copy.parent))
            self.copy_file(path, str(copy))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        added = [] if self.editable_mode else [str(path) for path in self._files().values()]
        return [*super().get_outputs(include_bytecode), *added]

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *self._files()]


setup(cmdclass={"build_py": WithExperiments})
