"""``sidecar serve`` in front of another server: what reaches it, and what comes back."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from sidecar.protocol.pb import inference_pb2 as pb
from tests.e2e import remotes
from tests.e2e.remotes import HERE, THERE, Counting, fell_back, raw_call
from tests.e2e.support import Client, Server, fails, floats, request, running, until, write
from tests.support.upstream import PATIENCE_S, Hanging, Upstream

TOKEN = "the sidecar's own secret"
ADMIN = (("authorization", f"Bearer {TOKEN}"),)
DEFAULT_TIMEOUT_S = 8.0
#: In milliseconds; what hangs behind it hangs until it is cancelled.
AFTER_MS = 1000
#: gRPC sends time limits in steps, rounded up on each hop: the longer, the larger they are.
STEPS = 1.04


@pytest.fixture(scope="module")
def other() -> Iterator[Upstream]:
    with remotes.upstream() as running_there:
        yield running_there


@pytest.fixture(scope="module")
def server(other: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("remote")
    (folder / "token").write_text(TOKEN)
    tree = [
        remotes.in_front(other.address),
        {"name": THERE, "variants": [remotes.remote(other.address, version="1")]},
        remotes.in_front(other.address, "cached", cache=True),
        remotes.guarded(other.address, folder, fallback={"after_ms": AFTER_MS}),
    ]
    config = write(
        folder, tree, admin={"token_file": str(folder / "token")},
        default_timeout_s=DEFAULT_TIMEOUT_S,
    )  # fmt: skip
    with running(config) as started:
        yield started
        started.signal()
        assert started.wait() == 0
        assert "Traceback" not in started.text


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.addresses["grpc"]) as made:
        yield made


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{server.addresses['http']}", timeout=60) as made:
        yield made


@pytest.fixture(autouse=True)
def _as_it_was(other: Upstream) -> Iterator[None]:
    other.calls.clear()
    yield
    other.infer = other.identity


def aborting(code: grpc.StatusCode, text: str) -> Any:
    def infer(_body: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(code, text)

    return infer


def over_http(http: httpx.Client, model: str, value: Any, **fields: Any) -> httpx.Response:
    headers = fields.pop("headers", None)
    data = np.asarray(value, np.float32).reshape(-1, 1)
    tensor = {"name": "x", "datatype": "FP32", "shape": data.shape, "data": data.ravel().tolist()}
    body = {"inputs": [tensor], **fields}
    return http.post(f"/v2/models/{model}/infer", json=body, headers=headers)


# --- bytes ----------------------------------------------------------------------------------------


def test_where_the_names_agree_the_body_is_not_touched(client, other):
    # A field of a later protocol too: nobody here knows it, and it must not be lost.
    body = request(THERE, 1.5, request_id="a").SerializeToString() + b"\xa2\x06\x03new"
    answer, _ = raw_call(client, body)
    assert other.calls[-1].body == body
    response = pb.ModelInferResponse.FromString(answer)
    assert (response.model_name, response.model_version, response.id) == (THERE, "1", "a")
    assert floats(response) == [1.5]


def test_names_are_changed_and_changed_back(client, other):
    body = request(HERE, 2.5, version="2", request_id="b").SerializeToString()
    answer, _ = raw_call(client, body)
    seen = other.calls[-1].body
    assert seen.startswith(body)  # changed by appending: nothing before was read or moved
    there = pb.ModelInferRequest.FromString(seen)
    assert (there.model_name, there.model_version, there.id) == (THERE, "", "b")
    response = pb.ModelInferResponse.FromString(answer)
    # The version too: it is what this client has asked for, and what ModelMetadata lists.
    assert (response.model_name, response.model_version, response.id) == (HERE, "2", "b")
    metadata = client.call("ModelMetadata", {"name": HERE})
    assert (metadata.name, list(metadata.versions)) == (HERE, ["2"])
    assert client.call("ModelReady", {"name": HERE, "version": "2"}).ready


def test_an_unknown_version_does_not_go_out(client, other):
    with fails(grpc.StatusCode.NOT_FOUND):
        client.call("ModelInfer", request(HERE, 1, version="7"))
    assert other.calls == []


def test_sixteen_mebibytes_go_both_ways(client, http, other):
    array = remotes.large(16)
    response = client.infer(HERE, array)
    assert response.raw_output_contents[0] == array.tobytes()
    tensor = {"name": "x", "datatype": "FP32", "shape": array.shape,
              "parameters": {"binary_data_size": array.nbytes}}  # fmt: skip
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    reply = http.post(
        f"/v2/models/{HERE}/infer",
        content=head + array.tobytes(),
        headers={"inference-header-content-length": str(len(head))},
    )
    assert reply.status_code == 200
    assert reply.content.endswith(array.tobytes())
    assert [len(call.body) > array.nbytes for call in other.calls] == [True, True]


# --- metadata -------------------------------------------------------------------------------------


def test_metadata_goes_on(client, other):
    sent = (
        ("x-request-id", "r-7"), ("x-custom", "c"), ("x-bytes-bin", b"\0\xff"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("authorization", "Bearer somebody else's"),
    )  # fmt: skip
    _, trailing = raw_call(client, request(HERE, 1).SerializeToString(), metadata=sent)
    assert dict(sent).items() <= other.calls[-1].metadata.items()
    assert trailing["x-request-id"] == "r-7"


def test_a_request_without_an_identity_is_given_one(client, other):
    _, trailing = raw_call(client, request(HERE, 1).SerializeToString())
    assert trailing["x-request-id"]
    assert other.calls[-1].metadata["x-request-id"] == trailing["x-request-id"]
    _, trailing = raw_call(
        client, request(HERE, 1).SerializeToString(), metadata=[("x-request-id", "no " * 99)]
    )
    assert other.calls[-1].metadata["x-request-id"] == trailing["x-request-id"] != "no " * 99


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_sidecars_own_token_is_not_passed_on(client, other, scheme):
    sent = [("authorization", f"{scheme} {TOKEN}"), ("x-custom", "c")]
    raw_call(client, request(HERE, 1).SerializeToString(), metadata=sent)
    seen = other.calls[-1].metadata
    assert seen["x-custom"] == "c"
    assert not any(TOKEN in str(value) for value in seen.values())


def test_metadata_of_the_answer_comes_back(client, other):
    def infer(body: bytes, context: grpc.ServicerContext) -> bytes:
        context.send_initial_metadata((("x-first", "1"),))
        context.set_trailing_metadata((("x-last", "2"), ("x-request-id", "another")))
        return other.identity(body, context)

    other.infer = infer
    _, trailing = raw_call(
        client, request(HERE, 1).SerializeToString(), metadata=[("x-request-id", "mine")]
    )
    assert trailing == {"x-request-id": "mine", "x-first": "1", "x-last": "2"}


def test_identity_and_trace_go_on_from_http_too(http, other):
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    reply = over_http(http, HERE, 1, headers={"x-request-id": "h-1", "traceparent": trace})
    assert reply.headers["x-request-id"] == "h-1"
    seen = other.calls[-1].metadata
    assert (seen["x-request-id"], seen["traceparent"]) == ("h-1", trace)


# --- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timeout", "parameter_us", "least", "most"),
    [
        (15, 0, 1, 15),
        (None, 0, 1, DEFAULT_TIMEOUT_S),
        (60, 0, DEFAULT_TIMEOUT_S, 60),  # the default is for requests without a deadline
        (60, 14_000_000, 1, 14),
        (None, 50_000_000, DEFAULT_TIMEOUT_S, 50),
    ],
    ids=["the call's", "the default", "the call's, later than the default", "the request's",
         "the request's, later than the default"],
)  # fmt: skip
def test_the_deadline_is_carried_through(client, other, timeout, parameter_us, least, most):
    parameters = {"timeout": parameter_us} if parameter_us else {}
    body = request(HERE, 1, parameters=parameters).SerializeToString()
    raw_call(client, body, timeout=timeout)
    assert least < other.calls[-1].remaining_s <= most * STEPS


def test_the_deadline_is_carried_through_from_http(http, other):
    assert over_http(http, HERE, 1).status_code == 200
    assert 0 < other.calls[-1].remaining_s <= DEFAULT_TIMEOUT_S * STEPS
    assert over_http(http, HERE, 1, parameters={"timeout": 9_000_000}).status_code == 200
    assert 0 < other.calls[-1].remaining_s <= 9 * STEPS


def test_what_is_late_is_ended_there_too(client, http, other):
    for_call = other.infer = Hanging(other)
    late = request(HERE, 1, parameters={"timeout": 1_000_000})
    with fails(grpc.StatusCode.DEADLINE_EXCEEDED) as caught:
        client.call("ModelInfer", late)
    assert "upstream server did not answer" in caught[0].details()
    assert for_call.cancelled.wait(PATIENCE_S)
    for_http = other.infer = Hanging(other)
    reply = over_http(http, HERE, 1, parameters={"timeout": 1_000_000})
    assert reply.status_code == 504
    assert for_http.cancelled.wait(PATIENCE_S)


def test_a_client_that_cancels_ends_the_call_there(client, other):
    counting = Counting(client, HERE)
    hanging = other.infer = Hanging(other)
    call = client.stub("ModelInfer").future(request(HERE, 1), timeout=60)
    assert hanging.entered.wait(PATIENCE_S)
    call.cancel()
    assert hanging.cancelled.wait(PATIENCE_S)
    other.infer = other.identity
    assert floats(client.infer(HERE, 1)) == [1]
    assert counting.since() == {"success": 1, "inferences": 1, "executions": 1}  # nor was it a fail


def test_waiting_for_the_other_server_holds_up_nobody(client, http, other):
    hanging = other.infer = Hanging(other)
    calls = [client.stub("ModelInfer").future(request(HERE, 1), timeout=60) for _ in range(24)]
    assert hanging.entered.wait(PATIENCE_S)
    # Looks at the other server have a second each, which a busy machine may take: not the first.
    until(lambda: client.health() == "SERVING", "it is ready")
    until(lambda: http.get("/v2/health/ready").status_code == 200, "HTTP says so too")
    assert not any(call.done() for call in calls)
    other.infer = other.identity
    assert floats(client.infer(THERE, 3)) == [3]
    hanging.let_go.set()
    assert [floats(call.result()) for call in calls] == [[1.0]] * 24


# --- errors ---------------------------------------------------------------------------------------

CODES = {
    "INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "RESOURCE_EXHAUSTED": 429, "UNAVAILABLE": 503,
    "UNIMPLEMENTED": 501, "INTERNAL": 500, "FAILED_PRECONDITION": 400, "PERMISSION_DENIED": 403,
    "UNAUTHENTICATED": 401, "OUT_OF_RANGE": 400, "ABORTED": 409, "ALREADY_EXISTS": 409,
    "DATA_LOSS": 500, "UNKNOWN": 500,
}  # fmt: skip


@pytest.mark.parametrize("code", CODES)
def test_errors_keep_their_code_and_text(client, http, other, code):
    counting = Counting(client, HERE)
    text = f"[request id: 7] a {code} with umlauts: äöü"
    other.infer = aborting(grpc.StatusCode[code], text)
    with fails(grpc.StatusCode[code]) as caught:
        client.infer(HERE, 1)
    assert caught[0].details() == text
    assert {key for key, _ in caught[0].trailing_metadata()} >= {"x-request-id"}
    reply = over_http(http, HERE, 1)
    assert (reply.status_code, reply.json()) == (CODES[code], {"error": text})
    assert counting.since() == {"fail": 2}


@pytest.mark.parametrize(
    "garbage",
    [b"\xff\xff\xff\xff", b"\x0a\x05dig", b"\x0a\xff\xff\xff\x7f" + bytes(8192)],
    ids=["no protobuf", "cut short", "a length beyond the end"],
)
def test_an_answer_that_is_garbage_is_the_servers_fault(client, http, other, garbage):
    counting = Counting(client, HERE)
    other.infer = lambda _body, _context: garbage
    with fails(grpc.StatusCode.INTERNAL) as caught:
        client.infer(HERE, 1)
    assert "upstream server's answer is not a ModelInferResponse" in caught[0].details()
    reply = over_http(http, HERE, 1)
    assert reply.status_code == 500
    assert "upstream server's answer" in reply.json()["error"]
    assert counting.since() == {"fail": 2}


def test_a_server_that_cancels_has_failed(client, other):
    """A server that stops answers so what comes late: nobody here has cancelled anything."""
    counting = Counting(client, HERE)
    other.infer = aborting(grpc.StatusCode.CANCELLED, "stopping")
    with fails(grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE):
        client.infer(HERE, 1)
    assert counting.since() == {"fail": 1}
    assert fell_back(client.infer("guarded", 1))


def test_requests_are_counted_exactly(client, http, other):
    counting = Counting(client, HERE)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: client.infer(HERE, n), range(50)))
    for n in range(5):
        assert over_http(http, HERE, n).status_code == 200
    other.infer = aborting(grpc.StatusCode.INTERNAL, "no")
    for n in range(3):
        with fails(grpc.StatusCode.INTERNAL):
            client.infer(HERE, n)
    until(lambda: counting.since().get("success") == 55, "all are counted")
    assert counting.since() == {"success": 55, "inferences": 55, "executions": 55, "fail": 3}


# --- fallback -------------------------------------------------------------------------------------


def test_a_slow_server_is_not_waited_for(client, http, other):
    answer = client.infer("guarded", 3)
    assert not fell_back(answer)
    for ask in ("grpc", "http"):
        hanging = other.infer = Hanging(other)
        began = time.monotonic()
        if ask == "grpc":
            answer = client.infer("guarded", 3)
            assert (fell_back(answer), floats(answer), answer.model_name) == (True, [30], "guarded")
        else:
            reply = over_http(http, "guarded", 3).json()
            assert reply["parameters"] == {"sidecar_fallback": "1/onnx"}
            assert reply["outputs"][0]["data"] == [30]
        assert AFTER_MS / 1e3 <= time.monotonic() - began < DEFAULT_TIMEOUT_S
        assert hanging.cancelled.wait(PATIENCE_S)


@pytest.mark.parametrize(
    "code", ["UNAVAILABLE", "INTERNAL", "UNKNOWN", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"]
)
def test_the_fallback_answers_when_the_server_has_failed(client, other, code):
    fallback, serving = Counting(client, "guarded", "1"), Counting(client, "guarded")
    other.infer = aborting(grpc.StatusCode[code], "no")
    response = client.call("ModelInfer", request("guarded", 2, request_id="f"))
    assert (fell_back(response), floats(response), response.id) == (True, [20], "f")
    assert fallback.since() == {"success": 1, "inferences": 1, "executions": 1}
    assert serving.since() == {}


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"])
def test_a_request_that_is_wrong_is_not_the_fallbacks(client, http, other, code):
    other.infer = aborting(grpc.StatusCode[code], "wrong")
    with fails(grpc.StatusCode[code]) as caught:
        client.infer("guarded", 2)
    assert caught[0].details() == "wrong"
    assert over_http(http, "guarded", 2).status_code == CODES[code]


def test_garbage_and_named_versions_and_late_requests(client, other):
    other.infer = lambda _body, _context: b"\xff"
    assert fell_back(client.infer("guarded", 1))
    with fails(grpc.StatusCode.INTERNAL):  # who names a version gets that or none
        client.call("ModelInfer", request("guarded", 1, version="2"))
    hanging = other.infer = Hanging(other)
    with fails(grpc.StatusCode.DEADLINE_EXCEEDED):  # nobody awaits the fallback's answer
        client.call("ModelInfer", request("guarded", 1, parameters={"timeout": 800_000}))
    assert hanging.cancelled.wait(PATIENCE_S)


def test_a_broken_request_fails_once_and_clearly(client, other):
    """The server is down, and the fallback cannot even read the request."""
    counting = Counting(client, "guarded")
    other.infer = aborting(grpc.StatusCode.UNAVAILABLE, "no")
    broken = request("guarded", 1)
    broken.inputs[0].contents.fp32_contents.append(1)  # beside raw contents
    with fails(grpc.StatusCode.INVALID_ARGUMENT):
        client.call("ModelInfer", broken)
    assert counting.since() == {"fail": 1}


# --- what is done here, in front of it ------------------------------------------------------------


@pytest.fixture
def region(client) -> Iterator[tuple[str, Path]]:
    """A region of 64 bytes, registered here: the other server has never heard of it."""
    name = f"sidecar-e2e-{uuid.uuid4().hex[:12]}"
    path = Path("/dev/shm") / name
    path.write_bytes(bytes(64))
    try:
        fields = {"name": name, "key": f"/{name}", "byte_size": 64}
        client.call("SystemSharedMemoryRegister", fields, metadata=ADMIN)
        yield name, path
        client.call("SystemSharedMemoryUnregister", {"name": name}, metadata=ADMIN)
    finally:
        path.unlink()


def in_region(model: str, region: str, **fields: Any) -> pb.ModelInferRequest:
    """Two rows in the region's first bytes, the answer from byte 32 on."""
    message = pb.ModelInferRequest(model_name=model, **fields)
    tensor = message.inputs.add(name="x", datatype="FP32", shape=[2, 1])
    output = message.outputs.add(name="y")
    for one, offset in ((tensor, 0), (output, 32)):
        one.parameters["shared_memory_region"].string_param = region
        one.parameters["shared_memory_byte_size"].int64_param = 8
        one.parameters["shared_memory_offset"].int64_param = offset
    return message


def test_shared_memory_is_read_here_and_sent_raw(client, other, region):
    name, path = region
    values = np.array([[1.5], [-2]], np.float32)
    with path.open("r+b") as memory:
        memory.write(values.tobytes())
    sent = in_region(HERE, name, id="m")
    sent.parameters["sequence_id"].int64_param = 42
    response = client.call("ModelInfer", sent, timeout=15, metadata=[("x-request-id", "shm")])
    assert (response.id, response.model_name, response.model_version) == ("m", HERE, "2")
    assert response.outputs[0].parameters["shared_memory_region"].string_param == name
    assert path.read_bytes()[32:40] == values.tobytes()
    seen = pb.ModelInferRequest.FromString(other.calls[-1].body)
    assert list(seen.raw_input_contents) == [values.tobytes()]
    assert not seen.inputs[0].parameters
    assert (seen.id, seen.parameters["sequence_id"].int64_param) == ("m", 42)
    assert other.calls[-1].metadata["x-request-id"] == "shm"
    assert other.calls[-1].remaining_s <= 15 * STEPS
    other.infer = aborting(grpc.StatusCode.UNAVAILABLE, "no")
    assert fell_back(client.call("ModelInfer", in_region("guarded", name)))
    assert path.read_bytes()[32:40] == (values * 10).tobytes()


def test_a_region_that_is_not_registered_does_not_go_out(client, other):
    with fails(grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
        client.call("ModelInfer", in_region(HERE, "nobody's"))
    assert other.calls == []


def test_the_cache_answers_in_front_of_it(client, http, other):
    counting = Counting(client, "cached")
    for _ in range(3):
        response = client.infer("cached", 7.25)
        assert (floats(response), response.model_name) == ([7.25], "cached")
    assert over_http(http, "cached", 7.25).json()["outputs"][0]["data"] == [7.25]
    assert len(other.calls) == 1
    assert floats(client.infer("cached", 8)) == [8]
    assert len(other.calls) == 2
    grown = {"success": 5, "hits": 3, "misses": 2, "inferences": 2, "executions": 2}
    assert counting.since() == grown
    other.infer = aborting(grpc.StatusCode.UNAVAILABLE, "no")
    with fails(grpc.StatusCode.UNAVAILABLE):  # a failure is not kept ...
        client.infer("cached", 9)
    other.infer = other.identity
    assert floats(client.infer("cached", 9)) == [9]  # ... so that it heals


def test_http_in_json_and_with_binary_tensors(http, other):
    reply = over_http(http, HERE, [1, 2.5], id="j", parameters={"sequence_id": 5})
    assert reply.json() == {
        "model_name": HERE, "model_version": "2", "id": "j",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 1], "data": [1.0, 2.5]}],
    }  # fmt: skip
    seen = pb.ModelInferRequest.FromString(other.calls[-1].body)
    assert (seen.model_name, seen.id) == (THERE, "j")
    assert seen.parameters["sequence_id"].int64_param == 5
    raw = np.array([1.5, -3], np.float32).tobytes()
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 1],
              "parameters": {"binary_data_size": len(raw)}}  # fmt: skip
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    reply = http.post(
        f"/v2/models/{HERE}/versions/2/infer",
        content=head + raw,
        headers={"inference-header-content-length": str(len(head))},
    )
    cut = int(reply.headers["inference-header-content-length"])
    assert reply.content[cut:] == raw
    assert json.loads(reply.content[:cut])["model_version"] == "2"
    seen = pb.ModelInferRequest.FromString(other.calls[-1].body)
    assert list(seen.raw_input_contents) == [raw]
    assert "binary_data_output" not in seen.parameters  # of HTTP, which ends here
    assert over_http(http, HERE, 1, outputs=[{"name": "z"}]).status_code == 400


def test_a_remote_can_be_unloaded_and_loaded(client, other):
    client.call("RepositoryModelUnload", {"model_name": THERE}, metadata=ADMIN)
    with fails(grpc.StatusCode.NOT_FOUND):
        client.infer(THERE, 1)
    assert not client.call("ModelReady", {"name": THERE}).ready
    assert client.call("ServerReady").ready  # what was unloaded on request is no fault
    client.call("RepositoryModelLoad", {"model_name": THERE}, metadata=ADMIN)
    assert client.call("ModelReady", {"name": THERE}).ready
    assert floats(client.infer(THERE, 1)) == [1]
    assert {call.method for call in other.calls} == {"ModelInfer"}  # it was not unloaded there
