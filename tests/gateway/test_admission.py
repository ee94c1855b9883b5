"""Bounds on what is in flight: exact, counted, and given back whatever happens."""

from __future__ import annotations

import threading

import pytest

from sidecar.config import AdmissionConfig
from sidecar.errors import OverloadedError
from sidecar.gateway.admission import Admission
from sidecar.gateway.pages import Page, create_page


@pytest.fixture
def page():
    return Page(create_page(1), 1, owner=True)


@pytest.fixture
def admission(page):
    return Admission(AdmissionConfig(max_requests=3, max_bytes=4096, max_streams=2), page)


def test_requests(admission, page):
    for _ in range(3):
        admission.enter_request()
    with pytest.raises(OverloadedError, match="3 requests are in flight"):
        admission.enter_request()
    assert page.server_counters()["refused_requests"] == 1
    admission.leave_request(0)
    admission.enter_request()


def test_bytes(admission, page):
    admission.enter_bytes(4000)
    with pytest.raises(OverloadedError, match="4096 bytes"):
        admission.enter_bytes(97)
    assert page.server_counters()["refused_bytes"] == 1
    admission.enter_bytes(96)
    assert admission.bytes == 4096


def test_a_body_over_the_bound_is_let_in_alone(admission):
    admission.enter_bytes(10_000)
    with pytest.raises(OverloadedError):
        admission.enter_bytes(1)


def test_streams(admission, page):
    admission.enter_stream()
    admission.enter_stream()
    with pytest.raises(OverloadedError, match="2 streams"):
        admission.enter_stream()
    assert page.server_counters()["refused_streams"] == 1
    assert not admission.idle()
    admission.leave_stream()
    admission.enter_stream()


def test_a_refusal_by_bytes_takes_no_place(admission):
    with admission.admit(4000):
        with pytest.raises(OverloadedError), admission.admit(4000):
            pytest.fail("it was let in")
        assert (admission.requests, admission.bytes) == (1, 4000)
        with admission.admit(96, requests=0):  # grown by decompression: the same request
            assert (admission.requests, admission.bytes) == (1, 4096)
    assert (admission.requests, admission.bytes) == (0, 0)
    assert admission.idle()


def test_a_place_comes_back_when_the_work_fails(admission):
    for _ in range(10):
        with pytest.raises(ZeroDivisionError), admission.admit(5):
            _ = 1 / 0
    assert (admission.requests, admission.bytes) == (0, 0)


def test_threads_never_exceed_the_bound(admission):
    most, lock = [0], threading.Lock()
    refused = [0]

    def work() -> None:
        for _ in range(500):
            try:
                with admission.admit(10), lock:
                    most[0] = max(most[0], admission.requests)
            except OverloadedError:
                with lock:
                    refused[0] += 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] <= 3
    assert (admission.requests, admission.bytes) == (0, 0)
    assert admission._page.server_counters()["refused_requests"] == refused[0]
