"""Paired texts from the columns of one CSV, TSV or parquet file, such as a word and its translation."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from registry import errors
from registry.datasets import content
from registry.datasets.base import Modality
from registry.encoders.base import Item

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


class Table:
    """One text column for each name in ``text``; ``key``, ``label`` and ``group`` name further columns.

    Without ``key`` an item's key is its row's number, from 0. Raises `UserError` if the file or a column is
    not there, a row has the wrong number of fields, a key is there twice, or an item lacks its label or
    group.
    """

    def __init__(
        self,
        path: str | Path,
        text: str | Sequence[str],
        key: str | None = None,
        label: str | None = None,
        group: str | None = None,
    ) -> None:
        self.check(path, text, key, label, group)
        file = Path(path).expanduser()
        self.name = file.stem
        texts = content.names("text", text)
        wanted = list(dict.fromkeys([*texts, *(column for column in (key, label, group) if column)]))
        values = _parquet(file, wanted) if file.suffix.lower() == ".parquet" else _csv(file, wanted)
        rows = len(values[texts[0]])
        self.keys = ["" if k is None else str(k) for k in values[key]] if key else [str(row) for row in range(rows)]
        content.check_keys(self.name, self.keys)
        self.labels = content.classes(self.name, label, self.keys, values[label]) if label else None
        self.groups = content.classes(self.name, group, self.keys, values[group]) if group else None
        self.columns: dict[str, Modality] = dict.fromkeys(texts, "text")
        self._texts = {column: [None if value is None else str(value) for value in values[column]] for column in texts}

    @staticmethod
    def check(
        path: str | Path,
        text: str | Sequence[str],
        key: str | None = None,
        label: str | None = None,
        group: str | None = None,
    ) -> None:
        """Raise `UserError` if there is no such file, it is of another kind, or no text column is named."""
        file = Path(path).expanduser()
        if not file.is_file():
            raise errors.UserError(f"data set 'table': there is no file {path}")
        if file.suffix.lower() not in {*_DELIMITERS, ".parquet"}:
            raise errors.UserError(f"data set 'table' reads .csv, .tsv and .parquet files, not {file.name}")
        if not content.names("text", text):
            raise errors.UserError("data set 'table' needs the name of at least one column in the option 'text'")

    def fingerprint(self, column: str) -> str:
        """SHA-256 (hex) of the keys and of the column's texts."""
        content.check_column(self.name, column, self.columns)
        return content.digest(self.keys, self._texts[column])

    def read(self, column: str, index: int) -> Item:
        """One text. Raises `BadItem` if it is empty."""
        content.check_column(self.name, column, self.columns)
        return content.text(self.keys[index], self._texts[column][index])


def _parquet(file: Path, wanted: list[str]) -> dict[str, list[object]]:
    try:
        content.check_columns(file.name, wanted, pq.read_schema(file).names)
        table = pq.read_table(file, columns=wanted)
    except (pa.ArrowException, OSError) as error:
        raise errors.UserError(f"{file} cannot be read as parquet: {_line(error)}") from error
    return {column: table[column].to_pylist() for column in wanted}


def _csv(file: Path, wanted: list[str]) -> dict[str, list[object]]:
    try:
        # utf-8-sig: spreadsheets put a mark first that would become part of the first column's name.
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, delimiter=_DELIMITERS[file.suffix.lower()])
            header = next(reader, [])
            content.check_columns(file.name, wanted, header)
            places = {column: header.index(column) for column in wanted}
            values: dict[str, list[object]] = {column: [] for column in wanted}
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise errors.UserError(
                        f"{file}, line {reader.line_num}: {len(row)} fields, but the header has {len(header)}"
                    )
                for column, place in places.items():
                    values[column].append(row[place])
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise errors.UserError(f"{file} cannot be read as text in UTF-8: {_line(error)}") from error
    return values


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
