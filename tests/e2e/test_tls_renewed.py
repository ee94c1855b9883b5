"""Certificates that are renewed while requests come: the new ones are used, and nothing is cut."""

from __future__ import annotations

import shutil
import socket
import ssl
from pathlib import Path

import grpc
import httpx
import pytest

from tests.clients import certificates
from tests.e2e.support import Client, fails, floats, onnx_times, running, variant, write
from tests.e2e.test_tls import context, credentials


@pytest.fixture(scope="module")
def issued(tmp_path_factory):
    """Two sets of files, each of an authority of its own."""
    return [certificates.write(tmp_path_factory.mktemp(name)) for name in ("first", "second")]


def put(source: Path, target: Path) -> None:
    """Put a file in another's place at once, as kubelet does."""
    beside = target.with_suffix(".new")
    shutil.copy(source, beside)
    beside.replace(target)


@pytest.fixture
def served(tmp_path, issued):
    """A gateway with the first certificate, and a function that puts others in place."""
    onnx_times(tmp_path, 2, "m.onnx")
    places = {name: tmp_path / f"{name}.pem" for name in ("server", "server_key", "ca")}

    def renew(which: certificates.Files, *names: str) -> None:
        for name in names or places:
            put(getattr(which, name), places[name])

    renew(issued[0])
    tls = {"certificate": "server.pem", "key": "server_key.pem"}
    tree = [{"name": "m", "variants": [variant("onnx", tmp_path / "m.onnx")]}]
    path = write(tmp_path, tree, grpc={"tls": tls}, http={"tls": {**tls, "client_ca": "ca.pem"}})
    with running(path) as server:
        yield server, renew


def asks_grpc(server, files) -> list[float]:
    with Client(server.addresses["grpc"], credentials(files)) as client:
        return floats(client.infer("m", 2, timeout=20))


def asks_http(server, files) -> int:
    url = f"https://{server.addresses['http']}/v2/health/ready"
    trusted = context(files, client=True)
    return httpx.get(url, verify=trusted, timeout=20).status_code


def strangers(server, files) -> None:
    """The certificate is not one of these files' authority."""
    with (
        Client(server.addresses["grpc"], credentials(files)) as client,
        fails(grpc.StatusCode.UNAVAILABLE),
    ):
        client.infer("m", 1, timeout=20, wait_for_ready=False)
    with pytest.raises(httpx.ConnectError):
        asks_http(server, files)


def test_new_connections_get_the_renewed_certificate_and_old_ones_go_on(served, issued):
    server, renew = served
    first, second = issued
    with Client(server.addresses["grpc"], credentials(first)) as early:
        assert floats(early.infer("m", 2)) == [4.0]
        assert asks_http(server, first) == 200
        strangers(server, second)
        renew(second)
        assert asks_grpc(server, second) == [4.0]
        # Who may come is renewed as well: the clients' certificates are the second authority's.
        assert asks_http(server, second) == 200
        strangers(server, first)
        assert floats(early.infer("m", 3)) == [6.0]
    assert "gateway.grpc.tls: the certificate was renewed" in server.text
    assert "gateway.http.tls: the certificate was renewed" in server.text


def test_half_a_renewal_is_not_used_and_the_other_half_completes_it(served, issued):
    server, renew = served
    first, second = issued
    renew(second, "server")
    for _ in range(2):
        assert asks_grpc(server, first) == [4.0]
        assert asks_http(server, first) == 200
    assert server.text.count("renewed certificates are not used") == 2, "once for each listener"
    renew(second)
    assert asks_grpc(server, second) == [4.0]
    assert asks_http(server, second) == 200


def test_who_names_no_host_gets_the_renewed_certificate_too(served, issued):
    """By an address, so that there is no server name in what the client says first."""
    server, renew = served
    renew(issued[1])
    host, _, port = server.addresses["http"].rpartition(":")
    trusted = context(issued[1], client=True)
    trusted.check_hostname = False
    with socket.create_connection((host, int(port)), 20) as raw, trusted.wrap_socket(raw) as tls:
        assert tls.server_hostname is None
        found = tls.getpeercert(binary_form=True)
    assert found == ssl.PEM_cert_to_DER_cert(issued[1].server.read_text(encoding="utf-8"))
