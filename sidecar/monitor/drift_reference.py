"""A model's reference with everything that watching needs: in a file, or in the monitor's store.

One gzipped JSON document that travels with the model: how tensors become columns and what was
learnt of them, the bins and counts, the calibrated thresholds, a sample of rows for the deep runs,
and what it was made of. Nothing in it is executed.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from sidecar.config import ModelConfig
from sidecar.config_drift import DriftConfig
from sidecar.errors import SidecarError
from sidecar.monitor.drift_columns import Columns
from sidecar.monitor.measures import route_shares
from validators.drift.calibrate import Calibration
from validators.drift.reference import Reference

FORMAT = "model-sidecar drift reference"
VERSION = 1
#: Unpacked, so that a small file cannot fill the memory: 512 columns and their sample take a tenth.
BYTES_MAX = 512 * 2**20
_GZIP = b"\x1f\x8b"


class ReferenceFileError(SidecarError):
    """A reference that cannot be used; says which, why, and what to do."""


@dataclass(frozen=True, slots=True)
class RegisteredReference:
    """What windows are compared with.

    Attributes:
        model, variant: whose outputs were looked at (``version/name``; empty: whatever served of
            the version that the configuration makes the default).
        artifact: its fingerprint; empty: not known.
        source: ``file`` or ``live``.
        created: ISO 8601, UTC.
        facts: for people: rows, files, accuracy where labels were given, what was warned of.
    """

    model: str
    variant: str
    artifact: str
    source: str
    created: str
    columns: Columns
    reference: Reference
    calibration: Calibration
    facts: dict[str, Any] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "variant": self.variant,
            "artifact": self.artifact,
            "source": self.source,
            "created": self.created,
            "columns": self.columns.to_plain(),
            "reference": self.reference.to_plain(),
            "calibration": self.calibration.to_plain(),
            "facts": self.facts,
        }

    @classmethod
    def from_plain(cls, plain: Any) -> Self:
        """Raises ValueError when ``plain`` is not what ``to_plain`` wrote."""
        if not isinstance(plain, Mapping) or plain.get("format") != FORMAT:
            raise ValueError("it is no drift reference")
        if plain.get("version") != VERSION:
            raise ValueError(
                f"it is of version {plain.get('version')}, and this release reads {VERSION}"
            )
        try:
            model, variant, artifact, source, created = (
                str(plain[name]) for name in ("model", "variant", "artifact", "source", "created")
            )
            columns = Columns.from_plain(plain["columns"])
            reference = Reference.from_plain(plain["reference"])
            calibration = Calibration.from_plain(plain["calibration"])
            facts = dict(plain["facts"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"a part is missing: {error!r}") from error
        if len(calibration.methods) != len(reference.columns):
            raise ValueError("its thresholds are of other columns")
        return cls(
            model, variant, artifact, source, created, columns, reference, calibration, facts
        )


def write(registered: RegisteredReference, path: Path) -> int:
    """Write it whole or not at all; return its bytes.

    Raises:
        ReferenceFileError: it cannot be written.
    """
    text = json.dumps(registered.to_plain(), separators=(",", ":"), allow_nan=False)
    data = gzip.compress(text.encode(), compresslevel=6, mtime=0)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ReferenceFileError(f"{path} cannot be written: {error.strerror}") from None
    return len(data)


def read(path: Path) -> RegisteredReference:
    """Read a file that ``write`` wrote (JSON that is not gzipped as well).

    Raises:
        ReferenceFileError: it is missing, damaged, of another version, or something else.
    """
    again = "make it again with `sidecar reference`"
    try:
        with path.open("rb") as file:
            is_packed = file.read(2) == _GZIP
        with gzip.open(path, "rb") if is_packed else path.open("rb") as file:
            data = file.read(BYTES_MAX + 1)
    except FileNotFoundError:
        raise ReferenceFileError(f"there is no reference {path}: {again}") from None
    except (OSError, EOFError, zlib.error) as error:
        what = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ReferenceFileError(f"the reference {path} is damaged ({what}): {again}") from None
    if len(data) > BYTES_MAX:
        raise ReferenceFileError(f"the reference {path} is over {BYTES_MAX} bytes unpacked")
    try:
        return RegisteredReference.from_plain(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise ReferenceFileError(f"the reference {path} cannot be used: {error}: {again}") from None


def settings_of(drift: DriftConfig) -> dict[str, Any]:
    """The settings that thresholds are made for; with others they mean nothing."""
    return {
        "window_rows": drift.window_rows,
        "min_rows": drift.min_rows,
        "expected_windows_between_false_alarms": float(drift.expected_windows_between_false_alarms),
        "block_rows": drift.block_rows,
        "methods": dict(sorted(drift.methods.items())),
        "inputs": _named(drift.inputs),
        "outputs": _named(drift.outputs),
    }


def live_settings(model: ModelConfig) -> dict[str, Any]:
    """The same for a reference of first rows: those of another version are no reference for it."""
    return {**settings_of(model.drift), "version": default_version(model)}


def default_version(model: ModelConfig) -> str:
    """The version that answers who names none; empty where none serves."""
    return next((variant.version for variant, _ in route_shares(model)), "")


def _named(configured: Mapping[str, Any] | None) -> Any:
    if configured is None:
        return None
    return {name: [one.kind, dict(one.options)] for name, one in sorted(configured.items())}


def misfit(registered: RegisteredReference, model: ModelConfig, where: str) -> str:
    """Why a reference does not go with a model's configuration; empty when it does."""
    again = f"make it again with `sidecar reference CONFIG --model {model.name} --inputs …`"
    if registered.model != model.name:
        return (
            f"{where} is a reference of model {registered.model!r}, not of {model.name!r}: {again}"
        )
    made_with = registered.facts.get("settings")
    version = registered.variant.partition("/")[0]
    serving = {v.version for v in model.variants if {"serving", "fallback"} & set(v.roles)}
    if version and version not in serving:
        return f"{where} is of version {version} of {model.name!r}, which does not serve: {again}"
    live = registered.source == "live"
    now = json.loads(json.dumps(live_settings(model) if live else settings_of(model.drift)))
    if made_with == now or not isinstance(made_with, Mapping):
        return ""
    changed = sorted(name for name in now if made_with.get(name) != now[name])
    said = ", ".join(f"{n} {_short(made_with.get(n))} → {_short(now[n])}" for n in changed)
    return f"{where} was made with other settings (drift: {said}): {again}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
