"""The backends, started once."""

from __future__ import annotations

import pytest

from tests.backends.processes import Phoenix


@pytest.fixture(scope="package")
def phoenix(tmp_path_factory: pytest.TempPathFactory):
    """A running Phoenix; tests share it, each with a project of its own."""
    with Phoenix(tmp_path_factory.mktemp("phoenix")) as running:
        yield running
