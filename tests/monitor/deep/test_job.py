"""Jobs: both samples as they are, carried whole; what cannot be compared is said."""

from __future__ import annotations

import socket
import threading

import numpy as np
import pytest

from sidecar.frames import Receiver, send
from sidecar.monitor.deep import protocol
from sidecar.monitor.deep.job import (
    CATEGORIES_MAX,
    DEFAULT,
    METHODS,
    OTHERS,
    Job,
    Options,
    UnfitSampleError,
    from_samples,
)
from tests.monitor.deep.making import CATEGORICAL, COLUMNS, NUMERIC, reference, rows
from validators.drift.accuracy import CORRECT
from validators.drift.columns import Column
from validators.drift.distances import BUILTIN
from validators.drift.reference import Reference


def test_a_job_travels_whole_and_nothing_is_pickled():
    live = rows(700, 5)
    sent = from_samples(
        reference(), live, Options("m", 100, 3, True, 600, 1.5, "always", ("a <line>",), 2**30),
        rows_max=5000, methods={"x.max": "ks"}, thresholds={"x.mean": 0.25},
    )  # fmt: skip
    here, there = socket.socketpair()
    with here, there:
        sending = threading.Thread(
            target=lambda: send(here, protocol.RUN, *sent.to_frame(), memfd_over=1024)
        )
        sending.start()
        frame = Receiver(there, max_bytes=protocol.JOB_BYTES_MAX).receive()
        sending.join()
    got = Job.from_frame(frame.fields, frame.parts)
    assert (got.plans, got.labels, got.options) == (sent.plans, sent.labels, sent.options)
    for side in ("reference", "current"):
        for array in ("numbers", "codes"):
            ours, theirs = (getattr(getattr(one, side), array) for one in (sent, got))
            np.testing.assert_array_equal(ours, theirs)
    assert got.current.rows == 700
    for name in ("x.mean", "x.odd"):
        np.testing.assert_array_equal(got.column(got.current, name), live[name])
    labels = np.array(got.labels["y.argmax"])
    np.testing.assert_array_equal(
        labels[got.column(got.current, "y.argmax")], live["y.argmax"].astype(str)
    )


def test_types_and_methods_are_declared_for_each_column():
    made = from_samples(
        reference(), rows(500, 3), Options(), rows_max=5000,
        methods={"x.mean": "anderson_darling", "y.ok": "chi_square"}, thresholds={"x.max": 0.5},
    )  # fmt: skip
    found = {plan.name: (plan.type, plan.method, plan.threshold) for plan in made.plans}
    assert found == {
        "x.mean": (NUMERIC, "wasserstein", None), "x.max": (NUMERIC, "wasserstein", 0.5),
        "x.odd": (NUMERIC, "wasserstein", None),
        "y.argmax": (CATEGORICAL, "jensenshannon", None), "y.ok": (CATEGORICAL, "chisquare", None),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # Evidently's imports warn about what it is built on
def test_every_distance_of_ours_is_one_of_evidentlys_or_the_default():
    from evidently.legacy.calculations.stattests import get_stattest
    from evidently.legacy.core import ColumnType

    kinds = {NUMERIC: ColumnType.Numerical, CATEGORICAL: ColumnType.Categorical}
    for kind, theirs in kinds.items():
        ours = {name for name, distance in BUILTIN.items() if kind in distance.types}
        without = {"anderson_darling", "chi_square"} if kind is NUMERIC else set()
        assert set(METHODS[kind]) == ours - without
        for name in (DEFAULT[kind], *METHODS[kind].values()):
            assert get_stattest(None, None, theirs, name).name == name


def test_of_many_rows_the_latest_are_taken():
    live = rows(900, 4)
    made = from_samples(reference(), live, Options(), rows_max=300)
    np.testing.assert_array_equal(made.column(made.current, "x.max"), live["x.max"][-300:])


def test_rare_categories_share_one_code():
    names = np.array([f"n{at:04d}" for at in range(1000)])
    before = np.concatenate([names, np.repeat(names[:150], 20)])
    known = Reference.of({"c": before}, [Column("c", CATEGORICAL)])
    made = from_samples(known, {"c": np.repeat(names[900:950], 20)}, Options(), rows_max=5000)
    labels = made.labels["c"]
    assert len(labels) == CATEGORIES_MAX + 1
    assert labels[-1] == OTHERS
    now = np.array(labels)[made.column(made.current, "c")]
    assert set(now) == set(names[900:950])  # frequent now, though rare in the reference
    kept = np.array(labels)[made.column(made.reference, "c")]
    assert (kept[kept != OTHERS] == before[kept != OTHERS]).all()


def test_correctness_is_no_column_that_drifts():
    columns = (*COLUMNS, Column(CORRECT, CATEGORICAL))
    sides = [{**rows(600, seed), CORRECT: np.ones(600, dtype=np.int64)} for seed in (1, 2)]
    made = from_samples(Reference.of(sides[0], columns), sides[1], Options(), rows_max=5000)
    assert [plan.name for plan in made.plans] == [column.name for column in COLUMNS]


@pytest.mark.parametrize(
    ("count", "change", "said"),
    [
        (50, {}, "a sample of 50 rows; 100 are needed"),
        (500, {"x.max": None}, "live rows have no column 'x.max'"),
        (500, {"x.max": np.zeros(3)}, "differ in length: \\[3, 400\\]"),
    ],
)
def test_what_cannot_be_compared_is_said(count, change, said):
    live = {**rows(400, 2), **change}
    live = {name: values for name, values in live.items() if values is not None}
    with pytest.raises(UnfitSampleError, match=said):
        from_samples(reference(count), live, Options(), rows_max=5000)
