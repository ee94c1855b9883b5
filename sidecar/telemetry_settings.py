"""What is told, and where to: the configuration and the ``OTEL_*`` variables put together.

Of each setting the first that is said counts: the configuration's for the signal, the
configuration's for all signals, the variable's for the signal, the variable's for all signals.
``OTEL_SDK_DISABLED=true`` alone wins over the configuration: it is how an operator turns telemetry
off. The environment is handed over by ``config.py``.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from exporters.telemetry.context import Sampler
from exporters.telemetry.environment import from_environment, implied, sampler_of
from exporters.telemetry.settings import Backend, Bounds, Exporter, Override, Settings, Signal

if TYPE_CHECKING:
    from pydantic import SecretStr

    from sidecar.config_telemetry import LogsConfig, MetricsConfig, TelemetryConfig, TracesConfig

SERVICE_NAME = "model-sidecar"
#: Variables that a pod is usually given by the downward API → attributes of the resource.
_POD = (
    ("k8s.pod.name", ("POD_NAME", "HOSTNAME")),
    ("k8s.pod.uid", ("POD_UID",)),
    ("k8s.namespace.name", ("POD_NAMESPACE",)),
    ("k8s.node.name", ("NODE_NAME",)),
)


@dataclass(frozen=True, slots=True)
class Resolved:
    """All of it.

    Attributes:
        notes: what of the environment could not be taken, each in a sentence.
    """

    settings: Settings
    sampler: Sampler
    notes: tuple[str, ...] = ()

    def exports(self, signal: Signal) -> bool:
        """Whether this signal goes anywhere."""
        return self.settings.backend(signal).exporter is not Exporter.NONE

    @property
    def tells(self) -> bool:
        """Whether any signal goes anywhere."""
        return any(map(self.exports, Signal))

    def lines(self, prometheus: str = "") -> list[str]:
        """Where everything goes, for people: ``telemetry: traces, logs: otlp-grpc → …``.

        Args:
            prometheus: the endpoint's real address, once it is known.
        """
        places: dict[str, list[str]] = {}
        lines = []
        for signal in Signal:
            backend = self.settings.backend(signal)
            if backend.exporter is Exporter.PROMETHEUS:
                lines.append(f"metrics: http://{prometheus or self.settings.prometheus}/metrics")
            elif backend.exporter is not Exporter.NONE:
                places.setdefault(_place(backend), []).append(str(signal))
        return [f"telemetry: {', '.join(of)}: {place}" for place, of in places.items()] + lines


def _place(backend: Backend) -> str:
    """Without the path that the signal adds, so that signals of one backend are seen as such."""
    if not backend.endpoint:
        return str(backend.exporter)
    root, _, last = backend.endpoint.rpartition("/v1/")
    return f"{backend.exporter} → {root if last in set(Signal) else backend.endpoint}"


def resolve(config: TelemetryConfig, environ: Mapping[str, str]) -> Resolved:
    """Put both together."""
    found = from_environment(environ)
    sampler, notes = sampler_of(environ)
    values: dict[str, Any] = {**found.values}
    theirs: Mapping[Signal, Override] = values.pop("overrides", {})
    values.update(_shared(config))
    if config.exporter is None and config.endpoint is not None:
        values["exporter"] = implied(config.endpoint)  # it is named by who wants it used
    values["overrides"] = {
        signal: _override(config, getattr(config, signal), theirs.get(signal, Override()))
        for signal in Signal
    }
    values["resource"] = {
        **_surroundings(environ), **values.get("resource", {}), **config.resource,
    }  # fmt: skip
    if "queue_spans" in config.model_fields_set or "spans" not in values:
        values["spans"] = replace(values.get("spans", Bounds()), items=config.queue_spans)
    if found.disabled:
        values.update(exporter=Exporter.NONE, overrides={})
        notes = ("OTEL_SDK_DISABLED=true: nothing is told, whatever `telemetry` says",)
    traces = config.traces
    base = sampler or Sampler()
    chosen = Sampler(
        base.ratio if traces.sample_ratio is None else traces.sample_ratio,
        base.parent if traces.trust_callers is None else traces.trust_callers,
    )
    return Resolved(Settings(**values), chosen, tuple(dict.fromkeys((*found.notes, *notes))))


def _shared(config: TelemetryConfig) -> dict[str, Any]:
    """What the configuration says of all signals."""
    exporter = None if config.exporter is None else Exporter(config.exporter)
    said = {
        "exporter": exporter,
        "endpoint": config.endpoint,
        "headers": _headers(config.headers),
        "timeout_s": config.timeout_s,
        "compression": config.compression,
        "certificate": _text(config.certificate),
        "client_certificate": _text(config.client_certificate),
        "client_key": _text(config.client_key),
        "prometheus": config.prometheus,
        "interval_s": config.metrics.interval_s,
    }
    return {name: value for name, value in said.items() if value is not None}


def _override(
    config: TelemetryConfig, own: TracesConfig | MetricsConfig | LogsConfig, theirs: Override
) -> Override:
    """Of one signal: what the variables say of it counts where the configuration says nothing,
    neither of it nor of all."""

    def choose(name: str, make: Callable[[Any], Any] = lambda value: value) -> Any:
        if (said := getattr(own, name)) is not None:
            return make(said)
        return None if getattr(config, name) is not None else getattr(theirs, name)

    exporter = choose("exporter", Exporter)
    if own.exporter is None and config.exporter is None:
        if own.endpoint is not None:
            exporter = implied(own.endpoint)
        elif config.endpoint is not None and theirs.endpoint:
            exporter = None  # it said how to reach a place that does not count
    return Override(
        exporter, choose("endpoint") or "", choose("headers", _headers), choose("timeout_s"),
        choose("compression"),
    )  # fmt: skip


def _headers(headers: Mapping[str, SecretStr] | None) -> dict[str, str] | None:
    """In lower case, as gRPC demands and HTTP does not mind."""
    if headers is None:
        return None
    return {name.lower(): value.get_secret_value() for name, value in headers.items()}


def _text(path: object) -> str | None:
    return None if path is None else str(path)


def _surroundings(environ: Mapping[str, str]) -> dict[str, str]:
    """Whose telemetry it is, as far as that costs nothing to know."""
    known = {"service.name": SERVICE_NAME, "host.name": socket.gethostname()}
    if "KUBERNETES_SERVICE_HOST" in environ:
        for attribute, names in _POD:
            if value := next((environ[name] for name in names if environ.get(name)), ""):
                known[attribute] = value
    return known
