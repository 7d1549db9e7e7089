"""The verbs: their pages, their flags, and bad input; the built-in experiments by name."""

import ast
import importlib
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from jaxsplit import cli
from jaxsplit.cli import import_torch, modes, pages, prepare, published, report, summary
from jaxsplit.errors import ConfigError
from jaxsplit.recipes import experiments
from tests.support.paths import ROOT

# ml_collections loads config files by a function that Python warns of.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

PAGES = modes.PAGES | {
    "summary": summary.PAGE,
    "prepare": prepare.PAGE,
    "import-torch": import_torch.PAGE,
    "published": published.PAGE,
    "report": report.PAGE,
}
ARGUMENTS = {"folder": "name=birds"}  # of the experiment that cannot do without


@pytest.fixture
def run(monkeypatch):
    """A function that does in this process what `jaxsplit ARGUMENTS` of a run does."""

    def run_(verb: str, *args: str) -> None:
        with flagsaver.flagsaver():
            flags.FLAGS.unparse_flags()
            # The flags of a config's fields are made from sys.argv, by ml_collections.
            monkeypatch.setattr(sys, "argv", ["jaxsplit", *args])
            before = set(flags.FLAGS)
            try:
                modes.main(modes.parse(sys.argv, verb), verb)
            finally:
                for name in set(flags.FLAGS) - before:
                    delattr(flags.FLAGS, name)
        flags.FLAGS.mark_as_parsed()

    return run_


@pytest.fixture
def refused(run, capsys):
    """A function that runs a verb, which must end with status 2, and returns its one line."""

    def refused_(verb: str, *args: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run(verb, *args)
        assert caught.value.code == 2
        said = capsys.readouterr()
        assert said.out == ""
        (line,) = said.err.splitlines()
        return line.removeprefix("error: ")

    return refused_


# ---- Pages


def test_the_overview_lists_every_verb(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["jaxsplit", "--help"])
    assert cli.run() == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: jaxsplit VERB ")
    assert all(f"\n  {verb:14} {about}\n" in said for verb, about in cli.VERBS.items())


@pytest.mark.parametrize("verb", [*cli.VERBS, ""])
def test_a_page_can_be_read(verb, monkeypatch, capsys):
    name = f"jaxsplit {verb}" if verb else "python main.py"
    run = cli.run if verb else cli.run_main
    monkeypatch.setattr(cli, "early", lambda: None)  # signals of this process stay as they are
    monkeypatch.setattr(sys, "argv", ["jaxsplit", *[verb] * bool(verb), "--help"])
    try:
        status = run()
    except SystemExit as done:
        status = done.code or 0
    assert status == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: {name} ")
    assert "\nexamples:\n  " in said
    assert said.count(name) >= 2  # the usage and an example
    for flag, value in PAGES[verb].flags.items():
        assert f"\n  --{flag}{'=' * bool(value)}{value}" in said
    assert max(map(len, said.splitlines())) <= 100


def test_defaults_and_long_names_on_a_page():
    values = flags.FlagValues()
    flags.DEFINE_integer("a", 3, "how many", flag_values=values)
    flags.DEFINE_string("b", None, "what " * 30, flag_values=values)
    page = pages.Page("x", "Does it.", {"a": "N", "b": "A_VERY_LONG_NAME_OF_A_VALUE"}, ("x 1",))
    lines = page.text(values).splitlines()
    assert lines[:5] == ["usage: x", "", "Does it.", "", "flags:"]
    assert lines[5] == f"  --a=N{' ' * 21}how many (default: 3)"
    assert lines[6] == "  --b=A_VERY_LONG_NAME_OF_A_VALUE"
    assert lines[7].startswith(" " * 28 + "what what")
    assert lines[-2:] == ["examples:", "  x 1"]


# ---- Verbs


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "error: a verb must be given: one of train, eval, "),
        (["trian"], "error: verb='trian': must be one of train, eval, "),
        (["--config=a"], "error: verb='--config=a': must be one of train, eval, "),
    ],
)
def test_unknown_verb(argv, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["jaxsplit", *argv])
    assert cli.run() == 2
    error = capsys.readouterr().err
    assert error.startswith(said) and error.count("\n") == 1
    assert all(verb in error for verb in cli.VERBS)


@pytest.mark.parametrize(
    ("verb", "mode"),
    [
        ("train", "train"),
        ("eval", "eval"),
        ("views", "show_views"),
        ("export-leader", "export_leader"),
        ("summary", "summary"),
    ],
)
def test_a_verb_is_a_mode(verb, mode, run, monkeypatch):
    seen = []
    monkeypatch.setitem(modes.MODES, mode, seen.append)
    run(verb, "--config=digits_wrn16_4_x4", "--workdir=nowhere", "--config.optim.lr=0.05")
    (config,) = seen
    assert (config.arch, config.optim.lr) == ("wide_resnet16_4", 0.05)


def test_flags_of_other_verbs(refused):
    config = ("--config=digits_wrn16_4_x4", "--workdir=nowhere")
    for verb, flag, said in (
        (
            "eval",
            "--init_from=a",
            "init_from='a': is no flag of `eval`, which has config, workdir, ",
        ),
        (
            "train",
            "--mode=eval",
            "mode='eval': is no flag of `train`, which has config, workdir, init_from",
        ),
        (
            "views",
            "--checkpoint=best",
            "checkpoint='best': is no flag of `views`, which has config, workdir",
        ),
        ("train", "--workers=3", "Unknown command line flag 'workers'"),
    ):
        assert refused(verb, *config, flag).startswith(said)
    assert refused("train", config[0]) == "workdir: must be given with train"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "a name must be given: jaxsplit prepare NAME --source=PATH"),
        (["birds"], "source: must be given: jaxsplit prepare NAME --source=PATH"),
        (["birds", "more", "--source=a"], "unknown argument 'more'"),
        (["birds", "--source=a", "--holdout=much"], "flag --holdout=much: "),
        (["birds", "--source=a", "--hold=0.1"], "Unknown command line flag 'hold'"),
    ],
)
def test_bad_input_of_prepare(argv, said, capsys):
    assert prepare.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}") and error.count("\n") == 1


def test_what_follows_a_known_set(monkeypatch, capsys):
    """Its own experiment, whose data it is."""
    monkeypatch.setattr(prepare.prepare, "prepare", lambda *_, **__: None)
    for name in prepare.prepare.KNOWN:
        assert prepare.main([name, "--source=a"]) == 0
        words = capsys.readouterr().out.split()
        experiment, _, given = words[3].removeprefix("--config=").partition(":")
        assert experiments.get_config(experiment, given).data.name == name
        assert words == ["next:", "jaxsplit", "train", words[3], f"--workdir=runs/{name}"]


def test_flags_of_prepare_in_any_order(monkeypatch):
    seen = []
    monkeypatch.setattr(prepare.prepare, "prepare", lambda *a, **k: seen.append((a, k)))
    wanted = dict(data_dir="d", holdout=0.1, check="header", incomplete="accept")
    for argv in (
        ["birds", "--source=s", "--data_dir=d", "--holdout=0.1", "--check=header", "--partial"],
        ["--partial", "--source", "s", "--holdout", "0.1", "birds", "--data_dir", "d"]
        + ["--check", "header"],
    ):
        assert prepare.main(argv) == 0
        assert seen.pop() == (("birds", "s"), wanted)
    assert prepare.main(["birds", "--source=s"]) == 0  # nothing is left of the flags before
    defaults = dict(
        data_dir="~/tensorflow_datasets", holdout=0.0, check="full", incomplete="refuse"
    )
    assert seen.pop() == (("birds", "s"), defaults)


def test_bad_input_of_summary(capsys):
    one = "one of --config, --workdir, --arch and --all"
    for argv, said in (
        ([], f"{one} must be given"),
        (["--all", "--arch=resnet50"], f"only {one} may be given"),
        (["--arch=resnet50", "--config=cifar100"], f"only {one} may be given"),
        (["resnet50", "--all"], "unknown argument 'resnet50'"),
    ):
        assert summary.main(argv) == 2
        assert capsys.readouterr().err == f"error: {said}\n"


# ---- Built-in experiments


def test_every_experiment_by_name():
    names = experiments.names()
    assert {"digits_wrn16_4_x4", "imagenet_seresnet101_x4", "cifar100"} <= set(names)
    assert not {"common", "__init__"} & set(names)
    for name in names:
        given = ARGUMENTS.get(name, "")
        module = importlib.import_module(f"configs.{name}")
        wanted = module.get_config(given) if given else module.get_config()
        assert experiments.get_config(name, given).to_dict() == wanted.to_dict()
        assert experiments.title(name) == module.__doc__.splitlines()[0]


def test_an_experiment_file_imports_the_package_alone():
    """So that it can be read alone, and works where there is no configs/."""
    for path in (ROOT / "configs").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in getattr(node, "names", ())]
            if isinstance(node, ast.ImportFrom):
                names = [node.module]
            elif not isinstance(node, ast.Import):
                continue
            for name in names:
                known = (*sys.stdlib_module_names, "jaxsplit", "ml_collections")
                assert name.partition(".")[0] in known, f"{path.name} imports {name}"


def test_arguments_and_overrides_of_an_experiment(run, monkeypatch):
    seen = []
    monkeypatch.setitem(modes.MODES, "summary", seen.append)
    named = "cifar100:arch=resnet110,split=2"
    run("", "--mode=summary", f"--config={named}", "--config.batch_size=64")
    run("", "--config", named, "--config.batch_size", "64", "--mode", "summary")
    run("", f"--config={ROOT}/configs/{named.replace(':', '.py:')}", "--mode=summary")
    one, two, file = seen
    assert (one.arch, one.split, one.batch_size) == ("resnet110", 2, 64)
    assert one.to_dict() == two.to_dict() == file.to_dict() | {"batch_size": 64}


def test_a_file_of_that_name_comes_first(run, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setitem(modes.MODES, "summary", seen.append)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar100").mkdir()  # a folder is no config
    run("summary", "--config=cifar100")
    (tmp_path / "cifar10").write_text(
        "from jaxsplit.defaults import get_config as defaults\n"
        "def get_config():\n    config = defaults()\n    config.seed = 7\n    return config\n"
    )
    run("summary", "--config=cifar10")
    assert [config.data.name for config in seen][:1] == ["cifar100"]
    assert seen[1].seed == 7


@pytest.mark.parametrize("name", ["digits_wrn16_4", "configs/digits_wrn16_4.py", "Digits"])
def test_unknown_experiment(name, refused):
    line = refused("train", f"--config={name}", "--workdir=nowhere")
    start = f"config={name!r}: must be a file with get_config() or a built-in experiment; nearest "
    assert line.startswith(start + "are ")
    near = line.partition("nearest are ")[2].split(", ")
    assert len(near) == 3 and set(near) <= set(experiments.names())
    assert any(found.startswith("digits") for found in near)


def test_unknown_experiment_in_python():
    with pytest.raises(ConfigError, match="experiment='cifar': no built-in .* are cifar10, cifar1"):
        experiments.get_config("cifar")


def test_arguments_of_an_experiment_that_takes_none(refused):
    line = refused("summary", "--config=digits_wrn16_4_x4:arch=resnet110")
    assert line == (
        "config='digits_wrn16_4_x4:arch=resnet110': digits_wrn16_4_x4 takes no arguments "
        "('arch=resnet110')"
    )


# ---- The start


def test_no_jax_before_signals_are_taken():
    code = "import sys, jaxsplit.cli; assert not {'jax', 'absl', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


@pytest.mark.parametrize(
    "arguments", ["published cifar100", "published --help", "train --help", "--help"]
)
def test_a_reader_that_has_read_enough(arguments):
    """As in `jaxsplit published | head`: no traceback, the status of shells."""
    command = [sys.executable, "-m", "jaxsplit", *arguments.split()]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    said = process.stderr.read()
    assert (process.wait(60), said) == (128 + 13, b"")
    process.stderr.close()
