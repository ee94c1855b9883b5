"""The parts of the demo's last act; the act itself runs in ``test_demo_e2e.py``."""

from __future__ import annotations

import http.client
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from sidecar.config import load
from sidecar.demo import rollout
from sidecar.demo.evidence import HEIGHT, WIDTH, chart, leading, share
from sidecar.demo.receiver import AlertReceiver
from sidecar.demo.rollout import RolledBack, write_config
from sidecar.monitor.view_rollback import HarmView, RollbackView

HARM = HarmView("accuracy", 200, 20, 1, 8.0, 4.6, 3.1, 6.2, may_act=True)
GOOD = RolledBack(
    requests=2000, labels=1800, state="rolled_back", metric="accuracy", decided_after=900,
    decided_s=4.0, switched_s=0.5, alert="digits: 3/onnx is worse than 2/onnx",
    accuracy={"3": 0.89, "2": 0.99}, versions_after={"2": 250},
)  # fmt: skip


def drawn(shares: list[float]) -> list[str]:
    console = Console(width=WIDTH + 10, force_terminal=False, no_color=True)
    with console.capture() as capture:
        console.print(chart(shares, "evidence"))
    return capture.get().splitlines()


def test_the_chart_shows_the_line_and_what_is_over_it():
    lines = drawn([0.0, 0.5, 1.2])
    assert lines[0] == "evidence"
    assert len(lines) == HEIGHT + 2
    (at,) = [number for number, line in enumerate(lines) if line.startswith("1.0 ┤")]
    assert lines[at][5:8].strip("╌") == "█"  # only the bar of 1.2 has reached the line
    assert lines[at][5:7] == "╌╌"
    assert lines[at].count("╌") == WIDTH - 1
    below = lines[at + 4]  # the row over the lowest
    assert below[5] == " "
    assert below[6] == "█"


def test_the_chart_keeps_the_latest():
    lines = drawn([2.0] * 500 + [0.0] * (WIDTH - 1))
    assert all(len(line.rstrip()) <= WIDTH + 5 for line in lines)
    assert lines[1][5] == "█"
    assert lines[1][6:].strip() == ""


def test_the_leading_metric_is_the_nearest_of_those_that_may_act():
    only_alerts = replace(HARM, metric="output", log_e_act=60.0, may_act=False)
    behind = replace(HARM, metric="error", log_e_act=-4.0)
    view = RollbackView("digits", "3/onnx", "2/onnx", "ok", "", metrics=[behind, only_alerts, HARM])
    found = leading(view)
    assert found == HARM
    assert share(HARM) == pytest.approx(0.5)
    assert share(behind) == 0.0
    assert leading(replace(view, metrics=[only_alerts])) is None


def test_the_configuration_is_valid_and_switches(trained, tmp_path: Path):
    path, addresses = write_config(tmp_path, "http://127.0.0.1:1/")
    for name in (rollout.WORSE_FILE, "digits-2.onnx"):
        (tmp_path / name).write_bytes((trained.folder / name).read_bytes())
    config = load(path)
    (model,) = config.models
    assert model.rollback.action.kind == "switch"
    assert [(v.version, v.roles) for v in model.variants] == [
        ("2", ("previous",)), ("3", ("serving",))
    ]  # fmt: skip
    assert config.monitor.grpc == addresses["monitor"]
    assert [channel.kind for channel in config.alerts.channels] == ["log", "cloudevents"]


def post(url: str, body: bytes) -> int:
    host = url.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(host, timeout=20)
    connection.request("POST", "/", body)
    status = connection.getresponse().status
    connection.close()
    return status


def test_the_receiver_keeps_what_comes_and_refuses_what_is_none():
    with AlertReceiver() as receiver:
        assert (
            post(receiver.url, json.dumps({"id": "a", "data": {"name": "TestAlert"}}).encode())
            == 204
        )
        assert post(receiver.url, b"{") == 400
        assert [event["id"] for event in receiver.events()] == ["a"]


def test_a_good_ending_in_words():
    assert GOOD.is_good
    text = "\n".join(GOOD.in_words())
    for part in ("after 900 requests (4.0 s), by its accuracy", "version 2 99.0%", GOOD.alert,
                 "all of the next 250 requests; 0 of 2,000 failed"):  # fmt: skip
        assert part in text


@pytest.mark.parametrize(
    "other",
    [{"state": "regressed"}, {"alert": ""}, {"failures": 1}, {"versions_after": {"2": 9, "3": 1}},
     {"problem": "no answer"}],
)  # fmt: skip
def test_what_is_no_good_ending(other):
    assert not replace(GOOD, **other).is_good


def test_a_version_that_is_not_found_worse_is_said():
    words = RolledBack(requests=9, state="ok").in_words()
    assert words == ["rollback: version 3 was not found worse (ok)"]
