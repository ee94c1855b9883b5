"""TLS and mutual TLS on every listener, and beside them plaintext health for who speaks none."""

from __future__ import annotations

import ssl

import grpc
import httpx
import pytest

from tests.clients import certificates
from tests.e2e.support import (
    LOCAL,
    Client,
    fails,
    floats,
    launch,
    onnx_times,
    running,
    variant,
    write,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("tls")
    onnx_times(made, 2, "m.onnx")
    return made


@pytest.fixture(scope="module")
def files(folder):
    return certificates.write(folder)


def start(folder, files, *, mutual: bool):
    tls = {"certificate": str(files.server), "key": str(files.server_key)}
    if mutual:
        tls["client_ca"] = str(files.ca)
    tree = [{"name": "m", "variants": [variant("onnx", folder / "m.onnx")]}]
    return running(
        write(
            folder, tree, name=f"{'mutual' if mutual else 'tls'}.yaml", health=LOCAL,
            grpc={"tls": tls}, http={"tls": tls}, admin={"address": LOCAL},
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def one_sided(folder, files):
    with start(folder, files, mutual=False) as server:
        yield server
        server.signal()
        assert server.wait() == 0
        assert "Traceback" not in server.text


@pytest.fixture(scope="module")
def mutual(folder, files):
    with start(folder, files, mutual=True) as server:
        yield server
        server.signal()
        assert server.wait() == 0
        assert "Traceback" not in server.text


def credentials(files, *, client: bool = False):
    roots = files.ca.read_bytes()
    if not client:
        return grpc.ssl_channel_credentials(roots)
    return grpc.ssl_channel_credentials(
        roots, files.client_key.read_bytes(), files.client.read_bytes()
    )


def context(files, *, client: bool = False) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(files.ca))
    if client:
        made.load_cert_chain(files.client, files.client_key)
    return made


def test_who_trusts_the_authority_is_served(one_sided, files):
    with Client(one_sided.addresses["grpc"], credentials(files)) as client:
        assert floats(client.infer("m", 2)) == [4.0]
    with Client(one_sided.addresses["admin"], credentials(files)) as client:
        client.call("RepositoryModelLoad", {"model_name": "m"})
    url = f"https://{one_sided.addresses['http']}/v2/health/ready"
    assert httpx.get(url, verify=context(files), timeout=60).status_code == 200


def refused(address: str, channel_credentials=None) -> None:
    options = {"timeout": 5, "wait_for_ready": False}
    with (
        Client(address, channel_credentials) as client,
        fails(grpc.StatusCode.UNAVAILABLE),
    ):
        client.infer("m", 1, **options)


def test_plaintext_and_strangers_are_refused(one_sided):
    for name in ("grpc", "admin"):
        refused(one_sided.addresses[name])
        refused(one_sided.addresses[name], grpc.ssl_channel_credentials())
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://{one_sided.addresses['http']}/v2/health/ready", timeout=60)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"https://{one_sided.addresses['http']}/v2/health/ready", timeout=60)


def test_with_mutual_tls_a_client_needs_a_certificate(mutual, files):
    for name in ("grpc", "admin"):
        refused(mutual.addresses[name], credentials(files))
        with Client(mutual.addresses[name], credentials(files, client=True)) as client:
            assert floats(client.infer("m", 2)) == [4.0]
    url = f"https://{mutual.addresses['http']}/v2/health/ready"
    with pytest.raises(httpx.HTTPError):
        httpx.get(url, verify=context(files), timeout=60)
    assert httpx.get(url, verify=context(files, client=True), timeout=60).status_code == 200


@pytest.mark.parametrize("kind", ["one_sided", "mutual"])
def test_health_answers_in_plaintext_beside_it(kind, request):
    server = request.getfixturevalue(kind)
    with Client(server.addresses["health"]) as client:
        assert client.health() == "SERVING"
        with fails(grpc.StatusCode.UNIMPLEMENTED):  # health, and nothing else
            client.infer("m", 1)


@pytest.mark.parametrize("listener", ["grpc", "http"])
def test_files_that_are_no_certificates_are_one_clear_message(folder, files, listener):
    junk = folder / "junk.pem"
    junk.write_text("-----BEGIN NOTHING-----\n")
    tls = {"certificate": str(junk), "key": str(files.server_key)}
    tree = [{"name": "m", "variants": [variant("onnx", folder / "m.onnx")]}]
    server = launch(write(folder, tree, name="junk.yaml", **{listener: {"tls": tls}}))
    try:
        assert server.wait() == 2
        assert f"gateway.{listener}.tls.certificate" in server.text
        assert "Traceback" not in server.text
    finally:
        server.kill()
