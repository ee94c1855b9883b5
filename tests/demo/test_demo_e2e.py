"""The whole demo as its user runs it: a process, a terminal or a pipe, a signal."""

from __future__ import annotations

import http.client
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path
from typing import Self

import psutil
import pytest

from sidecar.clock import SystemClock
from sidecar.demo.client import GrpcClient
from tests.demo.conftest import Trained
from tests.e2e.support import can_connect, until

pytestmark = pytest.mark.timeout(600)
LIMIT_S = 400


@pytest.fixture
def folder(trained: Trained, tmp_path: Path) -> Path:
    """An output folder of its own, as a run that trained would have left it."""
    return Path(shutil.copytree(trained.folder, tmp_path / "demo-output"))


def command(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "sidecar", "demo", "--output", str(folder), *options]


def processes_of(folder: Path) -> list[psutil.Process]:
    """Everything that was started with this folder in its arguments."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in part for part in process.info["cmdline"] or ())
    ]


def assert_nothing_left(folder: Path, *addresses: str) -> None:
    assert not processes_of(folder)
    worker = re.search(r"pid (\d+)", (folder / "serve.log").read_text())
    assert worker is not None
    with suppress(psutil.NoSuchProcess):
        # A worker whose parent was killed is buried by the system, a moment later.
        psutil.Process(int(worker[1])).wait(60)
    for address in addresses:
        # Another test at the same time may have been given the port meanwhile, and gives it back.
        until(lambda address=address: not can_connect(address), f"{address} is free", within_s=300)


class OnTerminal:
    """A command on a terminal of 110 columns; ``text`` is what it has written so far."""

    def __init__(self, arguments: list[str]) -> None:
        self._leader, follower = pty.openpty()
        ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 110, 0, 0))
        environment = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "COLUMNS"}}
        self.process = subprocess.Popen(
            arguments,
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env={**environment, "TERM": "xterm-256color"},
        )
        os.close(follower)
        self.text = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)
        os.close(self._leader)

    def read_until(self, marker: str) -> None:
        clock = SystemClock()
        deadline_ns = clock.monotonic_ns() + int(LIMIT_S * 1e9)
        while marker not in self.text:
            left_s = (deadline_ns - clock.monotonic_ns()) / 1e9
            assert left_s > 0, f"no {marker!r} in time:\n{self.text}"
            readable, _, _ = select.select([self._leader], [], [], left_s)
            if readable:
                try:
                    self.text += os.read(self._leader, 65536).decode(errors="replace")
                except OSError:  # how a terminal says that nobody writes any more
                    pytest.fail(f"it ended without {marker!r}:\n{self.text}")


def test_a_run_measures_every_variant_and_leaves_nothing_behind(folder: Path):
    done = subprocess.run(
        command(folder, "--json", "--seconds", "2"),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["was_cached"]
    assert report["failures"] == 0
    assert report["first_error"] is None
    assert report["elapsed_s"] >= 1.9
    digits = report["hold_out_digits"]
    assert digits == 450
    rows = {row["variant"]: row for row in report["variants"]}
    assert set(rows) == {
        "digits:1/onnx", "digits:2/onnx", "digits-int8:1/int8", "digits-int8:2/int8",
        "digits-torch:1/pt2", "digits-torch:2/pt2",
    }  # fmt: skip
    for row in rows.values():
        assert row["answered"] == digits
        assert row["differences"] == 0
        for transport in ("grpc", "http"):
            assert row["requests"][transport] >= digits
            assert 0 < row["latency_ms"][transport]["p50"] <= row["latency_ms"][transport]["p99"]
        assert set(row["stages_us"]) == {"decode", "queue", "execute", "encode"}
        assert min(row["stages_us"].values()) > 0
    assert report["requests"]["grpc"] == sum(row["requests"]["grpc"] for row in rows.values())

    assert rows["digits:2/onnx"]["accuracy"] >= 0.97
    assert rows["digits:1/onnx"]["accuracy"] <= rows["digits:2/onnx"]["accuracy"] - 0.03
    for version in "12":
        exact = rows[f"digits:{version}/onnx"]["accuracy"]
        assert rows[f"digits-torch:{version}/pt2"]["accuracy"] == exact
        assert abs(rows[f"digits-int8:{version}/int8"]["accuracy"] - exact) <= 0.01
    for result in report["fp32_against_int8"]:
        assert result["digits"] == digits
        assert result["disagreements"] <= digits * 0.01
        assert result["score_difference_max"] > 1e-3

    assert_the_monitor_told(report)
    assert_it_was_observed(report)
    assert_the_worse_version_was_taken_back(report)
    assert "kept from an earlier run" in done.stderr
    assert "\x1b[" not in done.stderr  # no terminal: lines, not a live table
    assert_nothing_left(folder, *report["addresses"].values())


def assert_the_monitor_told(report: dict) -> None:
    """int8 is certified, the broken conversion found, and its cause named."""
    int8, broken = report["findings"]
    assert (int8["candidate"], int8["verdict"]) == ("digits:2/int8", "PASS")
    assert int8["bound"] < int8["limit"] == 0.01
    assert (broken["candidate"], broken["verdict"]) == ("digits:2/broken", "FAIL")
    assert broken["rate"] > 0.01
    assert 0 < report["coverage"]["compared"] <= report["coverage"]["sampled"]
    diagnosis = report["diagnosis"]
    assert (diagnosis["verdict"], diagnosis["problem"]) == ("FAIL", "")
    assert diagnosis["first"]["onnx_node"] == "node_div"
    assert "image / PIXEL_MAX" in diagnosis["first"]["source"]
    assert diagnosis["accuracy"] > 0.9
    assert "<svg" in Path(diagnosis["report"]).read_text(encoding="utf-8")


def assert_the_worse_version_was_taken_back(report: dict) -> None:
    found = report["rolled_back"]
    assert (found["state"], found["metric"], found["problem"]) == ("rolled_back", "accuracy", "")
    assert found["failures"] == 0
    assert found["accuracy"]["3"] < found["accuracy"]["2"] - 0.05
    assert found["alert"] == "digits:3/onnx is worse than 2/onnx at accuracy"
    assert "only the new version was wrong" in found["decision"]
    assert set(found["versions_after"]) == {"2"}
    assert found["versions_after"]["2"] >= 200
    assert 100 <= found["decided_after"] < found["requests"]
    folder = Path(report["output"])
    assert "rolled back" in (folder / "rollout.log").read_text(encoding="utf-8")


def assert_it_was_observed(report: dict) -> None:
    """Turned digits are an alarm, and one request's trace was drawn with its mirrors."""
    drifted = report["drifted"]
    assert (drifted["before"], drifted["state"], drifted["problem"]) == ("ok", "alarm", "")
    assert drifted["failures"] == 0
    # Two windows of turned digits; the one that was open then has others in it as well.
    assert drifted["windows"] in {2, 3}
    moved = [unit for unit, _ in drifted["moved"]]
    assert any(unit.startswith("image.") for unit in moved)
    assert any(unit.startswith("scores.") for unit in moved)
    trace = report["trace"]
    assert trace["variant"].startswith("digits:")
    assert {"queue", "execute"} <= {child["name"] for child in trace["children"]}
    assert {mirror["variant"] for mirror in trace["mirrors"]} >= {"digits:2/pt2"}


def test_on_a_terminal_it_is_live_and_stays_up_until_ctrl_c(folder: Path):
    with OnTerminal(command(folder, "--stay", "--seconds", "1")) as demo:
        demo.read_until('digits["labels"][0])')
        assert "Still up, until Ctrl-C" in demo.text
        assert "\x1b[?25l" in demo.text  # the cursor is hidden while a table is live
        assert "▀" in demo.text
        assert "accuracy" in demo.text
        assert "found broken after" in demo.text
        match = re.search(r"gRPC (127\.0\.0\.1:\d+)  HTTP (127\.0\.0\.1:\d+)", demo.text)
        assert match is not None
        grpc_address, http_address = match.groups()

        connection = http.client.HTTPConnection(http_address, timeout=30)
        body = (folder / "digit.json").read_bytes()  # what the suggested curl command sends
        connection.request("POST", "/v2/models/digits/infer", body)
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        assert response.status == 200
        assert answer["model_version"] == "2"
        assert len(answer["outputs"][0]["data"]) == 10
        with GrpcClient(grpc_address) as client:
            assert client.ready()

        second = subprocess.run(
            command(folder), capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        assert second.returncode == 1
        assert "another demo is running in" in second.stderr

        demo.process.send_signal(signal.SIGINT)
        demo.read_until("stopping")
        assert demo.process.wait(60) == 0
    assert_nothing_left(folder, grpc_address, http_address)


def test_a_terminated_run_takes_its_server_with_it(folder: Path):
    demo = subprocess.Popen(command(folder, "--seconds", "3600"), stdout=subprocess.PIPE, text=True)
    with demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if " requests " in line:  # in the middle of the load
                demo.terminate()
                break
        rest = demo.stdout.read()
    assert demo.returncode == 130
    assert "interrupted; everything is stopped" in rest
    assert_nothing_left(folder)


def test_a_server_that_dies_is_the_error(folder: Path):
    demo = subprocess.Popen(
        command(folder, "--seconds", "3600"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if " requests " in line:
                for child in psutil.Process(demo.pid).children():
                    child.kill()
                break
        _, errors = demo.communicate(timeout=LIMIT_S)
    assert demo.returncode == 1
    assert "error: the server ended by itself" in errors
    assert "Traceback" not in errors
    assert_nothing_left(folder)
