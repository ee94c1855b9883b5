"""What the monitor ran again is told, as traces of their own that link to the served ones."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from sidecar.config_models import Role
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.mirror_protocol import Answer
from sidecar.monitor.mirror_spans import MirrorSpans, roles_of
from sidecar.monitor.record import Recorder
from tests.monitor import making
from tests.monitor.recording import SPAN_ID, TRACE_ID, traceparent
from tests.monitor.test_worker import Bench

LOOSE = {"outputs": {"y": {"kind": "tensor", "limits": {"max_abs": 0.5}}}}
VARIANTS = (
    ("2", "ref", ["reference"]), ("2", "new", ["serving"]), ("2", "int8", ["mirror"]),
)  # fmt: skip
REF, NEW, INT8 = "m:2/ref", "m:2/new", "m:2/int8"
#: The child began 5 s of the monotonic clock's ago; the wall clock is at 10¹⁸.
BEGAN_NS, WALL_NS = 5 * 10**9, 10**18


class Clock(making.Clock):
    def now_ns(self) -> int:
        return WALL_NS

    def monotonic_ns(self) -> int:
        return 2 * BEGAN_NS


def y(value: float) -> dict[str, np.ndarray]:
    return {"y": np.full((2, 4), value, np.float32)}


def ran(outputs, *, failure: str = "") -> Answer:
    return Answer(outputs, failure, "secret text", 3_000, BEGAN_NS)


class Told:
    """The spans of a micro-batch of the items given, compared for real."""

    def __init__(self, *items) -> None:
        self.spans: list = []
        config = making.model(*VARIANTS, validation=LOOSE)
        whole = type("Whole", (), {"models": [config]})()
        watch = MirrorSpans(self.spans.append, roles_of(whole), Clock())
        recorder = Recorder(Evidence("now", Clock()))
        watch(items, recorder.certificates(items), BEGAN_NS + 100, BEGAN_NS + 200)

    def named(self, name: str) -> list:
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def make():
    plan = making.plan(making.model(*VARIANTS, validation=LOOSE))

    def item(answers, header: str = traceparent()):
        made = making.item(plan, NEW, y(1), answers)
        return replace(made, exchange=replace(made.exchange, traceparent=header))

    return item


def test_every_execution_links_to_what_was_served(make):
    told = Told(make({REF: ran(y(1)), INT8: ran(y(9))}))
    runs = told.named("mirror.execute")
    assert {span.attributes["variant"]: span.attributes["role"] for span in runs} == {
        "ref": "reference", "int8": "mirror",
    }  # fmt: skip
    assert len({span.context.trace_id for span in runs}) == 2
    for span in runs:
        (link,) = span.links
        assert (link.context.trace_id, link.context.span_id) == (TRACE_ID, SPAN_ID)
        assert span.parent_id == 0
        # Five seconds ago by the monotonic clock is five seconds ago by the other.
        assert span.start_ns == WALL_NS - BEGAN_NS
        assert span.end_ns - span.start_ns == 3_000
        assert span.attributes["rows"] == 2


def test_each_comparison_is_a_child_of_what_was_compared(make):
    told = Told(make({REF: ran(y(1)), INT8: ran(y(9))}))
    runs = {span.attributes["variant"]: span for span in told.named("mirror.execute")}
    compares = {span.attributes["candidate"]: span for span in told.named("mirror.compare")}
    verdicts = {name: span.attributes["verdict"] for name, span in compares.items()}
    assert verdicts == {INT8: "FAIL", NEW: "PASS"}
    assert compares[INT8].parent_id == runs["int8"].context.span_id
    # What was served was not run here: it stands with the reference.
    assert compares[NEW].parent_id == runs["ref"].context.span_id
    assert (compares[INT8].attributes["rows"], compares[INT8].attributes["bad_rows"]) == (2, 2)
    assert compares[INT8].start_ns == WALL_NS - BEGAN_NS + 100


def test_answers_that_cannot_be_compared_are_invalid(make):
    told = Told(make({REF: ran(y(1)), INT8: ran({"y": np.zeros((2, 3), np.float32)})}))
    compares = {span.attributes["candidate"]: span for span in told.named("mirror.compare")}
    assert compares[INT8].attributes["verdict"] == "INVALID"


def test_a_failure_says_how_and_what_never_began_is_no_span(make):
    absent = Answer(failure="absent", error="there is no copy of it")
    told = Told(make({REF: ran(None, failure="error"), INT8: absent}))
    (span,) = told.spans
    assert (span.error, span.attributes["outcome"]) == ("error", "error")
    assert "secret text" not in repr(told.spans)


def test_the_second_run_of_a_reference_is_told_apart(make):
    item = make({REF: ran(y(1))})
    item.noise, item.again = item.plan.pairs[0], ran(y(1))
    told = Told(item)
    assert [span.attributes["role"] for span in told.named("mirror.execute")] == [
        "reference", "noise",
    ]  # fmt: skip


@pytest.mark.parametrize("header", ["", f"00-{TRACE_ID:032x}-{SPAN_ID:016x}-00"])
def test_what_was_not_sampled_costs_nothing(make, header):
    assert Told(make({REF: ran(y(1))}, header)).spans == []


def test_the_worker_shows_each_batch_and_survives_who_watches():
    bench, seen = Bench(), []

    def watch(items, compared, start_ns, end_ns):
        seen.append((len(items), len(compared), end_ns >= start_ns))
        message = "a fault of who watches"
        raise RuntimeError(message)

    bench.worker._watch = watch
    for number in range(30):
        bench.offer(number)
    bench.finish()
    assert sum(count for count, _, _ in seen) == 30
    assert {(pairs, order) for _, pairs, order in seen} == {(1, True)}
    assert (bench.requests(), bench.worker.compared) == (30, 30)


def test_every_role_is_told_as_what_it_is_executed_for():
    config = making.model(*((str(n), "v", [role]) for n, role in enumerate(get_args(Role))))
    tree = type("Tree", (), {"models": [config]})
    assert sorted(roles_of(tree).values()) == sorted(get_args(Role))
