"""Calls that change state can be held behind a token, or a listener of their own."""

from __future__ import annotations

import grpc
import httpx
import pytest

from sidecar.protocol.pb import inference_pb2 as pb
from tests.e2e.support import LOCAL, Client, fails, onnx_times, running, variant, write

TOKEN = "a token of the tests"
DENIED = grpc.StatusCode.PERMISSION_DENIED
UNKNOWN = grpc.StatusCode.UNAUTHENTICATED


def log_change() -> pb.LogSettingsRequest:
    change = pb.LogSettingsRequest()
    change.settings["log_verbose_level"].uint32_param = 0
    return change


def trace_change() -> pb.TraceSettingRequest:
    change = pb.TraceSettingRequest()
    change.settings["trace_rate"].value.append("10")
    return change


#: Every call that changes something, and the same over HTTP.
CHANGES = {
    "RepositoryModelLoad": (pb.RepositoryModelLoadRequest(model_name="m"),
                            "repository/models/m/load", {}),
    "RepositoryModelUnload": (pb.RepositoryModelUnloadRequest(model_name="m"),
                              "repository/models/m/unload", {}),
    "SystemSharedMemoryRegister": (
        pb.SystemSharedMemoryRegisterRequest(name="r", key="none", byte_size=4),
        "systemsharedmemory/region/r/register", {"key": "none", "byte_size": 4}),
    "SystemSharedMemoryUnregister": (pb.SystemSharedMemoryUnregisterRequest(),
                                     "systemsharedmemory/unregister", {}),
    "TraceSetting": (trace_change(), "trace/setting", {"trace_rate": "10"}),
    "LogSettings": (log_change(), "logging", {"log_verbose_level": 0}),
}  # fmt: skip
READS = ("RepositoryIndex", "SystemSharedMemoryStatus", "TraceSetting", "LogSettings")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("admin")
    onnx_times(made, 2, "m.onnx")
    return made


@pytest.fixture(scope="module")
def tree(folder):
    return [{"name": "m", "variants": [variant("onnx", folder / "m.onnx")]}]


@pytest.fixture(scope="module")
def with_token(folder, tree):
    (folder / "token").write_text(f"{TOKEN}\n")
    admin = {"token_file": str(folder / "token")}
    with running(write(folder, tree, name="token.yaml", admin=admin)) as server:
        yield server
        assert TOKEN not in server.text


@pytest.fixture(scope="module")
def with_listener(folder, tree):
    with running(write(folder, tree, name="own.yaml", admin={"address": LOCAL})) as server:
        yield server


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


@pytest.mark.parametrize("method", CHANGES)
def test_without_the_token_nothing_is_changed(with_token, method):
    message, path, body = CHANGES[method]
    url = f"http://{with_token.addresses['http']}/v2/{path}"
    with Client(with_token.addresses["grpc"]) as client:
        for code, metadata in (
            (UNKNOWN, ()),
            (UNKNOWN, (("authorization", TOKEN),)),
            (DENIED, bearer("wrong")),
            (DENIED, bearer("")),
        ):
            with fails(code) as failure:
                client.call(method, message, metadata=metadata)
            assert TOKEN not in failure[0].details()
        assert client.infer("m", 1)
    assert httpx.post(url, json=body, timeout=60).status_code == 401
    wrong = httpx.post(url, json=body, headers=dict(bearer("wrong")), timeout=60)
    assert wrong.status_code == 403


def test_with_the_token_it_is(with_token):
    with Client(with_token.addresses["grpc"]) as client:
        for method in ("RepositoryModelUnload", "RepositoryModelLoad", "TraceSetting"):
            client.call(method, CHANGES[method][0], metadata=bearer(TOKEN))
        with fails(grpc.StatusCode.NOT_FOUND):  # the token is right; the region is not there
            client.call(
                "SystemSharedMemoryRegister", CHANGES["SystemSharedMemoryRegister"][0],
                metadata=bearer(TOKEN),
            )  # fmt: skip
        assert client.infer("m", 1)
    url = f"http://{with_token.addresses['http']}/v2/logging"
    reply = httpx.post(url, json={"log_verbose_level": 0}, headers=dict(bearer(TOKEN)), timeout=60)
    assert reply.status_code == 200


@pytest.mark.parametrize("kind", ["with_token", "with_listener"])
def test_reading_is_open(kind, request):
    server = request.getfixturevalue(kind)
    with Client(server.addresses["grpc"]) as client:
        for method in READS:
            assert client.call(method) is not None
        assert client.health() == "SERVING"
    base = f"http://{server.addresses['http']}/v2"
    assert httpx.get(f"{base}/logging", timeout=60).status_code == 200
    assert httpx.post(f"{base}/repository/index", json={}, timeout=60).status_code == 200


@pytest.mark.parametrize("method", CHANGES)
def test_with_a_listener_of_its_own_the_others_refuse_changes(with_listener, method):
    message, path, body = CHANGES[method]
    with Client(with_listener.addresses["grpc"]) as client:
        with fails(DENIED) as failure:
            client.call(method, message)
        assert "admin listener" in failure[0].details()
        assert client.infer("m", 1)
    url = f"http://{with_listener.addresses['http']}/v2/{path}"
    assert httpx.post(url, json=body, timeout=60).status_code == 403


def test_the_admin_listener_takes_them(with_listener):
    with (
        Client(with_listener.addresses["admin"]) as admin,
        Client(with_listener.addresses["grpc"]) as client,
    ):
        admin.call("RepositoryModelUnload", {"model_name": "m"})
        with fails(grpc.StatusCode.NOT_FOUND):
            client.infer("m", 1)
        admin.call("RepositoryModelLoad", {"model_name": "m"})
        assert client.infer("m", 1)
        assert admin.call("LogSettings", log_change())
