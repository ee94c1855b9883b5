"""Streams through ``remote``: forwarded, renamed, wrapped, and ended with their clients."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from sidecar.errors import CancelledError, InvalidRequestError, UnsupportedError
from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.runtimes import remote
from tests.support.upstream import PATIENCE_S, Hanging, Upstream, remote_variant, request


@pytest.fixture
def upstream():
    with Upstream() as running:
        yield running


@pytest.fixture
def build():
    made = []

    def make(upstream: Upstream, **settings: object):
        made.append(remote.build(remote_variant(upstream.address, **settings)))
        return made[-1]

    yield make
    for runtime in made:
        runtime.close()


def bodies(*ids: str) -> Iterator[bytes]:
    return iter([request(id=id_).SerializeToString() for id_ in ids])


def ids(elements: Iterator[bytes]) -> list[str]:
    answers = [pb.ModelStreamInferResponse.FromString(element) for element in elements]
    assert not any(answer.error_message for answer in answers)
    return [answer.infer_response.id for answer in answers]


def test_a_stream_is_forwarded(upstream, build):
    metadata = [("x-request-id", "r-7"), ("te", "trailers-not")]
    stream = build(upstream).forward_stream(bodies("a", "b"), timeout_s=9, metadata=metadata)
    assert ids(stream) == ["a", "b"]
    (call,) = upstream.calls
    assert call.metadata["x-request-id"] == "r-7"
    assert 7 < call.remaining_s < 9.1


def test_a_stream_has_no_deadline_of_its_own(upstream, build):
    runtime = build(upstream, timeout_s=5)
    assert ids(runtime.forward_stream(bodies("a"), timeout_s=None)) == ["a"]
    assert upstream.calls[0].remaining_s > 1e6


def test_bare_elements_are_wrapped(upstream, build):
    big = np.random.default_rng(1).bytes(2**20)

    def stream(bodies, context):
        for body in bodies:
            yield upstream.identity(body, context)

    upstream.stream = stream
    sent = request(2**16, raw=big, id="big").SerializeToString()
    runtime = build(upstream, dialect="mlserver")
    (element,) = runtime.forward_stream(iter([sent]), timeout_s=9)
    answer = pb.ModelStreamInferResponse.FromString(element)
    assert answer.infer_response.id == "big"
    assert answer.infer_response.raw_output_contents[0] == big


def test_kserve_has_no_streams(upstream, build):
    with pytest.raises(UnsupportedError, match="no streams"):
        build(upstream, dialect="kserve").forward_stream(bodies("a"), timeout_s=9)


def test_what_the_requests_raise_is_raised_after_what_was_answered(upstream, build):
    stream = build(upstream).forward_stream(iter([next(bodies("a")), b"\x0a\x05x"]), timeout_s=9)
    assert ids(iter([next(stream)])) == ["a"]
    with pytest.raises(InvalidRequestError, match="not a ModelInferRequest"):
        next(stream)


def test_leaving_a_stream_ends_it_there(upstream, build):
    ended = threading.Event()

    def stream(bodies, context):
        context.add_callback(ended.set)
        yield from upstream.identity_stream(bodies, context)

    upstream.stream = stream
    more = threading.Event()

    def slow_bodies() -> Iterator[bytes]:
        yield from bodies("a")
        more.wait(PATIENCE_S)

    elements = build(upstream).forward_stream(slow_bodies(), timeout_s=None)
    next(elements)
    elements.close()
    assert ended.wait(PATIENCE_S)
    more.set()


def test_a_stream_is_cancelled_by_its_hook(upstream, build):
    hanging = Hanging(upstream)

    def stream(bodies, context):
        for body in bodies:
            yield hanging(body, context)

    upstream.stream = stream
    hooks: queue.Queue = queue.Queue()
    elements = build(upstream).forward_stream(bodies("a"), timeout_s=9, on_call=hooks.put)

    def cancel() -> None:
        hanging.entered.wait(PATIENCE_S)
        hooks.get(timeout=PATIENCE_S)()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(CancelledError, match="cancelled"):
        next(elements)
    canceller.join()
    assert hanging.cancelled.wait(PATIENCE_S)
