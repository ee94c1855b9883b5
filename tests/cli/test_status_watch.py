"""``sidecar status`` and ``sidecar watch``: processes of their own, against a real service."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import grpc
import pytest

from sidecar.cli.monitor_screen import duration, percent, size
from sidecar.cli.status import exit_code
from sidecar.monitor.client import MonitorCallError, MonitorClient
from sidecar.monitor.service import MonitorServer
from sidecar.monitor.telemetry_view import TelemetryStatus
from sidecar.monitor.view_messages import to_json
from tests.monitor.views import FakeView, event, status
from validators.verdict import Verdict

WITHIN_S = 60


def command(name: str, address: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "sidecar", name, address, "--timeout", str(WITHIN_S), *options]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb", **more}


def run(name: str, address: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(name, address, *options),
        capture_output=True, text=True, check=False, timeout=WITHIN_S, env=environment(),
    )  # fmt: skip


@contextmanager
def serving(view: FakeView, address: str = "127.0.0.1:0") -> Iterator[str]:
    server = MonitorServer(view)
    try:
        yield server.start(address)
    finally:
        server.stop(0)


@contextmanager
def watching(address: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command("watch", address, *options),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def interrupted(process: subprocess.Popen[str]) -> int:
    process.send_signal(signal.SIGINT)
    return process.wait(WITHIN_S)


# --- status ---------------------------------------------------------------------------------------


def test_status_shows_everything_a_person_asks_for():
    view = FakeView()
    with serving(view) as address:
        found = run("status", address)
    assert (found.returncode, found.stderr) == (0, "")
    for said in (
        "running for", "process 76", "served.yaml",
        "ready, process 77, 256.0 MiB, started anew once: it ran too long",
        "ok, 120.6 KiB, /state/monitor.sqlite3",
        "1,000 sampled → 990 received → 980 compared (98 %), 1 set aside",
        "full 9", "shared_memory 3",
        "a backend takes nothing, http://127.0.0.1:9464/metrics",
        "traces: otlp-grpc → http://there:4317 is down, 1,200 sent, 2,048 waiting",
        "7 dropped (queue_full)", "connection refused", "metrics: prometheus → 127.0.0.1:9464",
        "5 % of requests (10 % wanted), 12 % of the processor (at most 25 %), 1.0 MiB waiting",
        "digits  reference digits:2/onnx, production",
        "digits:2/int8", "scores", "class_scores", "0.02–0.91 %", "≤ 0.91 %",
        "PASS since", "at most 0.91 % at 95 %", "limit 1 %, n 500, k 0.5",
        "digits:1/onnx", "1.50", "3.50", "scores 0.4 %",
    ):  # fmt: skip
        assert said in found.stdout


def test_status_says_what_is_wrong():
    view = FakeView()
    now = status(Verdict.INVALID, requests=0)
    [model] = now.models
    blocked = replace(model.pairs[0], blocked="output 'scores' is missing", outputs=[])
    view.now = replace(
        now,
        models=[replace(model, message="the reference could not be loaded", pairs=[blocked])],
        store=replace(now.store, ok=False, message="the disk is full"),
        telemetry=TelemetryStatus("failed", "the port is taken"),
    )
    with serving(view) as address:
        found = run("status", address)
    for said in ("the reference could not be loaded", "cannot be written", "the disk is full",
                 "nothing can be told", "the port is taken",
                 "not compared: output 'scores' is missing"):  # fmt: skip
        assert said in found.stdout
    view.now = replace(now, models=[])
    with serving(view) as address:
        assert "no model is watched" in run("status", address).stdout


def test_status_of_one_that_has_just_begun_says_what_it_waits_for():
    view = FakeView()
    view.now = replace(status(), state="starting", models=[])
    with serving(view) as address:
        assert "its copies are being loaded" in run("status", address).stdout
    now = status(Verdict.INVALID, requests=0)
    [model] = now.models
    waiting = replace(model, pairs=[replace(model.pairs[0], outputs=[])])
    view.now = replace(now, models=[waiting])
    with serving(view) as address:
        found = run("status", address).stdout
    assert "nothing compared yet" in found
    assert "INVALID" not in found


def test_status_says_who_failed_and_what_was_inferred_once():
    view = FakeView()
    now = status()
    [model] = now.models
    [first, versions] = model.pairs
    [output] = first.outputs
    inferred = [replace(output, inferred="its name says so")]
    pairs = [
        replace(first, outputs=inferred, errors={"candidate": 3, "baseline": 1}),
        replace(first, outputs=inferred, candidate="digits:2/other"),
        versions,
    ]
    view.now = replace(now, models=[replace(model, pairs=pairs)])
    with serving(view) as address:
        found = run("status", address).stdout
    assert found.count("scores: its name says so") == 1
    assert found.count("it failed 3 times") == found.count("digits:2/onnx failed once") == 1


def test_status_as_json_is_one_object_and_check_is_an_exit_code():
    view = FakeView()
    view.now = status(Verdict.FAIL)
    with serving(view) as address:
        found = run("status", address, "--json", "--check")
    assert found.returncode == 1
    assert json.loads(found.stdout) == json.loads(json.dumps(to_json(view.now)))


@pytest.mark.parametrize(
    ("verdict", "requests", "code"),
    [
        (Verdict.PASS, 500, 0),
        (Verdict.FAIL, 500, 1),
        (Verdict.INVALID, 500, 1),
        (Verdict.INVALID, 0, 3),
        (Verdict.INCONCLUSIVE, 500, 3),
    ],
)
def test_what_check_exits_with(verdict, requests, code):
    now = status(verdict, requests=requests)
    assert exit_code(now) == code
    assert exit_code(replace(now, models=[])) == 3, "nothing watched is never a pass"
    [model] = now.models
    passed = replace(status().models[0], model="another")
    assert exit_code(replace(now, models=[passed, model])) == code, "the worst counts"
    blocked = replace(model.pairs[0], verdict=None, blocked="there is no copy", outputs=[])
    assert exit_code(replace(now, models=[replace(model, pairs=[blocked])])) == 1
    versions = replace(model.pairs[1], blocked="there is no copy")
    assert exit_code(replace(now, models=[passed, replace(model, pairs=[versions])])) == 0


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["status", "watch"])
def test_an_address_where_nobody_answers_is_one_line(name, tmp_path):
    address = f"unix:{tmp_path / 'nobody.sock'}"
    found = run(name, address)
    assert found.returncode == 1
    assert found.stdout == ""
    assert found.stderr == (
        f"error: no monitor answers at {address}: is it running, and is this its monitor.grpc?\n"
    )


def test_other_addresses_are_told_apart():
    for wrong in ("http://127.0.0.1:9002", "9002"):
        with pytest.raises(MonitorCallError, match="write host:port"):
            MonitorClient(wrong, timeout_s=1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never says a word
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with (
            MonitorClient(address, timeout_s=0.2) as client,
            pytest.raises(MonitorCallError, match=r"has not answered within 0\.2 s"),
        ):
            client.status()
    other = grpc.server(None)
    address = f"127.0.0.1:{other.add_insecure_port('127.0.0.1:0')}"
    other.start()
    with (
        MonitorClient(address, timeout_s=WITHIN_S) as client,
        pytest.raises(MonitorCallError, match="answers, but it is no monitor"),
    ):
        client.status()
    other.stop(0).wait()


# --- watch ----------------------------------------------------------------------------------------


def test_watch_prints_a_line_a_verdict_and_goes_on_when_the_monitor_comes_back(tmp_path):
    address = f"unix:{tmp_path / 'monitor.sock'}"
    view = FakeView()
    view.tell(event(1), event(2, Verdict.INCONCLUSIVE))
    with watching_over(address, view) as (process, change):
        assert process.stderr.readline() == f"watching {address}\n"
        lines = [process.stdout.readline() for _ in range(2)]
        assert re.fullmatch(
            r"\d\d:\d\d:\d\d  PASS          digits:2/int8 scores  event number 1\n", lines[0]
        )
        assert "INCONCLUSIVE  digits:2/int8 scores  event number 2\n" in lines[1]
        view.tell(event(3, Verdict.FAIL))
        assert "FAIL          digits:2/int8 scores  event number 3\n" in process.stdout.readline()
        change(view)
        assert process.stderr.readline().endswith("; trying again\n")
        assert process.stderr.readline() == f"{address} is back\n"
        view.tell(event(4))
        assert "event number 4" in process.stdout.readline(), "and not the others again"
        assert interrupted(process) == 130
        assert process.stderr.read() == ""


def test_watch_says_what_it_missed_and_that_another_store_counts_anew(tmp_path):
    address = f"unix:{tmp_path / 'monitor.sock'}"
    first, second, third = FakeView(), FakeView(events_kept=2), FakeView()
    first.tell(event(1))
    second.tell(*(event(seq) for seq in range(1, 11)))
    third.tell(event(1))

    def object_of(process) -> dict:
        return json.loads(process.stdout.readline())

    with watching_over(address, first, "--json") as (process, change):
        assert object_of(process) == {
            "type": "connected", "incarnation": "0123456789abcdef", "counted_anew": False,
        }  # fmt: skip
        shown = object_of(process)
        assert (shown["type"], shown["seq"], shown["verdict"]) == ("verdict", 1, "PASS")
        assert shown["certificate"]["bound"] == 0.0091
        change(second)
        assert object_of(process)["type"] == "lost"
        assert object_of(process)["type"] == "connected"
        assert object_of(process) == {"type": "missed", "count": 7}
        assert [object_of(process)["seq"] for _ in range(2)] == [9, 10]
        change(third)
        assert object_of(process)["type"] == "lost"
        assert object_of(process)["counted_anew"]
        assert object_of(process)["seq"] == 1
        assert interrupted(process) == 130
        assert process.stderr.read() == ""


@contextmanager
def watching_over(address: str, view: FakeView, *options: str):
    """A watcher, and a function that replaces the monitor that it watches."""
    server = MonitorServer(view)
    server.start(address)

    def change(to: FakeView) -> None:
        nonlocal server
        server.stop(0)
        server = MonitorServer(to)
        server.start(address)

    try:
        with watching(address, *options) as process:
            yield process, change
    finally:
        server.stop(0)


def test_a_reader_that_has_seen_enough_ends_it_without_a_word():
    view = FakeView()
    view.tell(event(1))
    with serving(view) as address, watching(address) as process:
        process.stderr.readline()
        process.stdout.readline()
        process.stdout.close()
        process.stdout = None
        deadline = time.monotonic() + WITHIN_S
        seq = 1
        while process.poll() is None and time.monotonic() < deadline:
            seq += 1
            view.tell(event(seq))
            time.sleep(0.02)
        assert process.poll() == 0
        assert "Traceback" not in process.stderr.read()


def test_on_a_terminal_a_table_is_drawn_over_the_latest_verdicts(tmp_path):
    view = FakeView()
    view.tell(event(1))
    main, other = pty.openpty()
    with serving(view) as address:
        process = subprocess.Popen(
            command("watch", address),
            stdin=other, stdout=other, stderr=subprocess.PIPE,
            env=environment(TERM="xterm", LINES="60"), start_new_session=True,
        )  # fmt: skip
        os.close(other)
        try:
            seen = read_until(main, "event number 1")
            assert "1,000 sampled" in seen
            assert "at most 0.91 % at 95 %" in seen
            view.now = replace(view.now, coverage=replace(view.now.coverage, sampled=123_456))
            assert "123,456 sampled" in read_until(main, "123,456 sampled")
            view.tell(event(2, Verdict.FAIL))
            read_until(main, "event number 2")
            process.send_signal(signal.SIGINT)
            read_until(main, None)
            assert process.wait(WITHIN_S) == 130
            assert process.stderr.read() == b""
        finally:
            process.kill()
            process.communicate()
            os.close(main)


def read_until(descriptor: int, wanted: str | None) -> str:
    """Read a terminal until it showed ``wanted``; ``None``: until its process has closed it."""
    seen = b""
    deadline = time.monotonic() + WITHIN_S
    while wanted is None or wanted not in seen.decode(errors="replace"):
        assert select.select([descriptor], [], [], max(deadline - time.monotonic(), 0))[0], seen
        try:
            seen += os.read(descriptor, 65536)
        except OSError:  # how a terminal says that nobody writes to it any more
            assert wanted is None, seen
            break
    return seen.decode(errors="replace")


def test_numbers_are_written_for_people():
    assert [percent(x) for x in (0, 0.000912, 0.05, 1, 0.12345)] == [
        "0 %", "0.0912 %", "5 %", "100 %", "12.3 %",
    ]  # fmt: skip
    assert [size(x) for x in (0, 1023, 1024, 3 * 2**20, 5 * 2**40)] == [
        "0 bytes", "1023 bytes", "1.0 KiB", "3.0 MiB", "5120.0 GiB",
    ]  # fmt: skip
    assert [duration(x) for x in (-1, 5, 65, 3700, 90_000)] == [
        "0 s", "5 s", "1 min 5 s", "1 h 1 min", "1 d 1 h",
    ]  # fmt: skip
