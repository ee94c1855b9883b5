"""Samples, jobs, and stand-ins for Evidently: packages that hang, crash, or send garbage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from sidecar.config import ModelConfig
from sidecar.monitor.deep.job import Options, from_samples
from validators.drift.columns import Column, ColumnType, Rows
from validators.drift.reference import Reference

NUMERIC, CATEGORICAL = ColumnType.NUMERIC, ColumnType.CATEGORICAL
COLUMNS = (
    Column("x.mean", NUMERIC), Column("x.max", NUMERIC), Column("x.odd", NUMERIC),
    Column("y.argmax", CATEGORICAL), Column("y.ok", CATEGORICAL),
)  # fmt: skip


def rows(count: int, seed: int, *, shift: float = 0.0, classes: tuple[float, ...] = ()) -> Rows:
    """Columns of all types; ``x.mean`` shifted, ``y.argmax`` with other shares."""
    rng = np.random.default_rng(seed)
    odd = rng.normal(size=count)
    odd[: count // 10], odd[count // 10 : count // 5] = np.nan, np.inf
    return {
        "x.mean": rng.normal(size=count) + shift,
        "x.max": rng.exponential(size=count),
        "x.odd": odd,
        "y.argmax": rng.choice(4, size=count, p=classes or (0.4, 0.3, 0.2, 0.1)),
        "y.ok": rng.random(count) < 0.7,
    }


def reference(count: int = 2000, seed: int = 1) -> Reference:
    return Reference.of(rows(count, seed), COLUMNS)


def job(current: Rows | None = None, **options):
    live = rows(1000, 2) if current is None else current
    return from_samples(reference(), live, Options("m", **options), rows_max=5000)


# --- stand-ins ------------------------------------------------------------------------------------

_STATTESTS = """
class Score:
    drift_score, drifted, actual_threshold = 0.5, False, 1.0
class Test:
    name = display_name = "stand-in"
    def __call__(self, before, now, kind, threshold):
        score = Score()
        body(before, now)
        score.actual_threshold = threshold or 1.0
        return score
def get_stattest(before, now, kind, name):
    return Test()
"""
_CORE = "import enum\nclass ColumnType(enum.Enum):\n    Numerical, Categorical = 'num', 'cat'\n"


def stand_in(monkeypatch, folder: Path, body: str = "pass", *, at_import: str = "pass") -> None:
    """Put an ``evidently`` before the real one, for processes that are started from now on.

    ``body``: lines that each test executes; ``at_import``: lines of the package itself.
    """
    root = folder / "stand-in" / "evidently"
    inner = root / "legacy" / "calculations"
    inner.mkdir(parents=True)
    (root / "__init__.py").write_text(at_import)
    (root / "legacy" / "__init__.py").touch()
    (root / "legacy" / "core.py").write_text(_CORE)
    (inner / "__init__.py").touch()
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    (inner / "stattests.py").write_text(f"def body(before, now):\n{lines}{_STATTESTS}")
    path = [str(root.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))


# --- runs -----------------------------------------------------------------------------------------


def model(name: str = "m", *, drift: dict[str, Any] | None = None, **deep: Any) -> ModelConfig:
    runtime = {"kind": "onnxruntime", "path": "/m.onnx"}
    variant = {"name": "onnx", "version": "1", "roles": ["serving"], "runtime": runtime}
    settings = {"expected_windows_between_false_alarms": 200, **(drift or {}), "deep": deep}
    return ModelConfig.model_validate({"name": name, "variants": [variant], "drift": settings})


class Source:
    """Samples that a test sets; ``None``: no reference yet."""

    def __init__(self, known: Reference | None, live: Rows, *, alarms: bool = False) -> None:
        self.known, self.live, self.alarms = known, live, alarms
        self.error: Exception | None = None

    def sample(self, model: str) -> tuple[Reference, Rows] | None:
        if self.error is not None:
            raise self.error
        return None if self.known is None else (self.known, self.live)

    def alarming(self, model: str) -> bool:
        return self.alarms
