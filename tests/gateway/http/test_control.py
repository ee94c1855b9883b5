"""Health, metadata and the calls that change state, over HTTP."""

from __future__ import annotations

import contextlib

import httpx
import pytest

from tests.gateway.http.serving import BODY, INFER, error_of, serving
from tests.gateway.numpy_backend import NumpyBackend


def test_health_and_metadata(client: httpx.Client, backend: NumpyBackend) -> None:
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/identity/ready").status_code == 200
    assert client.get("/v2/models/nope/ready").status_code == 404
    metadata = client.get("/v2/models/identity").json()
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    config = client.get("/v2/models/identity/versions/1/config").json()
    assert config["max_batch_size"] == 8
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert "dynamic_batching" not in config  # its presence means that batching is on
    backend.ready = False
    assert client.get("/v2/health/ready").status_code == 503
    assert client.get("/v2/models/identity/ready").status_code == 503
    assert client.get("/v2/health/live").status_code == 200


def test_statistics_are_numbers(client: httpx.Client) -> None:
    client.post(INFER, json=BODY)
    for path in ("/v2/models/stats", "/v2/models/identity/stats"):
        [model] = client.get(path).json()["model_stats"]
        assert model["inference_count"] == 2**40
        assert model["inference_stats"]["success"] == {"count": 1, "ns": 0}
        assert model["inference_stats"]["cache_hit"] == {"count": 0, "ns": 0}
    assert client.get("/v2/models/nope/stats").status_code == 404


def test_repository(client: httpx.Client, backend: NumpyBackend) -> None:
    index = client.post("/v2/repository/index", json={"ready": True})
    assert index.json() == [{"name": "identity", "version": "1", "state": "READY"}]
    assert client.post("/v2/repository/index").status_code == 200
    load = {"parameters": {"config": "{}", "file:1/model.onnx": "AAEC"}}
    response = client.post("/v2/repository/models/identity/load", json=load)
    assert (response.status_code, response.content) == (200, b"")
    unload = {"parameters": {"unload_dependents": False}}
    client.post("/v2/repository/models/identity/unload", json=unload)
    names = [name for name, _ in backend.calls]
    assert names == ["RepositoryIndex"] * 2 + ["RepositoryModelLoad", "RepositoryModelUnload"]
    assert backend.calls[0][1].ready is True
    loaded = backend.calls[2][1]
    assert loaded.model_name == "identity"
    assert loaded.parameters["file:1/model.onnx"].bytes_param == b"\x00\x01\x02"
    assert loaded.parameters["config"].string_param == "{}"


def test_shared_memory(client: httpx.Client, backend: NumpyBackend) -> None:
    regions = client.get("/v2/systemsharedmemory/status").json()
    assert [region["name"] for region in regions] == ["a", "b"]
    assert regions[0]["byte_size"] == 2**33
    base = "/v2/systemsharedmemory"
    body = {"key": "/key", "byte_size": 64, "offset": 8}
    assert client.post(f"{base}/region/my%20r/register", json=body).content == b""
    assert backend.calls[-1][1].name == "my r"
    assert (backend.calls[-1][1].key, backend.calls[-1][1].offset) == ("/key", 8)
    client.post(f"{base}/region/r/unregister")
    client.post(f"{base}/unregister")
    assert [call[1].name for call in backend.calls[-2:]] == ["r", ""]
    client.get(f"{base}/region/r/status")
    assert backend.calls[-1][1].name == "r"
    cuda = {"raw_handle": {"b64": "AAEC"}, "device_id": 0, "byte_size": 4}
    response = client.post("/v2/cudasharedmemory/region/r/register", json=cuda)
    assert (response.status_code, backend.calls[-1][1].raw_handle) == (501, b"\x00\x01\x02")


def test_settings(client: httpx.Client, backend: NumpyBackend) -> None:
    assert client.get("/v2/trace/setting").json() == {"trace_level": ["OFF"], "trace_rate": "1000"}
    update = {"trace_level": ["TIMESTAMPS"], "trace_rate": "5", "log_frequency": None}
    client.post("/v2/models/identity/trace/setting", json=update)
    request = backend.calls[-1][1]
    assert request.model_name == "identity"
    assert {key: list(value.value) for key, value in request.settings.items()} == {
        "trace_level": ["TIMESTAMPS"], "trace_rate": ["5"], "log_frequency": [],
    }  # fmt: skip
    assert client.get("/v2/logging").json() == {
        "log_info": True, "log_verbose_level": 0, "log_file": "",
    }  # fmt: skip
    client.post("/v2/logging", json={"log_info": False, "log_verbose_level": 1, "log_file": None})
    settings = backend.calls[-1][1].settings
    assert settings["log_info"].bool_param is False
    assert settings["log_verbose_level"].uint32_param == 1
    assert "log_file" not in settings


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/repository/index", b'{"ready": 1}'),
        ("/v2/repository/index", b"[]"),
        ("/v2/repository/index", b"{"),
        ("/v2/repository/models/m/load", b'{"parameters": []}'),
        ("/v2/repository/models/m/load", b'{"parameters": {"a": null}}'),
        ("/v2/repository/models/m/load", b'{"parameters": {"file:a": "*"}}'),
        ("/v2/repository/models/m/load", b'{"parameters": {"a": 18446744073709551616}}'),
        ("/v2/repository/models/m/load", b'{"parameters": {"\\ud800": "a"}}'),
        ("/v2/systemsharedmemory/region/r/register", b""),
        ("/v2/systemsharedmemory/region/r/register", b'{"key": "k"}'),
        ("/v2/systemsharedmemory/region/r/register", b'{"key": 1, "byte_size": 1}'),
        ("/v2/systemsharedmemory/region/r/register", b'{"key": "k", "byte_size": -1}'),
        ("/v2/systemsharedmemory/region/r/register", b'{"key": "k", "byte_size": 1e9}'),
        ("/v2/systemsharedmemory/region/r/register", b'{"key": "\\udfff", "byte_size": 1}'),
        ("/v2/cudasharedmemory/region/r/register", b'{"raw_handle": "AA", "byte_size": 1}'),
        ("/v2/cudasharedmemory/region/r/register", b'{"raw_handle": {"b64": "\xc3\xa9"}}'),
        ("/v2/trace/setting", b'{"trace_rate": {}}'),
        ("/v2/trace/setting", b'{"trace_level": [null]}'),
        ("/v2/logging", b'{"log_verbose_level": -1}'),
        ("/v2/logging", b'{"log_info": []}'),
        ("/v2/logging", b"\xff"),
    ],
)
def test_wrong_control_calls(
    client: httpx.Client, backend: NumpyBackend, path: str, body: bytes
) -> None:
    response = client.post(path, content=body)
    assert response.status_code == 400
    assert error_of(response)
    assert not backend.calls


def test_the_admin_token() -> None:
    admin = {"token": "secret"}
    backend = NumpyBackend(token="secret")
    with contextlib.closing(backend), serving(backend, admin=admin) as (_, address):
        url = f"http://{address}/v2/repository/models/identity/load"
        missing = httpx.post(url)
        assert (missing.status_code, missing.headers["www-authenticate"]) == (401, "Bearer")
        assert httpx.post(url, headers={"Authorization": "Bearer wrong"}).status_code == 403
        assert httpx.post(url, headers={"Authorization": "Basic secret"}).status_code == 401
        assert httpx.post(url, headers={"Authorization": "bearer secret"}).status_code == 200
