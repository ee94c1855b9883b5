"""One training for all of these tests: it takes seconds, and changes nothing but its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from sidecar.demo import export


@dataclass(frozen=True)
class Trained:
    folder: Path
    prepared: export.Prepared
    said: list[str]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("demo")
    said: list[str] = []
    return Trained(folder, export.prepare(folder, said.append), said)
