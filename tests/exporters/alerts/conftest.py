"""No proxy of whoever runs the tests stands between a channel and its receiver."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
