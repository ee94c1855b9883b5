"""What every exporter keeps, under every fault: one suite over all of them.

Handing over does not wait; what waits is bounded; everything handed over is exported, dropped or
waiting; the end comes in its time; and the process goes on.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, BinaryIO

import grpc
import pytest

from exporters.telemetry import Bounds, Exporter, Settings, Signal, Telemetry
from tests.exporters.telemetry.support import RECEIVERS, log, points, settings, span
from tests.support.otlp_receiver import PATIENCE_S, Reply, always, garbage, refusing, silent

FAULTS = ("dead", "silent", "garbage", "failing")
BOUND, SLICE, HANDED_OVER = 40, 8, 500
#: What the end may take, and what a test waits for it: the second only ends a broken test.
SHUTDOWN_S = 0.5


@dataclass
class Place:
    """Where an exporter is sent, broken."""

    settings: Settings
    console: BinaryIO = field(default_factory=BytesIO)


@contextmanager
def broken(exporter: Exporter, fault: str) -> Iterator[Place]:
    with ExitStack() as stack:
        if exporter in RECEIVERS:
            yield Place(_told(exporter, _backend(stack, exporter, fault)))
        elif exporter is Exporter.CONSOLE:
            yield Place(_told(exporter, ""), _console(stack, fault))
        else:  # nothing is sent anywhere: what can be broken is who reads, and what is read
            yield Place(_told(exporter, ""))


def _told(exporter: Exporter, endpoint: str) -> Settings:
    bounds = Bounds(items=BOUND, slice=SLICE, delay_s=0.0, breath_s=0.0)
    return settings(exporter, endpoint, timeout_s=30.0, spans=bounds, logs=bounds, interval_s=0.05)


def _backend(stack: ExitStack, exporter: Exporter, fault: str) -> str:
    if fault == "failing":
        receiver = stack.enter_context(RECEIVERS[exporter]())
        code = grpc.StatusCode.INTERNAL if exporter is Exporter.OTLP_GRPC else 500
        receiver.reply = always(Reply(code))
        return receiver.endpoint
    opened = {"dead": refusing, "silent": silent, "garbage": garbage}[fault]
    return f"http://127.0.0.1:{stack.enter_context(opened())}"


def _console(stack: ExitStack, fault: str) -> BinaryIO:
    if fault == "silent":  # a pipe that nobody reads
        reader, writer = os.pipe()
        stream = os.fdopen(writer, "wb", buffering=0)
        # In this order: whoever still writes gets an error, and the thread ends.
        stack.callback(stream.close)
        stack.callback(os.close, reader)
        return stream
    stream = BytesIO()
    if fault == "dead":
        stream.close()
    if fault == "failing":
        return _Full()
    return stream


class _Full(BytesIO):
    """A disk without room."""

    def write(self, _: Any) -> int:
        raise OSError(28, "No space left on device")


def in_time(telemetry: Telemetry) -> dict[tuple[Signal, str, str], int]:
    """Shut down in a thread, so that a hang is a failure and not the end of the run."""
    result: list[dict[tuple[Signal, str, str], int]] = []
    ender = threading.Thread(
        target=lambda: result.append(telemetry.shutdown(SHUTDOWN_S)), daemon=True
    )
    ender.start()
    # Without a deadline of its own the attempts alone would take 30 s each.
    ender.join(PATIENCE_S / 3)
    assert result, "shutdown hangs"
    return result[0]


def without_metrics(
    counts: dict[tuple[Signal, str, str], int],
) -> dict[tuple[Signal, str, str], int]:
    """An attempt to export metrics that hangs is counted when it ends, after the shutdown."""
    return {key: count for key, count in counts.items() if key[0] is not Signal.METRICS}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("exporter", list(Exporter), ids=str)
def test_an_exporter_under_a_fault(exporter, fault, caplog):
    caplog.set_level("CRITICAL", logger="exporters.telemetry")
    with broken(exporter, fault) as place:
        telemetry = Telemetry(place.settings, console=place.console)
        if fault in {"failing", "garbage"}:
            telemetry.observe(_raising if fault == "failing" else lambda: [None])
        telemetry.observe(points)
        sent = recorded = 0
        for number in range(1, HANDED_OVER + 1):
            sent += telemetry.span(span(number))
            recorded += telemetry.log(log(str(number)))
            assert all(count <= BOUND + SLICE for count in telemetry.waiting().values())
        counts = in_time(telemetry)
        for signal, handed_over in ((Signal.TRACES, sent), (Signal.LOGS, recorded)):
            accounted = sum(count for (one, _, _), count in counts.items() if one is signal)
            assert accounted == handed_over
            exported = counts.get((signal, "exported", ""), 0)
            assert exported == 0 or (exporter, fault) in _WORKS_ALL_THE_SAME
        assert not any(telemetry.waiting().values())
        # What comes later is no error either, and is counted.
        assert telemetry.span(span()) == bool(sent)
        again = in_time(telemetry)
        assert without_metrics(again) == without_metrics(telemetry.counts())


#: Garbage concerns the readers here; a pipe takes its 64 KiB before it is full.
_WORKS_ALL_THE_SAME = {(Exporter.CONSOLE, "garbage"), (Exporter.CONSOLE, "silent")}


def _raising():
    raise RuntimeError("cannot be read")


@pytest.mark.parametrize("exporter", list(Exporter), ids=str)
def test_a_reader_that_never_ends_does_not_hold_the_end(exporter, caplog):
    caplog.set_level("CRITICAL", logger="exporters.telemetry")
    released = threading.Event()
    with ExitStack() as stack:
        endpoint = ""
        if exporter in RECEIVERS:
            endpoint = stack.enter_context(RECEIVERS[exporter]()).endpoint
        telemetry = Telemetry(settings(exporter, endpoint), console=BytesIO())
        telemetry.observe(lambda: released.wait(PATIENCE_S) or [])
        telemetry.span(span())
        try:
            in_time(telemetry)
        finally:
            released.set()


@pytest.mark.parametrize("exporter", list(Exporter), ids=str)
def test_an_exporter_that_works(exporter):
    with ExitStack() as stack:
        endpoint = ""
        if exporter in RECEIVERS:
            endpoint = stack.enter_context(RECEIVERS[exporter]()).endpoint
        console = BytesIO()
        telemetry = Telemetry(settings(exporter, endpoint), console=console)
        telemetry.observe(points)
        taken = telemetry.span(span())
        assert telemetry.log(log()) == taken
        assert taken == (exporter not in {Exporter.PROMETHEUS, Exporter.NONE})
        assert telemetry.flush(PATIENCE_S)
        assert all(state.up for state in telemetry.states().values())
        assert b"model_sidecar_requests_total" in telemetry.scrape()[1]
        counts = in_time(telemetry)
        assert counts.get((Signal.TRACES, "exported", ""), 0) == int(taken)
        if exporter is Exporter.CONSOLE:
            assert b"inference.GRPCInferenceService/ModelInfer" in console.getvalue()
            assert b"model_sidecar.requests" in console.getvalue()
