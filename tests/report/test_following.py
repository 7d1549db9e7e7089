"""report.following: the command that a mode ends with."""

import shlex

from jaxsplit.cli import prepare as prepare_command
from jaxsplit.data import prepare
from jaxsplit.report import following
from tests.support.runs import config_of


def test_a_path_with_spaces_is_one_word_of_the_command():
    command = following.of_workdir("my runs/a", "eval", "report")
    first, second = command.removeprefix("next: ").split(" && ")
    assert shlex.split(first) == ["jaxsplit", "eval", "--workdir=my runs/a"]
    assert shlex.split(second) == ["jaxsplit", "report", "--workdir=my runs/a"]


def test_every_known_set_has_an_experiment_that_reads_it():
    for name in prepare.KNOWN:
        told = prepare_command.next_of(name, "/data")
        words = shlex.split(told)
        config = config_of(words[3].removeprefix("--config="))
        assert config.data.name == name
        assert words[4:] == ["--config.data.dir=/data", f"--workdir=runs/{name}"]


def test_an_own_set_is_read_by_the_recipe_of_folders():
    told = prepare_command.next_of("birds", "~/tensorflow_datasets")
    assert told == "next: jaxsplit train --config=folder:name=birds --workdir=runs/birds"
