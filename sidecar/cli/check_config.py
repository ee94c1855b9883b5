"""``sidecar check-config``: every mistake, or what would be served."""

from __future__ import annotations

import dataclasses
import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidecar import route_table
from sidecar.cli.check_alerts import alert_lines, alert_notes
from sidecar.cli.check_drift import drift_notes
from sidecar.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from rich.tree import Tree

    from sidecar.config import GatewayConfig, ModelConfig, SidecarConfig

_LOOPBACK = ("127.", "localhost:", "[::1]:", "unix:")


def run(path: Path, *, as_json: bool) -> int:
    """Check a configuration; return the exit code.

    Raises:
        ConfigError: it is wrong, and text was asked for.
    """
    try:
        config = _checked(path)
    except ConfigError as error:
        if not as_json:
            raise
        problems = [dataclasses.asdict(problem) for problem in error.problems]
        print(json.dumps({"source": str(path), "valid": False, "problems": problems}, indent=2))
        return 2
    if as_json:
        report = {"source": str(path), "valid": True, "problems": [], "notes": notes(config)}
        report["config"] = config.model_dump(mode="json")  # pydantic masks secrets
        print(json.dumps(report, indent=2))
        return 0
    from rich.console import Console

    # Wider than any line: a path or an address is never broken, so that it can be copied.
    Console(highlight=False, width=10_000).print(_summary(path, config))
    return 0


def _checked(path: Path) -> SidecarConfig:
    """What ``load`` finds, and what else is known to end a start, without connecting to anything.

    Raises:
        ConfigError: with every problem found.
    """
    from sidecar import config_text
    from sidecar.config import load
    from sidecar.monitor.database_url import read_url

    config = load(path)
    if config.monitored and config.monitor.store is not None:
        try:
            read_url(config.monitor.store)
        except MissingExtraError:
            pass  # of this machine, not a mistake in the file: a note
        except ConfigError as error:
            line_of = config_text.read(path).line_of
            placed = [dataclasses.replace(one, line=line_of(one.path)) for one in error.problems]
            raise ConfigError(str(path), placed) from None
    return config


def notes(config: SidecarConfig) -> list[str]:
    """What is allowed but is often not meant."""
    gateway = config.gateway
    found = [note for model in config.models for note in _model_notes(model)]
    least_s = gateway.drain.delay_s + gateway.grpc.max_connection_age_s
    if gateway.drain.timeout_s < least_s:
        found.append(
            f"gateway.drain.timeout_s ({gateway.drain.timeout_s:g}) is shorter than delay_s + "
            f"max_connection_age_s ({least_s:g}): long-lived connections may see failed requests "
            "at shutdown"
        )
    admin = gateway.admin
    is_guarded = admin.token is not None or admin.token_file is not None
    exposed = [address for address in _listeners(gateway).values() if not _is_local(address)]
    if exposed and not is_guarded and admin.address is None:
        found.append(
            f"everybody who reaches {', '.join(exposed)} can load and unload models: set "
            "gateway.admin.token_file, or give these calls a listener of their own "
            "(gateway.admin.address)"
        )
    if is_guarded and gateway.grpc.tls is None and not _is_local(gateway.grpc.address):
        found.append("the admin token travels unencrypted: gateway.grpc.tls is not set")
    found += _monitor_notes(config)
    found += _store_notes(config)
    found += _telemetry_notes(config)
    found += drift_notes(config)
    found += alert_notes(config)
    if gateway.shared_memory.enabled and gateway.shared_memory.access == "map":
        found.append(
            "gateway.shared_memory.access is map: a client that truncates its region ends the "
            "process"
        )
    return found


def _monitor_notes(config: SidecarConfig) -> list[str]:
    watched = [
        f"{model.name}:{variant.key}"
        for model in config.models
        for variant in model.variants
        if {"mirror", "reference", "previous", "candidate"} & set(variant.roles)
    ]
    if watched and not config.monitored:
        return [f"nobody watches {', '.join(watched)}: monitor.enabled is false"]
    on_gpu = [
        f"{model.name}:{variant.key}"
        for model in config.models
        for variant in model.variants
        if model.is_watched and getattr(variant.runtime, "device", "cpu") != "cpu"
    ]
    if config.monitored and on_gpu and config.monitor.mirror.device is None:
        text = f"{', '.join(on_gpu)} will not be mirrored, being on a GPU: choose "
        return [text + "monitor.mirror.device (cpu, or a GPU with memory to spare)"]
    return []


def _store_notes(config: SidecarConfig) -> list[str]:
    from sidecar.monitor.database_url import read_url

    if not config.monitored or config.monitor.store is None:
        return []
    try:
        read_url(config.monitor.store)
    except MissingExtraError as error:
        return [str(error)]
    return []


def _telemetry_notes(config: SidecarConfig) -> list[str]:
    from sidecar.config import telemetry

    told = telemetry(config)
    found = [config.untold] if config.untold else []
    if config.monitored and told.tells and find_spec("opentelemetry") is None:
        found.append(
            "nothing can be told through OpenTelemetry as it is installed here: install "
            "model-sidecar[otel]"
        )
    return [*found, *told.notes]


def _model_notes(model: ModelConfig) -> list[str]:
    found = []
    size = model.batching.max_size
    for variant in model.variants:
        limit = getattr(variant.runtime, "max_batch_size", None)
        if size > 1 and limit is not None and limit < size and "serving" in variant.roles:
            what = f"at most {limit} rows" if limit else "no batches"
            found.append(
                f"{model.name}: batching.max_size is {size}, but {variant.key} takes {what}"
            )
    if any("fallback" in variant.roles for variant in model.variants) and (
        model.fallback.after_ms is None
    ):
        found.append(
            f"{model.name}: the fallback answers when serving fails, not when it is slow "
            "(fallback.after_ms is not set)"
        )
    return found


def _is_local(address: str) -> bool:
    return address.startswith(_LOOPBACK)


def _listeners(gateway: GatewayConfig) -> dict[str, str]:
    named = {
        "gRPC": gateway.grpc.address,
        "HTTP": gateway.http.address if gateway.http else None,
        "health (gRPC, plaintext)": gateway.health,
        "admin (gRPC)": gateway.admin.address,
    }
    return {name: address for name, address in named.items() if address is not None}


def _summary(path: Path, config: SidecarConfig) -> Tree:
    from rich.markup import escape
    from rich.tree import Tree

    root = Tree(f"[green]{escape(str(path))} is fine")
    models = root.add("[bold]models")
    for model in config.models:
        branch = models.add(f"{model.name}  [dim]{escape(_model_line(model))}")
        for variant in model.variants:
            runtime = variant.runtime
            place = runtime.address if runtime.kind == "remote" else f"{runtime.path}"
            device = "" if runtime.kind == "remote" else f" on {runtime.device}"
            roles = ", ".join(variant.roles)
            branch.add(
                f"{escape(variant.key)}  [cyan]{roles}[/]  {runtime.kind}{device}  {escape(place)}"
            )
    listeners = root.add("[bold]listeners")
    gateway = config.gateway
    secured = {"gRPC": gateway.grpc.tls, "HTTP": gateway.http.tls if gateway.http else None}
    for name, address in _listeners(gateway).items():
        tls = secured.get(name)
        mode = "" if name not in secured else "  plaintext" if tls is None else "  TLS"
        mode += ", client certificates" if tls is not None and tls.client_ca else ""
        listeners.add(f"{name}  {escape(address)}[dim]{mode}")
    noun = "process" if gateway.workers == 1 else "processes"
    root.add(f"[bold]workers[/]  {gateway.workers} {noun}")
    if config.monitored:
        _add_watching(root, config)
    remarks = notes(config)
    if remarks:
        branch = root.add("[bold yellow]notes")
        for note in remarks:
            branch.add(escape(note))
    return root


def _add_watching(root: Tree, config: SidecarConfig) -> None:
    """What the monitor does, and whom it tells."""
    from rich.markup import escape

    from sidecar.config import telemetry

    mirror = config.monitor.mirror
    line = f"{mirror.sample_rate:.0%} of requests, at most {mirror.cpu_share:.0%} of the cores"
    branch = root.add(f"[bold]monitor[/]  {escape(config.monitor.grpc)}  [dim]{line}")
    if config.monitor.http:
        branch.add(f"HTTP  {escape(config.monitor.http)}[dim]  plaintext")
    if lines := alert_lines(config):
        branch = root.add("[bold]alerts")
        for line in lines:
            branch.add(escape(line))
    if told := telemetry(config).lines():
        branch = root.add("[bold]telemetry")
        for line in told:
            branch.add(escape(line.removeprefix("telemetry: ")))
        if config.tracing["on"]:
            branch.add(escape(_sampled(config.tracing)))


def _sampled(tracing: dict[str, Any]) -> str:
    first = "as the caller's sampled flag says, else " if tracing["parent"] else ""
    return f"traces: {first}{tracing['ratio']:.3%} of them".replace(".000%", "%")


def _model_line(model: ModelConfig) -> str:
    shares = route_table.configured(model)
    facts = [f"default version {max(shares, key=shares.__getitem__)}"]
    if len(shares) > 1:
        facts.append(f"shares {route_table.words(shares)}")
    if model.route.sticky is not None:
        facts.append(f"sticky by {model.route.sticky}")
    if waiting := route_table.candidates(model):
        facts.append(f"candidate: {', '.join(waiting)}")
    if model.batching.max_size > 1:
        batching = model.batching
        facts.append(f"batches of up to {batching.max_size}, {batching.max_delay_ms:g} ms")
    if model.cache:
        facts.append("cached")
    return ", ".join(facts)
