"""Coverage over restarts of the monitor, and of what it watches."""

from __future__ import annotations

import pytest

from sidecar.monitor.events import EventLog
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.keeper import Keeper
from sidecar.monitor.ledger import Ledger
from tests.monitor import making


class Life:
    """One life of a monitor."""

    def __init__(self, folder, clock):
        self.evidence = Evidence("unsaved", clock)
        self.keeper = Keeper(folder, self.evidence, EventLog(clock), clock)
        assert self.keeper.open()
        self.ledger = Ledger(self.evidence)

    def note(self, *sampled, **own):
        """``sampled``: worker's index → what it has counted."""
        return self.ledger.note({n: {"tap_sampled": s} for n, s in enumerate(sampled)}, own)


@pytest.fixture
def live(tmp_path):
    clock = making.Clock()

    def begin():
        clock.advance(1)
        return Life(tmp_path, clock)

    return begin


def test_counts_go_on_where_the_last_life_ended(live):
    first = live()
    first.note(0, 0)
    assert first.note(60, 40, received=100, compared=90) == {
        "tap_sampled": 100, "received": 100, "compared": 90,
    }  # fmt: skip
    first.keeper.flush()  # and killed: it does not close
    first.keeper._store.close()
    second = live()
    # 20 were sampled while nobody was there to take them.
    found = second.note(70, 50, received=0)
    assert (found["tap_sampled"], found["received"], found["compared"]) == (120, 100, 90)
    found = second.note(75, 55, received=10, compared=10)
    assert (found["tap_sampled"], found["received"], found["compared"]) == (130, 110, 100)
    second.keeper.close()
    third = live()
    assert third.note(75, 55)["tap_sampled"] == 130
    third.keeper.close()


def test_what_was_before_anything_was_watched_is_not_counted(live):
    life = live()
    assert life.note(1_000_000) == {}
    assert life.note(1_000_010, received=10) == {"tap_sampled": 10, "received": 10}
    life.keeper.close()


def test_another_serve_begins_its_counts_anew(live):
    first = live()
    first.note(0)
    first.note(500)
    # While the monitor goes on (a container of its own) …
    assert first.note(3) == {"tap_sampled": 503}
    assert first.note(7) == {"tap_sampled": 507}
    first.keeper.close()
    # … and together with it.
    second = live()
    assert second.note(2) == {"tap_sampled": 509}
    second.keeper.close()


def test_a_worker_that_comes_later_is_counted_from_its_beginning(live):
    life = live()
    life.note(0, own=1)
    life.keeper.close()
    life = live()
    assert life.note(0, 5)["tap_sampled"] == 5
    life.keeper.close()


def test_what_the_monitor_keeps_of_itself_is_no_evidence_of_a_model(live):
    life = live()
    life.note(0)
    life.note(5, received=5)
    assert life.evidence.rows(None) == []
    life.keeper.close()
