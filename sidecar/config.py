"""The configuration: one typed, frozen tree; the only module that reads the environment.

``load`` reads YAML and reports every mistake at once, each with its path. Its JSON Schema
(``sidecar schema``) is what an editor, or the Helm chart, checks against.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, model_validator

from sidecar import config_checks, config_messages, config_plain, config_text
from sidecar.config_alerts import AlertsConfig
from sidecar.config_models import ModelConfig, Role, VariantConfig
from sidecar.config_monitor import MonitorConfig
from sidecar.config_runtime import Address, AnyPath, ExistingPath, Settings
from sidecar.config_secret import GatewaySecret, Reader
from sidecar.config_telemetry import TelemetryConfig
from sidecar.errors import ConfigError, Problem

if TYPE_CHECKING:
    from sidecar.telemetry_settings import Resolved


class ServerTlsConfig(Settings):
    """TLS of a listener; with `client_ca`, clients must present a certificate it signed."""

    certificate: ExistingPath = Field(description="PEM, with the chain.")
    key: ExistingPath = Field(description="PEM, without a passphrase.")
    client_ca: ExistingPath | None = Field(None, description="PEM; then clients need one, too.")


class GrpcConfig(Settings):
    """The gRPC listener."""

    address: Address = Field(
        "127.0.0.1:9000", description="host:port, or unix:path; port 0: any free one."
    )
    tls: ServerTlsConfig | None = None
    max_message_bytes: int = Field(
        64 * 2**20, ge=4096, le=2**31 - 1, description="gRPC's own default of 4 MiB is too small."
    )
    max_connection_age_s: float = Field(
        30, ge=1, le=86400,
        description="Connections are renewed, so that clients rebalance and a drain ends.",
    )  # fmt: skip
    reflection: bool = Field(True, description="Let clients such as grpcurl ask for the protocol.")


class HttpConfig(Settings):
    """The HTTP listener (the protocol's REST form)."""

    address: Address = Field("127.0.0.1:8080", description="As for gRPC.")
    tls: ServerTlsConfig | None = None
    max_body_bytes: int = Field(
        64 * 2**20, ge=4096, le=2**31 - 1, description="The largest request; beyond it 413."
    )


class AdminConfig(Settings):
    """Calls that change state (load, unload, shared memory, settings).

    With neither, they are open on every listener, as in other servers of this protocol.
    """

    token: GatewaySecret | None = Field(
        None, description="Then they need the header `authorization: Bearer TOKEN`."
    )
    token_file: ExistingPath | None = Field(None, description="The same, kept in a file.")
    address: Address | None = Field(
        None, description="A gRPC listener of their own; then they are refused on the others."
    )

    @model_validator(mode="after")
    def _one_token(self) -> AdminConfig:
        if self.token is not None and self.token_file is not None:
            message = "give token or token_file, not both"
            raise ValueError(message)
        return self

    def read_token(self) -> str | None:
        """See ``config_plain.read_token``."""
        return config_plain.read_token(self)


class AdmissionConfig(Settings):
    """Bounds on what is in flight; beyond them RESOURCE_EXHAUSTED, at once."""

    max_requests: int = Field(512, ge=1, le=1_000_000, description="Requests at one time.")
    max_bytes: int = Field(512 * 2**20, ge=4096, description="Request bodies held at one time.")
    max_streams: int = Field(32, ge=1, le=10_000, description="Open streams (a thread each).")


class PoolConfig(Settings):
    """Threads. Few run at once (Python's lock makes more slower); more exist to wait."""

    running: int | None = Field(
        None, ge=1, le=1024,
        description="Requests worked on at once; default: the cores, at most 8, shared by workers.",
    )  # fmt: skip
    threads: int = Field(128, ge=1, le=4096, description="Threads altogether, waiting included.")


class DrainConfig(Settings):
    """Shutdown: not ready → still accepting → GOAWAY → requests in flight end → closed."""

    delay_s: float = Field(5, ge=0, le=3600, description="Accept on, after readiness is gone.")
    timeout_s: float = Field(
        45, ge=0, le=3600, description="The most it may take until connections are closed."
    )


class SharedMemoryConfig(Settings):
    """System shared memory that clients register."""

    enabled: bool = Field(True, description="Off: the calls are refused.")
    access: Literal["read", "map"] = Field(
        "read", description="map is faster, but a client that truncates its region kills the "
        "process: for trusted clients only.",
    )  # fmt: skip
    max_regions: int = Field(256, ge=1, le=100_000, description="Registered at one time.")


class CacheConfig(Settings):
    """The response cache, shared by the models that ask for it (`cache: true`)."""

    max_bytes: int = Field(64 * 2**20, ge=0, description="Of each worker; the oldest go first.")


class LogConfig(Settings):
    """Logs go to standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least that is written."
    )
    format: Literal["text", "json"] = Field("text", description="For people, or one object a line.")

    @property
    def color(self) -> bool:
        """Whether a terminal may be given colours (https://no-color.org)."""
        return not environment("NO_COLOR") and environment("TERM") not in {None, "", "dumb"}


class TraceConfig(Settings):
    """Timing records; the client's TraceSetting calls change level and rate, never the file."""

    file: AnyPath | None = Field(
        None, description="Write them here while the trace level is TIMESTAMPS."
    )
    buffer_records: int = Field(
        8192, ge=64, le=1_000_000, description="Kept until they are taken; then the oldest go."
    )


class GatewayConfig(Settings):
    """The process on the request's path."""

    workers: int = Field(1, ge=1, le=256, description="Processes on one port (SO_REUSEPORT).")
    grpc: GrpcConfig = GrpcConfig()
    http: HttpConfig | None = HttpConfig()
    health: Address | None = Field(
        None, description="A plaintext gRPC health listener (kubelet speaks no TLS)."
    )
    hooks: Address | None = Field(
        None, description="A plain HTTP listener for a pod's preStop hooks: `GET /drained` answers "
        "when the drain is over. It changes nothing.",
    )  # fmt: skip
    admin: AdminConfig = AdminConfig()
    admission: AdmissionConfig = AdmissionConfig()
    pool: PoolConfig = PoolConfig()
    drain: DrainConfig = DrainConfig()
    shared_memory: SharedMemoryConfig = SharedMemoryConfig()
    cache: CacheConfig = CacheConfig()
    trace: TraceConfig = TraceConfig()
    default_timeout_s: float | None = Field(
        None, gt=0, le=86400, description="For requests that come without a deadline; off: null."
    )


class SidecarConfig(Settings):
    """The whole tree."""

    models: tuple[ModelConfig, ...] = Field(min_length=1, description="What is served.")
    gateway: GatewayConfig = GatewayConfig()
    monitor: MonitorConfig = MonitorConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    alerts: AlertsConfig = AlertsConfig()
    log: LogConfig = LogConfig()

    @property
    def monitored(self) -> bool:
        """Whether a monitor stands beside the gateway: as configured, or as roles, drift, labels
        or shared traffic need it, or because something is to be told."""
        if self.monitor.enabled is not None:
            return self.monitor.enabled
        watched = any(
            m.is_watched or m.drift.wanted or m.is_split or m.labels is not None
            for m in self.models
        )
        return watched or self._tells()

    @property
    def tracing(self) -> dict[str, Any]:
        """What the gateway has to know of telemetry, as plain values.

        ``on``: spans go anywhere; ``ratio`` and ``parent`` are the sampler's; ``logs``: log records
        go anywhere.
        """
        if not self.monitored or not self._tells():
            return {"on": False, "ratio": 0.0, "parent": False, "logs": False}
        from exporters.telemetry.settings import Signal

        told = telemetry(self)
        return {
            "on": told.exports(Signal.TRACES),
            "ratio": told.sampler.ratio,
            "parent": told.sampler.parent,
            "logs": told.exports(Signal.LOGS),
        }

    @property
    def untold(self) -> str:
        """A sentence where telemetry is asked for and nobody is there to tell it; else empty."""
        if self.monitored or not self._tells():
            return ""
        return (
            "nothing is told through OpenTelemetry: the monitor tells it, and monitor.enabled is "
            "false"
        )

    def _tells(self) -> bool:
        # First without an import: most have neither.
        said = self.telemetry != TelemetryConfig() or any(n.startswith("OTEL_") for n in os.environ)
        return said and telemetry(self).tells


# --- loading ------------------------------------------------------------------------------------


def load(path: Path, *, check_files: bool = True, reader: Reader | None = None) -> SidecarConfig:
    """Read and check a configuration file.

    Args:
        path: a YAML file; paths in it are relative to its folder.
        check_files: also report files that do not exist.
        reader: who reads it alone: secrets that only the other one uses need not be there.

    Raises:
        ConfigError: with every problem found, from the top of the file to its end.
    """
    return load_with_tree(path, check_files=check_files, reader=reader)[0]


def load_with_tree(
    path: Path, *, check_files: bool = True, reader: Reader | None = None
) -> tuple[SidecarConfig, Any]:
    """As ``load``; also the plain values that were checked, for who hands them on.

    Both come of one reading: a second could find a file that was edited in between, and hand on
    what nobody has checked.
    """
    text = config_text.read(path)
    base_dir = path.absolute().parent
    config, problems = _check(text.tree, base_dir, check_files, reader)
    if not problems and not text.problems and config is not None:
        return config, text.tree
    placed = [replace(problem, line=text.line_of(problem.path)) for problem in problems]
    everything = sorted([*text.problems, *placed], key=lambda problem: problem.line or 0)
    raise ConfigError(str(path), everything)


def parse(
    tree: Any, *, source: str = "config", base_dir: Path | None = None, check_files: bool = False
) -> SidecarConfig:
    """Check a tree of plain values (see ``load``)."""
    config, problems = _check(tree, base_dir, check_files)
    if problems or config is None:
        raise ConfigError(source, problems)
    return config


def _check(
    tree: Any, base_dir: Path | None, check_files: bool, reader: Reader | None = None
) -> tuple[SidecarConfig | None, list[Problem]]:
    if not isinstance(tree, dict):
        kind = _YAML_NAMES.get(type(tree), "no mapping")
        return None, [Problem("", f"is {kind}; it must be a mapping with the key `models`")]
    config: SidecarConfig | None = None
    problems: list[Problem] = []
    try:
        context = {
            "base_dir": base_dir, "check_files": check_files, "environ": os.environ,
            "reader": reader,
        }  # fmt: skip
        config = SidecarConfig.model_validate(tree, context=context)
    except ValidationError as error:
        problems = config_messages.problems(error, SidecarConfig)
    environment_problems = config_messages.environment_problems(tree, SidecarConfig)
    # "${PORT} is not an address" would only say the same thing less well.
    said = {problem.path for problem in environment_problems}
    problems = [problem for problem in problems if problem.path not in said]
    defaults = {"grpc.address": GrpcConfig().address, "http.address": HttpConfig().address}
    relations = config_checks.relations(tree, roles=Role, addresses=defaults)
    return config, problems + environment_problems + relations


_YAML_NAMES: dict[type, str] = {
    type(None): "empty", list: "a list", str: "text", int: "a number", float: "a number",
}  # fmt: skip


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the configuration."""
    schema = SidecarConfig.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def environment(name: str) -> str | None:
    """An environment variable, for the few that are not settings (``NO_COLOR`` and the like)."""
    return os.environ.get(name)


def telemetry(config: SidecarConfig) -> Resolved:
    """What is told, and where to: as configured, and as the ``OTEL_*`` variables say otherwise."""
    from sidecar.telemetry_settings import resolve

    return resolve(config.telemetry, os.environ)


__all__ = [
    "AdminConfig", "GatewayConfig", "ModelConfig", "Role", "SidecarConfig", "ValidationInfo",
    "VariantConfig", "environment", "json_schema", "load", "load_with_tree", "parse",
    "telemetry",
]  # fmt: skip
