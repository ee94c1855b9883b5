"""The demo from start to end: train, serve, send, show, and say how to go on."""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from sidecar.clock import SystemClock
from sidecar.demo import export, screen, traces
from sidecar.demo.client import CallFailedError, Client, GrpcClient, HttpClient
from sidecar.demo.diagnosis import diagnose
from sidecar.demo.drift import TURNED_DEG, DriftAct, Drifted, register
from sidecar.demo.figures import (
    Comparison,
    Totals,
    VariantFigures,
    compare_formats,
    figures,
    stage_means_us,
    totals,
)
from sidecar.demo.load import NOT_ANSWERED, Load, Tally, Target
from sidecar.demo.process import (
    LOG_FILE,
    STATE_FOLDER,
    TARGETS,
    ServeProcess,
    backend,
    free_addresses,
    write_config,
)
from sidecar.demo.report import REQUEST_FILE, Report, how_to_go_on, summary, write_request
from sidecar.demo.rollout import STATE_FOLDER as ROLLOUT_STATE
from sidecar.demo.rollout import RolledBack, RolloutAct
from sidecar.demo.screen import TRANSPORTS
from sidecar.demo.train import Split
from sidecar.demo.verdicts import MODEL, VerdictWatch
from sidecar.errors import SidecarError

#: Requests in flight over each transport. Two keep the server busy without a queue that would hide
#: what a stage costs.
IN_FLIGHT = 2
#: On top of `seconds`: how long the first pass over all digits, and the verdicts, may take on a
#: slow machine.
PASS_LIMIT_S = 200
_REFRESH_S = 0.25
_LINE_EVERY_S = 1.0
#: A run without a terminal is as wide as its table.
_PLAIN_COLUMNS = 100


def run_demo(output: Path, *, stay: bool, seconds: float, as_json: bool) -> int:
    """Run the demo.

    Args:
        output: a folder, made if need be, for artifacts, config and log; kept for the next run.
        stay: leave the server up after the summary, until Ctrl-C.
        seconds: how long to send, at least; one pass over all digits is always completed.
        as_json: the summary as JSON on standard output, everything else on standard error.

    Returns:
        The exit status: 0, 1 when a request failed or the server ended, 130 when interrupted
        before the summary.

    Raises:
        SidecarError: a package is missing, the folder is in use, or the server does not start.
    """
    console = Console(stderr=as_json, highlight=False, markup=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = max(console.width, _PLAIN_COLUMNS)
    try:
        with _stop_signals(), ExitStack() as stack:
            return _Story(console, output, stack).tell(stay=stay, seconds=seconds, as_json=as_json)
    except KeyboardInterrupt:
        console.print("\ninterrupted; everything is stopped")
        return 130


@contextmanager
def _stop_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP stop the demo as Ctrl-C does: in order, with its server."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread; a caller on another one keeps its handlers
        return
    numbers = (signal.SIGTERM, signal.SIGHUP)
    earlier = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, earlier, strict=True):
            signal.signal(number, handler)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder: two runs would overwrite each other's config and log."""
    with (folder / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"another demo is running in {folder}; stop it, or choose another --output"
            raise SidecarError(message) from None
        yield


class _Story:
    def __init__(self, console: Console, output: Path, stack: ExitStack) -> None:
        self._console = console
        self._output = output
        self._stack = stack
        self._clock = SystemClock()

    def tell(self, *, stay: bool, seconds: float, as_json: bool) -> int:
        """Go through it once; what was opened is closed by the stack."""
        say = self._console.print
        export.check_installed()
        self._make_folder()
        self._stack.enter_context(_locked(self._output))
        prepared = export.prepare(self._output, say)
        if not prepared.cached:
            say(f"models: done in {prepared.seconds:.1f} s, kept for the next run")
        addresses = dict(zip(("grpc", "http", "monitor"), free_addresses(3), strict=True))
        ours = {f"{name}_address": address for name, address in addresses.items()}
        config = write_config(self._output, **ours)
        registered = register(config, self._output)
        say(f"drift: {registered} held-out digits are registered as what traffic is like")
        # A run shows how long a verdict takes: not one that an earlier run has reached.
        shutil.rmtree(self._output / STATE_FOLDER, ignore_errors=True)
        say(f"server: sidecar serve {config}  (its log: {self._output / LOG_FILE})")
        server = self._stack.enter_context(ServeProcess(config, self._output / LOG_FILE))
        statistics = self._stack.enter_context(GrpcClient(addresses["grpc"]))
        verdicts = VerdictWatch(addresses["monitor"], self._clock)
        self._stack.callback(verdicts.close)
        ready_s = server.wait_ready(partial(_is_ready, addresses))
        say(
            f"server: ready after {ready_s:.1f} s  gRPC {addresses['grpc']}  "
            f"HTTP {addresses['http']}"
        )
        watching_s = server.wait_ready(verdicts.is_watching)
        say(f"monitor: ready {watching_s:.1f} s later  gRPC {addresses['monitor']}\n")
        watch = _Watch(self._console, statistics, prepared.hold_out)
        load = self._load(prepared.hold_out, addresses, seconds, verdicts)
        verdicts.start()
        rows, comparisons = watch.run(load, server)
        verdicts.close()
        drifted = self._turn_digits(prepared.hold_out, addresses, server)
        say("validate: which step of the broken conversion is it?")
        diagnosis = diagnose(config, self._output)
        rolled_back = self._roll_out(prepared.hold_out)
        report = Report(
            output=str(self._output),
            config=str(config),
            addresses=addresses,
            was_cached=prepared.cached,
            prepare_s=prepared.seconds,
            ready_s=ready_s,
            elapsed_s=load.elapsed_s(),
            hold_out_digits=len(prepared.hold_out.labels),
            requests={name: sum(row.requests[name] for row in rows) for name in TRANSPORTS},
            failures=sum(row.failures for row in rows),
            first_error=load.first_error,
            variants=rows,
            fp32_against_int8=comparisons,
            findings=verdicts.findings(),
            coverage=verdicts.coverage(),
            diagnosis=diagnosis,
            drifted=drifted,
            rolled_back=rolled_back,
            trace=None if backend() else traces.of_log(self._output / LOG_FILE, MODEL),
            telemetry_backend=backend(),
        )
        write_request(self._output / REQUEST_FILE, prepared.hold_out)
        for line in summary(report):
            say(line)
        for line in how_to_go_on(report, stay=stay):
            say(line, soft_wrap=True)  # commands are copied: no line breaks of our own
        if as_json:
            print(json.dumps(report.plain(), indent=2), flush=True)
        if stay:
            self._stay(server)
        return 0 if report.is_good else 1

    def _make_folder(self) -> None:
        try:
            self._output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"--output {self._output} cannot be made: {error.strerror}"
            raise SidecarError(message) from None

    def _load(
        self, hold_out: Split, addresses: dict[str, str], seconds: float, verdicts: VerdictWatch
    ) -> Load:
        return Load(
            TARGETS,
            hold_out,
            _connect(addresses),
            in_flight=IN_FLIGHT,
            seconds=seconds,
            limit_s=seconds + PASS_LIMIT_S,
            clock=self._clock,
            is_enough=verdicts.all_decided,
        )

    def _turn_digits(
        self, hold_out: Split, addresses: dict[str, str], server: ServeProcess
    ) -> Drifted:
        say = self._console.print
        say(f"drift: from now on the digits are turned by {TURNED_DEG}°")
        connect = _connect(addresses)
        act = DriftAct(addresses["monitor"], hold_out, connect, self._clock, say)
        drifted = act.run(IN_FLIGHT)
        server.check_alive()
        return drifted

    def _roll_out(self, hold_out: Split) -> RolledBack:
        shutil.rmtree(self._output / ROLLOUT_STATE, ignore_errors=True)
        act = RolloutAct(self._output, hold_out, self._console, self._clock, self._console.print)
        return act.run()

    def _stay(self, server: ServeProcess) -> None:
        try:
            while True:
                server.wait_exit(3600)
                server.check_alive()
        except KeyboardInterrupt:
            self._console.print("\nstopping")


def _connect(addresses: dict[str, str]) -> dict[str, Callable[[], Client]]:
    return {
        "grpc": partial(GrpcClient, addresses["grpc"]),
        "http": partial(HttpClient, addresses["http"]),
    }


def _is_ready(addresses: dict[str, str]) -> bool:
    """Both listeners, each asked anew: a channel that once failed would back off for seconds."""
    with HttpClient(addresses["http"], timeout_s=2) as over_http:
        if not over_http.ready():
            return False
    with GrpcClient(addresses["grpc"], timeout_s=2) as over_grpc:
        return over_grpc.ready()


class _Watch:
    """Shows a load while it runs: a live table on a terminal, lines elsewhere."""

    def __init__(self, console: Console, monitor: GrpcClient, hold_out: Split) -> None:
        self._console = console
        self._monitor = monitor
        self._hold_out = hold_out
        self._before: Totals = totals(monitor.statistics())
        self._now: Totals = self._before

    def run(
        self, load: Load, server: ServeProcess
    ) -> tuple[list[VariantFigures], list[Comparison]]:
        """Send until done, and return the last figures.

        Raises:
            SidecarError: the server ended.
        """
        load.start()
        try:
            if self._console.is_terminal:
                self._run_live(load, server)
            else:
                self._run_lines(load, server)
        finally:
            load.stop()
        server.check_alive()  # its end is the news, not the failures that came of it
        tallies = load.snapshot()
        rows = self._rows(load, tallies)
        self._console.print(self._picture(rows, tallies, _telling(tallies, self._hold_out)))
        return rows, compare_formats(tallies)

    def _run_live(self, load: Load, server: ServeProcess) -> None:
        # Transient: the last picture is printed by run(), the same on every kind of console.
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while not load.wait(_REFRESH_S):
                server.check_alive()
                tallies = load.snapshot()
                rows = self._rows(load, tallies)
                # Another handful of digits every second, in the order in which they are sent.
                step = int(load.elapsed_s()) * screen.DIGITS_MAX
                count = len(self._hold_out.labels)
                digits = [(step + i) % count for i in range(screen.DIGITS_MAX)]
                line = Text(screen.progress_line(rows, load.elapsed_s()), "dim")
                picture = self._picture(rows, tallies, digits)
                live.update(Group(picture, Text(), line), refresh=True)

    def _run_lines(self, load: Load, server: ServeProcess) -> None:
        while not load.wait(_LINE_EVERY_S):
            server.check_alive()
            rows = self._rows(load, load.snapshot())
            self._console.print(screen.progress_line(rows, load.elapsed_s()))

    def _rows(self, load: Load, tallies: dict[Target, Tally]) -> list[VariantFigures]:
        # Else the figures of a moment ago stay; whether the server lives is asked elsewhere.
        with suppress(CallFailedError):
            self._now = totals(self._monitor.statistics())
        labels, elapsed_s = self._hold_out.labels, load.elapsed_s()
        return [
            figures(
                target, tally, labels, elapsed_s, stage_means_us(self._before, self._now, target)
            )
            for target, tally in tallies.items()
        ]

    def _picture(
        self,
        rows: Sequence[VariantFigures],
        tallies: dict[Target, Tally],
        digits: Sequence[int],
    ) -> RenderableType:
        answers = _answers_by_version(tallies)
        shown = [
            screen.Shown(
                image=self._hold_out.images[index, 0],
                label=int(self._hold_out.labels[index]),
                answers={f"v{version}": int(said[index]) for version, said in answers.items()},
            )
            for index in digits
        ]
        table, drawn = screen.variant_table(rows), screen.digit_row(self._console, shown)
        parts: list[RenderableType] = [table, Text()]
        if drawn is not None:
            parts += [drawn, Text()]
        return Group(*parts)


def _answers_by_version(tallies: dict[Target, Tally]) -> dict[str, Any]:
    """Return version → int64 ``[digits]``: what the fp32 variant of it answered."""
    return {
        target.version: tally.answers()
        for target, tally in tallies.items()
        if target.form == "onnx"
    }


def _telling(tallies: dict[Target, Tally], hold_out: Split) -> list[int]:
    """Return the digits worth a look: first those on which the versions differ."""
    first, *_, last = _answers_by_version(tallies).values()
    known = (first != NOT_ANSWERED) & (last != NOT_ANSWERED)
    differ = np.flatnonzero(known & (first != last))
    missed = np.flatnonzero(known & (first == last) & (last != hold_out.labels))
    others = np.flatnonzero(known & (first == last) & (last == hold_out.labels))
    return [int(index) for index in [*differ, *missed, *others][: screen.DIGITS_MAX]]
