"""A folder of cases: within its bounds, whole after a crash, usable after a full disk."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidecar.cases import (
    Arrays,
    CaseError,
    CaseWriter,
    files,
    hash_array,
    iter_cases,
    load_case,
    read_cases,
)
from tests.cases.tools import (
    DAY_NS,
    SECOND_NS,
    START_NS,
    HandClock,
    arrays,
    config,
    never,
    offer,
    stored,
    writer,
)


def fill(one, count, clock=None, **changes):
    """Offer so many exchanges, a second apart where there is a clock."""
    ids = []
    for number in range(count):
        ids.append(one.offer(offer(**changes), lambda number=number: arrays(number)))
        if clock is not None:
            clock.at_ns += SECOND_NS
    return ids


# --- what is kept ---------------------------------------------------------------------------------


def test_what_is_not_wanted_is_not_even_read(tmp_path):
    with writer(tmp_path, per_failure=1) as one:
        assert one.offer(offer(), never) is None
        assert one.offer(offer(failure="boom"), arrays) is not None
        assert one.offer(offer(failure="boom"), never) is None
        assert one.counters["offered"] == 3
        assert one.counters["kept"] == 1


def test_a_case_tells_everything_that_was_said_of_it(tmp_path):
    clock = HandClock()
    with writer(tmp_path, clock, reservoir=5, worst=5, per_failure=5) as one:
        case_id = one.offer(
            offer(
                failure="disagrees", metrics={"y.sqnr_db": 12.5, "y.free": float("nan")},
                limited={"y.sqnr_db": "lower"}, request_id="r-1", time_ns=START_NS - 1,
                info={"rows": 3, "path": Path("x")},
            ),
            arrays,
        )  # fmt: skip
    (entry,) = read_cases(tmp_path)
    case = load_case(entry.path)
    for found in (entry, case):
        assert found.id == case_id
        assert (found.model, found.candidate, found.baseline) == ("m", "m:2/int8", "m:1/fp32")
        assert found.variants == ("m:1/fp32", "m:2/int8")
        assert found.reasons == ("failure:disagrees", "worst:y.sqnr_db", "reservoir")
        assert found.reason == "failure:disagrees"
        assert found.metrics["y.sqnr_db"] == 12.5
        assert np.isnan(found.metrics["y.free"])
        assert found.limited == {"y.sqnr_db": "lower"}
        assert (found.request_id, found.time_ns) == ("r-1", START_NS - 1)
        assert found.info == {"rows": 3, "path": "x"}
        assert found.can_be_replayed
        assert found.nbytes == entry.path.stat().st_size
    assert case.inputs["x"].tolist() == [[1, 1, 1, 1]]
    assert case.outputs["m:2/int8"]["y"].tolist() == [[3, 3, 3, 3]]


def test_what_is_kept_is_a_copy(tmp_path):
    buffer = bytearray(np.ones(4, np.float32).tobytes())
    view = np.frombuffer(buffer, np.float32)
    with writer(tmp_path, reservoir=1) as one:
        case_id = one.offer(offer(), lambda: Arrays({"x": view}, {"m:1/fp32": {"y": view}}))
        buffer[:] = bytes(len(buffer))
    case = load_case(f"{tmp_path}#{case_id}")
    assert case.inputs["x"].tolist() == case.outputs["m:1/fp32"]["y"].tolist() == [1, 1, 1, 1]


def test_inputs_are_dropped_unless_the_config_says_otherwise(tmp_path):
    from sidecar.config_monitor import CasesConfig

    secret = np.frombuffer(b"this is a secret", np.uint8)
    with CaseWriter(tmp_path, CasesConfig(), HandClock()) as one:
        one.offer(offer(), lambda: Arrays({"x": secret}, {"m:1/fp32": {"y": np.zeros(1)}}))
    (case,) = iter_cases(tmp_path)
    assert case.inputs is None
    assert case.input_hashes == {}
    assert case.field_uses == {"input:x": "drop", "output:y": "keep"}
    assert not case.can_be_replayed
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"secret" not in everything


def test_each_field_is_kept_hashed_or_dropped(tmp_path):
    inputs = {name: np.full(4, n, np.float32) for n, name in enumerate(["a", "b", "c", "d"])}
    outputs = {"y": np.zeros(3), "z": np.array([b"person"], object), "w": np.zeros(1)}
    uses = {"a": "keep", "b": "hash", "z": "hash", "w": "drop"}
    with writer(tmp_path, reservoir=1, inputs="hash", fields={**uses, "c": "drop"}) as one:
        one.offer(offer(), lambda: Arrays(inputs, {"m:2/int8": outputs, "m:1/fp32": {}}))
    (case,) = iter_cases(tmp_path)
    assert set(case.inputs) == {"a"}
    assert case.input_hashes == {"b": hash_array(inputs["b"]), "d": hash_array(inputs["d"])}
    assert set(case.outputs["m:2/int8"]) == {"y"}
    assert case.output_hashes == {"m:2/int8": {"z": hash_array(outputs["z"])}}
    assert case.field_uses["input:c"] == case.field_uses["output:w"] == "drop"
    assert not case.can_be_replayed
    assert b"person" not in case.path.read_bytes()


def test_one_pair_of_variants_does_not_push_out_another(tmp_path):
    with writer(tmp_path, per_failure=2) as one:
        fill(one, 10, failure="boom")
        fill(one, 10, failure="boom", candidate="m:2/fp16")
    assert [entry.candidate for entry in read_cases(tmp_path)].count("m:2/fp16") == 2
    assert len(read_cases(tmp_path)) == 4


def test_names_that_clients_choose_cannot_leave_the_folder_or_break_a_file(tmp_path):
    hostile = "../../etc/\ud800\0\n" + "x" * 5000
    folder = tmp_path / "cases"
    with writer(folder, reservoir=9, per_failure=9) as one:
        one.offer(
            offer(request_id=hostile, failure=hostile, info={hostile: hostile},
                  model=hostile, metrics={hostile: 1.0}),
            lambda: Arrays({hostile: np.zeros(1)}, {hostile: {hostile: np.zeros(1)}}),
        )  # fmt: skip
    (case,) = iter_cases(folder)
    assert len(case.request_id) == 256
    assert case.info == {hostile: hostile}
    assert list(tmp_path.iterdir()) == [folder]
    assert {path.name for path in folder.iterdir()} == {"shards", "index.parquet", ".lock"}


def test_only_the_owner_may_read(tmp_path):
    folder = tmp_path / "a" / "cases"
    before = os.umask(0)
    try:
        with writer(folder, reservoir=2) as one:
            fill(one, 3)
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700
    modes = {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
    assert modes == {0o600}


def test_a_tensor_that_cannot_be_stored_costs_its_case_only(tmp_path):
    with writer(tmp_path, reservoir=10) as one:
        with pytest.raises(CaseError, match="'x'"):
            one.offer(offer(), lambda: Arrays({"x": np.zeros(1, complex)}, {}))
        with pytest.raises(ZeroDivisionError):
            one.offer(offer(), lambda: Arrays({"x": np.zeros(1 // 0)}, {}))
        fill(one, 2)
    assert len(read_cases(tmp_path)) == 2


# --- bounds ---------------------------------------------------------------------------------------


def test_what_is_replaced_is_deleted_from_disk(tmp_path):
    with writer(tmp_path, reservoir=3, worst=2) as one:
        for number in range(60):
            one.offer(offer(metrics={"e": number}, limited={"e": "higher"}), arrays)
            if number % 7 == 0:
                one.flush()
                assert stored(tmp_path) == {entry.id for entry in one.entries()}
    entries = read_cases(tmp_path)
    assert stored(tmp_path) == {entry.id for entry in entries}
    reasons = [reason for entry in entries for reason in entry.reasons]
    assert reasons.count("reservoir") == 3
    assert reasons.count("worst:e") == 2
    assert {entry.metrics["e"] for entry in entries if "worst:e" in entry.reasons} == {58, 59}
    assert one.counters["kept"] - one.counters["replaced"] == len(entries)


def test_what_is_too_old_is_deleted(tmp_path):
    clock = HandClock()
    with writer(tmp_path, clock, per_failure=100, time_to_live_s=60) as one:
        first = fill(one, 3, failure="boom")
        one.flush()
        clock.at_ns += 59 * SECOND_NS
        second = fill(one, 2, failure="boom")
        one.flush()
        assert stored(tmp_path) == {*first, *second}
        clock.at_ns += 2 * SECOND_NS
        one.flush()
        assert stored(tmp_path) == set(second)
        clock.at_ns += DAY_NS
        one.offer(offer(failure="boom", time_ns=START_NS), arrays)  # too old when it comes
        one.flush()
        assert stored(tmp_path) == set()
        assert read_cases(tmp_path) == []
        assert one.counters["expired"] == 6


def test_what_grew_too_old_while_nobody_wrote_goes_when_the_folder_is_opened_and_flushed(tmp_path):
    with writer(tmp_path, reservoir=5, time_to_live_s=60) as one:
        fill(one, 5)
    with writer(tmp_path, HandClock(START_NS + DAY_NS), reservoir=5, time_to_live_s=60):
        pass
    assert stored(tmp_path) == set()


def test_a_time_in_the_future_does_not_keep_a_case_for_ever(tmp_path):
    clock = HandClock()
    with writer(tmp_path, clock, reservoir=5, time_to_live_s=60) as one:
        one.offer(offer(time_ns=START_NS + 1000 * DAY_NS), arrays)
        one.flush()
        clock.at_ns += 61 * SECOND_NS
        one.flush()
        assert stored(tmp_path) == set()


def test_over_its_bytes_the_oldest_go(tmp_path):
    clock = HandClock()
    limit = 100_000
    with writer(tmp_path, clock, per_failure=1000, max_bytes=limit) as one:
        ids = []
        for _ in range(40):
            clock.at_ns += SECOND_NS
            ids.append(one.offer(offer(failure="boom"), lambda: arrays(size=1000)))
            if len(ids) % 3 == 0:
                one.flush()
                sizes = [path.stat().st_size for path in (tmp_path / "shards").iterdir()]
                assert sum(sizes) <= limit
    entries = read_cases(tmp_path)
    assert [entry.id for entry in entries] == ids[-len(entries) :], "the latest are kept"
    assert 5 <= len(entries) <= 8
    assert stored(tmp_path) == {entry.id for entry in entries}


def test_a_case_that_is_too_large_by_itself_is_counted_and_left_out(tmp_path):
    with writer(tmp_path, reservoir=10, max_bytes=10_000) as one:
        assert one.offer(offer(), lambda: arrays(size=10_000)) is None
        assert one.offer(offer(), lambda: arrays(size=10)) is not None
        assert one.counters["too_large"] == 1
    assert len(read_cases(tmp_path)) == 1


def test_memory_between_two_flushes_is_bounded(tmp_path):
    with writer(tmp_path, per_failure=1000, pending_bytes_max=50_000) as one:
        for _ in range(20):
            one.offer(offer(failure="boom"), lambda: arrays(size=1000))
        assert len(stored(tmp_path)) >= 15, "written without being asked to"
    assert len(read_cases(tmp_path)) == 20


def test_two_writers_do_not_share_a_folder(tmp_path):
    with writer(tmp_path), pytest.raises(CaseError, match="another process"):
        writer(tmp_path)
    writer(tmp_path).close()


def test_a_closed_writer_says_so(tmp_path):
    one = writer(tmp_path)
    one.close()
    one.close()
    with pytest.raises(CaseError, match="closed"):
        one.flush()


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_full_disk_is_said_and_what_waits_is_written_later(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    one = writer(tmp_path, per_failure=100)
    before = fill(one, 2, failure="boom")
    one.flush()
    with monkeypatch.context() as patched:
        patched.setattr(files, "write_atomically", full)
        after = fill(one, 2, failure="boom")
        with pytest.raises(CaseError, match="No space left"):
            one.flush()
        with pytest.raises(CaseError, match="No space left"):
            one.flush()
        assert one.counters["write_failures"] == 2
        assert {entry.id for entry in read_cases(tmp_path)} == set(before)
    one.flush()
    one.close()
    assert {entry.id for entry in read_cases(tmp_path)} == {*before, *after}


def test_a_disk_that_is_really_full_leaves_no_halves(tmp_path):
    """A limit on the size of files does what a full disk does, in a process of its own."""
    code = f"""
import resource, signal, random
from pathlib import Path
from tests.cases.tools import arrays, offer, stored, writer
from sidecar.cases import CaseError, read_cases
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path({str(tmp_path)!r})
one = writer(folder, per_failure=100)
one.offer(offer(failure="boom"), arrays)
one.flush()
before = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
one.offer(offer(failure="boom"), lambda: arrays(size=5000))
try:
    one.flush()
except CaseError as error:
    print(error)
print(sorted(path.name for path in folder.rglob(".tmp*")), len(read_cases(folder)))
resource.setrlimit(resource.RLIMIT_FSIZE, before)
one.close()
print(len(read_cases(folder)))
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2], timeout=100,
    )  # fmt: skip
    first, *rest = found.stdout.splitlines()
    assert "File too large" in first
    assert rest == ["[] 1", "2"]


def test_memory_is_bounded_even_while_the_disk_refuses(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    one = writer(tmp_path, per_failure=1000, pending_bytes_max=50_000)
    failed = 0
    with monkeypatch.context() as patched:
        patched.setattr(files, "write_atomically", full)
        for _ in range(20):
            try:
                one.offer(offer(failure="boom"), lambda: arrays(size=1000))
            except CaseError:
                failed += 1
    assert failed > 5
    assert one.counters["lost"] == failed
    one.close()
    assert len(read_cases(tmp_path)) == 20 - failed


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CaseError, match="file"):
        writer(tmp_path / "file" / "cases")


@pytest.mark.parametrize("moment", ["shard", "index", "before rename", "delete"])
def test_a_crash_in_the_middle_of_a_flush_leaves_a_readable_folder(tmp_path, monkeypatch, moment):
    class Crash(BaseException):
        """As ``kill -9``: nothing of ours handles it."""

    def crash(*args, **options):
        raise Crash

    one = writer(tmp_path, reservoir=3)
    fill(one, 3)
    one.flush()
    ids = {entry.id for entry in one.entries()}
    while len(one._pending) < 2:
        fill(one, 1)
    with monkeypatch.context() as patched:
        if moment == "shard":
            steps = iter([files.write_atomically, crash])

            def write(path, data):
                next(steps)(path, data)

            patched.setattr(files, "write_atomically", write)
        elif moment == "index":
            patched.setattr("sidecar.cases.writer.write_index", crash)
        elif moment == "before rename":  # and nothing is cleaned up after it
            patched.setattr(Path, "replace", crash)
            patched.setattr(Path, "unlink", crash)
            one._doomed.clear()
        else:
            patched.setattr(Path, "unlink", crash)
        with pytest.raises(Crash):
            one.flush()
        os.close(one._lock)  # as the end of a process does
        readable = list(iter_cases(tmp_path))  # by a reader, while nobody has repaired anything
        assert {case.id for case in readable} <= ids | stored(tmp_path)
    with writer(tmp_path, reservoir=3) as two:
        assert two.message == ""
        assert {entry.id for entry in two.entries()} <= stored(tmp_path)
    found = read_cases(tmp_path)
    assert stored(tmp_path) == {entry.id for entry in found}
    assert len(found) <= 3
    assert not list(tmp_path.rglob(".tmp*"))
    for case in iter_cases(tmp_path):
        assert case.inputs["x"].shape == (1, 4)


def with_state(path, state):
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata(state), path)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[data.index(b"reservoir")] ^= 1  # still a text: only a checksum can tell
    path.write_bytes(data)


CORRUPT = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: os.truncate(path, path.stat().st_size // 2),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 20),
    "a bit": flip_a_bit,
    "another layout": lambda path: with_state(path, {"sidecar_cases": '{"layout": 7, "seen": []}'}),
    "a foreign table": lambda path: with_state(path, None),
    "foreign columns": lambda path: pq.write_table(pa.table({"id": ["a-1"]}), path),
}


@pytest.mark.parametrize("how", CORRUPT)
def test_a_corrupt_index_is_moved_aside_and_made_again(tmp_path, how):
    clock = HandClock()
    with writer(tmp_path, clock, reservoir=4, worst=2) as one:
        fill(one, 30, clock, metrics={"e": 1.0}, limited={"e": "higher"})
    before = read_cases(tmp_path)
    path = tmp_path / "index.parquet"
    CORRUPT[how](path)
    corrupt = path.read_bytes()
    assert [entry.id for entry in read_cases(tmp_path)] == [entry.id for entry in before]
    with writer(tmp_path, clock, reservoir=4, worst=2) as two:
        assert re.search(r"index\.parquet cannot be read: .*moved to index", two.message)
        assert two.counters["corrupt"] == 1
    assert (tmp_path / "index.parquet.corrupt").read_bytes() == corrupt
    after = read_cases(tmp_path)
    assert [(e.id, e.metrics, e.time_ns, e.nbytes, e.keys) for e in after] == [
        (e.id, e.metrics, e.time_ns, e.nbytes, e.keys) for e in before
    ]
    with writer(tmp_path, clock) as three:
        assert three.message == ""


def test_a_corrupt_case_is_moved_aside_and_goes_with_time(tmp_path):
    with writer(tmp_path, reservoir=4, time_to_live_s=60) as one:
        first, second, *_ = fill(one, 4)
    (tmp_path / "index.parquet").unlink()
    broken = tmp_path / "shards" / f"{first}.safetensors"
    broken.write_bytes(b"torn")
    os.utime(broken, ns=(START_NS, START_NS))
    clock = HandClock(START_NS + 30 * SECOND_NS)
    with writer(tmp_path, clock, reservoir=4, time_to_live_s=60) as two:
        assert broken.name in two.message
        assert len(two.entries()) == 3
        aside = broken.with_name(f"{broken.name}.corrupt")
        assert aside.exists()
        clock.at_ns += DAY_NS
        two.flush()
        assert not aside.exists()
        assert second not in stored(tmp_path)


def test_files_of_others_are_left_alone(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    others = [shards / "my model.safetensors", shards / "notes.txt", tmp_path / "notes.txt"]
    for path in others:
        path.write_bytes(b"mine")
    with writer(tmp_path, reservoir=1) as one:
        fill(one, 5)
        assert one.message == ""
    assert all(path.read_bytes() == b"mine" for path in others)


# --- restart --------------------------------------------------------------------------------------


def test_a_restart_goes_on_where_it_was(tmp_path):
    clock = HandClock()
    limits = {"reservoir": 5, "worst": 2, "per_failure": 2}
    with writer(tmp_path, clock, **limits) as one:
        for number in range(300):
            one.offer(
                offer(metrics={"e": number % 100}, limited={"e": "higher"},
                      failure="boom" if number % 50 == 0 else None), arrays,
            )  # fmt: skip
    before = {entry.id: entry.reasons for entry in read_cases(tmp_path)}
    with writer(tmp_path, clock, seed=1, **limits) as two:
        assert {entry.id: entry.reasons for entry in two.entries()} == before
        kept = sum(
            two.offer(offer(metrics={"e": 50}, limited={"e": "higher"}, failure="boom"), arrays)
            is not None
            for _ in range(100)
        )
        assert kept < 10, "5 × ln(400 / 300) = 1.4 of them, not the first five and more"
    again = read_cases(tmp_path)
    assert sum("reservoir" in entry.reasons for entry in again) == 5
    assert {e.id for e in again if "worst:e" in e.reasons} == {
        case_id for case_id, reasons in before.items() if "worst:e" in reasons
    }


def test_a_sample_over_many_restarts_is_still_one(tmp_path):
    """Without the counts of the run before, most of it would come from the last run."""
    clock, early = HandClock(), 0
    with writer(tmp_path, clock, reservoir=20) as one:
        fill(one, 200)
    first = {entry.id for entry in read_cases(tmp_path)}
    for run in range(5):
        with writer(tmp_path, clock, seed=run + 1, reservoir=20) as one:
            fill(one, 40)
    early = sum(entry.id in first for entry in read_cases(tmp_path))
    assert 4 <= early <= 17, "half of 20 is expected"


def test_a_config_that_asks_for_fewer_is_obeyed(tmp_path):
    with writer(tmp_path, reservoir=20) as one:
        fill(one, 20)
    with writer(tmp_path, reservoir=5):
        pass
    assert len(read_cases(tmp_path)) == len(stored(tmp_path)) == 5


def test_the_index_is_a_table_for_any_tool(tmp_path):
    with writer(tmp_path, reservoir=3) as one:
        fill(one, 3, metrics={"e": 2.0}, request_id="r", info={"a": [1]})
    table = pq.read_table(tmp_path / "index.parquet")
    assert table.num_rows == 3
    row = table.drop_columns("time").to_pylist()[0]
    assert dict(row["metrics"]) == {"e": 2.0}
    assert row["reasons"] == ["reservoir"]
    assert (tmp_path / row["file"]).is_file()
    assert row["keys"] == ["inputs/x", "outputs/m:1/fp32/y", "outputs/m:2/int8/y"]
    assert json.loads(row["info"]) == {"a": [1]}


def test_ids_are_unique_and_tell_the_time(tmp_path):
    class Stuck(random.Random):
        """Draws each number twice."""

        def getrandbits(self, k):
            self.count = getattr(self, "count", -1) + 1
            return self.count // 2

    one = CaseWriter(tmp_path, config(per_failure=100), HandClock(), Stuck(0))
    ids = fill(one, 10, failure="boom")
    one.close()
    assert len(set(ids)) == len(read_cases(tmp_path)) == 10
    assert ids[0] == "20270115T080000-00000000"


@pytest.mark.parametrize("module", ["pyarrow.parquet", "safetensors"])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CaseError, match=re.escape("pip install 'model-sidecar[monitor]'")):
        writer(tmp_path / "cases")
    assert list(tmp_path.iterdir()) == []
