"""jaxsplit.trackers.csv_file: metrics.csv."""

import csv

import pytest

from jaxsplit.trackers import csv_file
from jaxsplit.workdir import files
from tests.support.runs import tiny


def open_csv(folder, start: int = 0, say=print) -> csv_file.CsvFile:
    return csv_file.CsvFile(folder, start=start, config=tiny(), say=say)


def rows(folder) -> list[dict[str, str]]:
    with (folder / csv_file.FILE).open(newline="") as file:
        return list(csv.DictReader(file))


def test_columns_grow_with_new_names(tmp_path):
    writer = open_csv(tmp_path)
    assert (tmp_path / csv_file.FILE).read_text() == "step\n"
    writer.write(1, {"train/loss": 1 / 3})
    assert rows(tmp_path) == [{"step": "1", "train/loss": repr(1 / 3)}]  # on disk at once
    writer.write(2, {"train/loss": float("nan")})
    writer.write(2, {"test/top1": 0.5, 'odd, "name"': -1e-30})
    writer.write(3, {"train/loss": float("inf")})
    writer.close()
    assert (tmp_path / csv_file.FILE).read_text().splitlines() == [
        'step,train/loss,test/top1,"odd, ""name"""',
        f"1,{1 / 3!r},,",
        "2,nan,,",
        "2,,0.5,-1e-30",
        "3,inf,,",
    ]


def test_rows_after_the_restored_step_are_dropped(tmp_path):
    writer = open_csv(tmp_path)
    for step in (1, 2, 3, 4):
        writer.write(step, {"a": float(step)})
    writer.close()
    writer = open_csv(tmp_path, start=2)
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2"]
    writer.write(3, {"a": 30.0, "b": 1.0})
    writer.close()
    assert [tuple(row.values()) for row in rows(tmp_path)] == [
        ("1", "1.0", ""),
        ("2", "2.0", ""),
        ("3", "30.0", "1.0"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == [csv_file.FILE]
    open_csv(tmp_path).close()  # a new run
    assert rows(tmp_path) == []


@pytest.mark.parametrize("cut", ["3,0.", "3", ""])
def test_a_row_that_was_cut_short(tmp_path, cut):
    (tmp_path / csv_file.FILE).write_text("step,a\n1,1.0\n2,2.0\n" + cut)
    said = []
    writer = open_csv(tmp_path, start=3, say=said.append)
    writer.write(4, {"a": 4.0})
    writer.close()
    assert said == []
    assert (tmp_path / csv_file.FILE).read_text() == "step,a\n1,1.0\n2,2.0\n4,4.0\n"


@pytest.mark.parametrize(
    "text",
    [
        b"a,b\n1,2\n",
        b"step,a\n1\n",
        b"step,a\nx,1\n",
        b"step,a,a\n1,1,1\n",
        b"\xff\xfe\n",
        b"\n1\n",
    ],
)
def test_another_file_is_moved(tmp_path, text):
    (tmp_path / csv_file.FILE).write_bytes(text)
    said = []
    writer = open_csv(tmp_path, start=1, say=said.append)
    writer.write(2, {"a": 2.0})
    writer.close()
    (line,) = said
    assert line.startswith(f"{tmp_path / csv_file.FILE} is damaged (")
    assert line.endswith("; moved to metrics.csv.damaged, and a new file begins")
    assert (tmp_path / "metrics.csv.damaged").read_bytes() == text
    assert rows(tmp_path) == [{"step": "2", "a": "2.0"}]


def test_where_nothing_can_be_appended(tmp_path, monkeypatch):
    """As in a bucket: each write replaces the file."""
    monkeypatch.setattr(files, "is_remote", lambda path: True)
    writer = open_csv(tmp_path)
    for step in (1, 2):
        writer.write(step, {"a": float(step)})
        assert rows(tmp_path)[-1] == {"step": str(step), "a": f"{step}.0"}
    writer.close()
    assert len(rows(tmp_path)) == 2
