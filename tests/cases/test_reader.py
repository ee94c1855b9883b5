"""Finding a case by its path, its folder and its id; what is not there is said."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidecar.cases import CaseError, iter_cases, load_case, read_cases
from tests.cases.tools import SECOND_NS, HandClock, arrays, offer, stored, writer


@pytest.fixture
def folder(tmp_path):
    clock = HandClock()
    with writer(tmp_path / "cases", clock, reservoir=5) as one:
        for number in range(5):
            one.offer(offer(request_id=f"r{number}"), lambda number=number: arrays(number))
            clock.at_ns += SECOND_NS
    return tmp_path / "cases"


def test_a_case_is_found_by_path_by_folder_and_id_and_by_id(folder, monkeypatch):
    entries = read_cases(folder)
    assert [entry.request_id for entry in entries] == ["r0", "r1", "r2", "r3", "r4"]
    entry = entries[2]
    monkeypatch.chdir(folder)
    for where, base in [
        (entry.path, None), (str(entry.path), None), (f"{folder}#{entry.id}", None),
        (f"#{entry.id}", None), (entry.id, folder), (str(entry.path), folder),
    ]:  # fmt: skip
        case = load_case(where, base)
        assert case.request_id == "r2"
        np.testing.assert_array_equal(case.inputs["x"], np.full((1, 4), 2, np.float32))


def test_a_folder_with_a_number_sign_in_its_name_is_found(folder):
    moved = folder.rename(folder.with_name("a#b"))
    entry = read_cases(moved)[0]
    assert load_case(entry.path).id == load_case(f"{moved}#{entry.id}").id == entry.id


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("{folder}", "is a folder; say which case of it: .*#ID; it has "),
        ("{folder}#nothing", "has no case nothing; it has 2"),
        ("{folder}#../shards/x", "not the id of a case"),
        ("{folder}#", "not the id of a case"),
        ("nothing.safetensors", "there is no case nothing"),
        ("{folder}/index.parquet", "cannot be read as a case"),
        ("{empty}#a", "has no case a; it has none"),
    ],
)
def test_what_is_not_there_is_said(folder, tmp_path, where, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CaseError, match=message):
        load_case(where.format(folder=folder, empty=tmp_path / "empty"))


def test_a_folder_that_is_none_is_said(tmp_path):
    with pytest.raises(CaseError, match="is not a folder of cases"):
        read_cases(tmp_path / "nothing")
    assert read_cases(tmp_path) == [], "an empty one is none yet"


def test_an_index_cannot_lead_to_other_files(folder, tmp_path):
    secret = tmp_path / "secret.safetensors"
    shard = read_cases(folder)[0].path
    secret.write_bytes(shard.read_bytes())
    path = folder / "index.parquet"
    table = pq.read_table(path)
    hostile = ["../../secret", "/etc/passwd", "..", "a/b", "\0"]
    for column in ("id", "file"):
        at = table.schema.get_field_index(column)
        table = table.set_column(at, table.schema.field(at), pa.array(hostile))
    pq.write_table(table, path)
    assert read_cases(folder) == []
    (folder / "shards" / "copy.safetensors").write_bytes(shard.read_bytes())
    path.unlink()
    assert "copy" not in {entry.id for entry in read_cases(folder)}


def test_cases_that_are_deleted_meanwhile_are_left_out(folder):
    entries = read_cases(folder)
    found = iter_cases(folder)
    assert next(found).id == entries[0].id
    entries[1].path.unlink()
    assert [case.id for case in found] == [entry.id for entry in entries[2:]]
    assert [entry.id for entry in read_cases(folder)] == [
        entries[0].id,
        *(e.id for e in entries[2:]),
    ]
    assert stored(folder) == {entry.id for entry in read_cases(folder)}


def test_a_case_that_cannot_be_read_ends_the_reading(folder):
    read_cases(folder)[1].path.write_bytes(b"torn")
    with pytest.raises(CaseError, match="cannot be read as a case"):
        list(iter_cases(folder))


def test_reading_changes_nothing(folder):
    (folder / "index.parquet").write_bytes(b"corrupt")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert len(list(iter_cases(folder))) == 5
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
