"""``sidecar reference``: rows of files, run through the serving variant, become a reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from sidecar.clock import Clock
from sidecar.config import ModelConfig, VariantConfig
from sidecar.errors import RequestError, SidecarError
from sidecar.monitor import drift_calibrate, drift_reference
from sidecar.monitor.drift_collect import Collector
from sidecar.monitor.drift_columns import ColumnsError, MisfitError, columns_of
from sidecar.monitor.drift_model import sample_rows
from sidecar.monitor.drift_reference import ReferenceFileError, RegisteredReference
from sidecar.runtimes.artifacts import fingerprint
from sidecar.runtimes.base import Array
from sidecar.validation import isolated
from sidecar.validation.files import ValidationInputError
from sidecar.validation.inputs import InputData, load
from sidecar.validation.labels import check_range
from sidecar.validation.layout import Caller, RaggedError, layout_of, pick, rows_in
from validators.drift.calibrate import Calibration
from validators.drift.columns import Column, ColumnType, Rows
from validators.drift.reference import Reference
from validators.dtypes import dtype_class
from validators.inference import infer_kind

#: On how much embeddings are fitted: a file's rows are in memory anyway.
_FIT_ROWS, _FIT_BYTES = 1 << 62, 256 * 2**20
#: Rows for each row of a window that make a good reference.
_GOOD = 10
#: Of a column of texts: with more different values than this share of rows, they are no categories.
_FREE_TEXT = 0.5

#: (done, of, what)
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for; ``sidecar reference --help`` says what each is."""

    inputs: tuple[Path, ...]
    variant: str | None = None
    labels: str | None = None
    label_output: str | None = None
    rows: int | None = None
    batch_size: int = 32
    shuffle: bool = False


def choose_variant(model: ModelConfig, key: str | None) -> VariantConfig:
    """The one with this key; default: the newest that serves.

    Raises:
        ValidationInputError: there is none of that key.
    """
    if key is None:
        return [variant for variant in model.variants if "serving" in variant.roles][-1]
    for variant in model.variants:
        if variant.key == key:
            return variant
    known = ", ".join(variant.key for variant in model.variants)
    message = f"{model.name} has no variant {key!r}; its variants: {known}"
    raise ValidationInputError(message)


def register(
    model: ModelConfig, options: Options, clock: Clock, on_progress: Progress
) -> RegisteredReference:
    """Run, describe, count, calibrate.

    Raises:
        ValidationInputError: rows, labels or settings that no reference can be made of.
        SidecarError: what loading the variant raises.
    """
    variant = choose_variant(model, options.variant)
    on_progress(0, 0, f"loading {variant.key}")
    run = _Run(model, variant, options, on_progress)
    runtime = isolated.build(variant, clock)
    try:
        layout = layout_of(runtime.signature)
        run.collect(Caller(variant.key, runtime, layout, clock))
    finally:
        runtime.close()
    assert run.collector is not None
    try:
        columns, rows, notes = run.collector.finish()
    except MisfitError as error:
        raise ValidationInputError(str(error)) from None
    reference, calibration = _calibrated(model, columns, rows, on_progress)
    warnings = [*notes, *_warnings(model, reference, calibration, rows)]
    created = datetime.fromtimestamp(clock.now_ns() / 1e9, UTC).isoformat("T", "seconds")
    facts: dict[str, Any] = {
        "settings": drift_reference.settings_of(model.drift),
        "rows": reference.rows,
        "inputs": [path.name for path in options.inputs],
        "warnings": warnings,
    }
    if run.labelled:
        facts["accuracy"] = run.right / run.labelled
        facts["labelled_rows"] = run.labelled
        facts["label_output"] = run.label_output
    return RegisteredReference(
        model.name, variant.key, _fingerprint(variant), "file", created,
        replace(run.collector.columns, batched=layout.batched), reference, calibration, facts,
    )  # fmt: skip


class _Run:
    """Rows through the variant, into a collector; and how often it is right."""

    def __init__(
        self, model: ModelConfig, variant: VariantConfig, options: Options, on_progress: Progress
    ) -> None:
        self._model, self._variant, self._options = model, variant, options
        self._on_progress = on_progress
        self.collector: Collector | None = None
        self.label_output = ""
        self.right = self.labelled = 0

    def collect(self, caller: Caller) -> None:
        """Load the rows and run them."""
        options = self._options
        sets = load(options.inputs, caller.layout, labels=options.labels, rows=options.rows)
        total = sum(data.rows for data in sets)
        needed = 2 * self._model.drift.window_rows
        if total < needed:
            message = f"{total} rows are too few for windows of {self._model.drift.window_rows}: "
            message += f"{needed} are needed at least, better {_GOOD * needed // 2}; or set "
            message += "drift.window_rows and drift.min_rows lower"
            raise ValidationInputError(message)
        runs = self._model.drift.outputs != {} or options.labels is not None
        done = 0
        for rows, labels in self._batches(sets):
            outputs = self._answers(caller, rows) if runs else {}
            if labels is not None:
                self._count_right(labels, outputs)
            self._add(rows, outputs, total)
            done += rows_in(rows)
            self._on_progress(done, total, f"running {self._variant.key}")

    def _batches(self, sets: Sequence[InputData]) -> Iterator[tuple[dict[str, Array], Any]]:
        for data in sets:
            start = 0
            for block in data.blocks:
                count = rows_in(block)
                labels = None
                if data.labels is not None:
                    labels = data.labels[start : start + count]
                start += count
                if self._options.shuffle:
                    order = np.random.default_rng(0).permutation(count)
                    block = {name: array[order] for name, array in block.items()}  # noqa: PLW2901
                    labels = None if labels is None else labels[order]
                size = self._options.batch_size
                for at in range(0, count, size):
                    part = None if labels is None else labels[at : at + size]
                    yield pick(block, at, min(at + size, count)), part

    def _answers(self, caller: Caller, rows: dict[str, Array]) -> dict[str, Array]:
        try:
            return caller.run(rows, self._options.batch_size)
        except (RequestError, RaggedError) as error:
            message = f"{self._variant.key} does not answer: {error}"
            raise ValidationInputError(message) from None

    def _add(self, inputs: dict[str, Array], outputs: dict[str, Array], total: int) -> None:
        try:
            if self.collector is None:
                columns = columns_of(self._model, inputs, outputs, batched=True)
                self.collector = Collector(columns, total, fit_rows=_FIT_ROWS, fit_bytes=_FIT_BYTES)
            self.collector.add(self.collector.columns.arrays(inputs, outputs))
        except (ColumnsError, MisfitError) as error:
            message = f"models[{self._model.name}]: {error}"
            raise ValidationInputError(message) from None

    def _count_right(self, labels: Array, outputs: dict[str, Array]) -> None:
        if not self.label_output:
            self.label_output = _label_output(outputs, self._options.label_output)
        answer = outputs[self.label_output]
        check_range(labels, answer, self.label_output, "labels")
        if dtype_class(answer.dtype) == "float":
            answer = answer.argmax(axis=1)
        self.right += int(np.count_nonzero(answer.reshape(-1) == labels))
        self.labelled += len(labels)


def _label_output(outputs: dict[str, Array], named: str | None) -> str:
    """The output that holds the classes."""
    if named is not None:
        if named not in outputs:
            message = f"--label-output: there is no output {named!r}; there is {', '.join(outputs)}"
            raise ValidationInputError(message)
        return named
    scores = [name for name, array in outputs.items() if _is_scores(name, array)]
    classes = [
        name
        for name, array in outputs.items()
        if dtype_class(array.dtype) in {"int", "string"} and array.size == len(array)
    ]
    found = scores or classes
    if len(found) == 1:
        return found[0]
    message = "labels: say which output holds the classes: --label-output NAME; there is "
    raise ValidationInputError(message + ", ".join(outputs))


def _is_scores(name: str, array: Array) -> bool:
    if dtype_class(array.dtype) != "float" or array.ndim != 2 or array.shape[1] < 2:
        return False
    return infer_kind(name, "FP32", array.shape, array)[0] == "class_scores"


def _calibrated(
    model: ModelConfig, columns: Sequence[Column], rows: Rows, on_progress: Progress
) -> tuple[Reference, Calibration]:
    drift = model.drift
    settings = {
        "window_rows": drift.window_rows,
        "min_rows": drift.min_rows,
        "expected_windows": drift.expected_windows_between_false_alarms,
        "block_rows": drift.block_rows,
        "methods": dict(drift.methods),
        "sample_rows": sample_rows(model, len(columns)),
        "seed": 0,
    }
    try:
        return drift_calibrate.make(
            columns, rows, settings, lambda done, of: on_progress(done, of, "calibrating")
        )
    except ValueError as error:
        raise ValidationInputError(str(error)) from None


def _warnings(
    model: ModelConfig, reference: Reference, calibration: Calibration, rows: Rows
) -> list[str]:
    found = []
    window = model.drift.window_rows
    if reference.rows < _GOOD * window:
        found.append(
            f"{reference.rows} rows are few for windows of {window}: with {_GOOD * window} small "
            "changes are seen sooner"
        )
    if calibration.extrapolated:
        found.append(
            f"one false alarm in {calibration.expected_windows:g} windows is too rare to be seen "
            "among the draws: the threshold is extrapolated"
        )
    if calibration.block_rows > 1 and model.drift.block_rows is None:
        found.append(
            f"rows resemble their neighbours: they are taken in blocks of {calibration.block_rows}."
            " If their order means nothing (a file sorted by class), use --shuffle"
        )
    constant = [
        column.name
        for column, counts in zip(reference.columns, reference.counted.counts, strict=True)
        if counts.max() == reference.rows and column.type is ColumnType.NUMERIC
        and np.unique(rows[column.name]).size == 1
    ]  # fmt: skip
    if constant:
        found.append(f"constant, so that any other value is odd: {', '.join(constant)}")
    for column in reference.columns:
        if column.type is ColumnType.CATEGORICAL:
            different = np.unique(rows[column.name]).size
            if different > _FREE_TEXT * reference.rows:
                found.append(
                    f"{column.name} has {different} different values in {reference.rows} rows, so "
                    "that new ones tell nothing: leave it out"
                )
    return found


def _fingerprint(variant: VariantConfig) -> str:
    runtime = variant.runtime
    if runtime.kind == "remote":
        return ""
    try:
        return fingerprint(runtime.path)
    except (SidecarError, OSError):
        return ""


__all__ = ["Options", "ReferenceFileError", "choose_variant", "register"]
