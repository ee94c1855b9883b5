"""TLS and mutual TLS of the HTTP listener."""

from __future__ import annotations

import datetime as dt
import os
import ssl
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sidecar import errors
from tests.gateway.http.serving import BODY, INFER, connect, read_all, serving
from tests.gateway.numpy_backend import NumpyBackend


def issue(folder: Any, name: str, issuer: Any = None) -> Any:
    """Write NAME.pem and NAME.key, signed by ``issuer`` or by itself; return (certificate, key)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    )
    certificate = builder.sign(issuer[1] if issuer else key, hashes.SHA256())
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    (folder / f"{name}.pem").write_bytes(pem)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / f"{name}.key").write_bytes(private)
    return certificate, key


def test_tls_and_mutual_tls(backend: NumpyBackend, tmp_path: Any) -> None:
    ca = issue(tmp_path, "ca")
    for name in ("server", "client"):
        issue(tmp_path, name, ca)
    issue(tmp_path, "stranger")
    tls = {"certificate": str(tmp_path / "server.pem"), "key": str(tmp_path / "server.key")}
    trust = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))

    with serving(backend, http={"tls": tls}) as (_, address):
        url = f"https://localhost:{address.rpartition(':')[2]}"
        assert httpx.post(f"{url}{INFER}", json=BODY, verify=trust, timeout=60).status_code == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://{address}/v2", timeout=60)
        with connect(address) as sock:
            sock.sendall(os.urandom(200))
            assert b"HTTP" not in read_all(sock)
        assert httpx.get(f"{url}/v2", verify=trust, timeout=60).status_code == 200

    mutual = tls | {"client_ca": str(tmp_path / "ca.pem")}
    with serving(backend, http={"tls": mutual}) as (_, address):
        url = f"https://localhost:{address.rpartition(':')[2]}/v2"
        with pytest.raises(httpx.TransportError):
            httpx.get(url, verify=trust, timeout=60)
        for name, accepted in (("stranger", False), ("client", True)):
            context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
            context.load_cert_chain(tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
            if accepted:
                assert httpx.get(url, verify=context, timeout=60).status_code == 200
            else:
                with pytest.raises(httpx.TransportError):
                    httpx.get(url, verify=context, timeout=60)


def test_wrong_tls_files_are_a_mistake_in_the_config(backend: NumpyBackend, tmp_path: Any) -> None:
    ca = issue(tmp_path, "ca")
    issue(tmp_path, "server", ca)
    (tmp_path / "empty.pem").write_text("")
    for files, where in (
        ({"certificate": "empty.pem", "key": "server.key"}, "certificate"),
        ({"certificate": "server.pem", "key": "ca.key"}, "certificate"),
        ({"certificate": "server.pem", "key": "server.key", "client_ca": "empty.pem"}, "client_ca"),
    ):
        tls = {key: str(tmp_path / name) for key, name in files.items()}
        with (
            pytest.raises(errors.ConfigError, match=f"gateway.http.tls.{where}"),
            serving(backend, http={"tls": tls}),
        ):
            pass
