"""What is shown of drift (see ``view.py``)."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class DriftUnit:
    """One column of a model's traffic, or its columns together, in the latest judged window.

    Attributes:
        value: distance from the reference, in the unit of ``method``; ``threshold`` likewise, for
            the rows of this window.
        score: comparable between units; over ``score_threshold`` in two windows in a row: alarm.
        state: ``ok``, ``suspect``, ``alarm``, ``insufficient_data``.
        detail: where it changed most.
        scores: of the latest judged windows, the oldest first.
    """

    unit: str
    method: str
    value: float
    threshold: float
    score: float
    score_threshold: float
    state: str
    detail: str = ""
    scores: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class DriftView:
    """Whether one model's traffic is still like its reference.

    Attributes:
        reference: its name, empty while there is none.
        reference_source: ``file``, ``live`` (the first rows that came) or ``collecting``.
        state: the worst of the units; ``not_watched``: ``message`` says why.
        windows: judged so far.
        rows_in_window: counted in the open window, which closes at ``window_rows``.
        last_window_wall_ns: when the latest window was judged; ``None``: none yet.
        alarm_since_wall_ns: ``None``: no alarm.
        message: what keeps it from being watched as configured, empty otherwise.
        report_html: path of the latest deep run's report, empty without; ``report_json`` likewise.
        last_window_rows: of the latest judged window.
        reference_rows: of the reference; collected so far, while there is none, of
            ``reference_rows_wanted`` (then 0).
        skipped: exchanges that no window counts: reason → count.
        inferred: sentences that say what was taken for what.
    """

    model: str
    reference: str
    reference_source: str
    state: str
    windows: int
    rows_in_window: int
    window_rows: int
    last_window_wall_ns: int | None = None
    alarm_since_wall_ns: int | None = None
    units: list[DriftUnit] = field(default_factory=list)
    message: str = ""
    report_html: str = ""
    report_json: str = ""
    report_wall_ns: int | None = None
    last_window_rows: int = 0
    reference_rows: int = 0
    reference_rows_wanted: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    inferred: list[str] = field(default_factory=list)
