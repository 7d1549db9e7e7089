"""The method of docs/extending.md, as a user would write it."""

import json
import pathlib
import re

import pytest

from jaxsplit import config as config_lib
from jaxsplit import defaults, durations, methods
from jaxsplit.cli import modes
from jaxsplit.config import history
from jaxsplit.errors import ConfigError
from jaxsplit.stack import LOWERINGS
from tests.support import nets, shell
from tests.support.paths import ROOT


def written(folder: pathlib.Path) -> pathlib.Path:
    """The file of the page."""
    section = (ROOT / "docs" / "extending.md").read_text().split("## A method of your own")[1]
    code = re.search("```python\n(.*?)```", section, re.DOTALL)[1]
    assert sum(map(bool, map(str.strip, code.splitlines()))) <= 30
    path = folder / "my_method.py"
    path.write_text(code)
    return path


# ml_collections loads a file of a config in a deprecated way.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")


@pytest.fixture
def registered(monkeypatch):
    """Registers methods that are gone after the test."""
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    return methods.METHODS


def run(monkeypatch, path: pathlib.Path, workdir: pathlib.Path, *more: str) -> None:
    """main.py in this process, as the shell would run it."""
    small = {
        "arch": nets.SMALLEST,
        "split": 2,
        "divide": False,
        "duration": "4 steps",
        "batch_size": 128,
        "mesh.data": 1,
        "lowering": "dense",
        "log_every": "1 steps",
        "trackers": "()",  # whose libraries take seconds to start
    }
    given = [f"--config={path}", f"--workdir={workdir}"]
    given += [f"--config.{name}={value}" for name, value in small.items()]
    main = lambda argv: modes.main(modes.parse(argv))  # noqa: E731
    shell.run(monkeypatch, main, "main.py", *given, *more)


def test_a_method_in_thirty_lines(registered, monkeypatch, tmp_path, capsys):
    """Its own field is overridden from the shell, saved, and weighs what it says."""
    path, workdir = written(tmp_path), tmp_path / "run"
    run(monkeypatch, path, workdir, "--config.my_method.weight=0.5")
    said = capsys.readouterr().out
    assert "2 x one_block, my_method; checkpoint step 4, the last" in said
    assert json.loads((workdir / "config.json").read_text())["my_method"] == {"weight": 0.5}
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    trained = [line for line in map(json.loads, lines) if "train/loss" in line]
    weights = [line["train/weight"] for line in trained]
    assert weights == pytest.approx([0.5 * step / 4 for step in range(4)])
    for line in trained:
        terms = [line[f"train/net{i}/to_ensemble"] for i in range(2)]
        entropies = [line[f"train/net{i}/cross_entropy"] for i in range(2)]
        total = sum(entropies) + line["train/weight"] * sum(terms)
        assert line["train/loss"] == pytest.approx(total, rel=1e-5)
    # The same workdir with the default, which is another experiment.
    methods.METHODS.pop("my_method")
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, path, workdir)
    assert caught.value.code == 2
    assert "my_method.weight: 0.5 -> 1.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("my_method.weight=-1", "my_method.weight=-1.0: must be 0 or more"),
        ("my_method.weigth=1", "my_method.weigth='1': no such field in jaxsplit/defaults.py"),
    ],
)
def test_wrong_values_of_own_fields(registered, monkeypatch, tmp_path, capsys, override, line):
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, written(tmp_path), tmp_path / "run", f"--config.{override}")
    assert caught.value.code == 2
    (last,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert last.startswith(f"error: {line}")


def entry(**facts) -> methods.Entry:
    return methods.Entry(lambda config, plan, stack, **fields: None, **facts)


def test_facts_of_an_entry_are_used(registered):
    """Fields, durations and the least number of networks of a method outside the package."""
    registered["mine"] = entry(
        fields={"after": "2 epochs", "kind": "a"}, durations=("after",), fixed=("kind",), least=3
    )
    config = defaults.get_config()
    assert config.mine.to_dict() == {"after": "2 epochs", "kind": "a"}
    config.method, config.mine.after = "mine", "3 epochs"
    plan = durations.plan(config_lib.check(config), steps_per_epoch=10)
    assert plan.method_steps["mine.after"] == 30
    assert history.may_change("mine.after", "2 epochs", "3 epochs")
    assert not history.may_change("mine.kind", "a", "b")
    config.split = 2
    with pytest.raises(ConfigError, match="^split=2: must be 3 or more with method='mine'"):
        config_lib.check(config)
    config.split, config.mine.after = 4, "soon"
    with pytest.raises(ConfigError, match="^mine.after='soon': must be a number of steps"):
        config_lib.check(config)


def test_wrong_entries(registered):
    with pytest.raises(ConfigError, match="^Entry: views='all': must be one of different, same$"):
        entry(views="all")
    with pytest.raises(ConfigError, match="^Entry: trunk=True: must be one of none, all but the"):
        entry(trunk=True)
    with pytest.raises(ConfigError, match="^Entry: 'warmup': must be one of its fields, which are"):
        entry(durations=("warmup",))
    registered["optim"] = entry(fields={"weight": 1.0})
    with pytest.raises(ConfigError, match="^method 'optim': must have another name"):
        defaults.get_config()


def test_every_method_says_its_facts_in_its_file():
    """No other file of the package names a method."""
    names = methods.METHODS.keys() - set(LOWERINGS)  # `packed` is both
    named = re.compile(r"""["'](NAME)["'.]""".replace("NAME", "|".join(sorted(names))))
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted((ROOT / "jaxsplit").rglob("*.py"))
        if path.parent.name not in ("methods", "recipes")
        for line in path.read_text().splitlines()
        if named.search(line)
    ]
    # The default, and the group of a field of old workdirs.
    assert found == [
        'jaxsplit/config/renamed.py: MOVED = {("cotrain", "views"): "views"}',
        'jaxsplit/defaults.py: config.method = "cotrain"',
    ]
