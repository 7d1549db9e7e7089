"""report.progress: one progress bar on a terminal, plain lines elsewhere."""

import io
import sys

import pytest

from jaxsplit.report.progress import Progress

VALUES = {
    "train/loss": 1.23456,
    "train/ensemble/top1": 0.5,
    "train/cotrain/weight": 0.25,
    "lr": 0.0125,
    "images_per_second": 1234.5,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_where_there_is_no_terminal(capsys):
    progress = Progress(total=10, start=0)
    for step in range(1, 11):
        progress.advance()
        if step % 5 == 0:
            progress.training(step, step / 4, VALUES)
    progress.line("done")
    progress.close()
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.splitlines() == [
        "step 5/10, epoch 1.25: loss 1.2346, ensemble 50.00%, cotrain weight 0.250, lr 0.0125, "
        "1,234 images/s",
        "step 10/10, epoch 2.50: loss 1.2346, ensemble 50.00%, cotrain weight 0.250, lr 0.0125, "
        "1,234 images/s",
        "done",
    ]


def test_a_single_network_has_no_ensemble_to_tell(capsys):
    progress = Progress(total=2, start=0)
    progress.training(1, 0.5, {"train/loss": 2.0, "lr": 0.1, "images_per_second": 10.0})
    assert capsys.readouterr().out == "step 1/2, epoch 0.50: loss 2.0000, lr 0.1, 10 images/s\n"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "loss 2.1250 a network"),
        ({"train/leader/loss": 3.0}, "loss 8.5000 in all"),  # FFSD: of modules and a leader, too
    ],
)
def test_the_loss_does_not_grow_with_the_networks(more, said, capsys):
    progress = Progress(total=2, start=0, num_networks=4)
    values = {"train/loss": 8.5, "lr": 0.1, "images_per_second": 10.0} | more
    progress.training(1, 0.5, values)
    assert capsys.readouterr().out == f"step 1/2, epoch 0.50: {said}, lr 0.1, 10 images/s\n"


def test_one_bar_on_a_terminal(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress(total=10, start=4)
    for step in range(5, 11):
        progress.advance()
        progress.training(step, step / 4, VALUES)
    progress.line("a line of its own")
    progress.close()
    drawn = terminal.getvalue()
    assert "4/10" in drawn  # a resumed run starts where it was
    assert "10/10" in drawn
    assert "loss 1.2346" in drawn
    assert "\n" not in drawn.rstrip("\n")  # one bar, drawn over and over
    assert capsys.readouterr().out.splitlines() == ["a line of its own"]


def test_other_processes_are_silent(monkeypatch, capsys):
    for stream in (sys.stderr, Terminal()):
        monkeypatch.setattr(sys, "stderr", stream)
        progress = Progress(total=3, start=0, active=False)
        progress.advance()
        progress.training(1, 1.0, VALUES)
        progress.line("quiet")
        progress.close()
    assert stream.getvalue() == ""
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")
