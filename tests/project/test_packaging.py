"""What a clone promises: pinned dependencies, no trace of a machine, a core without TensorFlow."""

import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.paths import ROOT
from tests.support.project import project_files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES = (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))

# Packages that the core must do without; the rooms that use them import them themselves.
BLOCKED = (
    "array_record",
    "clu",
    "cv2",
    "grain",
    "importlib_resources",
    "matplotlib",
    "ml_collections",
    "orbax",
    "PIL",
    "simplejpeg",
    "sklearn",
    "tensorboard",
    "tensorflow",
    "tensorflow_datasets",
    "tqdm",
    "wandb",
)
CORE = ("conv", "stack", "losses", "models", "methods", "augment", "optim", "step", "sharding")

# Runs in a fresh interpreter. argv: the blocked packages, the core modules (comma separated).
IMPORT_CORE = """
import importlib, pkgutil, sys

blocked, core = (argument.split(",") for argument in sys.argv[1:])

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ImportError(f"{name} is imported by the core")
        return None

sys.meta_path.insert(0, Blocker())
for name in core:
    module = importlib.import_module(f"jaxsplit.{name}")
    for entry in pkgutil.walk_packages(getattr(module, "__path__", ()), module.__name__ + "."):
        importlib.import_module(entry.name)
"""


def declared() -> list[Requirement]:
    """Every direct dependency, those of the extras included."""
    lines = list(PROJECT["dependencies"])
    for extra in PROJECT["optional-dependencies"].values():
        lines += extra
    return [Requirement(line) for line in lines]


def content(path: pathlib.Path) -> list[str]:
    """The lines of a requirements file without comments and blank ones."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def constraints() -> list[Requirement]:
    return [Requirement(line) for line in content(ROOT / "constraints.txt")]


def applies(requirement: Requirement, python: str, machine: tuple[str, str]) -> bool:
    """Whether the marker of a requirement holds for this Python on (sys_platform, machine)."""
    if requirement.marker is None:
        return True
    return requirement.marker.evaluate(
        {
            "python_version": python,
            "python_full_version": f"{python}.0",
            "sys_platform": machine[0],
            "platform_system": machine[0].capitalize(),
            "platform_machine": machine[1],
            "extra": "",
        }
    )


def project_texts() -> list[tuple[str, str]]:
    """(path in the repository, text) of every file that is UTF-8 without NUL bytes."""
    texts = []
    for path in project_files():
        data = path.read_bytes()
        if b"\0" in data:
            continue
        try:
            texts.append((path.relative_to(ROOT).as_posix(), data.decode()))
        except UnicodeDecodeError:
            continue
    return texts


@pytest.mark.parametrize("machine", MACHINES, ids="-".join)
@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_pinned_once(python, machine):
    pins = [pin for pin in constraints() if applies(pin, python, machine)]
    needed = [need for need in declared() if applies(need, python, machine)]
    assert len(needed) >= 20
    for need in needed:
        found = [p for p in pins if canonicalize_name(p.name) == canonicalize_name(need.name)]
        assert len(found) == 1, f"{need.name} has {len(found)} pins on Python {python}"
        (specifier,) = found[0].specifier
        assert specifier.operator == "==" and "*" not in specifier.version, str(found[0])
        assert need.specifier.contains(Version(specifier.version), prereleases=True), (
            f"{found[0]} is outside of {need}"
        )


def test_tensorflow_is_asked_for_where_it_has_wheels():
    def names(python, machine):
        chosen = [n.name for n in declared() if applies(n, python, machine)]
        return [name for name in chosen if name in ("tensorflow", "tensorflow-cpu")]

    for python in ("3.11", "3.12", "3.13"):
        assert names(python, ("linux", "x86_64")) == ["tensorflow-cpu"]
        assert names(python, ("linux", "aarch64")) == ["tensorflow"]
        assert names(python, ("darwin", "arm64")) == ["tensorflow"]
    assert names("3.14", ("linux", "x86_64")) == []


def test_constraints_hold_versions_only():
    for name in ("constraints.txt", "requirements-tpu.txt"):
        for line in content(ROOT / name):
            assert "://" not in line, f"{name}: {line}"
            assert "--hash" not in line, f"{name}: {line}"
            assert "index" not in line and "find-links" not in line, f"{name}: {line}"
    for pin in constraints():
        assert pin.url is None and not pin.extras, str(pin)


def test_tpu_requirements_use_the_constraints():
    lines = content(ROOT / "requirements-tpu.txt")
    assert lines[:2] == ["-c constraints.txt", "-e ."]
    assert [Requirement(line).extras for line in lines[2:]] == [{"tpu"}]


def test_no_trace_of_a_machine_or_a_registry():
    # Spelt in parts, so that this file passes too. A path counts only where it starts a word:
    # neither below a variable such as $HOME nor inside an address.
    absolute = re.compile(r"(?<![\w.})~*-])/(?:root|work|home|Users)" + "/")
    hosts = [".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"))]
    hosts += [".".join(parts) for parts in (("npmjs", "org"), ("debian", "org"), ("npmjs", "com"))]
    texts = project_texts()
    assert "pyproject.toml" in dict(texts)
    problems = []
    for name, text in texts:
        for number, line in enumerate(text.splitlines(), start=1):
            if absolute.search(line) or any(host in line for host in hosts):
                problems.append(f"{name}:{number}: {line.strip()[:120]}")
    assert not problems, "\n".join(problems)


def test_no_lock_files():
    assert not [path for path in project_files() if path.suffix == ".lock"]


def test_makefile_lists_its_targets():
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    result = subprocess.run([make, "-s"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = {line.split()[0] for line in result.stdout.splitlines() if line.startswith("  ")}
    phony = re.search(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert listed == set(phony[1].split())


def test_core_imports_without_tensorflow():
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_CORE, ",".join(BLOCKED), ",".join(CORE)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-2000:]


def test_the_import_blocker_blocks():
    for name in ("tensorflow", "sklearn"):
        code = IMPORT_CORE + f"\nimport {name}"
        result = subprocess.run(
            [sys.executable, "-c", code, ",".join(BLOCKED), "errors"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert result.returncode != 0
        assert f"{name} is imported by the core" in result.stderr
