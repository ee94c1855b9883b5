"""Reports on disk: whole or not at all, pruned, by models of any name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.monitor.deep.reports import Reports, folder_name, stamp

SECOND = 10**9
NOW = 1_767_323_045_678_000_000


def write(reports: Reports, wall_ns: int, page: bytes | None = None):
    return reports.write({"made_wall_ns": wall_ns, "drifted": False}, page)


def names(reports: Reports) -> list[str]:
    return sorted(path.name for path in reports.folder.iterdir())


def test_a_report_is_found_again_with_its_page(tmp_path):
    reports = Reports.of(tmp_path, "digits", keep=5)
    assert reports.latest() is None
    kept = write(reports, NOW, b"<html>")
    assert kept.path == tmp_path / "drift" / "digits" / "20260102T030405.678Z.json"
    assert json.loads(kept.path.read_text())["page"] == "20260102T030405.678Z.html"
    assert kept.page.read_bytes() == b"<html>"
    assert Reports.of(tmp_path, "digits", keep=5).latest() == kept
    later = write(reports, NOW + SECOND)
    assert later.page is None
    assert reports.latest() == later
    assert kept.path.stat().st_mode & 0o777 == 0o600
    assert kept.path.parent.stat().st_mode & 0o777 == 0o700


def test_the_oldest_go_with_their_pages_and_nothing_else(tmp_path):
    reports = Reports(tmp_path, keep=3)
    (tmp_path / "notes.json").write_text("{}")
    reports.write_thresholds("k", {"x": 1.0})
    for at in range(5):
        write(reports, NOW + at * SECOND, b"page" if at in {0, 3} else None)
    assert names(reports) == [
        "20260102T030407.678Z.json", "20260102T030408.678Z.html", "20260102T030408.678Z.json",
        "20260102T030409.678Z.json", "notes.json", "thresholds.json",
    ]  # fmt: skip


def test_two_of_one_moment_are_two_and_the_last_is_the_latest(tmp_path):
    reports = Reports(tmp_path, keep=3)
    made = [write(reports, NOW) for _ in range(12)]
    assert len({kept.path for kept in made}) == 12
    assert reports.latest() == made[-1]
    assert len(names(reports)) == 3


def test_a_clock_that_went_back_does_not_lose_the_new_report(tmp_path):
    reports = Reports(tmp_path, keep=1)
    write(reports, NOW + 3600 * SECOND)
    kept = write(reports, NOW)
    assert names(reports) == [kept.path.name]
    assert reports.latest() == kept


def test_one_that_is_torn_is_passed_over_and_leftovers_go(tmp_path):
    reports = Reports(tmp_path, keep=5)
    kept = write(reports, NOW)
    for name in ("20270101T000000.000Z.json", "20270102T000000.000Z.json"):
        (tmp_path / name).write_text('{"made_wa' if "01T" in name else '{"made_wall_ns": "soon"}')
    (tmp_path / ".tmp-20260101T000000.000Z.html").write_text("half")
    assert reports.latest() == kept
    write(reports, NOW + SECOND)
    assert not [name for name in names(reports) if name.startswith(".tmp")]


FULL = """
import resource, sys
from pathlib import Path
from sidecar.monitor.deep.reports import Reports
reports = Reports(Path(sys.argv[1]), keep=3)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    reports.write({"made_wall_ns": 10**18}, b"x" * 10_000)
except OSError as error:
    print(type(error).__name__)
print(*[path.name for path in Path(sys.argv[1]).iterdir()])
reports.write({"made_wall_ns": 10**18}, b"small")
print(*sorted(path.suffix for path in Path(sys.argv[1]).iterdir()))
"""


def test_what_does_not_fit_leaves_nothing(tmp_path):
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == ["OSError", "", ".html .json"]


def test_thresholds_are_those_of_their_key(tmp_path):
    reports = Reports(tmp_path / "new", keep=5)
    assert reports.read_thresholds("a") == {}
    reports.write_thresholds("a", {"x": 0.25})
    assert reports.read_thresholds("a") == {"x": 0.25}
    assert reports.read_thresholds("b") == {}
    reports.write_thresholds("b", {"y": 1.0})
    assert reports.read_thresholds("a") == {}
    for torn in ("", "[]", '{"key": "b", "thresholds": [1]}', '{"key": "b"}'):
        (tmp_path / "new" / "thresholds.json").write_text(torn)
        assert reports.read_thresholds("b") == {}


@pytest.mark.parametrize("name", ["digits", "a.b-c_d", "Resnet50"])
def test_a_plain_name_is_its_folders(name):
    assert folder_name(name) == name


def test_any_other_name_stays_in_its_folder_and_apart():
    odd = ["", ".", "..", "../x", "a/b", "a_b/", "ä", "a b", "x" * 101, "x" * 102, "\0", "-/.."]
    made = [folder_name(name) for name in odd]
    assert len(set(made)) == len(odd)
    for folder in made:
        assert Path(folder).name == folder
        assert folder not in {"", ".", ".."}
        assert len(folder.encode()) < 255
    assert not set(made) & {"digits", "a_b"}


def test_a_stamp_is_utc():
    assert stamp(0) == "19700101T000000.000Z"
    assert stamp(NOW) == "20260102T030405.678Z"
