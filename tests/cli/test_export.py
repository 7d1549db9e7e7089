"""`jaxsplit export`, `jaxsplit latency` and their modes: flags, what they print, bad input."""

import json

import pytest

from tests.support.inference import write_untrained
from tests.support.runs import one_network

# ml_collections loads config files by a function that Python warns of.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export_cli") / "run"
    write_untrained(one_network(), folder)
    return folder


def test_export(run, workdir, tmp_path, capsys):
    to = tmp_path / "net.safetensors"
    run("--mode=export", f"--workdir={workdir}", "--format=safetensors", f"--to={to}")
    first, following = capsys.readouterr().out.splitlines()
    assert first.startswith(f"net0 of checkpoint 0, 1 network of one_block: {to} (")
    assert following.startswith(f"start a run from it: jaxsplit train --init_from={to} ")
    assert json.loads((tmp_path / "net.safetensors.json").read_text())["of"] == "net0"


def test_the_answer_as_a_workdir(run, workdir, refused, tmp_path, capsys):
    to = tmp_path / "alone"
    flags = "--mode=export", f"--workdir={workdir}", "--format=workdir", f"--to={to}"
    run(*flags)
    first, _ = capsys.readouterr().out.splitlines()
    assert first == f"net0 of checkpoint 0, one_block, is in {to}"
    assert refused(*flags) == f"to='{to}': holds checkpoints already; choose another"


def test_latency(run, workdir, capsys):
    run("--mode=latency", f"--workdir={workdir}", "--batches=2", "--seconds=0.01")
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("batch 2: undivided ")
    assert said[-2] == f"latency: {workdir / 'latency.json'}"
    assert said[-1] == f"next: jaxsplit report --workdir={workdir}"
    assert json.loads((workdir / "latency.json").read_text())["batches"] == [2]


@pytest.mark.parametrize(
    "flags, line",
    [
        (("--mode=export",), "format: must be given: --format=stablehlo|onnx|safetensors|workdir"),
        (("--mode=export", "--format=pb"), "format='pb': must be one of stablehlo, onnx"),
        (
            ("--mode=export", "--format=stablehlo", "--of=leader"),
            "of='leader': method='single' has net0",
        ),
        (
            ("--mode=export", "--format=stablehlo", "--temperature=no"),
            "temperature='no': must be a positive number",
        ),
        (("--mode=eval", "--format=onnx"), "format: only with --mode=export, not eval"),
        (("--mode=export", "--top=3"), "top: only with --mode=predict, not export"),
        (("--mode=latency", "--batches=0"), "batches='0': must be numbers of 1 or more"),
        (("--mode=latency", "--batches=1,x"), "batches='x': must be numbers of 1 or more"),
        (("--mode=latency", "--seconds=0"), "seconds=0.0: must be above 0"),
    ],
)
def test_bad_input_is_one_line(refused, workdir, flags, line):
    assert refused(f"--workdir={workdir}", *flags).startswith(line)
