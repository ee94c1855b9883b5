"""W3C trace context: what is read, what is made, what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import NonRecordingSpan, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from exporters.telemetry.context import (
    RANDOM,
    SAMPLED,
    Sampler,
    TraceContext,
    new_context,
    new_span_id,
    parse,
    parse_state,
)

GOOD = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_context_is_read():
    found = parse(GOOD, "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7")
    assert found == TraceContext(
        0x0AF7651916CD43DD8448EB211C80319C,
        0xB7AD6B7169203331,
        SAMPLED,
        "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7",
    )
    assert found.sampled
    assert found.traceparent == GOOD


@pytest.mark.parametrize(
    ("header", "flags"),
    [
        (GOOD[:-2] + "00", 0),
        (GOOD[:-2] + "03", SAMPLED | RANDOM),
        (GOOD[:-2] + "ff", SAMPLED | RANDOM),  # what we do not know is not handed on
        ("cc" + GOOD[2:], SAMPLED),
        ("cc" + GOOD[2:] + "-what-will-be", SAMPLED),
        (f"  {GOOD}\t", SAMPLED),
    ],
)
def test_flags_and_versions_to_come(header, flags):
    assert parse(header).flags == flags


@pytest.mark.parametrize(
    "header",
    [
        "",
        "garbage",
        GOOD.upper(),
        "ff" + GOOD[2:],
        GOOD + "-more",
        "cc" + GOOD[2:] + "more",
        GOOD.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32),
        GOOD.replace("b7ad6b7169203331", "0" * 16),
        GOOD[:-1],
        GOOD.replace("-", "_"),
        GOOD + "\n",
        GOOD.replace("0af", "٠af"),  # a digit, but not one of ASCII
        GOOD * 10_000,
    ],
)
def test_what_is_malformed_is_no_context(header):
    assert parse(header) is None


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        ("", ""),
        ("a=1,b=2", "a=1,b=2"),
        (" a=1 ,\t, b=2", "a=1,b=2"),
        ("tenant@system=x y", "tenant@system=x y"),
        ("a=1,a=2", ""),
        ("A=1", ""),
        ("a", ""),
        ("a=", ""),
        ("a=b=c", ""),
        ("a=ü", ""),
        ("a=1\n", ""),
        (",".join(f"k{i}=v" for i in range(32)), ",".join(f"k{i}=v" for i in range(32))),
        (",".join(f"k{i}=v" for i in range(33)), ""),
        (f"a={'x' * 250},b={'y' * 250},c={'z' * 250}", f"a={'x' * 250},b={'y' * 250}"),
        ("a=" + "x" * 257, ""),
    ],
)
def test_tracestate(state, kept):
    assert parse_state(state) == kept
    assert parse(GOOD, state).state == kept


def test_a_child_belongs_to_the_same_trace():
    caller = parse(GOOD, "a=1")
    mine = caller.child(7)
    assert (mine.trace_id, mine.span_id, mine.state) == (caller.trace_id, 7, "a=1")
    assert mine.traceparent == "00-0af7651916cd43dd8448eb211c80319c-0000000000000007-01"
    assert not caller.child(7, sampled=False).sampled
    assert caller.child(7, sampled=False).child(8, sampled=True).sampled


def test_new_ids_are_never_zero():
    drawn = iter([bytes(16), b"\1" * 16, bytes(8), b"\2" * 8])
    found = new_context(sampled=True, entropy=lambda _: next(drawn))
    assert found == TraceContext(int.from_bytes(b"\1" * 16), int.from_bytes(b"\2" * 8), 3)
    drawn = iter([bytes(8), b"\3" * 8])
    assert new_span_id(lambda _: next(drawn)) == int.from_bytes(b"\3" * 8)
    assert len({new_context(sampled=False).trace_id for _ in range(100)}) == 100
    assert not new_context(sampled=False).sampled


@given(
    st.integers(1, 2**128 - 1),
    st.integers(1, 2**64 - 1),
    st.sampled_from([0, SAMPLED, RANDOM, SAMPLED | RANDOM]),
)
def test_what_is_made_is_read_again_by_us_and_by_the_sdk(trace_id, span_id, flags):
    made = TraceContext(trace_id, span_id, flags, "a=1")
    assert parse(made.traceparent, made.state) == made
    carrier = {"traceparent": made.traceparent, "tracestate": made.state}
    theirs = get_current_span(TraceContextTextMapPropagator().extract(carrier)).get_span_context()
    assert (theirs.trace_id, theirs.span_id) == (trace_id, span_id)
    assert theirs.trace_flags.sampled == made.sampled
    back: dict[str, str] = {}
    there = set_span_in_context(NonRecordingSpan(theirs))
    TraceContextTextMapPropagator().inject(back, context=there)
    assert parse(back["traceparent"], back["tracestate"]).trace_id == trace_id


def test_a_sampler_believes_the_caller_or_the_trace_id():
    yes, no = parse(GOOD), parse(GOOD[:-2] + "00")
    assert Sampler(0.0).decide(yes, yes.trace_id)
    assert not Sampler(1.0).decide(no, no.trace_id)
    assert Sampler(1.0, parent=False).decide(no, no.trace_id)
    assert not Sampler(0.0, parent=False).decide(yes, yes.trace_id)


def test_a_lower_ratio_samples_a_subset():
    ids = [new_context(sampled=True).trace_id for _ in range(4000)]
    few = {one for one in ids if Sampler(0.1).decide(None, one)}
    many = {one for one in ids if Sampler(0.5).decide(None, one)}
    assert few < many
    # Six standard deviations of 4,000 draws at 0.1 and 0.5.
    assert abs(len(few) / 4000 - 0.1) < 0.03
    assert abs(len(many) / 4000 - 0.5) < 0.05
    assert all(Sampler(1.0).decide(None, one) for one in ids)
    assert not any(Sampler(0.0).decide(None, one) for one in ids)
