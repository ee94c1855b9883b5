"""What telemetry can be told, and the standard ``OTEL_*`` variables that say the same.

The environment is not read here: the caller hands it over as a mapping. What a configuration says
wins over the environment, which fills in what it leaves unsaid::

    found = from_environment(environ)
    settings = Settings(**{**found.values, **said_in_the_configuration})
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

#: The shortest time-out of an attempt, and interval between exports.
LEAST_S = 0.01


class Exporter(StrEnum):
    """Where a signal goes."""

    OTLP_GRPC = "otlp-grpc"
    OTLP_HTTP = "otlp-http"
    PROMETHEUS = "prometheus"  #: metrics, to whoever scrapes; there are no spans and logs in it
    CONSOLE = "console"  #: one JSON object a line
    NONE = "none"


class Signal(StrEnum):
    """What is told."""

    TRACES = "traces"
    METRICS = "metrics"
    LOGS = "logs"


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much waits, and how it is sent. The defaults are those of OpenTelemetry's batch processor
    except for the slice, which is smaller: a burst of encoding is felt by who shares the cores.

    Attributes:
        items: most that wait; beyond, the oldest are dropped and counted.
        slice: most that are encoded and sent at once.
        delay_s: how long an incomplete slice waits to be filled.
        breath_s: a pause between slices while less than half of ``items`` wait.
    """

    items: int = 2048
    slice: int = 128
    delay_s: float = 1.0
    breath_s: float = 0.005

    def __post_init__(self) -> None:
        _at_least(1, items=self.items, slice=self.slice)
        _at_least(0.0, delay_s=self.delay_s, breath_s=self.breath_s)


@dataclass(frozen=True, slots=True)
class Override:
    """What one signal has otherwise; empty: as the others. An HTTP endpoint: the full URL."""

    exporter: Exporter | None = None
    endpoint: str = ""
    headers: Mapping[str, str] | None = None
    timeout_s: float | None = None
    compression: str | None = None


@dataclass(frozen=True, slots=True)
class Backend:
    """Where one signal goes, resolved.

    Attributes:
        endpoint: for gRPC ``scheme://host:port``, for HTTP the full URL.
    """

    exporter: Exporter
    endpoint: str
    headers: Mapping[str, str]
    timeout_s: float
    compression: str
    certificate: str
    client_certificate: str
    client_key: str
    retry_s: float


@dataclass(frozen=True, slots=True)
class Settings:
    """All of it.

    Attributes:
        exporter: where every signal goes that ``overrides`` does not send elsewhere.
        endpoint: ``http://host:4317`` (gRPC) or ``http://host:4318`` (HTTP: ``/v1/traces`` … is
            appended); ``https`` for TLS. Empty: the standard one on localhost.
        headers: sent with each export (credentials, tenants).
        timeout_s: of one attempt, from connecting to the last byte of the answer.
        retry_s: how long one slice is tried again before it is dropped.
        interval_s: between two exports of the metrics.
        compression: ``none`` or ``gzip``.
        certificate: file of the authorities to trust; empty: the system's.
        client_certificate, client_key: files, for servers that ask who calls.
        resource: attributes of all that is told (``service.name``, ``service.instance.id``, …).
        prometheus: ``host:port`` of the endpoint to scrape; port 0 takes any.
        spans, logs: bounds of the queues.
        points_max: most data points in one collection; what is beyond is dropped and counted.
        overrides: what one signal has otherwise.
    """

    exporter: Exporter = Exporter.NONE
    endpoint: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 10.0
    retry_s: float = 60.0
    interval_s: float = 60.0
    compression: str = "none"
    certificate: str = ""
    client_certificate: str = ""
    client_key: str = ""
    resource: Mapping[str, str] = field(default_factory=dict)
    prometheus: str = "127.0.0.1:9464"
    spans: Bounds = field(default_factory=Bounds)
    logs: Bounds = field(default_factory=Bounds)
    points_max: int = 20_000
    overrides: Mapping[Signal, Override] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _at_least(LEAST_S, timeout_s=self.timeout_s, interval_s=self.interval_s)
        _at_least(0.0, retry_s=self.retry_s)
        _at_least(1, points_max=self.points_max)
        host_and_port(self.prometheus)
        for signal in Signal:
            self.backend(signal)  # resolved once here, so that a mistake is found at the start

    def backend(self, signal: Signal) -> Backend:
        """Where ``signal`` goes. Raises ValueError for an endpoint that cannot be one."""
        own = self.overrides.get(signal, Override())
        exporter = Exporter(own.exporter or self.exporter)
        if exporter is Exporter.PROMETHEUS and signal is not Signal.METRICS:
            exporter = Exporter.NONE
        compression = self.compression if own.compression is None else own.compression
        if compression not in {"none", "gzip"}:
            raise ValueError(f"compression {compression!r} is not known: none, gzip")
        return Backend(
            exporter,
            _endpoint(exporter, signal, own.endpoint, self.endpoint),
            MappingProxyType(dict(self.headers if own.headers is None else own.headers)),
            self.timeout_s if own.timeout_s is None else own.timeout_s,
            compression, self.certificate, self.client_certificate, self.client_key, self.retry_s,
        )  # fmt: skip


def _endpoint(exporter: Exporter, signal: Signal, own: str, shared: str) -> str:
    """The full endpoint of a signal; empty where nothing is sent anywhere."""
    if exporter is Exporter.OTLP_GRPC:
        text = own or shared or "http://localhost:4317"
    elif exporter is Exporter.OTLP_HTTP:
        text = own or f"{(shared or 'http://localhost:4318').rstrip('/')}/v1/{signal}"
    else:
        return ""
    return check_endpoint(text)


def check_endpoint(text: str) -> str:
    """``text`` if it can be an endpoint; ValueError otherwise."""
    try:
        parts = urlsplit(text)
        known = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise ValueError(f"endpoint {text!r} is not of the form http://host:port or https://…")
    return text


def host_and_port(text: str) -> tuple[str, int]:
    """``127.0.0.1:9464`` or ``[::1]:9464`` in its two parts; ValueError for anything else."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is not of the form host:port")
    return host.strip("[]"), int(port)


def _at_least(least: float, **values: float) -> None:
    for name, value in values.items():
        if not value >= least:  # also NaN
            raise ValueError(f"{name} must be at least {least}, not {value}")


@dataclass(frozen=True, slots=True)
class Found:
    """What the environment said.

    Attributes:
        values: keyword arguments of ``Settings``, only what was said.
        notes: what could not be taken, each in a sentence. The specification wants a warning and
            no failure for a variable that cannot be understood.
        disabled: ``OTEL_SDK_DISABLED``: nothing is to be told, whatever else is said.
    """

    values: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    disabled: bool = False
