"""Runs one at a time, by hand instead of by the clock; whatever fails is said and gone without."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sidecar.errors import InvalidRequestError, NotFoundError
from sidecar.monitor.deep.runs import DeepRuns
from sidecar.monitor.view_drift import DriftView
from tests.e2e.support import until
from tests.monitor.deep.making import COLUMNS, Source, model, reference, rows, stand_in
from tests.monitor.deep.test_process import children
from tests.monitor.making import Clock
from validators.drift.accuracy import CORRECT
from validators.drift.reference import Reference

VIEW = DriftView("m", "first rows", "live", "ok", 3, 0, 500)
DRIFTED = "Score.drifted = True"


def runs(folder: Path, *models, source: Source | None = None, **settings) -> DeepRuns:
    source = source or Source(reference(), rows(900, 2))
    return DeepRuns(models or [model()], source, folder, Clock(), **settings)


def test_a_run_leaves_a_report_and_the_view_names_it(monkeypatch, tmp_path):
    stand_in(monkeypatch, tmp_path)
    deep = runs(tmp_path)
    assert deep.show(VIEW) == VIEW
    deep.scheduled("m")
    view = deep.show(VIEW)
    assert (view.report_html, view.message) == ("", "")
    assert view.report_wall_ns == 10**9
    kept = json.loads(Path(view.report_json).read_text())
    assert Path(view.report_json).parent == tmp_path / "drift" / "m"
    assert (kept["model"], kept["rows"], kept["drifted"]) == ("m", 900, False)
    assert kept["reference"] == {"rows": 2000, "rows_tested": 2000}
    assert kept["summary"].startswith("None of 5 columns drifted (900 live rows against 2000")
    assert kept["accuracy"] is None
    assert kept["evidently"]
    odd = next(one for one in kept["columns"] if one["column"] == "x.odd")
    assert odd["missing"] == {"reference": 0.1, "current": 0.1}
    assert odd["infinite"] == {"reference": 0.1, "current": 0.1}
    assert deep.show(replace(VIEW, model="other")) == replace(VIEW, model="other")
    # After a restart as well.
    assert runs(tmp_path).show(VIEW).report_json == view.report_json


def test_reports_are_pruned_as_configured(monkeypatch, tmp_path):
    stand_in(monkeypatch, tmp_path)
    deep = runs(tmp_path, model(keep=2))
    for _ in range(3):
        deep.scheduled("m")
    found = list((tmp_path / "drift" / "m").glob("1970*.json"))
    assert len(found) == 2
    assert Path(deep.show(VIEW).report_json) in found


@pytest.mark.parametrize(
    ("html", "asked", "alarms", "drifted", "page"),
    [
        ("on_alarm", False, False, False, False),
        ("on_alarm", False, True, False, True),
        ("on_alarm", False, False, True, True),
        ("on_alarm", True, False, False, True),
        ("always", False, False, False, True),
        ("never", False, True, True, False),
        ("never", True, False, False, True),
    ],
)
def test_a_page_is_made_on_an_alarm_on_request_or_always(
    monkeypatch, tmp_path, html, asked, alarms, drifted, page
):
    stand_in(monkeypatch, tmp_path, DRIFTED if drifted else "pass")
    source = Source(reference(), rows(900, 2), alarms=alarms)
    report = runs(tmp_path, model(html=html), source=source).run_now("m", html=asked)
    # The stand-in has no pages: that one was wanted is said.
    assert report.message.startswith("no page was made") is page
    assert report.drifted is drifted
    assert report.path_json


def test_too_little_to_look_at_is_said_and_no_report_is_made(tmp_path):
    source = Source(None, {})
    deep = runs(tmp_path, source=source)
    assert deep.run_now("m").message == "no deep run yet: there is no reference"
    source.known, source.live = reference(), rows(499, 2)
    report = deep.run_now("m")
    assert report.message == "no deep run: 499 live rows, 500 are needed"
    assert (report.path_json, deep.show(VIEW).message) == ("", report.message)
    source.known = reference(60)
    source.live = rows(600, 2)
    assert "a sample of 60 rows; 100 are needed" in deep.run_now("m").message
    assert not (tmp_path / "drift").exists()


def test_a_run_that_fails_is_said_and_the_next_one_goes_on(monkeypatch, tmp_path, caplog):
    source = Source(reference(), rows(900, 2))
    deep = runs(tmp_path, source=source)
    stand_in(monkeypatch, tmp_path / "bad", "import os\nos._exit(7)")
    deep.scheduled("m")
    assert deep.show(VIEW).message == (
        "the latest deep run failed: it ended itself (exit code 7)"
    )  # fmt: skip
    source.error = RuntimeError("a fault of the source")
    with caplog.at_level(logging.ERROR):
        deep.scheduled("m")
    assert "a fault of the source" in caplog.text
    assert deep.show(replace(VIEW, message="first")).message == (
        "first; the latest deep run failed by a fault of the monitor"
    )  # fmt: skip
    source.error = None
    stand_in(monkeypatch, tmp_path / "good")
    deep.scheduled("m")
    assert deep.show(VIEW).message == ""
    assert deep.show(VIEW).report_json


def test_a_disk_that_refuses_is_said_and_survived(monkeypatch, tmp_path):
    stand_in(monkeypatch, tmp_path)
    deep = runs(tmp_path)
    (tmp_path / "drift").write_text("a file where the folder should be")
    report = deep.run_now("m", html=False)
    assert report.path_json == ""
    assert report.message.startswith(f"the report could not be written to {tmp_path}/drift/m: ")
    assert report.summary.startswith("None of 5 columns drifted")
    assert deep.show(VIEW).message == report.message
    (tmp_path / "drift").unlink()
    assert deep.run_now("m", html=False).path_json
    assert deep.show(VIEW).message == ""


def test_accuracy_is_reported_where_labels_are_known(monkeypatch, tmp_path):
    stand_in(monkeypatch, tmp_path)
    known = reference()
    known.sample[CORRECT] = np.repeat([1.0, 0.0, np.nan], [950, 50, 1000])
    live = {**rows(900, 2), CORRECT: np.repeat([1.0, 0.0, np.nan], [600, 200, 100])}
    report = runs(tmp_path, source=Source(known, live)).run_now("m", html=False)
    kept = json.loads(Path(report.path_json).read_text())
    assert kept["accuracy"]["reference"]["rate"] == 0.95
    assert (kept["accuracy"]["current"]["right"], kept["accuracy"]["current"]["rows"]) == (600, 800)
    assert kept["accuracy"]["verdict"] == "lower"
    assert kept["drifted"] is True
    assert kept["columns_drifted"] == []
    assert "Accuracy 75.0% of 800 labelled rows" in report.summary
    assert "it fell" in report.summary
    # An alarm of its own: a page is wanted though no column drifted.
    assert report.message.startswith("no page was made")


def test_one_at_a_time_and_the_same_is_shared(monkeypatch, tmp_path):
    gate, started = tmp_path / "gate", tmp_path / "started"
    body = f"import pathlib\npathlib.Path({str(started)!r}).touch()\n"
    body += f"while not pathlib.Path({str(gate)!r}).exists(): pass"
    stand_in(monkeypatch, tmp_path, body)
    deep = runs(tmp_path, model("a"), model("b"))
    found: dict[str, object] = {}

    def begin(key: str, name: str, *, html: bool) -> threading.Thread:
        def run() -> None:
            found[key] = deep.run_now(name, html=html)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    threads = [begin("first", "a", html=True)]
    until(started.exists, "the first runs", within_s=60)
    threads += [
        begin("same", "a", html=True), begin("less", "a", html=False),
        begin("other", "b", html=True),
    ]  # fmt: skip
    waiting = deep._free._waiters
    until(lambda: len(waiting) == 3, "the others wait", within_s=60)
    assert deep.show(VIEW) == VIEW  # who asks for the status does not wait
    assert len(children()) == 1
    gate.touch()
    for thread in threads:
        thread.join(60)
    assert found["first"] is found["same"] is found["less"]
    assert (found["first"].model, found["other"].model) == ("a", "b")
    assert found["other"].path_json


def test_one_that_wants_more_than_what_runs_gets_a_run_of_its_own(monkeypatch, tmp_path):
    gate, started = tmp_path / "gate", tmp_path / "started"
    body = f"import pathlib\npathlib.Path({str(started)!r}).touch()\n"
    body += f"while not pathlib.Path({str(gate)!r}).exists(): pass"
    stand_in(monkeypatch, tmp_path, body)
    deep = runs(tmp_path)
    scheduled = threading.Thread(target=deep.scheduled, args=("m",))
    scheduled.start()
    until(started.exists, "it runs", within_s=60)
    found = []
    asked = threading.Thread(target=lambda: found.append(deep.run_now("m", html=True)))
    asked.start()
    waiting = deep._free._waiters
    until(lambda: len(waiting) == 1, "it waits", within_s=60)
    gate.touch()
    scheduled.join(60)
    asked.join(60)
    assert found[0].message.startswith("no page was made")
    assert len(list((tmp_path / "drift" / "m").glob("1970*.json"))) == 2


def test_closing_ends_the_run_under_way_and_refuses_more(monkeypatch, tmp_path):
    started = tmp_path / "started"
    stand_in(monkeypatch, tmp_path, f"open({str(started)!r}, 'w')\nwhile True: pass")
    deep = runs(tmp_path)
    deep.start()
    thread = threading.Thread(target=deep.scheduled, args=("m",))
    thread.start()
    until(started.exists, "it runs", within_s=60)
    deep.close()
    assert children() == []
    thread.join(60)
    assert "the monitor ends" in deep.show(VIEW).message
    assert deep.run_now("m").message == "the monitor ends"


def test_a_model_is_named_or_the_only_one(tmp_path):
    deep = runs(tmp_path, model("a"), model("b", drift={"enabled": False}), source=Source(None, {}))
    assert deep.run_now().model == "a"
    with pytest.raises(NotFoundError, match="no model 'b' has deep drift runs; there is a"):
        deep.run_now("b")
    with pytest.raises(InvalidRequestError, match="name one: a, c"):
        runs(tmp_path, model("a"), model("c")).run_now()
    with pytest.raises(NotFoundError, match=r"drift\.deep\.enabled"):
        runs(tmp_path, model(enabled=False)).run_now()


def test_what_is_not_installed_is_said_once_and_nothing_is_started(tmp_path, caplog):
    deep = runs(tmp_path, installed=lambda name: name != "evidently")
    with caplog.at_level(logging.INFO):
        deep.start()
    needs = "no deep runs: Evidently is not installed; install model-sidecar[drift], or set "
    needs += "drift.deep.enabled: false"
    assert caplog.messages == [needs]
    assert deep.show(VIEW).message == needs
    assert deep.run_now("m").message == needs
    deep.close()
    off = runs(tmp_path, model(enabled=False), installed=lambda name: False)
    off.start()
    assert off.show(VIEW) == VIEW


def test_a_configuration_pays_for_what_it_names_only(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from sidecar.clock import SystemClock\n"
        "from sidecar.monitor.deep.runs import DeepRuns\n"
        "from tests.monitor.deep.making import Source, model\n"
        "heavy = {'evidently', 'apscheduler', 'pandas', 'scipy'}\n"
        "for enabled in (False, True):\n"
        "    runs = DeepRuns([model(enabled=enabled)], Source(None, {}), Path(sys.argv[1]), "
        "SystemClock())\n"
        "    runs.start()\n"
        "    print(sorted(heavy & set(sys.modules)))\n"
        "    runs.close()\n"
    )
    root = Path(__file__).parents[3]
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=root, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert found.stdout.splitlines() == ["[]", "['apscheduler']"]


def test_thresholds_are_found_once_for_a_reference(monkeypatch, tmp_path):
    calls = tmp_path / "calls"
    stand_in(monkeypatch, tmp_path, f"open({str(calls)!r}, 'a').write('.')")
    source = Source(reference(), rows(900, 2))
    deep = runs(tmp_path, source=source)

    def tests_of_a_run() -> int:
        calls.write_text("")
        assert deep.run_now("m", html=False).path_json
        return len(calls.read_text())

    assert tests_of_a_run() == 505  # 100 draws and one verdict, of five columns
    source.live = rows(905, 3)  # the same step of sizes
    assert tests_of_a_run() == 5
    kept = json.loads(Path(deep.show(VIEW).report_json).read_text())
    assert {one["threshold"] for one in kept["columns"]} != {1.0}
    source.live = rows(600, 3)
    assert tests_of_a_run() == 505
    source.known = Reference.of(rows(2000, 9), COLUMNS)
    assert tests_of_a_run() == 505
