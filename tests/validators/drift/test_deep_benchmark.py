"""The benchmark of Evidently's tests against its preset, in small; its times are not judged."""

from __future__ import annotations

import pytest

from tests.benchmarks.drift_deep import drift_deep


@pytest.mark.filterwarnings("ignore")  # Evidently's imports warn about what it is built on
@pytest.mark.parametrize("rows", [200, 1200])
def test_both_ways_say_the_same_of_each_column(rows: int) -> None:
    _, same = drift_deep(2, rows=rows, columns=11, in_child=False)
    assert same.met, same
    assert same.measured == "22 of 22"
