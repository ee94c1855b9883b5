"""Counters in shared memory: exact under threads, kept over lives, summed over workers."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import (
    CancelledError,
    DeadlineError,
    ExecutionError,
    OverloadedError,
    RequestError,
    UpstreamError,
)
from sidecar.gateway.pages import (
    BATCH_ROWS,
    BUCKETS_NS,
    OTHER,
    OUTCOMES,
    SERVER_COUNTERS,
    STAGES,
    TRANSPORTS,
    Page,
    Timing,
    create_page,
    outcome_of,
    sum_calls,
    sum_slot,
)


@pytest.fixture
def descriptor():
    made = create_page(2)
    yield made
    os.close(made)


def record(page: Page, slot: int = 0, **timing: object) -> None:
    page.record(slot, Timing(**timing), 1000, 77, 10, 20)


def test_one_request(descriptor):
    page = Page(descriptor, 2, owner=True)
    timing = Timing(decode_ns=10, queue_ns=60_000, execute_ns=300_000, encode_ns=40, rows=3)
    page.record(1, timing, 31 * 10**9, 1234, 100, 200)
    total = sum_slot([page], 1)
    assert total.durations == {
        "success": (1, 31 * 10**9), "fail": (0, 0), "queue": (1, 60_000), "decode": (1, 10),
        "execute": (1, 300_000), "encode": (1, 40), "cache_hit": (0, 0), "cache_miss": (0, 0),
        "cancel": (0, 0),
    }  # fmt: skip
    assert total.counters == {
        "inferences": 3, "executions": 1, "last_inference_ms": 1234, "fallbacks": 0,
        "late_answers": 0, "bytes_in": 100, "bytes_out": 200,
    }  # fmt: skip
    assert total.batches == {3: (1, 10, 300_000, 40)}
    where = {stage: counts.index(1) for stage, counts in total.histograms.items()}
    assert where == {"decode": 0, "queue": 1, "execute": 3, "encode": 0}
    ((key, call),) = sum_calls([page], 1).items()
    assert key == ("grpc", "")
    assert (call.ns, call.counts.index(1)) == (31 * 10**9, len(BUCKETS_NS))
    assert all(sum(total.histograms[stage]) == 1 for stage in STAGES)
    untouched = sum_slot([page], 0)
    assert not any(untouched.counters.values())
    assert untouched.batches == {}


@pytest.mark.parametrize("index", range(len(BUCKETS_NS)))
def test_a_bucket_includes_its_upper_bound(descriptor, index):
    page = Page(descriptor, 2, owner=True)
    for ns in (BUCKETS_NS[index], BUCKETS_NS[index] + 1):
        record(page, execute_ns=ns)
    counts = sum_slot([page], 0).histograms["execute"]
    assert (counts[index], counts[index + 1]) == (1, 1)


def test_a_hit_is_a_success_without_stages_of_computing(descriptor):
    page = Page(descriptor, 2, owner=True)
    record(page, executed=False, cached=True)
    total = sum_slot([page], 0)
    assert total.durations["success"][0] == total.durations["queue"][0] == 1
    assert total.durations["execute"][0] == total.durations["decode"][0] == 0
    assert total.counters["inferences"] == total.counters["executions"] == 0
    assert total.batches == {}


def test_a_joined_batch_is_counted_once_beside_its_requests(descriptor):
    page = Page(descriptor, 2, owner=True)
    for rows in (1, 2):
        record(page, rows=rows, executed=False)
    page.record_batch(0, 3, 5, 6, 7)
    total = sum_slot([page], 0)
    assert (total.counters["inferences"], total.counters["executions"]) == (3, 1)
    assert total.batches == {3: (1, 5, 6, 7)}


def test_a_batch_without_rows_has_a_place_of_its_own(descriptor):
    page = Page(descriptor, 2, owner=True)
    for rows in (0, 4, 0, 4, 4):
        record(page, rows=rows)
    batches = sum_slot([page], 0).batches
    assert {size: figures[0] for size, figures in batches.items()} == {0: 2, 4: 3}


def test_more_sizes_than_places_are_counted_with_the_last(descriptor):
    page = Page(descriptor, 2, owner=True)
    for rows in range(1, BATCH_ROWS + 11):
        record(page, rows=rows)
    total = sum_slot([page], 0)
    assert len(total.batches) == BATCH_ROWS
    assert total.batches[BATCH_ROWS + 10][0] == 11
    assert sum(figures[0] for figures in total.batches.values()) == BATCH_ROWS + 10
    assert not any(sum_slot([page], 1).counters.values())  # and not into the next slot


def test_threads_lose_no_count(descriptor):
    page = Page(descriptor, 2, owner=True)

    def work() -> None:
        for _ in range(2000):
            record(page)
            page.record_failure(0, "http", DeadlineError(), 3)
            page.add_server("unknown_model")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = sum_slot([page], 0)
    assert total.durations["success"] == (8000, 8_000_000)
    assert total.durations["fail"] == (8000, 24_000)
    assert page.server_counters()["unknown_model"] == 8000


def test_a_page_outlives_its_owner_and_says_whose_it_is(descriptor):
    first = Page(descriptor, 2, owner=True)
    record(first)
    assert (first.words[3], first.words[4]) == (os.getpid(), 1)
    first.close()
    second = Page(descriptor, 2, owner=True)
    record(second)
    assert second.words[4] == 2
    reader = Page(descriptor, 2)
    assert reader.words[4] == 2  # reading is no life
    assert sum_slot([reader], 0).durations["success"][0] == 2


def test_sums_over_workers():
    pages = [Page(create_page(1), 1, owner=True) for _ in range(3)]
    for number, page in enumerate(pages):
        page.record(0, Timing(execute_ns=5, rows=1 + number % 2), 10, 100 - number, 1, 2)
        page.add(0, "fallbacks", number)
        page.add_server("refused_requests", number)
    total = sum_slot(pages, 0)
    assert total.durations["success"] == (3, 30)
    assert total.counters["last_inference_ms"] == 100  # the latest, not their sum
    assert total.counters["fallbacks"] == 3
    assert total.batches == {1: (2, 0, 10, 0), 2: (1, 0, 5, 0)}
    assert [p.server_counters()["refused_requests"] for p in pages] == [0, 1, 2]
    assert set(pages[0].server_counters()) == set(SERVER_COUNTERS)


def test_a_page_cannot_be_found_by_name(descriptor):
    assert str(Path(f"/proc/self/fd/{descriptor}").readlink()).startswith("/memfd:")


# --- calls ----------------------------------------------------------------------------------------


def test_every_error_of_a_request_has_a_place_of_its_own():
    kinds = [RequestError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    ours = {kind.__name__ for kind in kinds[1:] if kind.__module__ == "sidecar.errors"}
    assert ours == set(OUTCOMES) - {"", OTHER}


class RareError(DeadlineError):
    """An error that no page has heard of."""


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (DeadlineError(), "DeadlineError"),
        (RareError(), "DeadlineError"),
        (UpstreamError("", "UNKNOWN"), "UpstreamError"),
        (RuntimeError(), OTHER),
        (RequestError(), OTHER),
        (KeyboardInterrupt(), OTHER),
    ],
)
def test_errors_are_counted_by_their_class_or_the_nearest_that_is_known(error, outcome):
    assert outcome_of(error) == outcome


def test_a_failure_is_counted_with_its_model_and_one_without_is_not_lost(descriptor):
    page = Page(descriptor, 2, owner=True)
    page.record_failure(1, "stream", ExecutionError(), 70_000)
    page.record_failure(1, "grpc", CancelledError(), 5)
    page.record_failure(None, "http", OverloadedError(), 0)
    total = sum_slot([page], 1)
    assert total.durations["fail"] == (1, 70_000)
    assert total.durations["cancel"] == (1, 5)
    assert total.durations["success"] == (0, 0)
    calls = sum_calls([page], 1)
    assert set(calls) == {("stream", "ExecutionError"), ("grpc", "CancelledError")}
    assert calls["stream", "ExecutionError"].counts.index(1) == 1
    without = sum_calls([page], None)
    assert {key: (call.ns, sum(call.counts)) for key, call in without.items()} == {
        ("http", "OverloadedError"): (0, 1)
    }
    assert sum_calls([page], 0) == {}
    assert not any(page.server_counters().values())  # the areas do not overlap


events = st.tuples(
    st.integers(0, 2),  # page
    st.integers(0, 1),  # slot
    st.sampled_from(TRANSPORTS),
    st.sampled_from(["", "DeadlineError", "CancelledError", "KeyError"]),
    st.integers(0, 10**11),
    st.booleans(),
)
ERRORS = {"DeadlineError": DeadlineError, "CancelledError": CancelledError, "KeyError": KeyError}


@given(st.lists(events, max_size=60))
def test_sums_over_pages_are_what_was_recorded(happened):
    descriptors = [create_page(2) for _ in range(3)]
    pages = [Page(descriptor, 2, owner=True) for descriptor in descriptors]
    expected: dict[tuple[int, str, str], list[int]] = {}
    for page, slot, transport, outcome, ns, cached in happened:
        if outcome:
            pages[page].record_failure(slot, transport, ERRORS[outcome](), ns)
        else:
            timing = Timing(execute_ns=ns, executed=not cached, cached=cached)
            pages[page].record(slot, timing, ns, 1, 2, 3, transport)
        known = outcome if outcome in OUTCOMES else OTHER
        expected.setdefault((slot, transport, known), []).append(ns)
    for slot in (0, 1):
        calls, total = sum_calls(pages, slot), sum_slot(pages, slot)
        assert {(slot, *key) for key in calls} == {key for key in expected if key[0] == slot}
        for key, call in calls.items():
            assert (sum(call.counts), call.ns) == (
                len(expected[slot, *key]), sum(expected[slot, *key]),
            )  # fmt: skip
            assert call.counts[-1] == sum(ns > BUCKETS_NS[-1] for ns in expected[slot, *key])
        answered = [call for (_, outcome), call in calls.items() if not outcome]
        assert total.durations["success"] == (
            sum(sum(call.counts) for call in answered), sum(call.ns for call in answered),
        )  # fmt: skip
        for stage in STAGES:  # a histogram's sum is told beside its counts: they are of the same
            assert sum(total.histograms[stage]) == total.durations[stage][0]
    for page, descriptor in zip(pages, descriptors, strict=True):
        page.close()
        os.close(descriptor)


# --- reading --------------------------------------------------------------------------------------


def test_a_reader_sees_what_is_counted_and_cannot_count(descriptor):
    owner, reader = Page(descriptor, 2, owner=True), Page(descriptor, 2, read_only=True)
    record(owner)
    assert sum_slot([reader], 0).durations["success"][0] == 1
    record(owner)
    assert sum_slot([reader], 0).durations["success"][0] == 2
    with pytest.raises(TypeError):
        record(reader)
    assert sum_slot([owner], 0).durations["success"][0] == 2


def test_a_reader_refuses_a_page_that_it_would_misread(descriptor):
    with pytest.raises(ValueError, match="no page of layout"):
        Page(descriptor, 2, read_only=True)  # nobody owns it yet
    Page(descriptor, 2, owner=True)
    with pytest.raises(ValueError, match="no page of layout"):
        Page(descriptor, 1, read_only=True)
    with pytest.raises(ValueError, match="mmap length is greater"):
        Page(descriptor, 3, read_only=True)
