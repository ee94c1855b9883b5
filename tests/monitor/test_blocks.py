"""Blocks of pairs: the latest as they are, older ones in stretches, and no sum ever changes."""

from __future__ import annotations

import random

import pytest

from sidecar.monitor.blocks import join, stretch_of
from sidecar.monitor.events import EventLog
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.keeper import Keeper
from sidecar.monitor.rows import EvidenceKey, EvidenceRow
from sidecar.monitor.store import Store
from tests.monitor import making
from validators.sequential.paired import StartMixture, cell_evidence

SIDES = ("m", "m:2/new", "m:1/old", "", "error", "p")


@pytest.fixture
def clock():
    return making.Clock()


def key(block):
    return EvidenceKey(*SIDES, block)


def total(rows):
    found = {}
    for row in rows:
        for name, count in row.cells.items():
            found[name] = found.get(name, 0) + count
    return found


@pytest.mark.parametrize("latest", [0, 15, 16, 17, 100, 1000, 12_345])
def test_stretches_rise_with_their_blocks_and_are_few(latest):
    found = [stretch_of(block, latest) for block in range(latest + 1)]
    assert found == sorted(found)
    assert all(first <= block for block, first in enumerate(found))
    assert found[-16:] == list(range(latest + 1))[-16:]
    assert len(set(found)) <= 24 + 8 * max(latest, 1).bit_length()


def test_joining_again_and_again_changes_no_sum():
    """As a monitor does: each block comes, and what is old by then is joined."""
    rng = random.Random(1)
    rows, expected = [], {}
    for block in range(700):
        life = rng.choice(["a", "b"])
        cells = {"n10": float(rng.randrange(5)), "n00": 1.0}
        rows.append(EvidenceRow(key(block), life, dict(cells), block))
        for name, count in cells.items():
            expected[life, name] = expected.get((life, name), 0) + count
        changed, gone = join(rows)
        left = {(row.key, row.incarnation): row for row in rows}
        for name in gone:
            del left[name]
        left |= {(row.key, row.incarnation): row for row in changed}
        rows = list(left.values())
    assert len(rows) < 2 * 80
    for life in ("a", "b"):
        sums = total(row for row in rows if row.incarnation == life)
        assert sums == {n: count for (one, n), count in expected.items() if one == life}


def test_starts_that_are_left_give_no_more_evidence_than_all_of_them():
    rng = random.Random(2)
    rows = [
        EvidenceRow(key(block), "a", {"n11": 0.0, "n10": float(rng.randrange(9)),
                                      "n01": float(rng.randrange(9)), "n00": 900.0})
        for block in range(300)
    ]  # fmt: skip
    changed, gone = join(rows)
    kept = {row.key: row for row in rows} | {row.key: row for row in changed}
    for name, _ in gone:
        kept.pop(name, None)
    kept |= {row.key: row for row in changed}

    def evidence(rows):
        blocks = {row.key.block: [row.cells[c] for c in ("n11", "n10", "n01", "n00")]
                  for row in rows}  # fmt: skip
        return StartMixture.of_blocks(blocks).log_e(cell_evidence())

    assert len(kept) < 60
    assert evidence(kept.values()) <= evidence(rows) + 1e-9


def test_a_long_life_leaves_a_small_store_and_the_next_one_the_same_sums(tmp_path, clock):
    for life in range(2):
        evidence, events = Evidence("unsaved", clock), EventLog(clock)
        keeper = Keeper(tmp_path, evidence, events, clock)
        assert keeper.open()
        before = total(evidence.rows("m"))
        for block in range(life * 200, life * 200 + 200):
            evidence.add(key(block), {"n10": 1, "n00": 999})
            if block % 7 == 0:
                keeper.flush()
        assert total(evidence.rows("m"))["n10"] == before.get("n10", 0) + 200
        keeper.close()
        store = Store.open(tmp_path, clock)
        rows = store.evidence("m")
        assert total(rows) == {"n10": 200 * (life + 1), "n00": 200 * 999 * (life + 1)}
        assert len(rows) < 80
        store.close()


def test_blocks_that_a_refusing_store_did_not_take_are_joined_by_the_next_write(
    tmp_path, clock, monkeypatch
):
    evidence, events = Evidence("unsaved", clock), EventLog(clock)
    keeper = Keeper(tmp_path, evidence, events, clock)
    assert keeper.open()
    for block in range(10):
        evidence.add(key(block), {"n00": 1})
    keeper.flush()
    for block in range(10, 100):
        evidence.add(key(block), {"n00": 1})
    with monkeypatch.context() as patch:
        patch.setattr("sidecar.monitor.store.tables.upsert", _refuse)
        keeper.flush()
        assert not keeper.status().ok
    keeper.close()
    store = Store.open(tmp_path, clock)
    assert total(store.evidence("m")) == {"n00": 100}
    assert len(store.evidence("m")) < 60
    store.close()


def _refuse(*_):
    import sqlalchemy as sa

    raise sa.exc.OperationalError("", {}, Exception("database or disk is full"))
