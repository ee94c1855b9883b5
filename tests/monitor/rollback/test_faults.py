"""Everything that can go wrong around a decision: exactly one decision, one action, one alert."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from sidecar.errors import UnavailableError
from sidecar.monitor import store_tables as tables
from sidecar.monitor.store import StoreError
from tests.monitor.rollback.bench import NEW, Bench, Clock
from tests.monitor.rollback.dying import FileLever

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "gap", ["deciding", "decided", "check", "perform", "performed", "verify", "verified"]
)
def test_a_process_that_is_killed_leaves_exactly_one_action(tmp_path: Path, gap: str):
    command = [sys.executable, "-m", "tests.monitor.rollback.dying", str(tmp_path), gap]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    clock = Clock()
    clock.advance(30)
    bench = Bench(tmp_path / "state", clock, lever := FileLever(tmp_path))
    fence = [one.fence for one in bench.book.decisions()]
    assert fence == ([] if gap == "deciding" else [2]), "taken over from the life that died"
    if gap == "deciding":
        bench.pairs(1)  # when the latest was seen was not written either
    bench.check()
    assert [name for name, _, _ in bench.alerts()] == ["ModelRollback"]
    bench.act(4)
    assert bench.state == "rolled_back", bench.decision()
    assert lever.moves == ["previous"]
    assert len(bench.book.decisions()) == 1
    assert [(name, state) for name, state, _ in bench.alerts()] == [("ModelRollback", "resolved")]
    bench.close()


def test_a_locked_store_decides_nothing_and_says_so(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tables, "BUSY_TIMEOUT_MS", 1)
    bench = Bench(tmp_path)
    bench.pairs(2000, new_only=60)
    assert bench.store is not None
    with closing(sqlite3.connect(bench.store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        bench.check()
        bench.act(3)
        assert bench.book.decisions() == []
        assert bench.lever.calls == []
        assert bench.told == []
        assert bench.state == "insufficient"
        assert "database is locked" in bench.view.text
        with pytest.raises(UnavailableError, match="locked"):
            bench.operators.freeze("m", frozen=True, by="ann", reason="")
        other.execute("ROLLBACK")
    assert bench.alerts() == []
    bench.check()
    assert bench.state == "regressed"
    assert "locked" not in bench.view.text
    bench.act(2)
    assert bench.state == "rolled_back"
    bench.close()


def test_a_store_that_is_locked_between_decision_and_action_stops_the_action(
    tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(tables, "BUSY_TIMEOUT_MS", 1)
    bench = Bench(tmp_path)
    bench.pairs(2000, new_only=60)
    bench.check()
    assert bench.store is not None
    with closing(sqlite3.connect(bench.store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        bench.act(3)
        assert bench.lever.count("check") > 0
        assert bench.lever.count("perform") == 0
        other.execute("ROLLBACK")
    bench.act(2)
    assert bench.state == "rolled_back"
    bench.close()


def test_no_store_no_action(tmp_path: Path):
    bench = Bench(tmp_path)
    store, bench.store = bench.store, None
    bench.pairs(2000, new_only=60)
    bench.check()
    bench.act(3)
    assert "there is no store" in bench.view.text
    assert bench.lever.calls == []
    bench.store = store  # it could be opened at last
    bench.check()
    bench.act(2)
    assert bench.state == "rolled_back"
    bench.close()


def test_a_store_that_is_spoilt_while_open_is_told_all_again(tmp_path: Path):
    bench = Bench(tmp_path)
    bench.operators.freeze("m", frozen=True, by="ann", reason="careful")
    bench.pairs(2000, new_only=60)
    bench.check()
    assert bench.store is not None
    for path in tmp_path.glob("monitor.sqlite3*"):
        path.unlink()
    bench.pairs(1)
    bench.check()
    bench.check()
    bench.close()
    again = Bench(tmp_path, bench.clock)
    again.check()
    assert again.state == "regressed"
    assert again.view.frozen_text == "by ann: careful"
    assert again.decision().text == bench.told[0].text
    again.close()


def test_rows_that_cannot_be_read_are_left_out(tmp_path: Path):
    bench = Bench(tmp_path)
    bench.pairs(2000, new_only=60)
    bench.check()
    bench.operators.freeze("m", frozen=True, by="ann", reason="")
    bench.close()
    assert bench.store is not None
    with closing(sqlite3.connect(bench.store.path)) as other:
        for table in ("rollback_pairs", "decisions", "rollback_freezes"):
            other.execute(f"UPDATE {table} SET plain = 'no json'")
        other.commit()
    again = Bench(tmp_path, bench.clock)
    assert again.view.frozen, "a freeze that cannot be read is one all the same"
    assert again.book.decisions() == []
    again.close()


def test_a_full_disk_decides_nothing(tmp_path: Path):
    code = """
import json, resource, sys
from pathlib import Path
from tests.monitor.rollback.bench import Bench

bench = Bench(Path(sys.argv[1]))
bench.pairs(2000, new_only=60)
size = bench.store.path.with_name(bench.store.path.name + "-wal").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
bench.check()
bench.act(3)
full = [bench.view.text, len(bench.book.decisions()), len(bench.lever.calls)]
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
bench.check()
bench.act(2)
print(json.dumps([full, bench.state, len(bench.book.decisions()), bench.firing()]))
"""
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert '0, 0], "rolled_back", 1, []]' in found.stdout
    assert "cannot be written" in found.stdout


# --- two at once ----------------------------------------------------------------------------------


def test_the_folder_is_one_monitors(tmp_path: Path):
    bench = Bench(tmp_path)
    with pytest.raises(StoreError, match="is in use"):
        Bench(tmp_path)
    bench.close()


# --- late and repeated ----------------------------------------------------------------------------


def test_pairs_that_come_late_change_nothing_that_was_done(tmp_path: Path):
    bench = Bench(tmp_path)
    bench.pairs(2000, new_only=60)
    bench.check()
    bench.act(2)
    for _ in range(5):
        bench.pairs(1000, new_only=100)
        bench.traffic = {NEW: (5000, 2)}
        bench.check()
        bench.act(1)
    assert bench.state == "rolled_back"
    assert bench.lever.count("perform") == 1
    assert len(bench.book.decisions()) == 1
    bench.close()


def test_a_wall_clock_that_jumps_makes_nothing_stale_and_nothing_fresh(tmp_path: Path):
    bench = Bench(tmp_path)
    bench.pairs(500)
    bench.traffic = {NEW: (500, 0)}
    bench.check()
    for jump_s in (86_400.0, -2 * 86_400.0):
        bench.clock.jump(jump_s)
        bench.traffic = {NEW: (bench.traffic[NEW][0] + 500, 0)}
        bench.check()
        assert (bench.state, bench.view.stale) == ("ok", False)
    bench.pairs(2000, new_only=60)
    bench.check()
    bench.act(2)
    assert bench.state == "rolled_back"
    bench.close()
