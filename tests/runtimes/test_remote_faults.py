"""``remote`` in front of a server that is dead, slow, silent, or talks nonsense."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from sidecar.errors import (
    ArtifactError,
    CancelledError,
    DeadlineError,
    InvalidRequestError,
    SidecarError,
    UpstreamError,
)
from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.runtimes import remote
from sidecar.runtimes.base import TensorSpec
from tests.support.ports import free_port
from tests.support.upstream import (
    PATIENCE_S,
    Hanging,
    Upstream,
    UpstreamProcess,
    remote_variant,
    request,
)

BODY = request().SerializeToString()
X = {"x": np.ones((1, 4), np.float32)}


@pytest.fixture
def upstream():
    with Upstream() as running:
        yield running


@pytest.fixture
def build():
    made = []

    def make(address: str, **settings: object):
        made.append(remote.build(remote_variant(address, **settings)))
        return made[-1]

    yield make
    for runtime in made:
        runtime.close()


# --- at start -------------------------------------------------------------------------------------


def test_a_server_that_is_not_there(build):
    address = f"127.0.0.1:{free_port()}"
    start = time.monotonic()
    with pytest.raises(SidecarError) as caught:
        build(address, connect_timeout_s=0.6)
    assert 0.3 < time.monotonic() - start < 20  # not the default, which is a minute
    text = str(caught.value)
    for part in (address, "'there' did not become ready within 0.6 s", "ServerLive", "UNAVAILABLE"):
        assert part in text


def test_a_server_that_comes_later_is_waited_for(build):
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        building = pool.submit(build, f"127.0.0.1:{port}", connect_timeout_s=PATIENCE_S)
        with UpstreamProcess(port):  # takes a second to start
            assert building.result(PATIENCE_S).ready()


def test_a_model_that_is_ready_later_is_waited_for(upstream, build):
    upstream.ready = False
    with pytest.raises(SidecarError, match="ModelReady answered ready: false"):
        build(upstream.address, connect_timeout_s=0.3)
    with ThreadPoolExecutor(1) as pool:
        building = pool.submit(build, upstream.address, connect_timeout_s=PATIENCE_S)
        upstream.ready = True
        assert building.result(PATIENCE_S).ready()


def test_an_unknown_model_is_named(upstream, build):
    with pytest.raises(SidecarError, match=r"'nobody' did not become .*NOT_FOUND.*unknown model"):
        build(upstream.address, model_name="nobody", connect_timeout_s=0.3)


def test_a_server_of_something_else_is_not_waited_for(upstream, build):
    upstream.missing.add("ServerLive")
    with pytest.raises(SidecarError, match=r"ServerLive failed: UNIMPLEMENTED"):
        build(upstream.address, connect_timeout_s=3600)


def test_metadata_that_cannot_be_decoded(upstream, build):
    upstream.extra["ModelMetadata"] = b"\xff\xff"
    with pytest.raises(ArtifactError, match="its answer to ModelMetadata is not the protocol's"):
        build(upstream.address)
    declared = [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert build(upstream.address, inputs=declared, outputs=declared).signature.inputs


# --- dead, and back -------------------------------------------------------------------------------


def test_a_dead_server_fails_fast_and_is_found_again(build):
    with UpstreamProcess() as process:
        runtime = build(process.address)
        runtime.forward(BODY, timeout_s=5)
        process.kill()
        for _ in range(10):
            start = time.monotonic()
            with pytest.raises(UpstreamError) as caught:
                runtime.forward(BODY, timeout_s=20)
            assert time.monotonic() - start < 15  # the deadline is not waited for
            assert caught.value.code == "UNAVAILABLE"
            assert str(caught.value) == "the upstream server cannot be reached"
        assert not runtime.ready()
        with pytest.raises(UpstreamError):
            runtime.infer(X)
    with UpstreamProcess(process.port):
        start = time.monotonic()
        while not runtime.ready():
            assert time.monotonic() - start < PATIENCE_S, "it did not reconnect"
        # Each connection finds it by itself; a request takes one that has.
        for _ in range(20):
            runtime.forward(BODY, timeout_s=5)


@pytest.mark.parametrize("cancellable", [False, True])
def test_a_server_that_dies_in_the_middle_of_a_call(build, cancellable):
    with UpstreamProcess() as process:
        runtime = build(process.address)
        hook = (lambda cancel: None) if cancellable else None
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(
                runtime.forward, request(id="hang").SerializeToString(), timeout_s=20, on_call=hook
            )
            runtime.forward(BODY, timeout_s=5)  # by then the first one is there, or on its way
            process.kill()
            with pytest.raises(UpstreamError) as caught:
                call.result(PATIENCE_S)
    assert caught.value.code == "UNAVAILABLE"
    assert "127.0.0.1" not in str(caught.value)


def test_a_stream_ends_with_its_server(build):
    with UpstreamProcess() as process:
        runtime = build(process.address)
        more = threading.Event()

        def bodies():
            yield BODY
            more.wait(PATIENCE_S)

        elements = runtime.forward_stream(bodies(), timeout_s=None)
        assert next(elements)
        process.kill()
        with pytest.raises(UpstreamError) as caught:
            next(elements)
        more.set()
    assert caught.value.code == "UNAVAILABLE"


# --- slow, and cancelled --------------------------------------------------------------------------


def test_a_silent_server_meets_the_deadline_and_hears_of_it(upstream, build):
    hanging = upstream.infer = Hanging(upstream)
    runtime = build(upstream.address)
    with pytest.raises(DeadlineError, match=r"did not answer within 0\.2"):
        runtime.forward(BODY, timeout_s=0.2)
    assert hanging.cancelled.wait(PATIENCE_S)


def test_the_configured_limit_holds_where_there_is_no_deadline(upstream, build):
    upstream.infer = Hanging(upstream)
    runtime = build(upstream.address, timeout_s=0.2)
    with pytest.raises(DeadlineError, match=r"within 0\.2 s"):
        runtime.forward(BODY, timeout_s=None)
    upstream.infer = Hanging(upstream)
    with pytest.raises(DeadlineError, match=r"within 0\.2 s"):
        runtime.infer(X)


def test_a_deadline_that_is_over_sends_nothing(upstream, build):
    runtime = build(upstream.address)
    for timeout_s in (0.0, -1.0):
        with pytest.raises(DeadlineError, match="before the request could be sent"):
            runtime.forward(BODY, timeout_s=timeout_s)
        with pytest.raises(DeadlineError, match="before the stream could be opened"):
            runtime.forward_stream(iter([BODY]), timeout_s=timeout_s)
    assert upstream.calls == []


def test_the_hook_cancels_the_call_there(upstream, build):
    hanging = upstream.infer = Hanging(upstream)
    runtime = build(upstream.address)
    hooks: queue.Queue[Callable[[], None]] = queue.Queue()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(runtime.forward, BODY, timeout_s=20, on_call=hooks.put)
        assert hanging.entered.wait(PATIENCE_S)
        cancel = hooks.get(timeout=PATIENCE_S)
        cancel()
        with pytest.raises(CancelledError, match="cancelled"):
            call.result(PATIENCE_S)
    assert hanging.cancelled.wait(PATIENCE_S)
    cancel()  # without effect


def test_a_client_that_is_gone_already(upstream, build):
    upstream.infer = Hanging(upstream)  # or its answer might be quicker
    runtime = build(upstream.address)
    with pytest.raises(CancelledError):
        runtime.forward(BODY, timeout_s=20, on_call=lambda cancel: cancel())


def test_closing_ends_the_calls_under_way(upstream, build):
    hanging = upstream.infer = Hanging(upstream)
    runtime = build(upstream.address)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(runtime.forward, BODY, timeout_s=20)
        assert hanging.entered.wait(PATIENCE_S)
        runtime.close()
        with pytest.raises((CancelledError, UpstreamError)):
            call.result(PATIENCE_S)


# --- errors there ---------------------------------------------------------------------------------

KEPT = [
    "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "UNAUTHENTICATED",
    "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNKNOWN",
]  # fmt: skip


def failing(code: str, details: str) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    def infer(_body: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode[code], details)

    return infer


@pytest.mark.parametrize("code", KEPT)
@pytest.mark.parametrize("cancellable", [False, True])
def test_an_error_keeps_its_code_and_words(upstream, build, code, cancellable):
    upstream.infer = failing(code, "[request id: 7] the model queue is full")
    hook = (lambda cancel: None) if cancellable else None
    with pytest.raises(UpstreamError) as caught:
        build(upstream.address).forward(BODY, timeout_s=5, on_call=hook)
    assert caught.value.code == code
    assert str(caught.value) == "[request id: 7] the model queue is full"


@pytest.mark.parametrize(
    ("code", "kind"), [("DEADLINE_EXCEEDED", DeadlineError), ("CANCELLED", CancelledError)]
)
def test_its_own_deadline_or_cancellation(upstream, build, code, kind):
    upstream.infer = failing(code, "over there")
    with pytest.raises(kind):
        build(upstream.address).forward(BODY, timeout_s=5)


def test_an_endless_message_is_cut(upstream, build):
    upstream.infer = failing("INTERNAL", "x" * 5000)
    with pytest.raises(UpstreamError) as caught:
        build(upstream.address).forward(BODY, timeout_s=5)
    assert len(str(caught.value)) == 2000


def test_an_error_without_words_still_says_something(upstream, build):
    upstream.infer = failing("ABORTED", "")
    with pytest.raises(UpstreamError, match="answered ABORTED"):
        build(upstream.address).forward(BODY, timeout_s=5)


def test_a_message_over_the_limit_names_the_setting(upstream, build):
    runtime = build(upstream.address, max_message_bytes=4096)
    big = request(1024, raw=b"\0" * 16 * 1024).SerializeToString()
    with pytest.raises(
        UpstreamError, match=r"larger than max .*runtime\.max_message_bytes"
    ) as sent:
        runtime.forward(big, timeout_s=5)
    assert sent.value.code == "RESOURCE_EXHAUSTED"
    upstream.infer = lambda _body, _context: big
    with pytest.raises(UpstreamError, match=r"larger than max .*runtime\.max_message_bytes"):
        runtime.forward(BODY, timeout_s=5)


def test_an_error_ends_a_stream(upstream, build):
    def stream(bodies, context):
        yield from upstream.identity_stream(bodies, context)
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")

    upstream.stream = stream
    elements = build(upstream.address).forward_stream(iter([BODY]), timeout_s=5)
    assert next(elements)
    with pytest.raises(UpstreamError, match="enough") as caught:
        next(elements)
    assert caught.value.code == "RESOURCE_EXHAUSTED"


# --- malformed answers ----------------------------------------------------------------------------


def answer(*outputs: tuple[str, str, list[int]], raw: list[bytes] | None = None, **typed: list):
    message = pb.ModelInferResponse(model_name="there", raw_output_contents=raw or [])
    for name, datatype, shape in outputs:
        output = message.outputs.add(name=name, datatype=datatype, shape=shape)
        for field, values in typed.items():
            getattr(output.contents, field).extend(values)
    return message.SerializeToString()


Y = ("y", "FP32", [1, 4])
RAW = bytes(16)
MALFORMED = {
    "garbage": (b"\xff\xfe garbage", "not a ModelInferResponse"),
    "large garbage": (b"\x0a\xff\xff\xff\x7f" * 20_000, "not a ModelInferResponse"),
    "no outputs": (answer(), "0 outputs 'y'; its outputs: none"),
    "other outputs": (answer(("z", "FP32", [1]), raw=[RAW[:4]]), "its outputs: 'z'"),
    "an output twice": (answer(Y, Y, raw=[RAW, RAW]), "2 outputs 'y'"),
    "too few raw tensors": (answer(Y, ("z", "FP32", [1]), raw=[RAW]), "1 raw tensors, too few"),
    "too many raw tensors": (answer(Y, raw=[RAW, RAW]), "2 raw tensors for 1 outputs"),
    "no data": (answer(Y), "has 0 elements in fp32_contents, not 4"),
    "another datatype": (answer(("y", "INT8", [1]), raw=[b"1"]), "is INT8, not FP32"),
    "no datatype": (answer(("y", "", [1]), raw=[RAW]), "of no datatype, not FP32"),
    "a negative dimension": (answer(("y", "FP32", [-1, 4]), raw=[RAW]), "the shape [-1, 4]"),
    "an enormous shape": (answer(("y", "FP32", [2**40, 2**20]), raw=[RAW]), "it has 16"),
    "too few bytes": (answer(Y, raw=[RAW[:15]]), "takes 16 bytes, it has 15"),
    "too few elements": (answer(Y, fp32_contents=[1, 2, 3]), "has 3 elements"),
    "the wrong contents": (answer(Y, int_contents=[1, 2, 3, 4]), "0 elements in fp32_contents"),
}


@pytest.mark.parametrize(("body", "what"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_answer_is_the_servers_fault(upstream, build, body, what):
    upstream.infer = lambda _body, _context: body
    runtime = build(upstream.address)
    with pytest.raises(UpstreamError) as caught:
        runtime.infer(X)
    assert caught.value.code == "INTERNAL"
    assert what in str(caught.value)
    upstream.infer = upstream.identity
    assert runtime.infer(X)[0].tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("datatype", "malformed", "what"),
    [
        ("BYTES", answer(("y", "BYTES", [1, 4]), raw=[b"\xff\xff\xff\xff" * 4]), "not 4 elements"),
        ("INT8", answer(("y", "INT8", [1, 1]), int_contents=[300]), "a value outside INT8"),
        ("FP16", answer(("y", "FP16", [1, 1]), fp32_contents=[1.0]), "FP16, which has no typed"),
    ],
    ids=["lying lengths", "out of range", "typed FP16"],
)
def test_a_malformed_answer_of_another_datatype(upstream, build, datatype, malformed, what):
    upstream.model.outputs = (TensorSpec("y", datatype, (-1, 4)),)
    upstream.infer = lambda _body, _context: malformed
    with pytest.raises(UpstreamError) as caught:
        build(upstream.address).infer(X)
    assert what in str(caught.value)


def test_garbage_is_forwarded_as_it_is(upstream, build):
    """``forward`` parses no answer: what the server said is for whoever reads it."""
    upstream.infer = lambda _body, _context: b"\xff\xfe garbage"
    assert build(upstream.address).forward(BODY, timeout_s=5).body == b"\xff\xfe garbage"
    with pytest.raises(InvalidRequestError):
        build(upstream.address).forward(b"\xff\xfe garbage", timeout_s=5)
