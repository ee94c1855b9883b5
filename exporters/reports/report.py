"""Writing a report's files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from validators.results import RunResult

Array = np.ndarray[Any, Any]
_INSTALL = "reports are made by an extra: pip install 'model-sidecar[validate]'"


class ReportError(Exception):
    """A report cannot be made or written: says why, and what to do."""


class CaseArrays(Protocol):
    """What is shown of a stored case (``sidecar.cases.Case`` is one).

    ``inputs``: name → array, or ``None`` where they were not kept. ``outputs``: variant
    (``"version/name"``, or with ``"model:"`` before it) → output → array.
    """

    @property
    def inputs(self) -> Mapping[str, Array] | None:
        """Name → array."""
        ...

    @property
    def outputs(self) -> Mapping[str, Mapping[str, Array]]:
        """Variant → output → array."""
        ...


def write_report(
    result: RunResult, folder: Path, cases: Mapping[str, CaseArrays] | None = None
) -> Path:
    """Write ``report.html``, ``report.json`` and ``report.xml``.

    Args:
        result: what the run found.
        folder: made if it is missing; files of an earlier report are replaced.
        cases: id → the arrays of the worst cases (``WorstCase.id``); those that are missing are
            listed without pictures.

    Returns:
        The path of the page.

    Raises:
        ReportError: the extra is not installed, or the folder cannot be written.
    """
    try:
        import matplotlib as mpl  # noqa: F401 - drawn with later; what is missing is said now

        from exporters.reports.page import render
    except ImportError as error:
        raise ReportError(f"{_INSTALL} ({error.name} is missing)") from None
    from exporters.reports.junit import to_junit

    page = folder / "report.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        document = json.dumps(result.to_plain(), indent=2, allow_nan=False)
        _replace(folder / "report.json", document + "\n")
        _replace(folder / "report.xml", to_junit(result))
        _replace(page, render(result, cases or {}))
    except OSError as error:
        message = f"the report cannot be written to {folder}: {error.strerror or error}"
        raise ReportError(message) from None
    return page


def _replace(path: Path, text: str) -> None:
    """Whole or not at all: a CI job that is ended must not leave half a report."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        temporary.write_text(text, encoding="utf-8", errors="replace")
        os.replace(temporary, path)  # noqa: PTH105 - the same
    finally:
        temporary.unlink(missing_ok=True)
