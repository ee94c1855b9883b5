"""Inference over HTTP: real sockets, a small real core behind them."""

from __future__ import annotations

import gzip
import json
import struct
import time
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.gateway.http.serving import BODY, INFER, MAX_BODY, both_parsers, error_of, serving, until
from tests.gateway.numpy_backend import NumpyBackend


@both_parsers
def test_json_inference(client: httpx.Client, backend: NumpyBackend) -> None:
    response = client.post(INFER, json=BODY | {"id": "my id"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {
        "model_name": "identity", "model_version": "1", "id": "my id",
        "outputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1.5, 2.5]}],
    }  # fmt: skip
    assert len(response.headers["x-request-id"]) == 32
    [request] = backend.requests
    assert request.request_id == response.headers["x-request-id"]
    assert request.received_ns <= request.started_ns <= time.monotonic_ns()
    assert request.deadline_ns is None


def test_binary_inference(client: httpx.Client) -> None:
    values = np.arange(4, dtype="<f4")
    tensor = {"name": "x", "datatype": "FP32", "shape": [4],
              "parameters": {"binary_data_size": 16}}  # fmt: skip
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    response = client.post(
        f"{INFER}", content=head + values.tobytes(),
        headers={"Inference-Header-Content-Length": str(len(head))},
    )  # fmt: skip
    assert response.status_code == 200
    split = int(response.headers["Inference-Header-Content-Length"])
    assert response.content[split:] == values.tobytes()
    [output] = json.loads(response.content[:split])["outputs"]
    assert output["parameters"] == {"binary_data_size": 16}
    assert response.headers["content-type"] == "application/octet-stream"


def test_raw_body(client: httpx.Client) -> None:
    response = client.post(
        INFER, content=struct.pack("<3f", 1, 2, 3), headers={"Inference-Header-Content-Length": "0"}
    )
    split = int(response.headers["Inference-Header-Content-Length"])
    assert response.content[split:] == struct.pack("<3f", 1, 2, 3)


def test_version_in_the_url(client: httpx.Client) -> None:
    assert client.post("/v2/models/identity/versions/1/infer", json=BODY).status_code == 200
    response = client.post("/v2/models/identity/versions/9/infer", json=BODY)
    assert (response.status_code, "'9'" in error_of(response)) == (404, True)


@both_parsers
def test_a_megabyte_in_pieces_and_back(client: httpx.Client) -> None:
    values = np.random.default_rng(0).random(200_000, np.float32)
    tensor = {"name": "x", "datatype": "FP32", "shape": [200_000],
              "parameters": {"binary_data_size": values.nbytes}}  # fmt: skip
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    body = head + values.tobytes()

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(body), 10_007):
            yield body[start : start + 10_007]

    headers = {"Inference-Header-Content-Length": str(len(head))}
    for content in (body, pieces()):  # the second is chunked
        response = client.post(INFER, content=content, headers=headers)
        assert response.content.endswith(values.tobytes())


def test_identity_and_trace_context_are_carried(
    client: httpx.Client, backend: NumpyBackend
) -> None:
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"x-request-id": "order-7/a", "traceparent": traceparent}
    response = client.post(INFER, json=BODY, headers=headers)
    assert response.headers["x-request-id"] == "order-7/a"
    assert (backend.requests[-1].request_id, backend.requests[-1].traceparent) == (
        "order-7/a", traceparent,
    )  # fmt: skip
    for bad in ("x" * 129, "a b", "\x01"):
        made = client.get("/v2", headers={"x-request-id": bad}).headers.get("x-request-id", "")
        assert made != bad
    response = client.post(INFER, json=BODY, headers={"traceparent": "rubbish"})
    assert backend.requests[-1].traceparent == ""


def test_timeout_parameter_is_a_deadline(client: httpx.Client, backend: NumpyBackend) -> None:
    client.post(INFER, json=BODY | {"parameters": {"timeout": 2_000_000}})
    request = backend.requests[-1]
    assert request.deadline_ns == request.received_ns + 2_000_000_000
    response = client.post(INFER, json=BODY | {"parameters": {"timeout": 1.5}})
    assert (response.status_code, "timeout" in error_of(response)) == (400, True)


def test_default_timeout(backend: NumpyBackend) -> None:
    with serving(backend, default_timeout_s=3) as (_, address):
        httpx.post(f"http://{address}{INFER}", json=BODY, timeout=60)
    request = backend.requests[-1]
    assert request.deadline_ns == request.received_ns + 3_000_000_000


# --- compressed bodies --------------------------------------------------------------------------


def deflate_bare(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", deflate_bare),
     ("identity", bytes), ("GZIP", gzip.compress)],
)  # fmt: skip
def test_compressed_bodies(client: httpx.Client, encoding: str, pack: Any) -> None:
    body = json.dumps(BODY).encode()
    response = client.post(INFER, content=pack(body), headers={"Content-Encoding": encoding})
    assert response.json()["outputs"][0]["data"] == [1.5, 2.5]


def test_a_bomb_costs_no_more_than_the_bound(client: httpx.Client, backend: NumpyBackend) -> None:
    bomb = gzip.compress(bytes(200 * MAX_BODY))
    assert len(bomb) < MAX_BODY
    response = client.post(INFER, content=bomb, headers={"Content-Encoding": "gzip"})
    assert (response.status_code, "larger" in error_of(response)) == (413, True)
    assert backend.bytes_peak < 3 * MAX_BODY
    until(lambda: backend.bytes_in_flight == 0)


@pytest.mark.parametrize(
    ("content", "encoding", "status", "part"),
    [
        (gzip.compress(b"{}" * 99)[:-3], "gzip", 400, "truncated"),
        (gzip.compress(b"{}") + b"more", "gzip", 400, "followed by 4"),
        (b"not gzip", "gzip", 400, "not valid gzip"),
        (b"", "gzip", 400, "truncated"),
        (b"\xff\xff", "deflate", 400, "not valid deflate"),
        (b"{}", "br", 415, "'br'"),
        (b"{}", "gzip, gzip", 415, "gzip, gzip"),
    ],
)
def test_broken_compression(
    client: httpx.Client, content: bytes, encoding: str, status: int, part: str
) -> None:
    response = client.post(INFER, content=content, headers={"Content-Encoding": encoding})
    assert (response.status_code, part in error_of(response)) == (status, True)
    if status == 415:
        assert response.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize("accept", ["gzip", "deflate", "gzip, deflate, br", "br", ""])
def test_answers_are_compressed_only_for_who_asks(client: httpx.Client, accept: str) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1000], "data": [0.0] * 1000}
    document = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    response = client.post(INFER, json=document, headers={"Accept-Encoding": accept})
    packed = accept in {"gzip", "deflate"}
    assert response.headers.get("content-encoding") == (accept if packed else None)
    assert (int(response.headers["content-length"]) < 1000) is packed
    split = int(response.headers["inference-header-content-length"])
    assert response.content[split:] == bytes(4000)  # httpx has unpacked it
    small = client.post(INFER, json=BODY, headers={"Accept-Encoding": accept})
    assert "content-encoding" not in small.headers
