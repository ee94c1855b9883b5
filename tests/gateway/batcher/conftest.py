"""A pool, a model, and batchers over them, all closed again."""

from __future__ import annotations

import pytest

from sidecar.gateway.batcher import Batcher
from sidecar.gateway.workpool import WorkPool
from tests.gateway.batcher.support import Model


@pytest.fixture
def pool():
    pool = WorkPool(2, 64)
    yield pool
    pool.close()


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def make(pool, model):
    batchers = []

    def make(**options):
        settings = {"max_size": 8, "max_delay_ms": 0, "max_queue": 100, "pool": pool} | options
        execute = settings.pop("execute", model.infer)
        batchers.append(Batcher(execute, **settings))
        return batchers[-1]

    yield make
    model.proceed.set()
    for batcher in batchers:
        batcher.close()
