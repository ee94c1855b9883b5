"""Every command with its arguments and its help; each imports what it needs when it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sidecar import __version__
from sidecar.cli import (
    alerts_commands,
    check_config,
    demo,
    drain,
    drift_commands,
    gateway,
    infer,
    labels_commands,
    monitor,
    rollback_commands,
    route_commands,
    schema,
    serve,
    status,
    validate_commands,
    watch,
)

app = typer.Typer(
    name="sidecar",
    help="Serve a model's variants on the Open Inference Protocol, and watch over them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def run_app(arguments: Sequence[str]) -> int:
    """Parse ``arguments`` and run a command; return the exit code.

    Raises:
        SidecarError: what the command raised.
    """
    try:
        app(args=list(arguments), prog_name="sidecar")
    except SystemExit as end:  # how typer reports what became of it
        return end.code if isinstance(end.code, int) else 0
    return 0


def _end(code: int) -> None:
    raise typer.Exit(code)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"sidecar {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error comes from; may stand anywhere.")
    ] = False,
) -> None:
    """Handle the options before the command (``--debug`` is taken out in ``sidecar.cli.run``)."""
    del version, debug


@app.command("serve")
def _serve(config: Config) -> None:
    """Serve until SIGTERM or Ctrl-C, then drain."""
    _end(serve.run(config))


@app.command("gateway")
def _gateway(config: Config) -> None:
    """Serve without a monitor, for a container of its own.

    With gateway.workers: 1 it is one process.
    """
    _end(gateway.run(config))


@app.command("monitor")
def _monitor(config: Config) -> None:
    """Watch as one process, beside a gateway elsewhere.

    In a pod it is a container of its own; `serve` starts it by itself.
    """
    _end(monitor.run(config))


@app.command("drain")
def _drain(
    config: Config,
    timeout_s: Annotated[
        float | None,
        typer.Option(
            "--timeout", min=0.001, max=86400, metavar="SECONDS", help="The most it waits."
        ),
    ] = None,
) -> None:
    """Begin the drain of a gateway on this machine, and wait for its end.

    For a pod's preStop hook; needs gateway.hooks. Exits with 1 when it is not drained.
    """
    _end(drain.run(config, timeout_s))


MonitorAddress = Annotated[
    str, typer.Argument(metavar="[ADDRESS]", help="The monitor's: host:port, or unix:path.")
]
Timeout = Annotated[float, typer.Option("--timeout", min=0.001, max=86400, metavar="SECONDS")]


@app.command("status")
def _status(
    address: MonitorAddress = "127.0.0.1:9002",
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 on FAIL or INVALID, 3 if not certified.")
    ] = False,
    timeout_s: Timeout = 5,
    as_json: AsJson = False,
) -> None:
    """Show what a monitor knows: coverage, disagreement, certificates.

    Exits with 0 when it answers, unless --check is given.
    """
    _end(status.run(address, as_json=as_json, timeout_s=timeout_s, check=check))


@app.command("watch")
def _watch(
    address: MonitorAddress = "127.0.0.1:9002",
    timeout_s: Timeout = 5,
    as_json: AsJson = False,
) -> None:
    """Show a monitor's verdicts as they come, until Ctrl-C."""
    _end(watch.run(address, as_json=as_json, timeout_s=timeout_s))


@app.command("check-config")
def _check_config(config: Config, as_json: AsJson = False) -> None:
    """Show all mistakes, or what would be served.

    Exits with 2 when there are mistakes, else with 0.
    """
    _end(check_config.run(config, as_json=as_json))


@app.command("schema")
def _schema() -> None:
    """Print the configuration's JSON Schema."""
    _end(schema.run())


@app.command("infer")
def _infer(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="host:port, or a http URL.")],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's name.")],
    source: Annotated[
        str | None,
        typer.Option("--input", "-i", metavar="FILE", help="npz, npy or JSON; - for stdin."),
    ] = None,
    target: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write npz or json.")
    ] = None,
    version: Annotated[str, typer.Option(help="Default: as the server chooses.")] = "",
    http: Annotated[bool, typer.Option("--http", help="HTTP instead of gRPC.")] = False,
    wanted: Annotated[
        list[str] | None,
        typer.Option("--want", metavar="NAME", help="Only this output; may be repeated."),
    ] = None,
    request_id: Annotated[str, typer.Option("--id", help="The request's id.")] = "",
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.001, max=86400, metavar="SECONDS")
    ] = 30,
    as_json: AsJson = False,
) -> None:
    """Send one request and show the answer.

    Without an input, shows what the model takes and gives.

    JSON is either a request of the protocol ({"inputs": [...]}) or {"name": [[...]]}: datatypes
    then come from the server.
    """
    call = infer.Call(
        address, model, version=version, over_http=http, wanted=tuple(wanted or ()),
        request_id=request_id, timeout_s=timeout_s,
    )  # fmt: skip
    _end(infer.run(call, source, target, as_json=as_json))


@app.command("demo")
def _demo(
    stay: Annotated[bool, typer.Option("--stay", help="Go on serving at the end.")] = False,
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Models, config and log go here.")
    ] = Path("demo-output"),
    seconds: Annotated[
        float, typer.Option("--seconds", min=0, max=86400, help="How long to send, at least.")
    ] = 10,
    as_json: AsJson = False,
) -> None:
    """Train, serve and watch digit classifiers.

    Two versions in three formats on real data, a client that sends held-out digits, and a live
    table of rate, latency and accuracy.
    """
    _end(demo.run(output, stay=stay, seconds=seconds, as_json=as_json))


validate_commands.register(app)
drift_commands.register(app)
alerts_commands.register(app)
rollback_commands.register(app)
labels_commands.register(app)
route_commands.register(app)
