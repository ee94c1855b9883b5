"""The index of a folder of cases: one Parquet file that any tool for tables opens."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sidecar.cases import files
from sidecar.cases.case import CaseEntry, CaseError, is_case_id
from sidecar.cases.shards import FOLDER, SUFFIX, read_entry, shard_path

NAME = "index.parquet"
LAYOUT_VERSION = 1
_STATE = b"sidecar_cases"
_MISSING = "cases are kept by an extra: pip install 'model-sidecar[monitor]'"

#: (model, candidate, baseline)
Group = tuple[str, str, str]


class CorruptIndexError(CaseError):
    """The index cannot be read; the files themselves may be well."""


@dataclass(slots=True)
class Index:
    """What the file holds.

    Attributes:
        entries: the oldest first.
        seen: what a sample has to know when it goes on: group → start of a stretch of time
            (nanoseconds) → how many exchanges were offered in it.
    """

    entries: list[CaseEntry] = field(default_factory=list)
    seen: dict[Group, dict[int, int]] = field(default_factory=dict)


def require_pyarrow() -> None:
    """Raise early, and say what to install.

    Raises:
        CaseError: pyarrow or safetensors is missing.
    """
    try:
        import pyarrow.parquet  # noqa: F401
        import safetensors  # noqa: F401
    except ImportError:
        raise CaseError(_MISSING) from None


def write_index(folder: Path, index: Index) -> None:
    """Replace the index.

    Raises:
        OSError: the disk refused; the old one stays.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [_to_row(entry) for entry in index.entries]
    state = {
        "layout": LAYOUT_VERSION,
        "seen": [[*group, list(counts.items())] for group, counts in index.seen.items()],
    }
    schema = _schema().with_metadata({_STATE: json.dumps(state).encode()})
    table = pa.Table.from_pylist(rows, schema=schema)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, write_page_checksum=True)
    files.write_atomically(folder / NAME, buffer.getvalue())


def read_index(folder: Path) -> Index:
    """Read the index; rows whose file is gone, or that point elsewhere, are left out.

    Raises:
        FileNotFoundError: there is none.
        CorruptIndexError: it cannot be read, or is of another layout.
        CaseError: the extra that reads it is not installed.
    """
    require_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / NAME
    data = path.read_bytes()
    try:
        # Without its pool of threads: a process that ends soon after one was made now and then
        # aborts ("terminate called without an active exception").
        with pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True) as file:
            table = file.read(use_threads=False)
        state = json.loads(table.schema.metadata[_STATE])
        if state["layout"] != LAYOUT_VERSION:
            message = f"layout {state['layout']}, this version reads {LAYOUT_VERSION}"
            raise ValueError(message)
        # Python's own datetime has no nanoseconds.
        times = table["time"].cast(pa.int64())
        table = table.set_column(table.schema.get_field_index("time"), "time", times)
        entries = [_to_entry(folder, row) for row in table.to_pylist() if is_case_id(row["id"])]
        seen = {
            (model, candidate, baseline): {int(start): int(count) for start, count in counts}
            for model, candidate, baseline, counts in state["seen"]
        }
    # pyarrow's errors are ValueErrors, KeyErrors, OSErrors and more; it has had others.
    except Exception as error:  # noqa: BLE001
        message = f"{path} cannot be read: {error}"
        raise CorruptIndexError(message) from None
    found = [entry for entry in entries if entry.path.is_file()]
    return Index(_by_time(found), seen)


def rebuild_index(folder: Path, known: Iterable[str] = ()) -> tuple[Index, list[Path]]:
    """Make the index from what the files say of themselves, reading their headers only.

    Args:
        folder: of cases.
        known: ids that need not be read.

    Returns:
        The index of all others, without counts, and the files that cannot be read.
    """
    skipped = set(known)
    entries, broken = [], []
    for path in (folder / FOLDER).glob(f"*{SUFFIX}"):
        if path.stem in skipped or not is_case_id(path.stem):
            continue
        try:
            entry = read_entry(path)
        except CaseError:
            broken.append(path)
            continue
        if entry.id == path.stem:  # a copy under another name is none of ours
            entries.append(entry)
    return Index(_by_time(entries)), sorted(broken)


def _by_time(entries: Iterable[CaseEntry]) -> list[CaseEntry]:
    return sorted(entries, key=lambda entry: (entry.time_ns, entry.id))


def _schema() -> Any:
    import pyarrow as pa

    text, texts = pa.string(), pa.map_(pa.string(), pa.string())
    return pa.schema(
        {
            "id": text,
            "model": text,
            "candidate": text,
            "baseline": text,
            "reasons": pa.list_(text),
            "request_id": text,
            "time": pa.timestamp("ns", tz="UTC"),
            "metrics": pa.map_(text, pa.float64()),
            "limited": texts,
            "info": text,
            "input_hashes": texts,
            "output_hashes": text,
            "field_uses": texts,
            "file": text,
            "keys": pa.list_(text),
            "nbytes": pa.int64(),
        }
    )


def _to_row(entry: CaseEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "model": entry.model,
        "candidate": entry.candidate,
        "baseline": entry.baseline,
        "reasons": list(entry.reasons),
        "request_id": entry.request_id,
        "time": entry.time_ns,
        "metrics": list(entry.metrics.items()),
        "limited": list(entry.limited.items()),
        "info": json.dumps(entry.info, default=str),
        "input_hashes": list(entry.input_hashes.items()),
        "output_hashes": json.dumps(entry.output_hashes),
        "field_uses": list(entry.field_uses.items()),
        "file": f"{FOLDER}/{entry.id}{SUFFIX}",
        "keys": list(entry.keys),
        "nbytes": entry.nbytes,
    }


def _to_entry(folder: Path, row: Mapping[str, Any]) -> CaseEntry:
    return CaseEntry(
        id=row["id"],
        model=row["model"],
        candidate=row["candidate"],
        baseline=row["baseline"],
        reasons=tuple(row["reasons"]) or ("unknown",),
        request_id=row["request_id"],
        time_ns=int(row["time"]),
        metrics=dict(row["metrics"]),
        limited=dict(row["limited"]),
        info=json.loads(row["info"]),
        input_hashes=dict(row["input_hashes"]),
        output_hashes=json.loads(row["output_hashes"]),
        field_uses=dict(row["field_uses"]),
        # Made of the id, never of what the column says.
        path=shard_path(folder, row["id"]),
        nbytes=int(row["nbytes"]),
        keys=tuple(row["keys"]),
    )
