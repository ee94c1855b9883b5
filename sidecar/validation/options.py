"""What a run is asked, and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.runtimes.base import Array
    from sidecar.validation.layout import Layout
    from sidecar.validation.policies import LimitTexts
    from sidecar.validation.tally import KeptRow
    from validators.policy import OutputPolicy
    from validators.results import RunResult

#: ``on_progress(done, of, what)``, in rows.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked of a run.

    Attributes:
        inputs: files or folders of rows; none: rows are generated.
        labels: key in the inputs, or ``.npy`` file.
        label_output: the output that holds the classes; default: told by its kind.
        rows: of each given set the first so many; of generated random rows so many.
        seed: of generated rows.
        batch_size: rows of one call.
        limits: of the command line.
        arbiter: default limits are no tighter than what the reference shows against float64.
        one_at_a_time: never more than the reference and one candidate in memory.
        isolated: each variant in a process of its own, so that one that crashes ends only itself.
        command: what was typed, for the report.
    """

    inputs: tuple[Path, ...] = ()
    labels: str | None = None
    label_output: str | None = None
    rows: int | None = None
    seed: int = 0
    batch_size: int | None = None
    limits: LimitTexts = field(default_factory=dict)
    arbiter: bool = False
    one_at_a_time: bool = False
    isolated: bool = False
    command: str = ""


@dataclass(slots=True)
class Outcome:
    """What a run gives.

    Attributes:
        result: for reports.
        metrics: ``metric_key`` → float64 [rows], or bool [rows] for ``INVALID_ROWS``.
        rows: the rows that differ most, with their tensors.
        policies: candidate's key → output → how it was compared.
        layout: what a row is; ``None`` when the reference could not be loaded.
        crashes: variant's key → how it ended its process, of those that did.
        isolated: as in ``Options``.
    """

    result: RunResult
    metrics: dict[str, Array] = field(default_factory=dict)
    rows: list[KeptRow] = field(default_factory=list)
    policies: dict[str, dict[str, OutputPolicy]] = field(default_factory=dict)
    layout: Layout | None = None
    crashes: dict[str, str] = field(default_factory=dict)
    isolated: bool = False
