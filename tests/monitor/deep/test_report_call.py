"""A report on request: over real gRPC, and by the command line with a browser that is a script."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.monitor.client import MonitorCallError, MonitorClient
from sidecar.monitor.deep.runs import DeepRuns
from sidecar.monitor.deep.view import DeepReport
from sidecar.monitor.service import REPORTS_MAX, MonitorServer
from tests.e2e.support import until
from tests.monitor.deep.making import Source, model, reference, rows, stand_in
from tests.monitor.making import Clock
from tests.monitor.views import FakeView

WITHIN_S = 60
PAGE = b"<html>drift</html>" * 1000


class Reports:
    """Makes a report without a run: what a test says, when it says so."""

    def __init__(self, report: DeepReport) -> None:
        self.report = report
        self.asked: list[tuple[str, bool]] = []
        self.gate = threading.Event()
        self.gate.set()

    def run_now(self, model: str = "", *, html: bool = True) -> DeepReport:
        self.asked.append((model, html))
        assert self.gate.wait(WITHIN_S)
        return self.report


class Served:
    def __init__(self, reports) -> None:
        self.server = MonitorServer(FakeView(), reports=reports)
        self.address = self.server.start("127.0.0.1:0")
        self.client = MonitorClient(self.address, timeout_s=WITHIN_S)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()
        self.server.stop(0)


def report(folder: Path, **changes) -> DeepReport:
    page, document = folder / "r.html", folder / "r.json"
    page.write_bytes(PAGE)
    document.write_text("{}")
    known = {
        "path_html": str(page), "path_json": str(document), "drifted": True, "columns": 8,
        "columns_drifted": 3, "rows": 1500, "seconds": 12.5, "made_wall_ns": 7,
        "summary": "3 of 8 columns drifted: a, b, c (1500 live rows).",
    }  # fmt: skip
    return DeepReport("digits", **{**known, **changes})


def test_a_real_run_answers_over_the_wire(monkeypatch, tmp_path):
    stand_in(monkeypatch, tmp_path)
    source = Source(reference(), rows(900, 2))
    with Served(DeepRuns([model()], source, tmp_path, Clock())) as served:
        found, page = served.client.drift_report(html=False, timeout_s=WITHIN_S)
    assert (found.model, found.columns, found.drifted, page) == ("m", 5, False, b"")
    assert Path(found.path_json).exists()
    assert found.made_wall_ns == 10**9


def test_a_report_arrives_as_it_was_and_its_page_when_asked_for(tmp_path):
    reports = Reports(report(tmp_path))
    with Served(reports) as served:
        got = served.client.drift_report("digits", html=True, timeout_s=WITHIN_S)
        assert got == (reports.report, b"")
        got = served.client.drift_report("", html=False, send=True, timeout_s=WITHIN_S)
        assert got == (reports.report, PAGE)
        Path(reports.report.path_html).unlink()  # pruned meanwhile
        assert served.client.drift_report(send=True, timeout_s=WITHIN_S)[1] == b""
    assert reports.asked == [("digits", True), ("", False), ("", True)]


def test_what_cannot_be_answered_says_why(tmp_path):
    with Served(DeepRuns([model("a"), model("c")], Source(None, {}), tmp_path, Clock())) as served:
        with pytest.raises(MonitorCallError, match="there is a, c") as caught:
            served.client.drift_report("b", timeout_s=WITHIN_S)
        assert caught.value.code == "NOT_FOUND"
        with pytest.raises(MonitorCallError, match="name one: a, c") as caught:
            served.client.drift_report(timeout_s=WITHIN_S)
        assert caught.value.code == "INVALID_ARGUMENT"
    with Served(None) as served, pytest.raises(MonitorCallError, match="no model is watched"):
        served.client.drift_report(timeout_s=WITHIN_S)


def test_a_few_may_wait_and_health_and_status_never_do(tmp_path):
    reports = Reports(report(tmp_path))
    reports.gate.clear()
    found: list[DeepReport] = []
    with Served(reports) as served:

        def ask() -> None:
            found.append(served.client.drift_report(timeout_s=WITHIN_S)[0])

        threads = [threading.Thread(target=ask) for _ in range(REPORTS_MAX)]
        for thread in threads:
            thread.start()
        until(lambda: len(reports.asked) == REPORTS_MAX, "they wait", within_s=WITHIN_S)
        with pytest.raises(MonitorCallError, match="calls wait for a drift report") as caught:
            served.client.drift_report(timeout_s=WITHIN_S)
        assert caught.value.code == "RESOURCE_EXHAUSTED"
        assert served.client.status().state == "running"
        reports.gate.set()
        for thread in threads:
            thread.join(WITHIN_S)
        assert found == [reports.report] * REPORTS_MAX
        assert served.client.drift_report(timeout_s=WITHIN_S)[0] == reports.report


def test_a_caller_who_stops_waiting_is_told_for_how_long_it_did(tmp_path):
    reports = Reports(report(tmp_path))
    reports.gate.clear()
    with Served(reports) as served:
        with pytest.raises(MonitorCallError, match=r"has not answered within 0\.5 s"):
            served.client.drift_report(timeout_s=0.5)
        reports.gate.set()


# --- the command line -----------------------------------------------------------------------------


def opened(reports, folder: Path, *, browser: str = "yes", command: str = ""):
    """(exit code, lines printed, what the browser was given)."""
    given = folder / "given"
    script = folder / "my-browser"
    script.write_text(f'#!/bin/sh\nprintf %s "$1" > {given}\n')
    script.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if "DISPLAY" not in name}
    environment = {**kept, "BROWSER": command or str(script), "TMPDIR": str(folder)}
    wanted = "--browser" if browser == "yes" else "--no-browser"
    options = ["--open", "--model", "digits", wanted]
    with Served(reports) as served:
        found = subprocess.run(
            [sys.executable, "-m", "sidecar", "drift", served.address, *options],
            capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[3],
            timeout=100, check=False,
        )  # fmt: skip
    assert found.stderr == ""
    return found.returncode, found.stdout.splitlines(), given.read_text() if given.exists() else ""


def test_the_page_is_opened_and_its_place_printed(tmp_path):
    reports = Reports(report(tmp_path))
    code, said, given = opened(reports, tmp_path)
    assert code == 0
    assert said == [f"digits: {reports.report.summary}", f"report: {tmp_path}/r.html"]
    assert given == (tmp_path / "r.html").as_uri()
    assert reports.asked == [("digits", True)]


def test_no_browser_is_opened_where_none_is_wanted_or_only_one_for_the_terminal(tmp_path):
    reports = Reports(report(tmp_path))
    code, said, given = opened(reports, tmp_path, browser="no")
    assert (code, said[1:], given) == (0, [f"report: {tmp_path}/r.html"], "")
    code, said, given = opened(reports, tmp_path, command="w3m")
    assert said[-1] == "no graphical browser was found here; open that file in one"
    assert (code, given) == (0, "")


def test_the_page_of_another_machine_is_saved_here(tmp_path):
    made = report(tmp_path)
    with Path(made.path_html).open("rb") as file:
        # A path that means this file to the server's process alone.
        reports = Reports(
            replace(made, path_html=f"/proc/self/fd/{file.fileno()}", message="Late.")
        )
        code, said, given = opened(reports, tmp_path)
    assert (code, said[1]) == (0, "digits: Late.")
    place = Path(said[-1].removeprefix("report: "))
    assert place.parent == tmp_path
    assert place.name.startswith("drift-digits-")
    assert place.read_bytes() == PAGE
    assert place.stat().st_mode & 0o777 == 0o600
    assert given == place.as_uri()


def test_a_report_without_a_page_or_none_at_all_is_said(tmp_path):
    made = report(tmp_path)
    without = replace(made, path_html="", message="no page was made: out of paint")
    code, said, given = opened(Reports(without), tmp_path)
    assert (code, given) == (0, "")
    assert said[1:] == [f"digits: {without.message}", f"report: {made.path_json}"]
    away = replace(without, path_json="/nowhere/r.json")
    assert opened(Reports(away), tmp_path)[1][-1] == (
        "report: /nowhere/r.json (on the monitor's machine)"
    )  # fmt: skip
    none = DeepReport("digits", message="no deep run: 3 live rows, 500 are needed")
    assert opened(Reports(none), tmp_path) == (1, [f"digits: {none.message}"], "")
