"""The standard ``OTEL_*`` variables, from a mapping that the caller hands over.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/ and
…/protocol/exporter/. Durations are milliseconds, as the specification says (Python's own SDK reads
``OTEL_EXPORTER_OTLP_TIMEOUT`` as seconds: a value that looks like seconds is noted).
What cannot be understood is noted and left out, never an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from exporters.telemetry.context import Sampler
from exporters.telemetry.settings import (
    LEAST_S,
    Bounds,
    Exporter,
    Found,
    Override,
    Signal,
    check_endpoint,
    host_and_port,
)

_OTLP = "OTEL_EXPORTER_OTLP_"
_T = TypeVar("_T")
#: A timeout under this is more likely a number of seconds than a wish.
_SUSPICIOUS_MS = 100
_SAMPLERS: Mapping[str, tuple[float | None, bool]] = {
    "always_on": (1.0, False),
    "always_off": (0.0, False),
    "traceidratio": (None, False),
    "parentbased_always_on": (1.0, True),
    "parentbased_always_off": (0.0, True),
    "parentbased_traceidratio": (None, True),
}


def from_environment(environ: Mapping[str, str]) -> Found:
    """What the variables say, as keyword arguments of ``Settings``."""
    reader = _Reader(environ)
    if reader.text("OTEL_SDK_DISABLED").lower() == "true":
        return Found({"exporter": Exporter.NONE, "overrides": {}}, disabled=True)
    values: dict[str, Any] = {}
    values.update(_shared(reader))
    overrides = {signal: own for signal in Signal if (own := _override(reader, signal))}
    if overrides:
        values["overrides"] = overrides
    if resource := _resource(reader):
        values["resource"] = resource
    if interval := reader.seconds("OTEL_METRIC_EXPORT_INTERVAL"):
        values["interval_s"] = max(interval, LEAST_S)
    for name, prefix in (("spans", "OTEL_BSP_"), ("logs", "OTEL_BLRP_")):
        if bounds := _bounds(reader, prefix):
            values[name] = bounds
    if address := _prometheus(reader):
        values["prometheus"] = address
    return Found(values, tuple(dict.fromkeys(reader.notes)))


def sampler_of(environ: Mapping[str, str]) -> tuple[Sampler | None, tuple[str, ...]]:
    """The sampler that ``OTEL_TRACES_SAMPLER`` names (``None``: nothing said), and notes."""
    reader = _Reader(environ)
    name = reader.text("OTEL_TRACES_SAMPLER").lower()
    if not name:
        return None, ()
    if name not in _SAMPLERS:
        reader.note("OTEL_TRACES_SAMPLER", name, f"known are {', '.join(_SAMPLERS)}")
        return None, tuple(reader.notes)
    ratio, parent = _SAMPLERS[name]
    if ratio is None:
        said = reader.convert("OTEL_TRACES_SAMPLER_ARG", _ratio)
        ratio = 1.0 if said is None else said
    return Sampler(ratio, parent), tuple(reader.notes)


class _Reader:
    """Reads variables; an empty one counts as not set, as the specification says."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.notes: list[str] = []

    def text(self, name: str) -> str:
        return self._environ.get(name, "").strip()

    def note(self, name: str, value: str, why: str) -> None:
        self.notes.append(f"{name}={value} is ignored: {why}")

    def convert(self, name: str, make: Callable[[str], _T]) -> _T | None:
        """The value through ``make``; ``None`` where there is none, or it raises ValueError."""
        if not (text := self.text(name)):
            return None
        try:
            return make(text)
        except ValueError as error:
            self.note(name, text, str(error))
            return None

    def seconds(self, name: str) -> float | None:
        return self.convert(name, _seconds)

    def timeout(self, name: str) -> float | None:
        value = self.seconds(name)
        if value is None:
            return None
        if value * 1000 < _SUSPICIOUS_MS:
            self.notes.append(f"{name}={self.text(name)} is taken as milliseconds")
        return max(value, LEAST_S)

    def endpoint(self, prefix: str) -> str:
        """With its scheme; empty where none is said, or what is said cannot be one."""

        def make(text: str) -> str:
            return check_endpoint(_with_scheme(self, prefix, text))

        return self.convert(f"{_OTLP}{prefix}ENDPOINT", make) or ""


def _shared(reader: _Reader) -> dict[str, Any]:
    values: dict[str, Any] = {}
    endpoint = reader.endpoint("")
    if endpoint:
        # An endpoint is named by who wants it used; without it nothing is exported unasked.
        values["exporter"] = _protocol(reader, "", endpoint)
        values["endpoint"] = endpoint
    if (headers := reader.convert(_OTLP + "HEADERS", parse_headers)) is not None:
        values["headers"] = headers
    if (timeout := reader.timeout(_OTLP + "TIMEOUT")) is not None:
        values["timeout_s"] = timeout
    if compression := reader.convert(_OTLP + "COMPRESSION", _compression):
        values["compression"] = compression
    for field, name in (
        ("certificate", "CERTIFICATE"),
        ("client_certificate", "CLIENT_CERTIFICATE"),
        ("client_key", "CLIENT_KEY"),
    ):
        if text := reader.text(_OTLP + name):
            values[field] = text
    return values


def _override(reader: _Reader, signal: Signal) -> Override | None:
    prefix = f"{signal.upper()}_"
    endpoint = reader.endpoint(prefix)
    own = Override(
        _exporter(reader, signal, endpoint),
        endpoint,
        reader.convert(f"{_OTLP}{prefix}HEADERS", parse_headers),
        reader.timeout(f"{_OTLP}{prefix}TIMEOUT"),
        reader.convert(f"{_OTLP}{prefix}COMPRESSION", _compression),
    )
    return None if own == Override() else own


def _exporter(reader: _Reader, signal: Signal, endpoint: str) -> Exporter | None:
    """What ``OTEL_TRACES_EXPORTER`` and its like name, or the signal's own endpoint implies."""
    name = f"OTEL_{signal.upper()}_EXPORTER"
    shared = reader.endpoint("")
    said = [one.strip() for one in reader.text(name).lower().split(",") if one.strip()]
    known = {"console": Exporter.CONSOLE, "none": Exporter.NONE}
    if signal is Signal.METRICS:
        known["prometheus"] = Exporter.PROMETHEUS
    for one in said:
        if one == "otlp":
            return _protocol(reader, f"{signal.upper()}_", endpoint or shared)
        if one in known:
            return known[one]
        reader.note(name, one, f"known are otlp, {', '.join(known)}")
    if endpoint or reader.text(f"{_OTLP}{signal.upper()}_PROTOCOL"):
        return _protocol(reader, f"{signal.upper()}_", endpoint or shared)
    return None


def _prometheus(reader: _Reader) -> str:
    host, port = (reader.text(f"OTEL_EXPORTER_PROMETHEUS_{part}") for part in ("HOST", "PORT"))
    if not host and not port:
        return ""
    address = f"{host or 'localhost'}:{port or 9464}"
    try:
        host_and_port(address)
    except ValueError as error:
        reader.note("OTEL_EXPORTER_PROMETHEUS_PORT", port, str(error))
        return ""
    return address


def implied(endpoint: str) -> Exporter:
    """gRPC for the port that is gRPC's, else HTTP (the specification's default)."""
    return Exporter.OTLP_GRPC if endpoint.rstrip("/").endswith(":4317") else Exporter.OTLP_HTTP


def _protocol(reader: _Reader, prefix: str, endpoint: str) -> Exporter:
    """gRPC or HTTP: what is said, else what the endpoint implies."""
    for name in (f"{_OTLP}{prefix}PROTOCOL", f"{_OTLP}PROTOCOL"):
        said = reader.text(name).lower()
        if said == "grpc":
            return Exporter.OTLP_GRPC
        if said == "http/protobuf":
            return Exporter.OTLP_HTTP
        if said:
            reader.note(name, said, "known are grpc, http/protobuf")
    return implied(endpoint)


def _with_scheme(reader: _Reader, prefix: str, endpoint: str) -> str:
    """gRPC endpoints come without a scheme as well; ``…_INSECURE`` says which one then."""
    if "://" in endpoint and urlsplit(endpoint).scheme:
        return endpoint
    said = reader.text(f"{_OTLP}{prefix}INSECURE") or reader.text(f"{_OTLP}INSECURE")
    return f"{'http' if said.lower() == 'true' else 'https'}://{endpoint}"


def _resource(reader: _Reader) -> dict[str, str]:
    said = reader.convert("OTEL_RESOURCE_ATTRIBUTES", _pairs) or {}
    if name := reader.text("OTEL_SERVICE_NAME"):
        said["service.name"] = name
    return said


def _bounds(reader: _Reader, prefix: str) -> Bounds | None:
    said: dict[str, Any] = {
        "items": reader.convert(prefix + "MAX_QUEUE_SIZE", _count),
        "slice": reader.convert(prefix + "MAX_EXPORT_BATCH_SIZE", _count),
        "delay_s": reader.seconds(prefix + "SCHEDULE_DELAY"),
    }
    said = {name: value for name, value in said.items() if value is not None}
    return Bounds(**said) if said else None


def parse_headers(text: str) -> dict[str, str]:
    """``key=value,key=value``, values percent-encoded; keys in lower case. ValueError otherwise."""
    return {key.lower(): value for key, value in _pairs(text).items()}


def _pairs(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for member in text.split(","):
        if not member.strip():
            continue
        key, equals, value = member.partition("=")
        if not equals or not key.strip():
            raise ValueError("not of the form key=value,key=value")
        pairs[unquote(key.strip())] = unquote(value.strip())
    return pairs


def _compression(text: str) -> str:
    if text.lower() not in {"none", "gzip"}:
        raise ValueError("known are none, gzip")
    return text.lower()


def _seconds(text: str) -> float:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ValueError("not a whole number of milliseconds over 0")
    return int(text) / 1000


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ValueError("not a whole number over 0")
    return int(text)


def _ratio(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise ValueError("not between 0 and 1")
    return value
