"""One thread for linear algebra, as in the sidecar's own processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Small products on several threads wait for each other: on a busy machine six times longer."""
    with threadpool_limits(1):
        yield
