"""The store on a real PostgreSQL: bounded waits, no password in any message, many at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from sidecar.clock import SystemClock
from sidecar.config_monitor import StoreConfig
from sidecar.errors import ConfigError
from sidecar.monitor import pool_tables
from sidecar.monitor import store_tables as tables
from sidecar.monitor.replicas import Replicas
from sidecar.monitor.rows import EvidenceKey, Remark
from sidecar.monitor.store import Store, StoreError
from tests.monitor import making

# The same tests as on a file, with the `store` of this module.
from tests.monitor.test_store import (  # noqa: F401
    test_a_certificate_is_never_lowered_and_keeps_its_first_date,
    test_a_closed_store_says_so,
    test_a_row_is_replaced_within_an_incarnation_and_added_beside_another,
    test_cases_go_when_told_and_come_the_newest_first,
    test_old_events_go_and_writing_one_again_is_harmless,
    test_several_threads_write_and_read,
    test_what_is_not_finite_is_refused_where_it_would_spoil_sums,
)
from tests.support.ports import free_port

CLOCK = SystemClock()
PLACE = EvidenceKey("m", "c", "b", "y", "", "p")


def connect(url: str, **settings: float) -> Store:
    return Store.connect(StoreConfig(url=url, **settings), CLOCK)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    with closing(connect(database_url)) as opened:
        yield opened


def test_the_migrations_make_the_tables_that_the_code_knows(store, database_url):
    engine = sa.create_engine(database_url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert pool_tables.RESTS.metadata is tables.METADATA  # all of them are in one
        assert compare_metadata(context, tables.METADATA) == []
    engine.dispose()


def test_many_that_start_at_once_make_the_tables_once(database_url):
    code = (
        "import sys; from sidecar.clock import SystemClock\n"
        "from sidecar.config_monitor import StoreConfig\n"
        "from sidecar.monitor.store import Store\n"
        "sys.stdin.readline()\n"
        "Store.connect(StoreConfig(url=sys.argv[1]), SystemClock()).close(); print('opened')"
    )
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, database_url],
            stdin=pipe, stdout=pipe, stderr=pipe, text=True,
        )
        for _ in range(8)
    ]  # fmt: skip
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        out, error = process.communicate(timeout=200)
        assert (out, process.returncode) == ("opened\n", 0), error


def test_a_database_of_a_newer_release_is_left_alone(store, database_url):
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match=r"newer release .revision 9999, .*upgrade model-sidecar"):
        connect(database_url)


def test_remarks_of_several_are_merged(database_url):
    with closing(connect(database_url)) as one, closing(connect(database_url)) as other:
        one.put_remarks({PLACE: Remark({"a": 1.0}, {"b": 1.0})})
        other.put_remarks({PLACE: Remark({"a": 0.5, "c": 2.0}, {"b": -1.0}, "a problem")})
        one.put_remarks({PLACE: Remark({"a": 0.7}, {}, "another")})
        found = Remark({"a": 1.0, "c": 2.0}, {"b": -1.0}, "a problem")
        assert one.remarks() == {PLACE: found}


# --- waits ----------------------------------------------------------------------------------------


def test_a_server_that_stands_still_is_not_waited_for(postgres_server, database_url):
    with closing(connect(database_url, timeout_s=0.5)) as opened:
        opened.put_remarks({PLACE: Remark({"a": 1.0})})
        postgres_server.pause()
        try:
            began = time.monotonic()
            with pytest.raises(StoreError, match=r"cannot be written: .*(no answer|timeout)"):
                opened.put_remarks({PLACE: Remark({"a": 2.0})})
            with pytest.raises(StoreError, match="cannot be read"):
                opened.remarks()
            assert time.monotonic() - began < 60
            assert not opened.ok
        finally:
            postgres_server.resume()
        opened.put_remarks({PLACE: Remark({"a": 3.0})})
        assert (opened.ok, opened.message) == (True, "")
        assert opened.remarks() == {PLACE: Remark({"a": 3.0})}


def test_a_row_that_somebody_holds_is_not_waited_for(database_url):
    with closing(connect(database_url, timeout_s=0.5)) as opened:
        opened.put_remarks({PLACE: Remark({"a": 1.0})})
        with psycopg.connect(database_url) as connection:
            connection.execute("SELECT * FROM remarks FOR UPDATE")
            with pytest.raises(StoreError, match="timeout"):
                opened.put_remarks({PLACE: Remark({"a": 2.0})})
        opened.put_remarks({PLACE: Remark({"a": 2.0})})


def test_a_server_that_was_away_is_found_again(postgres_server, database_url):
    with closing(connect(database_url, timeout_s=1)) as opened:
        opened.put_remarks({PLACE: Remark({"a": 1.0})})
        postgres_server.stop(how=signal.SIGQUIT)
        try:
            with pytest.raises(StoreError, match="cannot be written"):
                opened.put_remarks({PLACE: Remark({"a": 2.0})})
        finally:
            postgres_server.start()
        opened.put_remarks({PLACE: Remark({"a": 2.0})})
        assert opened.generation == 0, "it is the same database"


# --- what is said ---------------------------------------------------------------------------------


def test_no_message_holds_the_password(caplog):
    port = free_port()
    url = f"postgresql://me:s3cr%2Fet@127.0.0.1:{port}/evidence?application_name=x"
    with pytest.raises(StoreError) as failed:
        connect(url, timeout_s=1)
    said = str(failed.value) + caplog.text
    assert f"PostgreSQL at 127.0.0.1:{port}/evidence cannot be opened" in said
    for url in (f"postgresql://me:s3cr%2Fet@127.0.0.1:{port}/x?nothing=s3cret", "s3cr%2Fet"):
        with pytest.raises((ConfigError, StoreError)) as failed:
            connect(url, timeout_s=1)
        said += str(failed.value)
    assert "s3cr" not in said


def test_without_the_library_it_is_said_which_extra_brings_it():
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from sidecar.config_monitor import StoreConfig\n"
        "from sidecar.errors import MissingExtraError\n"
        "from sidecar.monitor.fleet_side import fleet_side\n"
        "try: fleet_side(StoreConfig(url='postgresql://h/d'), None, None)\n"
        "except MissingExtraError as error: print(error)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert "install model-sidecar[postgres]" in found.stdout, found.stderr


# --- who is there ---------------------------------------------------------------------------------


def test_replicas_know_of_one_another(database_url):
    with closing(connect(database_url)) as opened:
        clock = making.Clock()
        one, other = Replicas("one", clock), Replicas("other", clock)
        one.tell("route", lambda: 7)
        assert one.alive(10) == []
        one.beat(opened)
        other.beat(opened)
        first, second = other.alive(60)
        assert (first.incarnation, first.plain["route"]) == ("one", 7)
        assert (second.incarnation, second.plain["version"]) == ("other", first.plain["version"])
        clock.advance(61)  # nothing was read meanwhile
        assert other.alive(60) == []
        other.beat(opened)
        assert [found.incarnation for found in other.alive(60)] == ["one", "other"]
        one.leave(opened)
        other.beat(opened)
        assert [found.incarnation for found in other.alive(60)] == ["other"]
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("UPDATE replicas SET seen_ns = 0")
        one.forget(opened)
        other.beat(opened)
        assert [found.incarnation for found in other.alive(1e12)] == ["other"]
