"""The fleet's thread: its rounds, and who waits for them."""

from __future__ import annotations

import threading
import time

import pytest

from sidecar.clock import SystemClock
from sidecar.config_monitor import StoreConfig
from sidecar.monitor.evidence_shared import SharedEvidence
from sidecar.monitor.pool_side import PoolSide
from sidecar.monitor.store import Store
from tests.monitor import making
from tests.monitor.test_pool_store import Leads

SYNC_S = 0.2


@pytest.fixture
def store(database_url):
    made = Store.connect(StoreConfig(url=database_url), SystemClock(), "life")
    yield made
    made.close()


@pytest.fixture
def side(store):
    evidence = SharedEvidence("life", SystemClock())
    evidence.become("life")
    made = PoolSide(evidence, Leads(), making.Clock(), sync_s=SYNC_S)
    made._leads.fence = 1
    return made


def in_thread(wait) -> tuple[threading.Thread, threading.Event]:
    over = threading.Event()

    def run() -> None:
        wait()
        over.set()

    thread = threading.Thread(target=run)
    thread.start()
    return thread, over


def test_a_look_waits_until_the_round_is_joined(side, store):
    side._sync_s = 30.0
    thread, over = in_thread(side.wait)
    assert not over.wait(0.3)
    before = side._evidence.refreshes
    side.join(store)
    assert over.wait(10)
    assert side._evidence.refreshes == before + 1
    thread.join(10)


def test_what_was_joined_just_now_is_not_waited_for_again(side, store):
    side._sync_s = 1000.0
    side.join(store)
    thread, over = in_thread(side.wait)
    assert over.wait(10)
    thread.join(10)


def test_what_was_joined_long_ago_is_waited_for_but_not_for_ever(side, store):
    side.join(store)
    side._clock.advance(SYNC_S)
    begun = time.monotonic()
    side.wait()
    assert time.monotonic() - begun >= SYNC_S


def test_a_follower_waits_for_nothing(side):
    side._leads.fence = 0
    side._sync_s = 1000.0
    thread, over = in_thread(side.wait)
    assert over.wait(10)
    thread.join(10)
