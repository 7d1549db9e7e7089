"""The package without the clone: a wheel in a fresh environment, used from another directory."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

from jaxsplit.cli import VERBS
from jaxsplit.recipes import experiments
from tests.support.paths import ROOT
from tests.support.project import project_files

# Three steps of two small networks on one device.
TINY = (
    "--config=digits_wrn16_4_x4",
    "--config.arch=wide_resnet10_1",
    "--config.split=2",
    "--config.divide_anyway=True",  # so narrow a network does not divide
    "--config.duration=3 steps",
    "--config.cotrain.warmup=1 steps",
    "--config.schedule.warmup=1 steps",
    "--config.batch_size=16",
    "--config.mesh.data=1",
    "--config.trackers=()",  # whose libraries take seconds to start
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """A wheel, built from a copy of the project's files and without a network."""
    made = tmp_path_factory.mktemp("wheel")
    for path in project_files():
        copy = made / "clone" / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    command = ["wheel", "--no-deps", "--no-build-isolation", "-w", made, made / "clone"]
    pip(*command, cwd=made)
    (path,) = made.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def jaxsplit(wheel, tmp_path_factory):
    """A function that runs the program of the wheel in a directory where nothing else is."""
    made = tmp_path_factory.mktemp("installed")
    environment, away = made / "environment", made / "away"
    away.mkdir()
    python_of = [sys.executable, "-m", "venv", "--without-pip", environment]
    subprocess.run(python_of, check=True, timeout=120)
    python = environment / "bin" / "python"
    pip("--python", python, "install", "--no-deps", wheel, cwd=made)
    # The dependencies are those of the tests. Python does not read the .pth files there, so that
    # an editable jaxsplit among them is not seen.
    inside = sysconfig.get_path("purelib", vars={"base": str(environment)})
    pathlib.Path(inside, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(*args: str, program: tuple[str, ...] = ("jaxsplit",)) -> subprocess.CompletedProcess:
        command = [environment / "bin" / program[0], *program[1:], *args]
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            command, cwd=away, env=env, capture_output=True, text=True, timeout=300
        )

    return run


def pip(*args: str | pathlib.Path, cwd: pathlib.Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # `--python` stands before the command, `--no-index` behind it.
    done = subprocess.run(
        [*command, *args, "--no-index"], cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def line(done: subprocess.CompletedProcess) -> str:
    """The one line that a refused command prints."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (said,) = done.stderr.splitlines()
    return said


def test_what_the_wheel_holds(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"jaxsplit"}
    folder = "jaxsplit/recipes/configs/"
    carried = [name.removeprefix(folder) for name in names if name.startswith(folder)]
    assert sorted(carried) == [f"{name}.py" for name in experiments.names()]
    modules = {path.relative_to(ROOT).as_posix() for path in project_files()}
    modules = {name for name in modules if name.startswith("jaxsplit/")}
    assert not modules - set(names)


@pytest.mark.slow
def test_train_then_evaluate(jaxsplit):
    trained = jaxsplit("train", *TINY, "--workdir=run")
    assert trained.returncode == 0, trained.stderr
    assert "digits test (360 images), wide_resnet10_1 divided in 2, cotrain" in trained.stdout
    evaluated = jaxsplit("eval", "--workdir=run")
    assert evaluated.returncode == 0, evaluated.stderr
    both = [text.partition("diversity of")[0] for text in (trained.stdout, evaluated.stdout)]
    before, after = (
        [line.split() for line in text.splitlines() if line.startswith(("net", "ensemble"))]
        for text in both
    )
    assert len(after) == 3 and [[*row[:4], *row[5:]] for row in after] == before  # without the ECE


def test_it_is_the_wheel_that_runs(jaxsplit):
    code = "import importlib.util, jaxsplit; print(jaxsplit.__file__)\n"
    code += "assert not importlib.util.find_spec('configs')"
    done = jaxsplit("-c", code, program=("python",))
    assert done.returncode == 0, done.stderr
    assert "environment" in done.stdout and str(ROOT) not in done.stdout


@pytest.mark.slow
def test_summary_of_a_built_in_experiment(jaxsplit):
    config = "--config=cifar100:arch=resnet110,split=2"
    done = jaxsplit("summary", config, "--config.data.name=digits")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("resnet110 divided in 2, one network\n")


def test_bad_input_without_the_clone(jaxsplit):
    said = line(jaxsplit("trian", *TINY))
    assert said == f"error: verb='trian': must be one of {', '.join(VERBS)}"
    said = line(jaxsplit("summary", "--config=digits_wrn16_4"))
    assert said.startswith("error: config='digits_wrn16_4': must be a file with get_config() or a ")
    assert said.partition("nearest are ")[2].startswith("digits_wrn16_4_x4, ")


def test_modules_are_programs_too(jaxsplit):
    for module, verb in (("published", "published"), ("data.prepare", "prepare")):
        done = jaxsplit("--help", program=("python", "-m", f"jaxsplit.{module}"))
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"usage: jaxsplit {verb} ")
