"""Routes of several replicas in one real PostgreSQL: who sets, who follows, and what becomes of it
when the database is gone, emptied, or an older copy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from sidecar import route_table
from sidecar.clock import SystemClock
from sidecar.config_monitor import StoreConfig
from sidecar.errors import UnavailableError
from sidecar.monitor.route_book import RouteBook
from sidecar.monitor.route_fleet import RouteFleet
from sidecar.monitor.route_replicas import RouteReplicas
from sidecar.monitor.route_side import RouteSide
from sidecar.monitor.routing import RouteConflictError
from sidecar.monitor.rows import StoreError
from sidecar.monitor.store import Store
from sidecar.monitor.worker_routes import WorkerRoutes
from sidecar.route_table import Route
from tests.gateway.served import configure, make_models, model, variant
from tests.monitor import making

SYNC_S = 1.0


class Replica:
    """The monitor's side of routes in one pod."""

    def __init__(self, folder: Path, config: Any, url: str, clock: Any = None) -> None:
        clock = clock or SystemClock()
        self.table = folder / route_table.NAME
        settings = StoreConfig.model_validate({"url": url, "timeout_s": 2})
        self.store: Store | None = Store.connect(settings, SystemClock())
        workers = WorkerRoutes()
        self.routes = RouteSide(config, self.table, workers, clock)
        self.fleet = RouteFleet(self.table, ["m", "n"], lambda: self.store, clock, SYNC_S)
        replicas = RouteReplicas(folder.name, {"m": True}, workers, self.routes.own, clock, SYNC_S)
        self.routes.share(self.fleet, replicas, SYNC_S)

    def sync(self) -> None:
        assert self.store is not None
        self.fleet.sync(self.store)

    def set(self, *shares: float, expected: int | None = None, reason: str = "") -> int:
        weights = {str(at): share for at, share in enumerate(shares, 1) if share}
        view = self.routes.set("m", weights, by="operator", reason=reason, expected=expected)
        return view.revision

    def read(self) -> dict[str, Route]:
        data = route_table.read(self.table)
        return {} if data is None else route_table.parse(data)

    def close(self) -> None:
        if self.store is not None:
            self.store.close()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    versions = variant("any", "1"), variant("any", "2"), variant("any", "3")
    return configure(folder, model("m", *versions), model("n", variant("any", "1")))


@pytest.fixture
def make(config: Any, database_url: str, tmp_path: Path) -> Iterator[Callable[..., Replica]]:
    with ExitStack() as stack:

        def made(name: str, clock: Any = None) -> Replica:
            (tmp_path / name).mkdir(exist_ok=True)
            replica = Replica(tmp_path / name, config, database_url, clock)
            stack.callback(replica.close)
            return replica

        yield made


def test_what_one_sets_all_follow(make):
    replicas = [make(name) for name in "abc"]
    for replica in replicas:
        replica.sync()
        # A gateway that waits for it learns that there is no route.
        assert route_table.read(replica.table) is not None
        assert replica.read() == {}
    assert replicas[0].set(1, 3, reason="half", expected=0) == 1
    assert replicas[0].read()["m"].shares == {"1": 0.25, "2": 0.75}
    assert replicas[0].read()["m"].shared
    for replica in replicas[1:]:
        assert replica.routes.route("m").revision == 0
        replica.sync()
        view = replica.routes.route("m")
        assert (view.revision, view.by, view.reason) == (1, "operator", "half")
        assert replica.read() == replicas[0].read()
    assert replicas[2].set(1, expected=1) == 2
    with pytest.raises(RouteConflictError, match="at revision 2 by now, not at 1"):
        replicas[0].set(0, 1, expected=1)  # which has not even heard of it
    for replica in replicas:
        replica.sync()
        assert replica.routes.route("m").revision == 2


def test_of_many_who_set_it_at_once_one_wins(make):
    replicas = [make(name) for name in "abcd"]
    barrier = threading.Barrier(8)

    def change(at: int) -> int:
        barrier.wait()
        try:
            return replicas[at % 4].set(1, at + 1, expected=0)
        except RouteConflictError:
            return 0

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(change, range(8))) == [0] * 7 + [1]


def test_without_an_expected_revision_none_is_lost(make):
    replicas = [make(name) for name in "abcd"]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda at: replicas[at % 4].set(1, at + 1), range(24)))
    assert sorted(found) == list(range(1, 25))
    for replica in replicas:
        replica.sync()
        assert replica.routes.route("m").revision == 24
    assert len({str(replica.read()) for replica in replicas}) == 1


def forget(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DELETE FROM routes")


def test_a_database_that_was_begun_afresh_gets_the_highest_revision_back(make, database_url):
    ahead, behind = make("ahead"), make("behind")
    ahead.set(1)
    behind.sync()
    ahead.set(0, 1)
    forget(database_url)
    behind.sync()  # knows revision 1 only
    ahead.sync()
    behind.sync()
    for replica in (ahead, behind):
        assert replica.routes.route("m").shares == {"2": 1.0}
        assert replica.routes.route("m").revision == 2
    forget(database_url)
    assert behind.set(0, 0, 1, expected=2) == 3  # by what is known here
    ahead.sync()
    assert ahead.routes.route("m").revision == 3


def test_an_older_copy_of_the_database_takes_nothing_back(make, database_url):
    replica, other = make("a"), make("b")
    replica.set(1)
    with psycopg.connect(database_url, autocommit=True) as connection:
        [kept] = connection.execute("SELECT revision, plain FROM routes").fetchall()
        replica.set(0, 1)
        other.sync()
        connection.execute("UPDATE routes SET revision = %s, plain = %s", kept)
    other.sync()
    replica.sync()
    assert other.routes.route("m").revision == replica.routes.route("m").revision == 2
    assert make("c").set(1, expected=2) == 3


def test_a_table_of_before_the_fleet(make):
    """It is taken over where the fleet has none; else the fleet's stands, whatever its number."""
    alone = make("alone")
    with RouteBook(alone.table).changing() as table:
        table["m"] = Route(7, {"2": 1.0}, "rollback", "", 1)
    alone.sync()
    late = make("late")
    with RouteBook(late.table).changing() as table:
        table["m"] = Route(9, {"1": 1.0}, "operator", "", 1)
        table["gone"] = Route(1, {"1": 1.0}, "operator", "", 1)
    late.sync()
    for replica in (alone, late):
        assert replica.routes.route("m").revision == 7
        assert replica.read()["m"].shared
    assert late.read()["gone"].revision == 1  # of a model that this release does not serve
    assert late.set(1, expected=7) == 8


def test_what_lies_damaged_is_written_anew(make):
    replica = make("a")
    replica.set(0, 1)
    for damage in (lambda: replica.table.write_bytes(b"{"), replica.table.unlink):
        damage()
        assert replica.fleet.problem == ""
        replica.sync()
        assert replica.read()["m"].revision == 1


def test_a_row_that_cannot_be_read_is_replaced_by_the_next_change(make, database_url):
    replica = make("a")
    replica.set(0, 1)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE routes SET plain = 'x'")
    replica.sync()
    assert replica.routes.route("m").revision == 1
    assert replica.set(1) == 2
    other = make("b")
    other.sync()
    assert other.read()["m"].shares == {"1": 1.0}


def test_a_table_that_cannot_be_written_is_said_and_tried_again(make, caplog):
    replica = make("a")
    blocked = replica.table.with_name("routes.json.new")
    blocked.mkdir()  # of a full disk the test cannot be sure
    assert replica.set(0, 1) == 1  # the others follow
    assert "cannot be written" in replica.fleet.problem
    assert "cannot be written" in replica.routes.route("m").problem
    replica.sync()
    assert len([one for one in caplog.records if one.levelname == "ERROR"]) == 1
    blocked.rmdir()
    replica.sync()
    assert replica.read()["m"].revision == 1
    assert replica.fleet.problem == ""


def test_without_the_database_nothing_is_set_and_everything_stands(
    make, postgres_server, database_url
):
    clock = making.Clock()
    replica = make("a", clock)
    replica.set(0, 1)
    before = replica.table.read_bytes()
    postgres_server.stop()
    try:
        with pytest.raises(UnavailableError, match="is that of all replicas") as refused:
            replica.set(1)
        assert "gateways go on as they did" in str(refused.value)
        with pytest.raises(StoreError):
            replica.sync()
        clock.advance(3 * SYNC_S + 2)
        view = replica.routes.route("m")
        assert (view.revision, view.shares) == (1, {"2": 1.0})
        assert "nothing was heard of the replicas' database for 5 s" in view.problem
        assert replica.table.read_bytes() == before
        store, replica.store = replica.store, None  # not even opened
        with pytest.raises(UnavailableError, match="cannot be reached"):
            replica.set(1)
        replica.store = store
    finally:
        postgres_server.start()
    replica.sync()
    assert replica.routes.route("m").problem == ""
    assert replica.set(1, expected=1) == 2
