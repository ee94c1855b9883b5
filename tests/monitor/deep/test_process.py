"""The child does whatever it wants; the monitor gets to know how it ended, and nothing worse."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from sidecar.clock import SystemClock
from sidecar.monitor.deep import process as process_module
from sidecar.monitor.deep import protocol
from sidecar.monitor.deep.process import DeepProcess, Limits
from tests.e2e.support import until
from tests.monitor.deep.making import job, stand_in

ROOMY = Limits(timeout_s=90, memory_max_bytes=2**30)


def run(made=None, limits: Limits = ROOMY):
    return DeepProcess(made or job(), limits, SystemClock()).run()


def children() -> list[psutil.Process]:
    """Processes of deep runs that this one started and has not waited for."""
    return [
        child
        for child in psutil.Process().children()
        if "sidecar.monitor.deep.child" in child.cmdline()
    ]


@pytest.fixture(autouse=True)
def none_is_left():
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert children() == []
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_run_answers_for_every_column(monkeypatch, tmp_path):
    stand_in(monkeypatch, tmp_path, "import os\nassert os.environ['DO_NOT_TRACK'] == '1'")
    ran = run()
    assert (ran.failure, ran.message, ran.page) == ("", "", None)
    names = [one["column"] for one in ran.result["columns"]]
    assert names == ["x.mean", "x.max", "x.odd", "y.argmax", "y.ok"]
    assert {one["value"] for one in ran.result["columns"]} == {0.5}
    assert ran.peak_bytes > 0
    assert ran.seconds > 0


def test_missing_evidently_is_said(monkeypatch, tmp_path):
    stand_in(monkeypatch, tmp_path, at_import="raise ModuleNotFoundError('no evidently here')")
    ran = run()
    assert (ran.failure, ran.result) == ("refused", None)
    assert ran.message == (
        "Evidently cannot be imported (ModuleNotFoundError: no evidently here)"
    )  # fmt: skip


def test_one_that_takes_too_long_is_ended(monkeypatch, tmp_path):
    stand_in(monkeypatch, tmp_path, "while True: pass")
    ran = run(limits=Limits(3, 2**30))
    assert (ran.failure, ran.result) == ("timeout", None)
    assert ran.message == "it had not ended after 3 s (drift.deep.timeout_s), and was ended"
    assert 3 <= ran.seconds < 60


def test_one_that_hangs_while_it_imports_is_ended_as_well(monkeypatch, tmp_path):
    at_import = "import signal\nsignal.pause()"
    stand_in(monkeypatch, tmp_path, at_import=at_import)
    assert run(limits=Limits(2, 2**30)).failure == "timeout"


def test_memory_that_is_really_taken_is_limited(monkeypatch, tmp_path):
    # Reserved before the start is measured, so that the limit on addresses does not see it.
    at_import = "import mmap\nheld = mmap.mmap(-1, 2**30)"
    body = "import evidently, mmap\nfor at in range(0, 2**30, 4096): evidently.held[at] = 1\n"
    stand_in(monkeypatch, tmp_path, body + "while True: pass", at_import=at_import)
    ran = run(limits=Limits(90, 2**28))
    assert (ran.failure, ran.result) == ("memory", None)
    assert "which is over the 256 MiB above its start" in ran.message
    assert "drift.deep.memory_max_bytes" in ran.message


def test_memory_that_is_asked_for_at_once_is_refused(monkeypatch, tmp_path):
    stand_in(monkeypatch, tmp_path, "import numpy\nnumpy.zeros(2**33)")
    ran = run(limits=Limits(90, 2**28), made=job(memory_max_bytes=2**28))
    assert (ran.failure, ran.result) == ("refused", None)
    assert ran.message == "it took more memory than drift.deep.memory_max_bytes allows"


def test_an_import_may_take_more_than_a_run_may_but_not_everything(monkeypatch, tmp_path):
    at_import = "import mmap, time\nheld = mmap.mmap(-1, 2**28)\n"
    at_import += "for at in range(0, 2**28, 4096): held[at] = 1\n"
    stand_in(monkeypatch, tmp_path, at_import=at_import)
    assert run(limits=Limits(90, 2**27)).failure == ""
    monkeypatch.setattr(process_module, "IMPORT_BYTES_MAX", 2**27)
    stand_in(monkeypatch, tmp_path / "more", at_import=at_import + "while True: pass")
    ran = run()
    assert ran.failure == "memory"
    assert ran.message.startswith("importing Evidently took ")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import os\nos.abort()", "signal 6"),
        ("import os\nos.kill(os.getpid(), 9)", "signal 9: killed from outside"),
        (
            "import os, sys\nprint('the last words', file=sys.stderr, flush=True)\nos._exit(3)",
            "exit code 3): the last words",
        ),
        ("import os\nos._exit(0)", "exit code 0"),
    ],
)
def test_one_that_ends_itself_is_told_by_how(monkeypatch, tmp_path, body, said):
    stand_in(monkeypatch, tmp_path, body)
    ran = run()
    assert (ran.failure, ran.result) == ("crash", None)
    assert said in ran.message


SEND = """
import json, os, socket, sys
from sidecar.frames import send
channel = socket.socket(fileno=os.dup(int(sys.argv[1])))
"""


@pytest.mark.parametrize(
    "body",
    [
        "import os, sys\nos.write(int(sys.argv[1]), b'GARBAGE!' * 1000)\nos._exit(0)",
        SEND + "send(channel, 200, {})\nwhile True: pass",
        SEND + "send(channel, 3, {}, [b'{\"columns\": []}'])\nwhile True: pass",
        SEND + "send(channel, 3, {}, [b'no json'])\nwhile True: pass",
        SEND + "send(channel, 3, {}, [])\nwhile True: pass",
        SEND + "send(channel, 5, {})\nwhile True: pass",
        SEND + "send(channel, 3, {}, [b'[' * 100_000])\nwhile True: pass",
    ],
)
def test_garbage_is_no_result_and_no_exception(monkeypatch, tmp_path, body):
    stand_in(monkeypatch, tmp_path, body)
    ran = run()
    assert (ran.failure, ran.result, ran.page) == ("garbage", None, None)
    assert ran.message.startswith("it sent ")


def test_numbers_that_are_none_are_garbage(monkeypatch, tmp_path):
    stand_in(monkeypatch, tmp_path, "Score.drift_score = float('inf')")
    result = run().result  # said as null, which JSON has
    assert [one["value"] for one in result["columns"]] == [None] * 5
    body = SEND + (
        "one = dict(column='x.mean', type='numeric', method='', method_name='', value=NUMBER, "
        "threshold=1, drifted_when='', drifted=False, note='', missing=dict(reference=0, "
        "current=0), infinite=dict(reference=0, current=0))\n"
        "rest = [dict(one, column=name) for name in ('x.max', 'x.odd', 'y.argmax', 'y.ok')]\n"
        "text = json.dumps(dict(columns=[one, *rest], calibrated={}, calibration_draws=0, "
        "calibration_note=''))\n"
        "send(channel, 3, {}, [text.encode()])\nos._exit(0)"
    )
    stand_in(monkeypatch, tmp_path / "good", body.replace("NUMBER", "0.5"))
    assert run().failure == ""
    for at, number in enumerate(("float('nan')", "True", "'0.5'", "[]")):
        stand_in(monkeypatch, tmp_path / str(at), body.replace("NUMBER", number))
        assert run().failure == "garbage"


def test_verdicts_stand_where_the_page_cannot_be_made_or_takes_too_long(monkeypatch, tmp_path):
    stand_in(monkeypatch, tmp_path)  # it has no pages at all
    ran = run(job(page="always"))
    assert (ran.failure, ran.page) == ("", None)
    assert ran.message.startswith("no page was made: ImportError")
    assert len(ran.result["columns"]) == 5
    stand_in(monkeypatch, tmp_path / "slow")
    metrics = tmp_path / "slow" / "stand-in" / "evidently" / "__init__.py"
    metrics.write_text("def __getattr__(name):\n    while name == 'DataDefinition': pass\n")
    ran = run(job(page="always"), Limits(4, 2**30))
    assert (ran.failure, ran.page) == ("timeout", None)
    assert len(ran.result["columns"]) == 5


def test_no_page_is_made_where_nothing_drifted(monkeypatch, tmp_path):
    stand_in(monkeypatch, tmp_path)
    assert run(job(page="on_drift")).message == ""
    stand_in(monkeypatch, tmp_path / "drifted", "Score.drifted = True")
    assert run(job(page="on_drift")).message.startswith("no page was made")


def test_it_reaches_no_other_machine(monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        at_import = f"import socket\nsocket.create_connection({server.getsockname()!r})"
        stand_in(monkeypatch, tmp_path, at_import=at_import)
        ran = run()
        with pytest.raises(BlockingIOError):
            server.accept()
    assert ran.failure == "refused"
    assert "PermissionError: a deep drift run has no business on the network" in ran.message


def test_it_gives_way_to_everything_else(monkeypatch, tmp_path):
    place = tmp_path / "seen"
    body = (
        "import os, pathlib, resource\n"
        "score = pathlib.Path('/proc/self/oom_score_adj').read_text().strip()\n"
        "limits = [resource.getrlimit(getattr(resource, name))[0] "
        "for name in ('RLIMIT_CORE', 'RLIMIT_FSIZE')]\n"
        f"pathlib.Path({str(place)!r}).write_text(repr([os.nice(0), int(score), *limits]))"
    )
    stand_in(monkeypatch, tmp_path, body)
    assert run().failure == ""
    nice = max(process_module.NICE, os.nice(0))
    assert place.read_text() == repr([nice, 900, 0, protocol.ANSWER_BYTES_MAX])


def test_it_is_ended_when_the_monitor_ends(monkeypatch, tmp_path):
    started = tmp_path / "started"
    stand_in(monkeypatch, tmp_path, f"open({str(started)!r}, 'w')\nwhile True: pass")
    running = DeepProcess(job(), ROOMY, SystemClock())
    ran = []
    thread = threading.Thread(target=lambda: ran.append(running.run()))
    thread.start()
    until(started.exists, "it runs", within_s=60)
    running.stop()
    thread.join(60)
    assert ran[0].failure == "stopped"


def test_it_does_not_outlive_a_monitor_that_is_killed(monkeypatch, tmp_path):
    place = tmp_path / "pid"
    body = f"import os, pathlib\npathlib.Path({str(place)!r}).write_text(str(os.getpid()))\n"
    stand_in(monkeypatch, tmp_path, body + "while True: pass")
    code = "from tests.monitor.deep.test_process import run\nrun()"
    root = Path(__file__).parents[3]
    with subprocess.Popen([sys.executable, "-c", code], cwd=root) as monitor:
        pid = int(until(lambda: place.exists() and place.read_text(), "it runs", within_s=60))
        assert psutil.pid_exists(pid)
        monitor.kill()
    # Its new parent may be slow to take note of its end.
    until(lambda: not _runs(pid), "it ends as well", within_s=60)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_one_that_cannot_be_started_is_said(monkeypatch):
    monkeypatch.setattr(process_module.sys, "executable", "/nowhere/python")
    ran = run()
    assert ran.failure == "start"
    assert "No such file" in ran.message
