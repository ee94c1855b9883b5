"""Exchanges that are kept for people to look at, and to run again.

A folder of cases holds one safetensors file a case (plain arrays, nothing executable) and one
Parquet file, the index::

    writer = CaseWriter(folder, config.monitor.cases, SystemClock())
    writer.offer(Offer(...), read)       # decides first; ``read`` gives arrays only when wanted
    writer.flush()                       # writes what is new, deletes what had to go

    for entry in read_cases(folder): ...   # the index
    case = load_case(folder / "shards" / f"{entry.id}.safetensors")   # or f"{folder}#{entry.id}"
"""

from sidecar.cases.case import Arrays, Case, CaseEntry, CaseError, Offer, hash_array
from sidecar.cases.reader import iter_cases, load_case, read_cases
from sidecar.cases.writer import CaseWriter

__all__ = [
    "Arrays",
    "Case",
    "CaseEntry",
    "CaseError",
    "CaseWriter",
    "Offer",
    "hash_array",
    "iter_cases",
    "load_case",
    "read_cases",
]
