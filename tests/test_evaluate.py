"""evaluate: the scores of a checkpoint, printed, returned, in its files and in TensorBoard."""

import dataclasses
import json
import shutil
import tarfile

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxsplit import config as config_lib
from jaxsplit import evaluate, loop
from jaxsplit.evaluation import predictions, record, scores, temperature
from jaxsplit.workdir import lock
from tests.support.paths import GOLDEN
from tests.support.runs import events, files_of, tiny

NAMES = ["net0", "net1", "ensemble"]


@dataclasses.dataclass
class Run:
    config: ConfigDict
    workdir: object
    trained: dict[str, float]  # what training returned
    results: dict[str, float]  # what the evaluation returned
    said: str
    before: dict[str, bytes]  # files

    @property
    def scored(self):
        return json.loads((self.workdir / record.FILE).read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An evaluated run that held a part of the training set out."""
    workdir = tmp_path_factory.mktemp("run")
    config, said = tiny(data__validation=0.1), []
    trained = loop.train_and_evaluate(config, workdir)
    before = files_of(workdir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *args, **_: said.append(" ".join(map(str, args))))
        board = tiny(data__validation=0.1, trackers=("tensorboard",))
        results = loop.evaluate_checkpoint(board, workdir)
    return Run(config, workdir, trained, results, "\n".join(said), before)


@pytest.fixture
def copy(run, tmp_path):
    """The workdir as it was before it was evaluated."""
    workdir = shutil.copytree(run.workdir, tmp_path / "run")
    for name in files_of(workdir).keys() - run.before:
        (workdir / name).unlink()
    return workdir


# ---- What is returned and written


def test_training_and_evaluation_agree(run):
    assert run.results.items() >= run.trained.items()
    assert all(isinstance(value, float) for value in run.results.values())
    assert {k.partition("/")[0] for k in run.results} == {
        *("test", "validation", "train", "best", "step")
    }


def test_eval_json(run):
    scored = run.scored
    assert (scored["format"], scored["step"], scored["checkpoint"]) == (1, 4, "latest")
    assert scored["names"] == NAMES and scored["answer"] == "ensemble"
    assert scored["classes"] == [str(k) for k in range(10)]
    assert scored["config"]["arch"] == "one_block" and scored["config"]["split"] == 2
    assert {name: its["count"] for name, its in scored["splits"].items()} == {
        "validation": 205,
        "test": 512,
        "train": 512,
    }
    assert set(scored["versions"]) >= {"jaxsplit", "jax", "numpy", "python"}
    for split, its in scored["splits"].items():
        for name in NAMES:
            for metric in ("top1", "nll", "ece", "brier", "aurc"):
                assert its["answers"][name][metric] == run.results[f"{split}/{name}/{metric}"]
            assert np.sum(its["answers"][name]["confusion"]) == its["count"]
        networks = its["networks"]
        assert networks["pairwise_kl"] == run.results[f"{split}/pairwise_kl"] > 0
        assert np.shape(networks["disagreement_matrix"]) == (2, 2)
        assert networks["disagreement_matrix"][0][1] == pytest.approx(networks["disagreement"])
    gap = scored["diversity_gap"]["disagreement"]
    assert gap["gap"] == pytest.approx(gap["test"] - gap["train"])


def test_predictions_give_the_scores_again(run):
    found = predictions.read(run.workdir / predictions.FILE)
    assert found.step == 4 and list(found.names) == NAMES
    for split, its in found.splits.items():
        log_p = scores.log_softmax(its.logits["ensemble"])
        right = scores.predicted(log_p) == its.labels
        assert right.mean() == run.results[f"{split}/ensemble/top1"]
        assert scores.nll(log_p, its.labels) == pytest.approx(
            run.results[f"{split}/ensemble/nll"], rel=1e-5
        )
    train = found.splits["train"]
    assert len(np.unique(train.index)) == 512 and train.index.max() > 512
    np.testing.assert_array_equal(
        train.labels,
        evaluate.restore(run.config, run.workdir, 4).exp.dataset.train.labels[train.index],
    )


def test_temperature_of_the_held_out_part(run):
    section = run.scored["temperature"]
    assert (section["fitted_on"], section["fitted_examples"]) == ("validation", 205)
    held = predictions.read(run.workdir / predictions.FILE).splits["validation"]
    for name in NAMES:
        wanted = temperature.fit(held.logits[name], held.labels)
        assert section["answers"][name]["temperature"] == wanted
        assert run.results[f"test/{name}/temperature"] == wanted


def test_nothing_else_changes(run):
    after = files_of(run.workdir)
    assert {name: after[name] for name in run.before} == run.before
    new = after.keys() - run.before
    assert {n for n in new if not n.startswith("events.")} == {record.FILE, predictions.FILE}


def test_tensorboard(run):
    found = events(run.workdir)
    assert found["eval/test/ensemble/ece"] == [
        (4, pytest.approx(run.results["test/ensemble/ece"], rel=1e-6))
    ]
    assert "eval/test/mutual_information" in found


# ---- What is printed


def test_tables(run):
    lines = run.said.splitlines()
    tables = [line for line in lines[:-3] if "; checkpoint step" not in line]
    assert max(map(len, tables)) <= 100
    test = lines.index(next(line for line in lines if line.startswith("synthetic test (512")))
    assert lines[test + 1].split() == ("top-1 % top-5 % NLL ECE % parameters mult-adds".split())
    ece = [line.split()[4] for line in lines[test + 2 : test + 5]]
    assert ece == [f"{100 * run.results[f'test/{name}/ece']:.2f}" for name in NAMES]
    assert "synthetic train" not in run.said
    head = next(line for line in lines if line.startswith("diversity of the networks"))
    assert head.split()[4:] == ["validation", "test", "training", "sample"]
    kl = next(line for line in lines if line.startswith("pairwise KL"))
    wanted = [run.results[f"{split}/pairwise_kl"] for split in ("validation", "test", "train")]
    assert kl.split()[3:] == [f"{value:.4f}" for value in wanted]
    start = lines.index("temperature fitted on the 205 validation images, scored on test")
    row = lines[start + 4].split()
    values = [run.results[f"test/ensemble/{m}"] for m in ("temperature", "nll", "nll_scaled")]
    assert row[0] == "ensemble" and row[1] == f"{values[0]:.3f}"
    assert row[2:4] == [f"{value:.4f}" for value in values[1:]]


def test_it_ends_with_what_it_wrote_and_the_next_command(run):
    scored, logits, following = run.said.splitlines()[-3:]
    assert scored == f"scores: {run.workdir / record.FILE}"
    assert logits == f"logits and labels: {run.workdir / predictions.FILE}"
    assert following == f"next: jaxsplit report --workdir={run.workdir}"


# ---- Without one thing or the other


@pytest.mark.slow
def test_no_event_files_without_the_tracker(run, copy, capsys):
    loop.evaluate_checkpoint(run.config, copy)
    assert not list(copy.glob("events.*")) and (copy / record.FILE).exists()
    assert "TensorBoard" not in capsys.readouterr().out


def test_a_run_at_work_keeps_its_event_files(run, copy, capsys):
    (copy / lock.FILE).write_text("{}")
    loop.evaluate_checkpoint(tiny(data__validation=0.1, trackers=("tensorboard",)), copy)
    assert not list(copy.glob("events.*")) and (copy / record.FILE).exists()
    assert f"not in TensorBoard, as a run may be at work: {copy / lock.FILE}" in (
        capsys.readouterr().out
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [record.FILE, predictions.FILE])
def test_a_file_that_cannot_be_written(run, copy, capsys, name):
    (copy / name).mkdir()
    (copy / name / "other").touch()
    found = evaluate.evaluated_checkpoint(run.config, copy)
    assert found.scores == run.results and found.unwritten.startswith(f"{copy / name} (")
    said = capsys.readouterr().out
    assert f"not written: {copy / name} (" in said and "diversity of the networks" in said
    assert not [p.name for p in copy.iterdir() if "tmp" in p.name or p.name.startswith("events")]


@pytest.mark.slow
def test_logits_that_do_not_fit_into_memory(run, copy, capsys, monkeypatch):
    monkeypatch.setattr(predictions, "memory", lambda *_: 10**18)
    config = tiny(data__validation=0.1, eval__ood="digits", eval__corruptions=True)
    found = evaluate.evaluated_checkpoint(config, copy)
    assert found.scores == run.trained
    assert found.unwritten == "the logits do not fit into memory"
    said = capsys.readouterr().out
    assert "machine; no file is written, eval.ood and eval.corruptions skipped\n" in said
    assert (
        "only means are computed: the logits of 1,229 images would take 1,000,000,000.0 GB" in said
    )
    assert "ECE" not in said and files_of(copy) == run.before


def test_an_old_workdir_of_one_network_without_a_held_out_part(tmp_path, capsys):
    with tarfile.open(GOLDEN / "workdir_before_rooms.tar.xz") as archive:
        archive.extractall(tmp_path / "run", filter="data")
    workdir = tmp_path / "run"
    config = config_lib.load(workdir)
    config.trackers = ()
    results = loop.evaluate_checkpoint(config, workdir)
    said = capsys.readouterr().out
    assert "temperature fitted on one half of test, scored on the other, both ways" in said
    assert "diversity" not in said
    scored = json.loads((workdir / record.FILE).read_text())
    assert scored["temperature"]["fitted_on"] == "test halves"
    folds = scored["temperature"]["answers"]["net0"]["folds"]
    assert np.sqrt(np.prod(folds)) == pytest.approx(results["test/net0/temperature"])
    assert list(scored["splits"]) == ["test", "train"] and scored["diversity_gap"] == {}
    assert said.splitlines()[-2] == f"logits and labels: {workdir / predictions.FILE}"
