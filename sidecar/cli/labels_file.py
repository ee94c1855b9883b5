"""Labels out of a file: Parquet, CSV, or JSON by lines.

Columns: ``request_id``, ``label`` (a class's index or name, or a score), and for requests of
several rows ``row``, from 0 on: the lines of one request then follow one another.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from sidecar.errors import MissingExtraError, SidecarError
from sidecar.monitor.label_intake import Label

_COLUMNS = ("request_id", "label", "row")
_PARQUET = b"PAR1"
_READ_ROWS = 10_000
_INDEX_MAX = 2**63


class LabelFileError(SidecarError):
    """The file cannot be read as labels: which, where, and what would be right."""


#: Request id, label, row (``None``: there is no such column), and where it stands.
_Line = tuple[Any, Any, Any, str]


def read(path: Path, model: str) -> Iterator[Label]:
    """The labels of a file, one after another.

    Raises:
        LabelFileError: at once, or when a line is reached that makes no sense.
        MissingExtraError: Parquet needs pyarrow.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(len(_PARQUET))
    except OSError as error:
        raise LabelFileError(f"{path} cannot be read: {error.strerror}") from None
    if magic == _PARQUET:
        lines = _parquet(path)
    elif path.suffix == ".csv":
        lines = _csv(path)
    elif path.suffix in {".jsonl", ".ndjson"}:
        lines = _json_lines(path)
    else:
        raise LabelFileError(
            f"{path} is no Parquet file, and its name ends in none of .csv, .jsonl"
        )
    return _labels(lines, path, model)


def _labels(lines: Iterable[_Line], path: Path, model: str) -> Iterator[Label]:
    try:
        for (request_id, has_rows), group in groupby(
            lines, lambda one: (one[0], one[2] is not None)
        ):
            if not has_rows:
                for one in group:
                    yield Label(model, _identity(one), _values(one))
                continue
            rows = list(group)
            numbered = sorted(rows, key=_row)
            if [_row(one) for one in numbered] != list(range(len(numbered))):
                text = (
                    f"the rows of request {request_id!r} are not 0 to {len(rows) - 1}, each once, "
                )
                raise LabelFileError(f"{rows[0][3]}: {text}one line after another")
            values = tuple(value for one in numbered for value in _values(one))
            yield Label(model, _identity(rows[0]), values)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabelFileError(f"{path} cannot be read: {error}") from None


def _identity(line: _Line) -> str:
    if not isinstance(line[0], str) or not line[0]:
        raise LabelFileError(f"{line[3]}: request_id is {line[0]!r}; it must be a text")
    return line[0]


def _row(line: _Line) -> int:
    if isinstance(line[2], bool) or not isinstance(line[2], int):
        raise LabelFileError(f"{line[3]}: row is {line[2]!r}; it must be a whole number")
    return line[2]


def _values(line: _Line) -> tuple[int | float | str, ...]:
    """A label; of a list, one for each row."""
    values = line[1] if isinstance(line[1], list) else [line[1]]
    for value in values:
        is_value = isinstance(value, int | float | str) and not isinstance(value, bool)
        if not is_value or (isinstance(value, int) and abs(value) >= _INDEX_MAX):
            wanted = "a class's index or name, or a score"
            raise LabelFileError(f"{line[3]}: label is {value!r}; it must be {wanted}")
    return tuple(values)


def _columns(names: Iterable[str] | None, path: Path) -> list[str]:
    found = list(names or [])
    if missing := [name for name in _COLUMNS[:2] if name not in found]:
        there = ", ".join(found) or "none"
        raise LabelFileError(f"{path} has no column {missing[0]!r}; its columns: {there}")
    return [name for name in _COLUMNS if name in found]


def _parquet(path: Path) -> Iterator[_Line]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        message = "reading Parquet needs pyarrow: install model-sidecar[monitor]"
        raise MissingExtraError(message) from None
    try:
        with pq.ParquetFile(path) as file:
            columns = _columns(file.schema_arrow.names, path)
            at = 0
            for batch in file.iter_batches(_READ_ROWS, columns=columns):
                for line in batch.to_pylist():
                    at += 1
                    yield line["request_id"], line["label"], line.get("row"), f"{path}, row {at}"
    except pa.ArrowException as error:
        raise LabelFileError(f"{path} cannot be read: {error}") from None


def _csv(path: Path) -> Iterator[_Line]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        _columns(reader.fieldnames, path)
        for line in reader:
            where = f"{path}, line {reader.line_num}"
            row = None if line.get("row") in {None, ""} else _number(line["row"])
            yield line["request_id"], _number(line["label"]), row, where


def _number(text: str | None) -> int | float | str | None:
    for kind in (int, float):
        try:
            return kind(text or "")
        except ValueError:
            continue
    return text


def _json_lines(path: Path) -> Iterator[_Line]:
    with path.open(encoding="utf-8") as file:
        for at, text in enumerate(file, 1):
            if not text.strip():
                continue
            where = f"{path}, line {at}"
            try:
                line = json.loads(text)
            except ValueError as error:
                raise LabelFileError(f"{where} is not JSON: {error}") from None
            if not isinstance(line, dict):
                raise LabelFileError(f"{where} is no object")
            _columns(line, Path(where))
            yield line["request_id"], line["label"], line.get("row"), where
