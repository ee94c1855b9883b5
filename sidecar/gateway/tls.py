"""TLS of the listeners, with certificates that are renewed while they serve.

Where certificates are managed (cert-manager, kubelet) new files take the place of old ones, weeks
before these run out. They are looked at when somebody connects: a connection keeps what it began
with, so nothing needs them sooner, and no thread or signal is needed. Files that do not fit each
other (half written, say) are not used: whoever connects gets the last ones that did, and it is
logged once.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from sidecar.errors import ConfigError, Problem

if TYPE_CHECKING:
    from pathlib import Path

    from sidecar.config import ServerTlsConfig

logger = logging.getLogger("sidecar.gateway.tls")

T = TypeVar("T")
#: Of each file when it was written, which one it is, and its size; empty where one is missing.
_Stamp = tuple[tuple[int, int, int], ...]


class Renewal:
    """Whether a listener's files have changed since they were last taken; any thread."""

    def __init__(self, config: ServerTlsConfig, path: str) -> None:
        files = (config.certificate, config.key, config.client_ca)
        self._files: list[Path] = [file for file in files if file is not None]
        self._path = path
        self._lock = threading.Lock()
        self._taken = self._refused = self._look()

    def _look(self) -> _Stamp:
        try:
            found = [file.stat() for file in self._files]
        except OSError:
            return ()
        return tuple((one.st_mtime_ns, one.st_ino, one.st_size) for one in found)

    def renewed(self, load: Callable[[], T]) -> T | None:
        """What ``load`` makes of changed files; ``None``: they are as before, or do not fit.

        Args:
            load: raises ``ConfigError`` where they cannot be used.
        """
        with self._lock:
            # Before they are read: what is written meanwhile shows the next time.
            stamp = self._look()
            if stamp in {self._taken, self._refused}:
                return None
            try:
                made = load()
            except ConfigError as error:
                logger.error("renewed certificates are not used, the old ones are: %s", error)
                self._refused = stamp
                return None
            self._taken = self._refused = stamp
            logger.info("%s.tls: the certificate was renewed", self._path)
            return made


def grpc_credentials(config: ServerTlsConfig, path: str) -> grpc.ServerCredentials:
    """Of a gRPC listener.

    Args:
        path: the listener's part of the configuration, for messages.

    Raises:
        ConfigError: the files cannot be used.
    """
    renewal = Renewal(config, path)

    def load() -> grpc.ServerCertificateConfiguration:
        return _configuration(config, path)

    def renewed() -> grpc.ServerCertificateConfiguration:
        # None, which gRPC takes for "as before", is not in its types.
        return renewal.renewed(load)  # type: ignore[return-value]

    return grpc.dynamic_ssl_server_credentials(
        load(), renewed, require_client_authentication=config.client_ca is not None
    )


def _configuration(config: ServerTlsConfig, path: str) -> grpc.ServerCertificateConfiguration:
    try:
        key = config.key.read_bytes()
        chain = config.certificate.read_bytes()
        roots = config.client_ca.read_bytes() if config.client_ca else None
    except OSError as error:
        problem = Problem(f"{path}.tls", f"cannot be read: {error.strerror}")
        raise ConfigError("gateway", [problem]) from None
    for name, data, mark in (("key", key, b"PRIVATE KEY"), ("certificate", chain, b"CERTIFICATE")):
        if mark not in data:
            problem = Problem(f"{path}.tls.{name}", f"is not a PEM file with a {mark.decode()}")
            raise ConfigError("gateway", [problem])
    # gRPC would say of a key that is another certificate's only that nobody can connect.
    _context(config, path)
    return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=roots)


def http_context(config: ServerTlsConfig, path: str) -> ssl.SSLContext:
    """Of an HTTP listener; as for gRPC."""
    renewal = Renewal(config, path)
    first = latest = _context(config, path)

    def choose(connection: ssl.SSLObject, _name: str | None, _context_of: Any) -> None:
        nonlocal latest
        latest = renewal.renewed(lambda: _context(config, path)) or latest
        if latest is not first:
            connection.context = latest

    # Called for each connection as it begins, whether it names a host or not.
    first.sni_callback = choose
    return first


def _context(config: ServerTlsConfig, path: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    where = f"{path}.tls.certificate"
    try:
        # With a passphrase, though a wrong one: without any, OpenSSL would ask on a terminal.
        context.load_cert_chain(config.certificate, config.key, password="")
        if config.client_ca is not None:
            where = f"{path}.tls.client_ca"
            context.load_verify_locations(config.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or str(error)
        raise ConfigError("gateway", [Problem(where, f"cannot be used: {reason}")]) from None
    return context


__all__ = ["Renewal", "grpc_credentials", "http_context"]
