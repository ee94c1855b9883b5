"""What a run's thresholds depend on, and for how many rows they are found."""

from __future__ import annotations

import numpy as np
import pytest

from sidecar.monitor.deep.job import UnfitSampleError
from sidecar.monitor.deep.prepare import prepare
from tests.monitor.deep.making import COLUMNS, model, reference, rows
from validators.drift.columns import Column, ColumnType
from validators.drift.reference import Reference


def prepared(settings=None, known=None, live=None, stored=None):
    return prepare(
        settings or model(), known or reference(), live or rows(900, 2), "never", None,
        lambda key: stored or {},
    )  # fmt: skip


def test_settings_reach_the_child():
    settings = model(
        drift={"block_rows": 8, "methods": {"x.mean": "ks"}}, rows=700, timeout_s=80,
        memory_max_bytes=2**29,
    )  # fmt: skip
    job, _ = prepared(settings)
    assert (job.options.model, job.options.expected) == ("m", 200)
    assert (job.options.block_rows, job.options.aligned) == (8, True)
    assert (job.options.calibrate_s, job.options.memory_max_bytes) == (20, 2**29)
    assert (job.current.rows, job.reference.rows) == (700, 2000)
    assert job.plans[0].method == "ks"


@pytest.mark.parametrize("live", [500, 511, 512, 900, 5000])
def test_thresholds_are_for_no_more_rows_than_there_are_and_hardly_fewer(live):
    job, _ = prepared(live=rows(live, 2))
    assert live / 2**0.125 - 1 <= job.options.calibrate_rows <= live


def test_thresholds_are_known_by_all_they_depend_on():
    _, key = prepared()
    assert prepared(live=rows(905, 7))[1] == key
    assert prepared(model(keep=3, html="never", every_s=5))[1] == key
    others = [
        prepared(live=rows(1100, 2)),
        prepared(known=reference(2000, 9)),
        prepared(known=reference(2001, 1)),
        prepared(model(drift={"expected_windows_between_false_alarms": 300})),
        prepared(model(drift={"block_rows": 1})),
        prepared(model(drift={"block_rows": 2})),
        prepared(model(drift={"methods": {"x.mean": "ks"}})),
        prepared(known=Reference.of(rows(2000, 1), COLUMNS[:-1])),
    ]
    keys = [key, *(other for _, other in others)]
    assert len(set(keys)) == len(keys)
    job, _ = prepared(stored={"x.mean": 0.5, "gone": 1.0})
    assert [plan.threshold for plan in job.plans] == [0.5, None, None, None, None]


def test_rows_that_belong_together_are_found_where_none_are_declared():
    common = np.random.default_rng(1).normal(size=(300, 2)).repeat(10, axis=0)
    own = np.random.default_rng(2).normal(size=(3000, 2))
    columns = [Column(name, ColumnType.NUMERIC) for name in "ab"]
    known = Reference.of(dict(zip("ab", (common + own).T, strict=True)), columns)
    live = dict(zip("ab", own[:1000].T, strict=True))
    job, _ = prepared(known=known, live=live)
    assert 50 <= job.options.block_rows <= 200
    assert job.options.aligned is False
    independent = Reference.of(dict(zip("ab", own.T, strict=True)), columns)
    assert prepared(known=independent, live=live)[0].options.block_rows == 1


def test_too_few_live_rows_are_said():
    with pytest.raises(UnfitSampleError, match="499 live rows, 500 are needed"):
        prepared(live=rows(499, 2))
    with pytest.raises(UnfitSampleError, match="0 live rows"):
        prepared(live={"x.mean": np.empty(0)})
