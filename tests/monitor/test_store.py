"""The store on real files: what it keeps, and every way in which a disk or a file can be bad."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.dialects import postgresql

from sidecar.clock import SystemClock
from sidecar.monitor import pool_tables
from sidecar.monitor import store_tables as tables
from sidecar.monitor.store import EvidenceKey, EvidenceRow, SketchRow, Store, StoreError
from sidecar.monitor.store_files import DATABASE, LOCK
from sidecar.monitor.store_fold import KEPT, PAST
from sidecar.monitor.view import CaseView, CertificateView, VerdictEvent
from validators.sketches import LogHistogram
from validators.verdict import Verdict

CLOCK = SystemClock()
KEY = EvidenceKey("digits", "digits:2/int8", "digits:2/onnx", "scores", "disagrees", "abc", 3)
CERTIFICATE = CertificateView(
    "digits", "digits:2/int8", "digits:2/onnx", "scores", "abc", "production", 0.01, 0.05,
    "mixture", 500, 0.5, 0.0091, Verdict.PASS, 3.2, 3.4, 17, None,
)  # fmt: skip
EVENT = VerdictEvent(
    1, 12, "digits", "digits:2/int8", "digits:2/onnx", "scores", Verdict.PASS, "certified",
    CERTIFICATE,
)  # fmt: skip
CASE = CaseView(
    "c1", "digits", "digits:2/int8", "digits:2/onnx", "worst:kl", 5, "r-1", "cases/0.safetensors",
    812, True, {"kl": 0.25}, {"outcome": "OK"},
)  # fmt: skip


@pytest.fixture
def store(tmp_path):
    opened = Store.open(tmp_path, CLOCK)
    yield opened
    opened.close()


def row(incarnation: str, n: float, key: EvidenceKey = KEY) -> EvidenceRow:
    return EvidenceRow(key, incarnation, {"n": n, "k": n / 8}, 7)


def aside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if ".damaged-" in path.name)


def filled(folder: Path, rows: int = 300) -> None:
    """Leave a closed store with so many rows: large enough to lose its end."""
    opened = Store.open(folder, CLOCK)
    opened.put_evidence([row(opened.incarnation, i, replace(KEY, block=i)) for i in range(rows)])
    opened.close()


# --- what is kept ---------------------------------------------------------------------------------


def test_everything_is_there_after_a_restart(tmp_path):
    first = Store.open(tmp_path, CLOCK)
    sketch = LogHistogram()
    sketch.add(np.array([0.0, 0.5, 3.0]))
    rows = [row(first.incarnation, 8), row(first.incarnation, 16, replace(KEY, output=""))]
    first.put_evidence(rows)
    first.put_sketch(replace(KEY, metric="abs_error"), sketch.to_plain())
    first.put_certificate("digits", "digits:2/int8", "digits:2/onnx", "scores", "abc", 3.4, 17)
    first.put_cases([CASE, replace(CASE, id="c2", wall_ns=6)])
    first.append_event(EVENT)
    first.close()

    second = Store.open(tmp_path, CLOCK)
    assert second.message == ""
    assert second.incarnation != first.incarnation
    assert second.evidence() == [rows[1], rows[0]], "in the order of their keys"
    assert LogHistogram.from_plain(second.sketches("digits")[0].plain) == sketch
    assert second.sketches("digits")[0].incarnation == first.incarnation
    found = second.certificates()
    assert [(c.output, c.best_log_e, c.certified_ns) for c in found] == [("scores", 3.4, 17)]
    assert [case.id for case in second.cases()] == ["c2", "c1"]
    assert second.cases("digits")[1] == CASE
    assert second.events() == [EVENT]
    assert second.last_seq() == 1
    second.close()


def test_a_row_is_replaced_within_an_incarnation_and_added_beside_another(store):
    store.put_evidence([row(store.incarnation, 8)])
    store.put_evidence([row(store.incarnation, 16), row("another", 4)])
    assert sorted(found.cells["n"] for found in store.evidence("digits")) == [4, 16]
    assert store.evidence("other") == []


def test_a_certificate_is_never_lowered_and_keeps_its_first_date(store):
    place = ("digits", "digits:2/int8", "digits:2/onnx", "scores", "abc")
    for best, date in ((1.0, None), (3.5, 20), (2.0, None), (3.0, 30)):
        store.put_certificate(*place, best, date)
    [found] = store.certificates()
    assert (found.best_log_e, found.certified_ns) == (3.5, 20)
    store.put_certificate(*place[:-1], "other limits", -math.inf, None)
    assert {c.policy: c.best_log_e for c in store.certificates()} == {
        "abc": 3.5,
        "other limits": -math.inf,
    }


def test_cases_go_when_told_and_come_the_newest_first(store):
    store.put_cases([replace(CASE, id=f"c{i}", wall_ns=i) for i in range(5)])
    store.delete_cases(["c1", "c3", "unknown"])
    store.delete_cases([])
    assert [case.id for case in store.cases("digits", limit=2)] == ["c4", "c2"]
    assert store.cases("other") == []


def test_old_events_go_and_writing_one_again_is_harmless(store, monkeypatch):
    monkeypatch.setattr("sidecar.monitor.store.EVENTS_KEPT", 3)
    for seq in (1, 2, 3, 4, 5, 5):
        store.append_event(replace(EVENT, seq=seq, certificate=None))
    assert [event.seq for event in store.events()] == [3, 4, 5]
    assert [event.seq for event in store.events(after_seq=3, limit=1)] == [4]


def test_what_is_not_finite_is_refused_where_it_would_spoil_sums(store):
    with pytest.raises(ValueError, match="not finite"):
        store.put_evidence([EvidenceRow(KEY, "x", {"k": math.nan})])
    with pytest.raises(ValueError, match="not a number"):
        store.put_certificate("m", "c", "b", "", "", math.nan, None)
    assert store.ok


def test_lives_long_past_are_folded_and_nothing_is_lost(tmp_path):
    lives = KEPT + 4
    names = []
    for number in range(lives):
        opened = Store.open(tmp_path, CLOCK)
        names.append(opened.incarnation)
        sketch = LogHistogram()
        sketch.add(np.array([float(number)]))
        opened.put_evidence([row(opened.incarnation, 8)])
        opened.put_sketches([SketchRow(KEY, opened.incarnation, sketch.to_plain(), 1)])
        opened.close()
    with closing(Store.open(tmp_path, CLOCK)) as opened:
        rows = opened.evidence()
        assert {found.incarnation for found in rows} == {PAST, *names[-(KEPT - 1) :]}
        assert sum(found.cells["n"] for found in rows) == 8 * lives
        assert sum(found.cells["k"] for found in rows) == lives
        total = LogHistogram()
        for found in opened.sketches():
            total.merge(LogHistogram.from_plain(found.plain))
        assert total.count == lives
        assert total.largest == lives - 1


def test_several_threads_write_and_read(store):
    failures = []

    def work(number: int) -> None:
        try:
            for n in range(20):
                store.put_evidence([row(f"thread {number}", n)])
                store.evidence("digits")
        except Exception as error:  # noqa: BLE001 - shown below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [found.cells["n"] for found in store.evidence()] == [19] * 4


# --- who else is there ----------------------------------------------------------------------------


def test_a_second_monitor_is_refused_and_told_who_the_first_is(store, tmp_path):
    with pytest.raises(StoreError, match=rf"in use by process {os.getpid()}: .*state_dir"):
        Store.open(tmp_path, CLOCK)
    store.close()
    store.close()
    Store.open(tmp_path, CLOCK).close()


def test_a_killed_monitor_holds_nothing(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from sidecar.clock import SystemClock\n"
        "from sidecar.monitor.store import EvidenceKey, EvidenceRow, Store\n"
        "store = Store.open(Path(sys.argv[1]), SystemClock())\n"
        "store.put_evidence([EvidenceRow(EvidenceKey('m', 'c', 'b'), 'x', {'n': 5})])\n"
        "print('written', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "written\n"
        with pytest.raises(StoreError, match=f"process {process.pid}"):
            Store.open(tmp_path, CLOCK)
        process.kill()
        process.wait()
    with closing(Store.open(tmp_path, CLOCK)) as opened:
        assert [found.cells for found in opened.evidence()] == [{"n": 5}]


def test_a_database_locked_from_outside_costs_a_write_and_no_more(store, monkeypatch):
    monkeypatch.setattr(tables, "BUSY_TIMEOUT_MS", 1)
    store.close()
    with closing(Store.open(store.path.parent, CLOCK)) as opened:
        with closing(sqlite3.connect(opened.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match="database is locked; counting goes on in memory"):
                opened.put_evidence([row("x", 1)])
            assert not opened.ok
            assert "locked" in opened.status().message
            assert opened.evidence() == [], "reading goes on"
            other.execute("ROLLBACK")
        opened.put_evidence([row("x", 1)])
        assert (opened.ok, opened.message) == (True, "")


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("garbage", lambda data: b"this is no database at all" * 400),
        ("empty", lambda data: b""),
        ("cut", lambda data: data[: len(data) // 2]),
        ("header only", lambda data: data[:100]),
        ("overwritten", lambda data: data[:8192] + b"\xff" * (len(data) - 8192)),
    ],
)
def test_a_damaged_store_is_kept_aside_and_begun_afresh(tmp_path, caplog, name, spoil):
    filled(tmp_path)
    path = tmp_path / DATABASE
    bad = spoil(path.read_bytes())
    path.write_bytes(bad)
    with closing(Store.open(tmp_path, CLOCK)) as opened:
        [kept] = [found for found in aside(tmp_path) if not found.endswith(("-wal", "-shm"))]
        assert (tmp_path / kept).read_bytes() == bad
        assert kept in opened.message
        assert "begun afresh" in opened.status().message
        assert kept in caplog.text
        assert opened.evidence() == []
        opened.put_evidence([row(opened.incarnation, 1)])
        assert opened.ok
        assert kept in opened.message, "still said after a write that succeeded"
    with closing(Store.open(tmp_path, CLOCK)) as opened:
        assert opened.message == ""
        assert len(opened.evidence()) == 1


def test_twice_damaged_in_one_second_keeps_both(tmp_path):
    class Stopped:
        def now_ns(self) -> int:
            return 1_000_000_000

        def monotonic_ns(self) -> int:
            return 0

    for text in (b"one" * 999, b"two" * 999):
        (tmp_path / DATABASE).write_bytes(text)
        Store.open(tmp_path, Stopped()).close()
    first, second = (tmp_path / kept for kept in aside(tmp_path))
    assert (first.name, second.name) == (
        f"{DATABASE}.damaged-19700101T000001Z",
        f"{DATABASE}.damaged-19700101T000001Z-2",
    )
    assert first.read_bytes() == b"one" * 999
    assert second.read_bytes() == b"two" * 999


def test_damage_while_it_is_open_is_repaired_by_the_next_write(store, tmp_path):
    store.put_evidence([row("x", 1)])
    with closing(sqlite3.connect(store.path)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.path.write_bytes(b"\xff" * store.path.stat().st_size)
    for _ in range(3):  # what the pages in memory still answer is the database's choice
        try:
            store.put_evidence([row("x", 2)])
        except StoreError:
            assert not store.ok
    store.put_evidence([row("x", 3)])
    assert store.ok
    assert store.generation == 1
    assert aside(tmp_path) != []
    assert [found.cells["n"] for found in store.evidence()] == [3]


def test_a_folder_emptied_while_it_is_open_is_filled_again(store, tmp_path):
    store.put_evidence([row("x", 1)])
    for path in tmp_path.iterdir():
        path.unlink()
    store.put_evidence([row("x", 2)])
    assert store.generation == 1
    assert store.path.exists()
    assert [found.cells["n"] for found in store.evidence()] == [2]


def test_a_row_that_cannot_be_read_is_said_and_left_out(store):
    store.put_evidence([row("x", 1), row("y", 2)])
    with closing(sqlite3.connect(store.path)) as other:
        other.execute("UPDATE evidence SET cells = '{\"n\"' WHERE incarnation = 'x'")
        other.commit()
    assert [found.incarnation for found in store.evidence()] == ["y"]
    assert "unreadable rows: 1 in evidence" in store.status().message


def test_a_store_of_a_newer_release_is_left_alone(tmp_path):
    filled(tmp_path, rows=1)
    path = tmp_path / DATABASE
    with closing(sqlite3.connect(path)) as other:
        other.execute("UPDATE alembic_version SET version_num = '9999'")
        other.commit()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"newer release .revision 9999, .*upgrade model-sidecar"):
        Store.open(tmp_path, CLOCK)
    assert path.read_bytes() == before
    assert aside(tmp_path) == []
    with pytest.raises(StoreError, match="newer release"):  # and not: in use
        Store.open(tmp_path, CLOCK)


def test_a_database_of_something_else_is_left_alone(tmp_path):
    with closing(sqlite3.connect(tmp_path / DATABASE)) as other:
        other.execute("CREATE TABLE evidence (what TEXT)")
        other.commit()
    with pytest.raises(StoreError, match="already exists"):
        Store.open(tmp_path, CLOCK)
    assert aside(tmp_path) == []
    with closing(sqlite3.connect(tmp_path / DATABASE)) as other:
        names = [name for (name,) in other.execute("SELECT name FROM sqlite_master")]
    assert names == ["evidence"], "the migration took back what it had begun"


# --- disks ----------------------------------------------------------------------------------------

_FILL = """
import json, resource, sys
from pathlib import Path
from sidecar.clock import SystemClock
from sidecar.monitor.store import EvidenceKey, EvidenceRow, Store, StoreError

store = Store.open(Path(sys.argv[1]), SystemClock())
rows = []
said = {}
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
for block in range(100_000):
    rows.append(EvidenceRow(EvidenceKey("m", "c" * 2000, "b", block=block), "x", {"n": block}))
    try:
        store.put_evidence(rows[-1:])
    except StoreError as error:
        said = {"text": str(error), "ok": store.status().ok, "message": store.message}
        break
try:
    store.put_evidence(rows[-1:])
    said["again"] = ""
except StoreError as error:
    said["again"] = str(error)
said["read"] = len(store.evidence())
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.put_evidence(rows)
said["after"] = {"ok": store.ok, "rows": len(store.evidence()), "message": store.message}
said["expected"] = len(rows)
store.close()
print(json.dumps(said))
"""


def test_a_full_disk_costs_a_write_and_the_next_one_says_all_of_it(tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", _FILL, str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    said = json.loads(found.stdout)
    assert "counting goes on in memory" in said["text"]
    assert (said["ok"], said["message"]) == (False, said["text"])
    assert said["again"] != "", "still full"
    assert said["read"] == said["expected"] - 1, "what was written before is whole"
    assert said["after"] == {"ok": True, "rows": said["expected"], "message": ""}
    assert found.stderr.count("cannot be written") == 1, "said once"
    with closing(Store.open(tmp_path, CLOCK)) as opened:
        assert opened.message == ""
        assert len(opened.evidence()) == said["expected"]


def test_a_place_that_is_no_folder_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"folder .*file cannot be used"):
        Store.open(tmp_path / "file", CLOCK)
    with pytest.raises(StoreError, match="cannot be used: Not a directory"):
        Store.open(tmp_path / "file" / "deeper", CLOCK)


def test_a_database_that_is_a_folder_is_said_and_the_lock_is_let_go(tmp_path):
    (tmp_path / DATABASE).mkdir()
    (tmp_path / DATABASE / "x").write_text("")
    for _ in range(2):
        with pytest.raises(StoreError, match="cannot be opened: unable to open database file"):
            Store.open(tmp_path, CLOCK)
    assert (tmp_path / LOCK).exists()


def test_a_closed_store_says_so(store):
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.put_evidence([row("x", 1)])
    with pytest.raises(StoreError, match="is closed"):
        store.evidence()


# --- migrations -----------------------------------------------------------------------------------


def test_the_migrations_make_the_tables_that_the_code_knows(store):
    engine = sa.create_engine(f"sqlite:///{store.path}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert pool_tables.RESTS.metadata is tables.METADATA  # all of them are in one
        assert compare_metadata(context, tables.METADATA) == []
        mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
    engine.dispose()
    assert mode == "wal"


def test_the_statements_are_those_of_postgresql_as_well():
    dialect = postgresql.dialect()
    statement = tables.upsert_statement(dialect, tables.CERTIFICATES, tables.never_lower(dialect))
    text = " ".join(str(statement.compile(dialect=dialect)).split())
    assert "ON CONFLICT (model, candidate, baseline, output, policy) DO UPDATE SET" in text
    assert "CASE WHEN (excluded.best_log_e > certificates.best_log_e)" in text
    assert "coalesce(certificates.certified_ns, excluded.certified_ns)" in text
