"""`jaxsplit summary` of a config: its parts, XLA's count of the steps, the command that follows."""

import pytest

from jaxsplit.cli import summary
from tests.support.runs import DIGITS

# ml_collections loads config files by a function that Python warns of.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

TINY = (
    DIGITS,
    "--config.arch=wide_resnet10_1",
    "--config.split=2",
    "--config.divide_anyway=True",
    "--config.batch_size=16",
    "--config.mesh.data=1",
    "--config.mesh.net=2",
)


def figures(table: str) -> dict[str, list[int]]:
    """Name of a line -> its bytes."""
    rows = {}
    for line in table.splitlines()[1:]:
        cells = line[22:].replace(",", "").split()
        if "MiB" in cells:
            rows[line[:22].strip()] = [int(cell) for cell in cells[::3]]
    return rows


def test_without_compiling(run, capsys, tmp_path, monkeypatch):
    """No file is read, nothing is compiled; the line at the end trains what was described."""
    run("--mode=summary", *TINY, "--config.duration=3 epochs", f"--workdir={tmp_path / 'run'}")
    costs, *_, held, following = capsys.readouterr().out.split("\n\n")
    assert costs.startswith("wide_resnet10_1 divided in 2, one network\n")
    assert held.splitlines()[-1].startswith("activations and other temporary arrays: add --compile")
    assert list(figures(held)) == [
        "parameters",
        "batch statistics",
        "optimizer state",
        "step, random key",
        "training set",
        "together",
    ]
    given = " ".join((*TINY, "'--config.duration=3 epochs'"))
    assert following == f"next: jaxsplit train {given} --workdir={tmp_path / 'run'}\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_compiling(run, capsys):
    """On two devices, each with one of the two networks."""
    run("--mode=summary", "--compile", *TINY)
    *_, held, training, evaluation, notes, following = capsys.readouterr().out.split("\n\n")
    assert "--compile" not in held
    title = "the training step of 16 images, 2 cpu devices, on each device by XLA's count"
    assert training.splitlines()[0] == title
    kept, trains, evaluates = figures(held), figures(training), figures(evaluation)
    _, each = kept["together"]
    # Beside what lies there anyway: 16 positions of the batch, and sums of metrics.
    assert each + 16 * 4 <= trains["arguments"][0] <= each + 1024
    state = each - kept["training set"][1]
    assert state <= -trains["of them in place"][0] <= trains["results"][0] <= state + 1024
    # At least a gradient for each of the network's weights.
    assert trains["temporary"][0] > kept["parameters"][1]
    for rows in (trains, evaluates):
        *parts, (_, together) = rows.items()
        assert together[0] == sum(count for _, (count,) in parts) > 0
    assert evaluates["temporary"][0] > 0
    assert "the rest of its training state" in notes and notes.endswith(" GiB")
    assert following.startswith("next: jaxsplit train ")
    assert following.endswith("--workdir=runs/digits_wrn16_4_x4\n")


def test_of_a_workdir(run, capsys, tmp_path):
    from configs import digits_wrn16_4_x4
    from jaxsplit import config as config_lib

    config_lib.save(digits_wrn16_4_x4.get_config(), tmp_path)
    run("--mode=summary", f"--workdir={tmp_path}", "--config.optim.lr", "0.05")
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f"next: jaxsplit train --config.optim.lr 0.05 --workdir={tmp_path}"


def test_bad_flags(refused, capsys, tmp_path):
    assert refused(*TINY, f"--workdir={tmp_path}", "--compile") == (
        "compile: only with --mode=summary, not train"
    )
    line = refused("--mode=summary", "--compile=often", *TINY)
    assert line.startswith("flag --compile=often: ")
    line = refused("--mode=summary", "--compile", *TINY, "--config.mesh.net=3")
    assert line == "mesh.net=3: must divide the 2 networks: 1, 2"
    line = refused("--mode=summary", *TINY, "--config.batch_size=2000")
    assert line == "batch_size=2000: must be at most 1437, the size of the training set"
    assert summary.main(["--arch=resnet18", "--compile"]) == 2
    assert capsys.readouterr().err == "error: compile: only with --config or --workdir\n"


def test_what_does_not_fit_the_devices_is_told_before_anything_is_printed(refused):
    line = refused("--mode=summary", "--compile", *TINY, "--config.mesh.data=8")
    assert line.startswith("mesh.data=8, mesh.net=2: needs 16 devices, ")
