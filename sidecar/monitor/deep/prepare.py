"""From a model's settings and two samples to the job of a run, with thresholds found before."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sidecar.config import ModelConfig
from sidecar.config_drift import DriftConfig
from sidecar.monitor.deep import results
from sidecar.monitor.deep.job import Job, Options, Page, UnfitSampleError, from_samples
from validators.drift.accuracy import CORRECT, AccuracyChange, compare_accuracy
from validators.drift.columns import Rows
from validators.drift.reference import Reference
from validators.drift.resample import block_length

#: Of a run's time, what finding thresholds may take. Those found are kept for the next runs.
_CALIBRATE_SHARE = 0.25
#: Thresholds are found for so many rows, in steps of an eighth of an octave, and hold for windows
#: up to the next step: those have a little more, for which they are too large by 4 % at most.
_STEPS_PER_OCTAVE = 8


def prepare(
    settings: ModelConfig,
    reference: Reference,
    rows: Rows,
    page: Page,
    accuracy: AccuracyChange | None,
    known: Callable[[str], Mapping[str, float]],
) -> tuple[Job, str]:
    """The job, and the key under which its thresholds are kept.

    Args:
        known: key → thresholds that were found for it before.

    Raises:
        UnfitSampleError: the samples cannot be compared, or the live rows are too few.
    """
    drift = settings.drift
    live = min(drift.deep.rows, max((len(values) for values in rows.values()), default=0))
    if live < drift.min_rows:
        raise UnfitSampleError(f"{live} live rows, {drift.min_rows} are needed")
    size = _step(live)
    # As `calibrate` does for the windows: a found block is ten times as long as rows resemble each
    # other, and may begin anywhere; a declared one begins where requests do.
    block = drift.block_rows
    aligned = block is not None
    if block is None:
        block = block_length(reference.codes(reference.sample), size)
    block = min(block, size)
    expected = drift.expected_windows_between_false_alarms
    key = _key(reference, size, block, aligned, expected, drift.methods)
    options = Options(
        settings.name, expected, block, aligned, size, _CALIBRATE_SHARE * drift.deep.timeout_s,
        page, tuple(results.accuracy_sentences(accuracy)), drift.deep.memory_max_bytes,
    )  # fmt: skip
    job = from_samples(
        reference, rows, options, rows_max=drift.deep.rows, methods=drift.methods,
        thresholds=known(key),
    )  # fmt: skip
    return job, key


def accuracy_of(drift: DriftConfig, reference: Reference, rows: Rows) -> AccuracyChange | None:
    """``None`` where labels are not known on both sides."""
    before, now = reference.sample.get(CORRECT), rows.get(CORRECT)
    if before is None or now is None:
        return None
    return compare_accuracy(before, now, 1 / drift.expected_windows_between_false_alarms)


def _step(rows: int) -> int:
    step = math.floor(_STEPS_PER_OCTAVE * math.log2(rows))
    return min(rows, math.ceil(2 ** (step / _STEPS_PER_OCTAVE)))


def _key(reference: Reference, *facts: Any) -> str:
    """Everything that thresholds depend on, as a hash."""
    columns = [(column.name, column.type.value) for column in reference.columns]
    hashed = hashlib.sha256(repr((results.evidently_version(), columns, facts)).encode())
    for column in reference.columns:
        values = np.asarray(reference.sample[column.name])
        hashed.update(values.astype(str).tobytes() if values.dtype == object else values.tobytes())
    return hashed.hexdigest()
