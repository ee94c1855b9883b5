"""What a case is: one exchange that was compared, with as much of it as may be kept."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from sidecar.errors import SidecarError

Array = np.ndarray[Any, Any]
Worse = Literal["higher", "lower"]
FieldUse = Literal["keep", "hash", "drop"]

#: What may name a case, and so a file: nothing that leaves the folder, nothing hidden.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


class CaseError(SidecarError):
    """Cases cannot be written or read: says which, why, and what to do.

    A writer that raised it stays usable: what it could not write is tried again at the next flush.
    """


def is_case_id(text: str) -> bool:
    """Whether ``text`` may name a case: letters, digits, ``-`` and ``_`` only."""
    return _ID.fullmatch(text) is not None


class Arrays(NamedTuple):
    """What a case may keep, as ``CaseWriter.offer`` reads it.

    Attributes:
        inputs: name → array.
        outputs: variant (``"model:version/name"``) → output → array. A variant that failed has no
            entry.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Mapping[str, Array]]


@dataclass(frozen=True, slots=True)
class Offer:
    """What is known about an exchange before any of its arrays is touched.

    Attributes:
        model: the model's name.
        candidate: the variant that is judged, ``"model:version/name"``.
        baseline: the variant it is compared with.
        metrics: what the comparison gave, by a name that also tells the output
            (``"probs.sqnr_db"``); of several rows the worst one's.
        limited: those of ``metrics`` that have a limit → which side of them is worse. Only these
            compete for the places of the worst.
        failure: the kind of failure (``"disagrees"``, ``"invalid"``, an error's class name), or
            ``None``: both answered, and agree.
        request_id: as the client knows it.
        time_ns: when it was answered, nanoseconds since the epoch; 0: now.
        info: anything else for people, JSON values.
    """

    model: str
    candidate: str
    baseline: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    limited: Mapping[str, Worse] = field(default_factory=dict)
    failure: str | None = None
    request_id: str = ""
    time_ns: int = 0
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class CaseEntry:
    """A case as the index knows it: everything but arrays.

    Attributes:
        id: names it within its folder.
        model, candidate, baseline, request_id, time_ns, metrics, limited, info: as in ``Offer``.
        reasons: why it is kept: ``"failure:KIND"``, ``"worst:METRIC"``, ``"reservoir"``; one at
            least, the strongest first.
        input_hashes: input → ``"sha256:…"`` (see ``hash_array``) of those that are not kept but
            hashed.
        output_hashes: variant → output → the same.
        field_uses: ``"input:NAME"`` or ``"output:NAME"`` → what became of it.
        path: its file.
        nbytes: the file's size.
        keys: the tensors' keys within the file.
    """

    id: str
    model: str
    candidate: str
    baseline: str
    reasons: tuple[str, ...]
    request_id: str = ""
    time_ns: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    input_hashes: dict[str, str] = field(default_factory=dict)
    output_hashes: dict[str, dict[str, str]] = field(default_factory=dict)
    limited: dict[str, Worse] = field(default_factory=dict)
    field_uses: dict[str, FieldUse] = field(default_factory=dict)
    path: Path = Path()
    nbytes: int = 0
    keys: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """The strongest of ``reasons``."""
        return self.reasons[0]

    @property
    def variants(self) -> tuple[str, str]:
        """Baseline and candidate."""
        return self.baseline, self.candidate

    @property
    def can_be_replayed(self) -> bool:
        """Whether every input was kept."""
        uses = [use for name, use in self.field_uses.items() if name.startswith("input:")]
        return bool(uses) and all(use == "keep" for use in uses)


@dataclass(slots=True, kw_only=True)
class Case(CaseEntry):
    """A case with its arrays.

    Attributes:
        inputs: those that were kept, name → array; ``None`` when none was.
        outputs: variant → output → array, those that were kept.
    """

    inputs: dict[str, Array] | None = None
    outputs: dict[str, dict[str, Array]] = field(default_factory=dict)


def hash_array(array: Array) -> str:
    """Return ``"sha256:…"`` of datatype, shape and values, so that equal tensors are recognized.

    A hash hides a value only where there are too many to try: that of a small integer tells it.

    Args:
        array: any numeric dtype, or objects of ``bytes`` (BYTES), each with its length.
    """
    digest = hashlib.sha256()
    if array.dtype.kind == "O":
        digest.update(f"BYTES {list(array.shape)}\n".encode())
        for value in array.ravel():
            data = bytes(value)
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
    else:
        # By the dtype's name: ml_dtypes types share the letter codes of others.
        digest.update(f"{array.dtype.newbyteorder('<').name} {list(array.shape)}\n".encode())
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)
    return f"sha256:{digest.hexdigest()}"
