"""From wire bytes to jobs and cases."""

from __future__ import annotations

import logging
import random
from collections import Counter

import numpy as np
import pytest

from sidecar.cases import CaseError, CaseWriter, load_case
from sidecar.config_monitor import CasesConfig
from sidecar.monitor.casebook import Casebook
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.exchanges import Planner, Reader
from sidecar.monitor.mirror_protocol import Answer, CopyInfo
from sidecar.monitor.record import Recorder
from tests.monitor import making

LOOSE = {"outputs": {"y": {"kind": "tensor", "limits": {"max_abs": 0.5}}}}


@pytest.fixture
def plan():
    config = making.model(
        ("2", "ref", ["reference"]), ("2", "new", ["serving"]), ("2", "int8", ["mirror"]),
        validation=LOOSE,
    )  # fmt: skip
    return making.plan(config)


def x(rows=2, value=1.0):
    return np.full((rows, 4), value, np.float32)


def read(plan, **changes):
    reader = Reader({"m": plan})
    fields = {"request": making.request(x()), "response": making.response(y=x()), **changes}
    return reader.read(making.exchange(**fields)), dict(reader.not_mirrored)


def test_an_exchange_becomes_inputs_and_the_served_answer(plan):
    item, counted = read(plan)
    assert counted == {}
    assert np.array_equal(item.inputs["x"], x())
    assert np.array_equal(item.served["y"], x())
    assert (item.rows, item.wanted) == (2, None)
    item, _ = read(plan, request=making.request(x(), outputs=("y",)))
    assert item.wanted == {"y"}


def test_a_request_that_failed_is_still_run_on_the_others(plan):
    item, counted = read(plan, response=None, outcome="ExecutionError")
    assert item.served is None
    assert counted == {}
    assert item.answer(plan.pairs[0], "m:2/new") is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"request": b"\xff"}, "bad_request"),
        ({"request": making.request(np.zeros((2, 5), np.float32))}, "bad_request"),
        ({"response": b"\xff"}, "bad_request"),
        ({"request": making.request(np.zeros((0, 4), np.float32)),
          "response": making.response(y=np.zeros((0, 4), np.float32))}, "empty"),
        ({"variant": "m:9/none"}, "no_pair"),
        ({"variant": "other:1/v"}, "no_pair"),
    ],
)  # fmt: skip
def test_what_cannot_be_mirrored_is_counted_by_reason(plan, changes, reason):
    assert read(plan, **changes) == (None, {reason: 1})


def items_of(plan, rows):
    return [read(plan, request=making.request(x(count)))[0] for count in rows]


def planner(noise_rate, *, batch=64, seed=0):
    copies = {"m:2/ref": CopyInfo("m:2/ref", making.signature(batch=batch))}
    return Planner(copies, noise_rate, random.Random(seed))


def test_runs_come_in_an_order_drawn_at_random(plan):
    items = items_of(plan, [1] * 200)
    planner(0).plan(items)
    first = Counter(item.job.runs[0].variant for item in items)
    assert set(first) == {"m:2/ref", "m:2/int8"}
    assert min(first.values()) > 60
    assert all(len(item.job.runs) == 2 and item.noise is None for item in items)


def test_the_references_second_run_is_in_another_batch(plan):
    items = items_of(plan, [1, 2, 3])
    planner(1).plan(items)
    for index, item in enumerate(items):
        *_, again = item.job.runs
        assert item.noise is plan.pairs[0]
        assert again.variant == "m:2/ref"
        assert sorted(again.composition.others) == [other for other in range(3) if other != index]


def test_a_batch_is_never_larger_than_the_reference_takes(plan):
    items = items_of(plan, [3, 2, 1])
    planner(1, batch=4).plan(items)
    for index, item in enumerate(items):
        composition = item.job.runs[-1].composition
        others = sum(items[other].rows for other in composition.others)
        assert item.rows * composition.times + others <= 4
        assert index not in composition.others
    [alone] = items_of(plan, [3])
    planner(1, batch=4).plan([alone])
    assert alone.job.runs[-1].composition is None  # not even twice: then just once more


def test_about_the_configured_share_runs_twice(plan):
    items = items_of(plan, [1] * 500)
    planner(0.1, seed=5).plan(items)
    assert 25 < sum(item.noise is not None for item in items) < 80


# --- cases ----------------------------------------------------------------------------------------


class FailingWriter:
    counters: dict

    def offer(self, offer, read):
        message = "no space left on device"
        raise CaseError(message)

    def flush(self):
        message = "no space left on device"
        raise CaseError(message)

    close = flush


def served(plan, **answers):
    return making.item(plan, "m:2/new", {"y": x()}, {"m:2/ref": {"y": x()}, **answers})


def test_cases_have_their_reason_and_arrays(tmp_path, plan):
    config = CasesConfig(reservoir=0, worst=0, inputs="keep")
    book = Casebook(CaseWriter(tmp_path, config, making.Clock()))
    nan = x()
    nan[0] = np.nan
    items = [
        served(plan, **{"m:2/int8": {"y": x()}}),
        served(plan, **{"m:2/int8": {"y": x(value=9)}}),
        served(plan, **{"m:2/int8": {"y": nan}}),
        served(plan, **{"m:2/int8": {"q": x()}}),
        served(plan, **{"m:2/int8": Answer(None, "error", "it raised")}),
        served(plan),
    ]
    items[5].set_aside, items[5].culprit = "m:2/int8 ended (signal 11)", "m:2/int8"
    book.offer(items, Recorder(Evidence("now", making.Clock())).certificates(items))
    book.flush()
    cases = {view.reason: view for view in book.views("m", 10)}
    assert set(cases) == {
        f"failure:{kind}" for kind in ("disagrees", "invalid", "structure", "error", "crash")
    }
    wrong = cases["failure:disagrees"]
    assert (wrong.candidate, wrong.baseline, wrong.replayable) == ("m:2/int8", "m:2/ref", True)
    assert wrong.metrics["y.max_abs"] == 8
    stored = load_case(wrong.path)
    assert np.array_equal(stored.outputs["m:2/int8"]["y"], x(value=9))
    assert np.array_equal(stored.outputs["m:2/ref"]["y"], x())
    assert cases["failure:error"].info["error"] == "it raised"
    assert "signal 11" in cases["failure:crash"].info["error"]
    assert "lacks it" in cases["failure:structure"].info["problem"]
    assert book.views("other", 10) == []
    assert len(book.views(None, 2)) == 2
    book.close()


def test_a_full_disk_is_said_once_and_stops_nothing(plan, caplog):
    book = Casebook(FailingWriter())
    items = [served(plan, **{"m:2/int8": {"y": x()}}) for _ in range(3)]
    compared = Recorder(Evidence("now", making.Clock())).certificates(items)
    with caplog.at_level(logging.ERROR, "sidecar.monitor.casebook"):
        book.offer(items, compared)
        book.flush()
        book.close()
    assert book.failures == 8  # two pairs of three items, and two flushes
    assert [record.getMessage() for record in caplog.records] == [
        "cases cannot be kept: no space left on device"
    ]


def test_without_a_writer_nothing_is_kept(plan):
    book = Casebook(None)
    items = [served(plan)]
    book.offer(items, Recorder(Evidence("now", making.Clock())).certificates(items))
    book.flush()
    book.close()
    assert book.views(None, 10) == []
