"""Labels that come to a replica without their answer: several of them on one real PostgreSQL."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from sidecar.clock import SystemClock
from sidecar.config_monitor import StoreConfig
from sidecar.monitor import harms, label_fleet
from sidecar.monitor.label_intake import Label
from sidecar.monitor.rows import StoreError
from sidecar.monitor.store import Store
from tests.monitor import making
from tests.monitor.test_labels import EARLY, NEW, Bench, config_of, scores


class Replica(Bench):
    """The labels of one monitor among several."""

    def __init__(self, url: str, clock: making.Clock, *, folder: Path | None = None, config=None):
        super().__init__(config, clock=clock, folder=folder)
        settings = StoreConfig.model_validate({"url": url, "timeout_s": 5})
        self.store = Store.connect(settings, SystemClock())
        self.fleet = self.labels.share()

    def sync(self) -> None:
        self.fleet.sync(self.store)

    def rows(self) -> float:
        return sum(self.cells("accuracy").values())

    def served(self) -> float:
        return self.cells(harms.SERVED_ACCURACY, sides=(NEW, "")).get("n", 0)


Make = Callable[..., Replica]


@pytest.fixture
def make(database_url: str) -> Iterator[Make]:
    clock = making.Clock()
    with ExitStack() as stack:

        def made(**settings) -> Replica:
            replica = Replica(database_url, settings.pop("clock", clock), **settings)
            stack.callback(replica.store.close)
            return replica

        yield made


def on_offer(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        return {name for (name,) in connection.execute("SELECT request_id FROM labels_offered")}


def settle(*replicas: Replica) -> None:
    for _ in range(2):
        for replica in replicas:
            replica.sync()


def test_a_label_counts_where_its_answer_waits(make, database_url):
    here, there, third = make(), make(), make()
    there.see("a", scores(1, 2), scores(1, 3))
    assert here.put("a", 1, 3) == EARLY
    settle(here, third)
    assert on_offer(database_url) == {"a"}
    settle(there)
    assert on_offer(database_url) == set()
    assert there.cells("accuracy") == {"n11": 0, "n10": 1, "n01": 0, "n00": 1}
    assert there.right == [("m", NEW, [True, False])]
    assert there.counted() == {("matched", "offered"): 1}
    assert there.coverage() == (0, 1.0)
    assert here.counted() == {("early", ""): 1}
    assert here.rows() == third.rows() == 0


def test_a_label_that_comes_before_its_request_on_any_replica(make, database_url):
    here, there = make(), make()
    assert here.put("a", 1) == EARLY
    assert here.put("b", 1) == EARLY
    settle(here, there)
    there.see("a", scores(1), scores(1))
    here.see("b", scores(1), scores(1))  # it was to come here after all
    settle(here, there)
    assert there.counted() == {("matched", "offered"): 1}
    assert here.counted() == {("early", ""): 2, ("matched", "offered"): 1}
    assert (here.rows(), there.rows()) == (1, 1)
    assert on_offer(database_url) == set()


def test_before_it_is_offered_a_label_waits_as_it_does_alone(make, database_url):
    here = make()
    here.put("a", 1)
    here.see("a", scores(1), scores(1))
    settle(here)
    assert here.counted() == {("early", ""): 1, ("matched", ""): 1}
    assert on_offer(database_url) == set()


def test_repeated_labels_stay_repeats_wherever_they_come(make, database_url):
    here, there, third = make(), make(), make()
    there.see("a", scores(1), scores(1))
    here.put("a", 1)
    third.put("a", 0)
    settle(here, third, there)
    assert there.rows() == 1
    assert here.counted()["early", ""] == 1
    assert third.counted() == {("early", ""): 1, ("repeated", "offered"): 1}  # one was on offer
    assert there.put("a", 1).repeated == 1
    for replica in (here, third):
        assert replica.put("a", 1) == EARLY
        settle(here, third, there)
    assert there.rows() == 1
    assert there.cells("accuracy")["n00"] == 1  # the first stands
    assert there.counted()["repeated", "offered"] == 2
    assert on_offer(database_url) == set()


def test_one_that_does_not_fit_leaves_the_answer_waiting(make, database_url):
    here, there = make(), make()
    there.see("a", scores(1, 2), scores(1, 2))
    here.put("a", 1)  # of two rows
    settle(here, there)
    assert there.counted() == {("refused", "unfit"): 1}
    here.put("a", 1, 2)
    settle(here, there)
    assert there.rows() == 2
    assert on_offer(database_url) == set()


def test_what_nobody_has_an_answer_for_goes_and_is_counted_once(make, database_url):
    config = config_of(labels={"within_s": 60, "max_waiting": 10})
    here, there = make(config=config), make(config=config)
    for n in range(15):
        here.put(f"r{n}", 1)
        if n == 4:
            here.clock.advance(1)
    settle(here, there)
    lost = here.counted().get(("lost", "full"), 0) + there.counted().get(("lost", "full"), 0)
    assert lost == 5
    assert on_offer(database_url) == {f"r{n}" for n in range(5, 15)}
    here.clock.advance(62)
    settle(here, there)
    gone = [each.counted().get(("lost", "expired"), 0) for each in (here, there)]
    assert sum(gone) == 10
    assert on_offer(database_url) == set()


def test_offers_that_others_took_do_not_push_out_those_that_stand(make, monkeypatch):
    monkeypatch.setattr(label_fleet, "ROWS", 10)
    config = config_of(labels={"max_waiting": 20})
    here, there, third = (make(config=config) for _ in range(3))
    here.put("late", 1)
    settle(here, there, third)
    for n in range(100):
        there.see(f"r{n}", scores(1), scores(1))
        here.put(f"r{n}", 1)
        if n % 10 == 9:
            settle(here, there, third)
    assert there.rows() == 100
    third.see("late", scores(1), scores(1))
    settle(third)
    assert third.rows() == 1


def test_a_row_of_a_transaction_that_ends_late_is_read_as_well(make, database_url):
    here = make()
    here.see("slow", scores(1), scores(1))
    here.see("quick", scores(1), scores(1))
    with psycopg.connect(database_url) as slow, psycopg.connect(database_url) as quick:
        insert = (
            "INSERT INTO labels_offered VALUES"
            " ('m', %s, 1, pg_current_xact_id()::text::bigint, '[1]')"
        )
        slow.execute(insert, ("slow",))
        quick.execute(insert, ("quick",))
        quick.commit()
        here.sync()
        assert here.rows() == 1
        slow.commit()
    here.sync()
    assert here.rows() == 2


def test_without_the_database_labels_wait_here_and_survive(
    make, tmp_path, postgres_server, database_url
):
    here, there = make(folder=tmp_path), make()
    there.see("a", scores(1), scores(1))
    here.put("a", 1)
    here.put("own", 1)
    postgres_server.stop()
    try:
        with pytest.raises(StoreError):
            here.sync()
        here.see("own", scores(1), scores(1))
        assert here.rows() == 1
        assert here.keeper is not None
        here.keeper.flush()
        here.keeper.close()
    finally:
        postgres_server.start()
    again = make(folder=tmp_path)
    settle(again, there)
    assert there.rows() == 1
    assert on_offer(database_url) == set()
    again.keeper.flush()  # what is offered is not offered again by the next life
    again.keeper.close()
    settle(make(folder=tmp_path), there)
    assert there.counted() == {("matched", "offered"): 1}


def test_an_answer_that_comes_while_its_label_could_not_be_offered(make, postgres_server):
    here = make()
    here.put("a", 1)
    offer = here.labels.put_back

    def late(model, offers):
        here.see("a", scores(1), scores(1))
        offer(model, offers)

    here.labels.put_back = late
    postgres_server.stop()
    try:
        with pytest.raises(StoreError):
            here.sync()
    finally:
        postgres_server.start()
    assert here.rows() == 1
    settle(here)
    assert here.rows() == 1


def test_an_offer_whose_answer_was_lost_on_the_way_counts_once(make):
    """It was entered, and here nobody knows: it is offered again, after it was taken."""
    here, there = make(), make()
    there.see("a", scores(1), scores(1))
    here.put("a", 1)
    offers = here.labels.outgoing("m", 10)
    from sidecar.monitor.label_offers import OfferTables

    assert here.store.part(OfferTables).offer("m", offers) == 0
    here.labels.put_back("m", offers)
    settle(there, here, there)
    assert there.rows() == 1
    assert there.counted()["repeated", "offered"] == 1


def test_a_database_that_was_begun_afresh(make, database_url):
    here, there = make(), make()
    settle(here, there)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    there.see("a", scores(1), scores(1))
    here.put("a", 1)
    for _ in range(4):
        for replica in (here, there):
            try:
                replica.sync()
            except StoreError:
                continue
    assert there.rows() == 1


def test_ids_that_no_database_can_keep_are_refused(make):
    here = make()
    for odd in ("a\0b", "\ud800"):
        assert here.put(odd, 1).refused == {"a request id that no store can keep": 1}
    here.put("é€ 'x", "ünï\0")
    settle(here)


@pytest.mark.timeout(600)
def test_thousands_at_one_replica_count_once_and_add_up(make, database_url):
    """A third of the answers at each; all labels at one, in one go, while others ask and label."""
    config = config_of(labels={"max_waiting": 50_000})
    replicas = [make(config=config) for _ in range(3)]
    names = [f"r{n}" for n in range(12_000)]
    for n, name in enumerate(names):
        replicas[n % 3].see(name, scores(n % 4), scores(1))
    labels = [Label("m", name, (1,)) for name in names]
    began_s = time.monotonic()
    counts = replicas[0].labels.put(labels)
    assert (counts.matched, counts.early) == (4000, 8000)

    def again(replica: Replica) -> None:
        for _ in range(3):
            replica.sync()
            replica.labels.put(labels[::7])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(again, replicas))
    settle(*replicas)
    took_s = time.monotonic() - began_s
    assert [replica.rows() for replica in replicas] == [4000] * 3
    assert sum(replica.served() for replica in replicas) == 12_000
    total = Counter()
    for replica in replicas:
        total.update(replica.cells("accuracy"))
    assert total == {"n11": 0, "n10": 9000, "n01": 0, "n00": 3000}
    assert on_offer(database_url) == set()
    assert took_s < 60, "in bulk"
