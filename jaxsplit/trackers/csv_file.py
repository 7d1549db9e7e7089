"""The tracker 'csv': the file metrics.csv in the workdir, a column per metric."""

import csv
import io
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import TextIO

from ml_collections import ConfigDict

from jaxsplit.workdir import files

FILE = "metrics.csv"
_STEP = "step"


class CsvFile:
    """Writes metrics.csv: the column `step`, then the metrics in the order in which they appear.

    Each write is a row; a metric that it lacks is an empty cell. A new metric adds a column, for
    which the file is written anew. Later steps than `start` are dropped. Arguments as of `Make`.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        start: int,
        config: ConfigDict,
        say: Callable[[str], None],
    ) -> None:
        self._path = workdir / FILE
        self._file: TextIO | None = None
        self._columns, self._rows = _read(self._path, start, say)
        self._write_whole()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends a row."""
        row = {_STEP: str(step)} | {name: repr(float(v)) for name, v in scalars.items()}
        self._rows.append(row)
        new = [name for name in row if name not in self._columns]
        self._columns += new
        if new or self._file is None:  # an object in a bucket cannot be appended to
            self._write_whole()
        else:
            self._file.write(_text([_cells(row, self._columns)]))
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write_whole(self) -> None:
        self.close()
        rows = (_cells(row, self._columns) for row in self._rows)
        files.write_text(self._path, _text([self._columns, *rows]))
        if not files.is_remote(self._path):
            self._file = files.open_to_append(self._path)


def _cells(row: Mapping[str, str], columns: Iterable[str]) -> list[str]:
    return [row.get(name, "") for name in columns]


def _text(rows: Iterable[list[str]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _read(
    path: pathlib.Path, step: int, say: Callable[[str], None]
) -> tuple[list[str], list[dict[str, str]]]:
    """The columns of the file, and its rows up to `step`. A file with other content is moved."""
    if not path.exists():
        return [_STEP], []
    try:
        lines = path.read_text("utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]  # a kill cuts the last one short
        columns, *rows = list(csv.reader(whole)) or [[_STEP]]
        if columns[:1] != [_STEP] or len(set(columns)) < len(columns):
            raise ValueError(f"begins with {lines[0][:40]!r}")
        kept = [_row(columns, cells) for cells in rows if int(cells[0]) <= step]
    except (OSError, ValueError, IndexError, csv.Error) as error:
        to = files.aside(path)
        say(f"{path} is damaged ({error}); moved to {to.name}, and a new file begins")
        return [_STEP], []
    return columns, kept


def _row(columns: list[str], cells: list[str]) -> dict[str, str]:
    if len(cells) != len(columns):
        raise ValueError(f"step {cells[0]} has {len(cells)} cells of {len(columns)}")
    return {name: cell for name, cell in zip(columns, cells, strict=True) if cell}
