"""Reports of deep runs on disk: ``STATE_DIR/drift/MODEL/``, JSON always, pages as wanted, pruned.

A report's files share a stem, the time at which it was made (UTC, to the millisecond), numbered
where that is not later than the one before. Each is written whole or not at all. What the disk
refuses is said, and never more than that report's loss.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sidecar.cases.files import remove_leftovers, write_atomically

_STEM = re.compile(r"^\d{8}T\d{6}\.\d{3}Z(-\d+)?$")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_NAME_CHARACTERS_MAX = 100
_THRESHOLDS = "thresholds.json"


@dataclass(frozen=True, slots=True)
class Kept:
    """A report on disk; ``page``: ``None``: it has none."""

    path: Path
    page: Path | None
    made_wall_ns: int


class Reports:
    """One model's folder."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder = folder
        self._keep = keep

    @classmethod
    def of(cls, state_dir: Path, model: str, *, keep: int) -> Reports:
        """``state_dir/drift/MODEL``; nothing is made before the first report."""
        return cls(state_dir / "drift" / folder_name(model), keep=keep)

    def write(self, report: Mapping[str, Any], page: bytes | None) -> Kept:
        """Write a report (its ``made_wall_ns`` names it) and remove the oldest ones.

        Raises:
            OSError: the disk refused; nothing of it is left.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        path = self._next(report["made_wall_ns"])
        page_path = None if page is None else path.with_suffix(".html")
        named = {**report, "page": "" if page_path is None else page_path.name}
        # The page first: whoever sees the JSON finds what it names.
        try:
            if page_path is not None and page is not None:
                write_atomically(page_path, page)
            write_atomically(path, _text(named))
        except BaseException:
            if page_path is not None:
                with contextlib.suppress(OSError):
                    page_path.unlink(missing_ok=True)
            raise
        self._prune()
        return Kept(path, page_path, report["made_wall_ns"])

    def latest(self) -> Kept | None:
        """The newest one that can be read."""
        for path in reversed(self._found()):
            try:
                made = json.loads(path.read_bytes())["made_wall_ns"]
            except (OSError, ValueError, LookupError, TypeError):
                continue  # cut short by a loss of power
            if type(made) is int:
                page = path.with_suffix(".html")
                return Kept(path, page if page.exists() else None, made)
        return None

    def read_thresholds(self, key: str) -> dict[str, float]:
        """Those that were found for ``key``; empty: none were, or they cannot be read."""
        try:
            known = json.loads((self.folder / _THRESHOLDS).read_bytes())
            if known["key"] != key:
                return {}
            return {str(name): float(level) for name, level in known["thresholds"].items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return {}

    def write_thresholds(self, key: str, found: Mapping[str, float]) -> None:
        """Keep what took long to find; of one key, the latest.

        Raises:
            OSError: the disk refused.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = _text({"key": key, "thresholds": dict(found)})
        write_atomically(self.folder / _THRESHOLDS, text)

    def _found(self) -> list[Path]:
        """JSON reports, the oldest first; a stem's suffix counts up."""
        with contextlib.suppress(OSError):
            found = [path for path in self.folder.glob("*.json") if _STEM.match(path.stem)]
            return sorted(found, key=lambda path: (path.stem[:20], len(path.stem), path.stem))
        return []

    def _next(self, wall_ns: int) -> Path:
        """After all that are there, also where the clock went back: they are read in this order."""
        stem, found = stamp(wall_ns), self._found()
        if found and found[-1].stem[: len(stem)] >= stem:
            stem, _, number = found[-1].stem.partition("-")
            stem = f"{stem}-{int(number or 0) + 1}"
        return self.folder / f"{stem}.json"

    def _prune(self) -> None:
        stems = {path.stem for path in self._found()[-self._keep :]}
        for path in self.folder.glob("*.*"):
            if _STEM.match(path.stem) and path.stem not in stems:
                with contextlib.suppress(OSError):
                    path.unlink()


def stamp(wall_ns: int) -> str:
    """``20260102T030405.678Z``."""
    made = datetime.fromtimestamp(wall_ns // 10**9, tz=UTC)
    return f"{made:%Y%m%dT%H%M%S}.{wall_ns // 10**6 % 1000:03d}Z"


def folder_name(model: str) -> str:
    """A folder's name for any model: a name that needs changing gets a hash, so that two differ."""
    safe = _UNSAFE.sub("_", model)[:_NAME_CHARACTERS_MAX].lstrip(".")
    if safe == model and safe:
        return safe
    return f"{safe or 'model'}~{hashlib.sha256(model.encode()).hexdigest()[:12]}"


def _text(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1, allow_nan=False).encode() + b"\n"
