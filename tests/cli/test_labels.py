"""Files of labels: what is read of each kind, and what is said of one that cannot be."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidecar.cli.labels_file import LabelFileError, read
from tests.cli.conftest import sidecar


def read_all(path):
    return [(one.request_id, one.values) for one in read(path, "m")]


def parquet(folder, **columns):
    path = folder / "labels.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def text(folder, name, content):
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def test_parquet_with_one_label_a_request(tmp_path):
    found = read_all(parquet(tmp_path, request_id=["a", "b"], label=[3, 4], more=[0, 0]))
    assert found == [("a", (3,)), ("b", (4,))]
    assert read_all(parquet(tmp_path, request_id=["a"], label=["cat"])) == [("a", ("cat",))]
    assert read_all(parquet(tmp_path, request_id=["a"], label=[[1.5, 2]])) == [("a", (1.5, 2.0))]


def test_parquet_with_rows(tmp_path):
    path = parquet(tmp_path, request_id=["a", "a", "b", "a"], row=[1, 0, 0, 0], label=[7, 8, 9, 5])
    # Lines of one request that do not follow one another are two labels, of which one will count.
    assert read_all(path) == [("a", (8, 7)), ("b", (9,)), ("a", (5,))]


def test_csv(tmp_path):
    path = text(tmp_path, "l.csv", "label,request_id,row\n3,a,0\n2.5,a,1\ncat,b,\n")
    assert read_all(path) == [("a", (3, 2.5)), ("b", ("cat",))]


def test_json_lines(tmp_path):
    lines = [{"request_id": "a", "label": 3}, {"request_id": "b", "label": [1, "cat"]}]
    path = text(tmp_path, "l.jsonl", "\n\n".join(map(json.dumps, lines)) + "\n")
    assert read_all(path) == [("a", (3,)), ("b", (1, "cat"))]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.txt", "x", "is no Parquet file, and its name ends in none of .csv, .jsonl"),
        ("l.csv", "request_id,truth\n", "has no column 'label'; its columns: request_id, truth"),
        ("l.csv", "", "has no column 'request_id'; its columns: none"),
        ("l.csv", "request_id,label\n,3\n", "line 2: request_id is ''; it must be a text"),
        ("l.csv", "request_id,label,row\na,1,x\n", "line 2: row is 'x'; it must be a whole number"),
        (
            "l.csv",
            "request_id,label,row\na,1,0\na,1,2\n",
            "line 2: the rows of request 'a' are not",
        ),
        ("l.csv", f"request_id,label\na,{2**63}\n", "label is 9223372036854775808; it must be"),
        ("l.jsonl", "{\n", "line 1 is not JSON"),
        ("l.jsonl", "3\n", "line 1 is no object"),
        ("l.jsonl", '{"label": 3}\n', "line 1 has no column 'request_id'; its columns: label"),
        ("l.jsonl", '{"request_id": "a", "label": null}\n', "line 1: label is None; it must be"),
        ("l.jsonl", '{"request_id": 7, "label": 1}\n', "line 1: request_id is 7; it must be"),
        ("l.parquet", "PAR1 and nothing", "cannot be read"),
    ],
)
def test_what_cannot_be_read_says_where(tmp_path, name, content, message):
    with pytest.raises(LabelFileError) as caught:
        read_all(text(tmp_path, name, content))
    assert message in str(caught.value)


def test_the_command_says_so_too(tmp_path):
    found = sidecar("labels", "127.0.0.1:1", str(tmp_path / "none.csv"), "--model", "m")
    assert found.returncode == 1
    assert "none.csv cannot be read: No such file or directory" in found.stderr
    path = text(tmp_path, "l.csv", "request_id,label\na,1\n")
    found = sidecar("labels", "127.0.0.1:1", str(path), "--model", "m")
    assert found.returncode != 0
    assert "no monitor answers at 127.0.0.1:1" in found.stderr
