"""The benchmark that stands Evidently's defaults beside ours, in small."""

from __future__ import annotations

import pytest

from tests.benchmarks.drift_evidently import evidently_alarms


@pytest.mark.filterwarnings("ignore")  # Evidently's imports warn about what it is built on
def test_evidently_judges_every_window() -> None:
    rows = evidently_alarms(1, windows=2)
    assert len(rows) == 6
    for row in rows:
        assert row.measured.endswith(" of 2")
    for row in rows[:4]:
        assert "% of columns" in row.detail
