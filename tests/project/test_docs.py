"""Pages: links, paths, fields and modules that they name exist; their commands parse and run."""

import argparse
import ast
import dataclasses
import importlib
import importlib.util
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags
from PIL import Image

from jaxsplit import config as config_lib
from jaxsplit import defaults, durations
from jaxsplit.config import advice
from jaxsplit.recipes import experiments
from tests.support.paths import ROOT
from tests.support.samples import first, sampled

PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")],
    key=lambda path: path.relative_to(ROOT).as_posix(),
)

_RUN = r"(?:python main\.py|jaxsplit [\w-]+)"
_TRAIN = r"(?:python main\.py|jaxsplit train)"
_IMPORT = r"(?:python -m jaxsplit\.torch_import|jaxsplit import-torch)"
_PREPARE = r"(?:python -m jaxsplit\.data\.prepare|jaxsplit prepare)"
# What a page imports in an environment of its own.
ELSEWHERE = ("onnxruntime",)
# Commands that `test_command_runs` leaves out: a pattern of their beginning, and why.
NOT_RUN = (
    (r"make ", "installs, or runs all tests"),
    (r"pip install|python3\.13 -m venv|\. \.venv", "installs"),
    (r"tensorboard|tail -F", "does not end"),
    (
        rf"{_TRAIN} --config=(configs/)?digits_",
        "trains for minutes; the first in test_commands_that_train",
    ),
    (rf"{_RUN} .*--workdir=runs/ffsd", "needs a run: test_commands_that_train"),
    (
        rf"{_TRAIN} --config=(configs/\S+|cifar\S+|folder\S+) --workdir",
        "trains for hours on data that it needs",
    ),
    (rf"{_IMPORT} --help", "as the test of --help"),
    (rf"{_TRAIN} --config=\.\.\.", "a pattern; needs several hosts"),
    (r"(python main\.py --mode=|jaxsplit )predict", "needs a run: cli/test_predict.py"),
    (rf"{_RUN} .*--workdir=runs/digits", "needs a run: test_commands_that_train"),
    (r"jaxsplit report --workdir=runs/seed0", "needs three runs"),
    (rf"{_RUN} .*--workdir=runs/(c100|imported)", "needs a run of hours"),
    (r"(?:\w+=\S+ )*jaxsplit export ", "needs a run: cli/test_export.py"),
    (r"jaxsplit compare", "trains for minutes; cli/test_compare.py runs it small"),
    (r"jaxsplit latency", "compiles for minutes; cli/test_export.py runs it small"),
    (r"jaxsplit predict", "needs a run: cli/test_predict.py"),
    (rf"{_RUN} .*--config=my_backbone\.py", "test_own_backbone.py runs it"),
    (rf"{_RUN} .*--config=my_method\.py", "test_own_method.py runs it"),
    (rf"{_RUN} .*--config=my_tracker\.py", "trackers/test_own_tracker.py runs it"),
    (rf"WANDB_MODE=offline {_TRAIN}", "needs wandb; trackers/test_wandb_run.py"),
    (rf"{_PREPARE} (?!my_birds)", "needs a download; test_prepare.py"),
    (rf"{_IMPORT} \S+\.pth", "needs a download; test_torch_import.py"),
    (r"jaxsplit summary --a", "takes long; test_summary.py runs it small"),
    (r"python -m bench\.", "measures for minutes; bench/test_programs.py runs it small"),
    (r"ls runs", "needs a run: test_commands_that_train"),
    (r"(?:\w+=\S+ )*launch/local\.sh", "launch/test_scripts.py runs it"),
    (r"sbatch|scancel|bash launch/slurm|cd jaxsplit|rm -r", "needs Slurm; launch/test_scripts.py"),
    (r"(?:\w+=\S+ )*launch/tpu_pod\.sh|until launch|do sleep|gcloud", "needs a cloud"),
    (r"docker|kubectl|envsubst|export", "needs a cluster; launch/test_gke.py reads the manifest"),
)


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str  # relative to the project
    language: str
    text: str


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of a page, on one line, without its comment."""

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        for language, text in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S):
            found.append(Block(page.relative_to(ROOT).as_posix(), language, text))
    return found


def commands() -> list[Command]:
    found = []
    for block in blocks():
        text = block.text.replace("\\\n", " ")
        lines = [line for line in text.splitlines() if block.language == "sh"]
        if block.language == "console":
            lines = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
        for line in lines:
            line = re.sub(r"(^|\s)#.*", "", line)
            for part in line.split(" && "):
                if part.strip():
                    found.append(Command(block.page, " ".join(part.split())))
    return list({command.text: command for command in found}.values())


COMMANDS = commands()
PYTHON = [c for c in COMMANDS if c.text.startswith("python ")]
MODULES = [c for c in PYTHON if c.words[1] == "-m"]
MAIN = [c for c in PYTHON if c.words[1] == "main.py"]
VERBS = [c for c in COMMANDS if c.text.startswith("jaxsplit ")]


def ids(command: Command) -> str:
    return command.text


def prose(path: pathlib.Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)


def every(pages=PAGES) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in pages]


# ---- The front door


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 180


def test_every_experiment_is_in_the_table():
    table = (ROOT / "docs" / "configs.md").read_text().split("| file in `configs/`")[1]
    rows = "".join(row.split("|")[1] for row in table.split("\n\n")[0].splitlines()[2:])
    files = {path.name for path in (ROOT / "configs").glob("*.py")} - {"__init__.py", "common.py"}
    assert set(re.findall(r"`(\w+\.py)`", rows)) == files


def test_indexes_have_every_page():
    for index in (ROOT / "README.md", ROOT / "docs" / "README.md"):
        targets = {(index.parent / target).resolve() for target, _ in links(index)}
        pages = [page for page in PAGES if page.name != "README.md"]
        assert [page.name for page in pages if page not in targets] == []


@pytest.mark.parametrize("page", [p for p in every() if not p.endswith("README.md")])
def test_page_opens_with_a_command(page):
    title, first, *_ = filter(None, (ROOT / page).read_text().splitlines())
    assert title.startswith("# ")
    assert first in ("```sh", "```console")


# ---- Links, paths, fields


def links(path: pathlib.Path) -> list[tuple[str, str]]:
    """(path, heading) of every relative link and picture."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(path))
    local = [target for target in found if not re.match(r"\w+:", target)]
    return [(target.partition("#")[0], target.partition("#")[2]) for target in local]


def anchors(path: pathlib.Path) -> set[str]:
    """The headings of a page as GitHub names them in links."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.M)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", every())
def test_relative_links(page):
    path = ROOT / page
    for target, heading in links(path):
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), target
        assert ROOT in file.parents, target
        if heading:
            assert heading in anchors(file), f"{target}#{heading}"


@pytest.mark.parametrize("page", every())
def test_paths_in_backticks(page):
    text = prose(ROOT / page)
    folders = "bench|configs|jaxsplit|docs|launch|tests"
    for code in re.findall(r"`([^`]+)`", text):
        for path in re.findall(rf"(?:^|[\s=])((?:{folders})/\S+)", code):
            path = path.partition(":")[0].rstrip(",")
            assert list(ROOT.glob(path)), path


def fields(config: ConfigDict, prefix: str = "") -> set[str]:
    """The names of all fields and sections, with dots."""
    found = set()
    for name, value in config.items():
        found.add(prefix + name)
        if isinstance(value, ConfigDict):
            found |= fields(value, f"{prefix}{name}.")
    return found


FIELDS = fields(defaults.get_config())
# Names in backticks that begin like a field and are none.
NO_FIELDS = {"config.json", "config.load", "data.prepare", "eval.json", "stop.request"}
OWN_FIELDS = {"my_method.weight"}  # of the method that docs/extending.md writes


@pytest.mark.parametrize("page", every())
def test_fields_of_a_config(page):
    """`--config.field` and `config.field` everywhere, and `section.field` in backticks."""
    text = (ROOT / page).read_text()
    named = set(re.findall(r"--config\.([\w.]*\w)", text)) - {"field"}  # --config.field=value
    sections = "|".join(sorted(name for name in FIELDS if "." not in name))
    for code in re.findall(r"`([^`\n]+)`", prose(ROOT / page)):
        for name in re.findall(rf"^((?:config|{sections})\.[\w.]*\w)", code):
            if name not in NO_FIELDS and not name.endswith(".py"):
                named.add(name.removeprefix("config."))
    assert sorted(named - FIELDS - OWN_FIELDS) == []


# ---- Python


@pytest.mark.parametrize("block", [b for b in blocks() if b.language == "python"], ids=str)
def test_python_block(block):
    """It parses, and what it imports exists."""
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                if not hasattr(module, name):
                    importlib.import_module(f"{node.module}.{name}")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name not in ELSEWHERE:
                    importlib.import_module(alias.name)


# ---- Commands


@pytest.mark.parametrize(
    "block", [b for b in blocks() if b.language == "sh"], ids=lambda b: b.text.splitlines()[0]
)
def test_shell_block_parses(block):
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


class Parsed(Exception):
    """Raised in place of what a program does after its arguments are parsed."""


@pytest.mark.parametrize("command", [c for c in MODULES if "bench." in c.words[2]], ids=ids)
def test_benchmark_takes_its_arguments(command, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser, *args, **kwargs):
        parse(parser, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.setattr(sys, "argv", command.words[2:])
    with pytest.raises((Parsed, SystemExit)) as caught:
        importlib.import_module(command.words[2]).main()
    assert caught.type is Parsed or caught.value.code == 0  # --help


def shell(text: str, cwd: pathlib.Path, timeout: int) -> subprocess.CompletedProcess:
    """A command line of a page, with this Python, in a folder like the clone."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(cwd), "HF_HUB_OFFLINE": "1"}
    env.pop("XLA_FLAGS", None)  # the tests' own: many devices, and slow programs
    python = shlex.quote(sys.executable)
    line = re.sub(r"^python ", f"{python} ", text)
    line = re.sub(r"^jaxsplit ", f"{python} -m jaxsplit ", line)
    return subprocess.run(
        ["bash", "-c", line], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> pathlib.Path:
    """A folder with the clone's files and folders, and birds/<class>/*.jpg, to write into."""
    folder = tmp_path_factory.mktemp("clone")
    for path in ROOT.iterdir():
        if path.name not in ("runs", ".cache", ".git"):
            (folder / path.name).symlink_to(path)
    for label in ("owl", "wren"):
        (folder / "birds" / label).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(folder / "birds" / label / f"{i}.jpg")
    return folder


PROGRAMS = sorted(
    {f"python -m {c.words[2]}" for c in MODULES if c.words[2].startswith("jaxsplit.")}
    | {f"jaxsplit {c.words[1]}" for c in VERBS if not c.words[1].startswith("-")}
    | {"python main.py"}
)


@pytest.mark.parametrize("program", first(1, PROGRAMS))
def test_help_has_every_flag(program, clone):
    """--help of a program names each flag that a page gives it, but those of config fields."""
    done = shell(f"{program} --help", clone, timeout=300)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        if command.text.startswith(f"{program} "):
            for name in re.findall(r" --(?!config\.)([\w-]+)", command.text):
                assert re.search(rf"--(\[no\])?{name}\b", done.stdout) or name in OTHERS, name


OTHERS = ("help", "config", "flagfile")  # of absl itself and of jaxsplit.cli


CONFIGURED = [c for c in MAIN if "--config=configs/" in c.text]
CONFIGURED += [
    c for c in VERBS if "--config=" in c.text and not re.search(r"=(\.\.\.|my_)", c.text)
]


@pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")  # ml_collections'
@pytest.mark.parametrize("command", CONFIGURED, ids=ids)
def test_config_of_a_command(command):
    """Its file takes its arguments, and the config with its overrides passes every check.

    Its learning rate rises and falls.
    """
    given = [word for word in command.words[2:] if word.startswith("--config")]
    values = flags.FlagValues()
    config_lib.check_overrides(config_lib.flags_given(["main.py", *given]))
    argv = ["main.py", *(re.sub(r"(?<=--config=)[\w/.]+", file_of, word) for word in given)]
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    config = holder.value
    if config.data.name in ("my_birds", "hf:birds_hf"):  # a set of the reader's own
        config.data.name = "imagenet2012"
    config_lib.check(config)
    said = advice.lines(config, durations.plan(config, 100))
    assert [line for line in said if "learning rate" in line] == []


def file_of(name: re.Match) -> str:
    """The file of a built-in experiment, or that of a path in the clone."""
    path = ROOT / name[0] if name[0].endswith(".py") else experiments.find(name[0])
    assert path is not None and path.is_file(), name[0]
    return str(path)


def reason(command: Command) -> str:
    return next((why for begin, why in NOT_RUN if re.match(begin, command.text)), "")


def test_every_reason_is_of_a_command():
    for begin, why in NOT_RUN:
        assert any(re.match(begin, command.text) for command in COMMANDS), (begin, why)


# The summary of networks of a hundred layers takes as long as all the others.
RUN = [c for c in COMMANDS if not reason(c)]
FAST = [c for c in RUN if "imagenet" not in c.text]


@pytest.mark.parametrize("command", sampled(RUN, FAST), ids=ids)
def test_command_runs(command, clone):
    done = shell(command.text.replace("DIR", "birds"), clone, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("run", ["runs/digits ", "runs/ffsd"])
def test_commands_that_train(run, clone):
    """The quickstart; FFSD with its leader's export and evaluation, in the order of the page."""
    begin = ("python main.py", "jaxsplit train", "jaxsplit eval", "jaxsplit export-leader")
    found = [c for c in COMMANDS if run in f"{c.text} " and c.text.startswith(begin)]
    found = [c for c in found if "my_" not in c.text]
    assert found
    for command in found:
        done = shell(command.text, clone, timeout=3000)
        assert done.returncode == 0, done.stderr
        said = r"^(ensemble|leader|net0) |^report: "
        assert re.search(said, done.stdout, re.M) or "export" in command.text
