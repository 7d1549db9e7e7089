"""main.py: the command line, its three modes, and one line with exit status 2 for bad input."""

import json
import subprocess
import sys

import pytest

from jaxsplit import config as config_lib
from jaxsplit import loop, schedules
from jaxsplit.checkpoints import store
from jaxsplit.cli import modes, run_flags
from jaxsplit.workdir import lock
from tests.support.paths import ROOT
from tests.support.runs import DIGITS
from tests.support.samples import first_rows

# ml_collections loads config files by a function that Python warns of.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

TINY = (  # two steps of two small networks on one device
    DIGITS,
    "--config.arch=wide_resnet10_1",
    "--config.split=2",
    "--config.divide_anyway=True",  # so narrow a network does not divide
    "--config.duration=2 steps",
    "--config.batch_size=16",
    "--config.mesh.data=1",
    "--config.trackers=()",  # whose libraries take seconds to start
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a finished run, made by the shell, and what the run said."""
    workdir = tmp_path_factory.mktemp("main") / "run"
    done = shell(*TINY, "--config.optim.lr=0.05", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir, done


def shell(*args: str, cwd=ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "main.py"), *args]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


# ---- The three modes


def test_train_from_the_shell(trained):
    workdir, done = trained
    assert "Traceback" not in done.stderr
    table = done.stdout.split("\n\n")[-3].splitlines()
    assert "digits test (360 images), wide_resnet10_1 divided in 2, cotrain" in done.stdout
    rows = [line.split()[0] for line in table if line.startswith(("net", "ensemble", "undivided"))]
    assert rows == ["net0", "net1", "ensemble", "undivided"]
    *_, best, _, run, following = done.stdout.splitlines()
    assert best.endswith("chosen on the test set")
    assert run == f"run: {workdir}"
    where = f"--workdir={workdir}"
    assert following == f"next: jaxsplit eval {where} && jaxsplit report {where}"
    config = config_lib.load(workdir)  # with the overrides
    assert (config.arch, config.optim.lr, config.batch_size) == ("wide_resnet10_1", 0.05, 16)
    assert config.data.name == "digits"
    lines = [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]
    # 0.05 at 64 images, a quarter of it at 16; the second of two steps is half way down the cosine.
    assert lines[0]["lr"] == pytest.approx(0.05 / 4 / 2)


def test_eval_from_the_workdir_alone(trained, run, capsys):
    workdir, done = trained
    capsys.readouterr()
    for which in ((), ("--checkpoint=latest",), ("--checkpoint=best",), ("--checkpoint=2",)):
        run("--mode=eval", f"--workdir={workdir}", *which)
        said = capsys.readouterr().out
        table = said.partition("diversity of the networks")[0]
        rows = [line for line in table.splitlines() if line.startswith(("net", "ens", "und"))]
        assert len(rows) == 4
        for row in rows:  # without the ECE, which training does not compute
            cells = row.split()
            assert [*cells[:4], *cells[5:]] in [line.split() for line in done.stdout.splitlines()]
        kind = {(): "latest", ("--checkpoint=2",): "chosen"}.get(which, which and which[0][13:])
        assert f"checkpoint step 2, the {kind}" in said
        assert "chosen on the test set" in said


def test_eval_with_an_override(trained, run, monkeypatch):
    workdir, _ = trained
    seen = []
    monkeypatch.setitem(modes.MODES, "eval", seen.append)
    run("--mode=eval", "--workdir", str(workdir), "--config.eval.ensemble=max_probs")
    expected = config_lib.load(workdir)
    expected.eval.ensemble = "max_probs"
    assert seen[0].to_dict() == expected.to_dict()


def test_a_finished_workdir_is_resumed_without_config(trained, run, capsys):
    workdir, _ = trained
    run(f"--workdir={workdir}")
    said = capsys.readouterr().out
    assert f"resumed at step 2 in {workdir}" in said and "mean pairwise disagreement" in said


def test_init_from(trained, run, tmp_path, monkeypatch):
    workdir, _ = trained
    seen = []
    monkeypatch.setattr(loop, "train_and_evaluate", lambda *args: seen.append(args))
    new = f"--workdir={tmp_path / 'new'}"
    run(*TINY, new, f"--init_from={workdir}")
    run(*TINY, new, "--config.init_from=of the config")
    (config, where, _), (other, *_) = seen
    assert (config.init_from, where) == (str(workdir), str(tmp_path / "new"))
    assert other.init_from == "of the config"


def test_bad_init_from(trained, refused, tmp_path):
    workdir, _ = trained
    new = f"--workdir={tmp_path / 'new'}"
    line = refused(*TINY, new, f"--init_from={workdir}", "--config.split=4")
    assert line == (
        f"init_from='{workdir}': holds wide_resnet10_1 divided in 2, "
        "config has wide_resnet10_1 divided in 4"
    )
    line = refused(*TINY, new, "--init_from=missing.pth")
    assert line == "init_from='missing.pth': no such workdir, checkpoint or file"
    assert not (tmp_path / "new").exists()


def test_summary(run, capsys):
    run("--mode=summary", DIGITS, "--config.split=2")
    table, *curves = capsys.readouterr().out.split("\n\n")
    begins = [c.splitlines()[0].split()[0] for c in curves]
    assert begins == ["learning", "weight", "memory,", "next:"]
    said = table.splitlines()
    assert said[0] == "wide_resnet16_4 divided in 2, one network"
    assert [line.split()[0] for line in said[-4:]] == ["one", "all", "undivided", "ratio"]
    run("--mode=summary", DIGITS, "--config.split=3", "--config.divide=False")
    said = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert said[0] == "3 x wide_resnet16_4, one network"
    one, whole, undivided, ratio = (line.split()[-1] for line in said[-4:])
    assert one == undivided and ratio == "3.000"
    assert int(whole.replace(",", "")) == 3 * int(one.replace(",", ""))


@pytest.mark.parametrize(
    "override, group, field, value",
    [
        ("--config.batch_size=128", None, "batch_size", 128),
        ("--config.optim.lr=1", "optim", "lr", 1.0),
        ("--config.augment.flip=True", "augment", "flip", True),
        ("--noconfig.optim.nesterov", "optim", "nesterov", False),
        ("--config.data.dir=some where", "data", "dir", "some where"),
        ("--config.schedule.milestones=('10%','50%')", "schedule", "milestones", ("10%", "50%")),
        ("--config.augment.erase_area=(0.1,0.2)", "augment", "erase_area", (0.1, 0.2)),
        ("--config.distill.temperature=3.5", "distill", "temperature", 3.5),
        ("--config.distill.temperature=paper", "distill", "temperature", "paper"),
        ("--config.duration=3 epochs", None, "duration", "3 epochs"),
    ],
)
def test_overrides(run, monkeypatch, override, group, field, value):
    seen = []
    monkeypatch.setitem(modes.MODES, "summary", seen.append)
    run("--mode=summary", DIGITS, override)
    (config,) = seen
    got = (config[group] if group else config)[field]
    assert got == value and type(got) is type(value)
    config_lib.check(config)


# ---- Bad input: one line, exit status 2, before any compilation


BAD = {  # argument: how the line begins, what else it says
    "--config.btch_size=3": ("btch_size='3': no such field", "batch_size"),
    "--config.lr=3": ("lr='3': no such field", "optim.lr"),
    "--config.optim.lrr=3": ("optim.lrr='3': no such field", "optim.lr"),
    "--config.batch_size.x=3": ("batch_size.x='3': no such field", "batch_size"),
    "--config.batch_size=many": ("flag --config.batch_size=many: invalid literal", "int"),
    "--config.batch_size=1.5": ("flag --config.batch_size=1.5: invalid literal", "int"),
    "--config.batch_size=12": ("batch_size=12: must be divisible by the 8 devices", ""),
    "--config.batch_size=-16": ("batch_size=-16: must be at least 1", ""),
    "--config.arch=vgg": ("arch='vgg': unknown; nearest are ", ""),
    "--config.data.name=mnist": ("data.name='mnist': must be one of ", "fashion_mnist"),
    "--config.method=solo": ("method='solo': must be one of ", "single, independent, cotrain"),
    "--config.method=single": ("split=4: must be 1 with method='single'", ""),
    "--config.split=3": ("split=3: wide_resnet16_4 can be divided into ", "1, 2, 4, 8, 16"),
    "--config.optim.lr=-0.1": ("optim.lr=-0.1: must be positive", ""),
    "--config.distill.temperature=hot": (
        "distill.temperature='hot': must be 'paper' or a finite number",
        "",
    ),
    "--config.distill.temperature=-1": (
        "distill.temperature=-1: must be 'paper' or above 0",
        "",
    ),
    "--config.duration=0 epochs": ("duration='0 epochs': must be at least one step", ""),
    "--config.duration=0.01 epochs": ("duration='0.01 epochs': must be at least one step", ""),
    "--config.duration=ten epochs": ("duration='ten epochs': must be a number of steps", "10%"),
    "--config.duration=10%": ("duration='10%': must be in steps, epochs or examples", ""),
    "--config.eval.every=1 hour": ("eval.every='1 hour': must be a number of steps", "epochs"),
    "--config.mesh.net=3": ("mesh.net=3: must divide the 4 networks: ", "1, 2, 4"),
    "--config.mesh.data=9": ("mesh.data=9, mesh.net=1: needs 9 devices", "there are 8"),
    "--config.lowering=best": ("lowering='best': must be one of ", "auto, dense"),
    "--workers=3": ("Unknown command line flag 'workers'", ""),
    "workdir": ("unknown argument 'workdir'", ""),
    "--mode=guess": ("mode='guess': must be one of train, eval, ", ""),
}


@pytest.mark.parametrize("argument", BAD)
def test_bad_argument(argument, refused, tmp_path):
    start, part = BAD[argument]
    line = refused(DIGITS, f"--workdir={tmp_path / 'run'}", argument)
    assert line.startswith(start)
    assert part in line
    assert not (tmp_path / "run").exists()  # and nothing was written


def test_bad_argument_in_summary(refused):
    assert refused("--mode=summary", DIGITS, "--config.split=3").startswith("split=3: ")


def test_flags_that_do_not_fit_the_mode(refused, tmp_path):
    line = refused("--mode=eval", f"--workdir={tmp_path}", DIGITS, "--init_from=elsewhere")
    assert line == "init_from: only with --mode=train, not eval"
    for flag in ("eval.ood=digits", "eval.corruptions=True"):
        line = refused(f"--workdir={tmp_path}", DIGITS, f"--{flag}")
        assert line == f"{flag.partition('=')[0]}: only with --mode=eval, not train"

    line = refused(f"--workdir={tmp_path}", DIGITS, "--checkpoint=5")
    assert line.startswith("checkpoint: only with --mode=eval or ") and line.endswith("not train")
    line = refused("--mode=summary", DIGITS, "--num_processes=2")
    assert line == "num_processes: only with --mode=train or --mode=eval, not summary"


def test_a_negative_value_may_follow_a_blank():
    given = ["--config=a.py", "--config.mesh.data", "-1", "--config.divide", "--config.x", "-.5"]
    assert run_flags._of_config([*given, "--workdir=w"]) == given
    found = config_lib.flags_given(["main.py", *given])
    assert (found["config.mesh.data"], found["config.divide"]) == ("-1", "")


def test_a_latency_that_cannot_be_written_is_not_measured(refused, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused("--mode=latency", DIGITS, f"--workdir={tmp_path / 'file'}")
    assert line.startswith(f"workdir='{tmp_path / 'file'}': must be a writable directory")


def test_arguments_of_a_config_that_takes_none(refused):
    line = refused(f"{DIGITS}:arch=resnet110", "--mode=summary")
    path = DIGITS.removeprefix("--config=")
    assert line == f"config='{path}:arch=resnet110': {path} takes no arguments ('arch=resnet110')"


def test_missing_arguments(refused, tmp_path):
    assert refused() == "config: must be given: --config=NAME or --config=FILE.py"
    assert refused(DIGITS) == "workdir: must be given with --mode=train"
    assert refused(DIGITS, "--mode=eval") == "workdir: must be given with --mode=eval"
    assert refused("--config=nowhere.py", f"--workdir={tmp_path}").startswith(
        "config='nowhere.py': must be a file"
    )
    assert refused("--workdir") == "Missing value for flag --workdir"


def test_workdir_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        line = refused(DIGITS, f"--workdir={path}")
        assert line.startswith(f"workdir='{path}': must be a writable directory")


def test_missing_data(refused, tmp_path):
    line = refused(
        DIGITS,
        "--config.data.name=cifar100",
        f"--config.data.dir={tmp_path / 'none'}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert line.startswith(f"data.dir={tmp_path / 'none'}: no prepared 'cifar100' there; prepare")
    assert "python -m jaxsplit.data.prepare cifar100 --source=" in line


def test_eval_of_nothing(refused, tmp_path):
    start = f"workdir='{tmp_path}': holds no readable config.json of a run"
    assert refused("--mode=eval", f"--workdir={tmp_path}").startswith(start)
    assert refused(f"--workdir={tmp_path}").startswith(start)
    assert refused("--mode=eval", DIGITS, f"--workdir={tmp_path}") == (
        f"workdir='{tmp_path}': holds no checkpoints"
    )
    assert not list(tmp_path.iterdir())


def test_missing_checkpoint(refused, trained):
    workdir, _ = trained
    for which in ("999", "newest"):
        line = refused("--mode=eval", f"--workdir={workdir}", f"--checkpoint={which}")
        assert line == (
            f"checkpoint='{which}': not in {workdir / store.FOLDER}; "
            "must be latest, best or one of: 2"
        )


def test_another_architecture(refused, trained):
    workdir, _ = trained
    for mode in ("train", "eval"):
        line = refused(
            f"--mode={mode}",
            f"--workdir={workdir}",
            "--config.arch=wide_resnet16_2",
            "--config.optim.lr=0.2",
        )
        assert line.startswith(f"workdir='{workdir}': holds another experiment")
        assert "arch: 'wide_resnet10_1' -> 'wide_resnet16_2'" in line
        assert "optim.lr: 0.05 -> 0.2" in line


def test_a_run_is_at_work_in_the_workdir(refused, trained):
    workdir, _ = trained
    held = lock.take(workdir)
    line = refused(f"--workdir={workdir}", "--config.duration=9 steps")
    assert line.startswith(f"workdir='{workdir}': another run is at work there: process ")
    assert config_lib.load(workdir).duration == "2 steps"
    held.release()


def test_shorter_duration(refused, trained):
    workdir, _ = trained
    line = refused(f"--workdir={workdir}", "--config.duration=1 steps")
    assert line.startswith("duration='1 steps': must not be shorter than the '2 steps' of the run")


@pytest.mark.parametrize(
    "args, start",
    first_rows(
        1,
        [
            ((DIGITS, "--config.arc=x"), "error: arc='x': no such field in jaxsplit/defaults.py"),
            (
                (DIGITS, "--config.split=3"),
                "error: split=3: wide_resnet16_4 can be divided into 1, 2",
            ),
            (
                (f"--config={ROOT}/configs/cifar100.py:split=3",),
                "error: split=3: wide_resnet28_10 can be divided into 1, 2",
            ),
            (("--mode=eval",), "error: workdir='{}': holds no readable config.json"),
        ],
    ),
)
def test_bad_input_in_the_shell(args, start, tmp_path):
    done = shell(*args, f"--workdir={tmp_path / 'run'}", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(start.format(tmp_path / "run"))


# ---- A loss that is not finite


def test_nan_is_one_line_and_status_1(run, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(schedules.SCHEDULES, "cosine", lambda **_: lambda step: 1e30 + 0.0 * step)
    with pytest.raises(SystemExit) as caught:
        run(*TINY, "--config.arch=one_block", "--config.duration=6 steps", f"--workdir={tmp_path}")
    assert caught.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the loss or the update of the weights is not finite at step ")
    assert line.endswith("; there is no checkpoint yet")


@pytest.mark.slow
def test_python_does_what_the_shell_does(trained):
    """The lines of the README: get_config, a change, train_and_evaluate."""
    from configs.digits_wrn16_4_x4 import get_config

    workdir, done = trained
    config = get_config()
    config.arch, config.split, config.duration = "wide_resnet10_1", 2, "2 steps"
    config.divide_anyway = True
    config.batch_size, config.mesh.data, config.optim.lr = 16, 1, 0.05
    result = loop.train_and_evaluate(config, workdir)  # the same experiment: finished already
    assert result["step"] == 2
    assert f"{100 * result['test/ensemble/top1']:.2f}" in done.stdout
