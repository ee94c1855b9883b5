"""What a deep run shows, plain, and whoever runs one on request: no library is needed for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class DeepReport:
    """What became of one run, for people and for the service.

    Attributes:
        path_json: where it lies; empty: there is no report (``message`` says why).
        path_html: likewise Evidently's page; empty: none was made.
        drifted: some column did, or the accuracy fell.
        rows: live ones that were looked at.
        summary: in words.
        message: what kept it from being done, or from being done as wanted.
    """

    model: str
    path_html: str = ""
    path_json: str = ""
    drifted: bool = False
    columns: int = 0
    columns_drifted: int = 0
    rows: int = 0
    seconds: float = 0.0
    made_wall_ns: int | None = None
    summary: str = ""
    message: str = ""


class DriftReports(Protocol):
    """What the service asks for reports. Called from several threads; waits for the run."""

    def run_now(self, model: str = "", *, html: bool = True) -> DeepReport:
        """Run and return what came of it; raises ``RequestError``."""
        ...
