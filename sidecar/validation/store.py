"""The folder of a report: pages and documents, the metrics of every row, and the worst cases."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sidecar.clock import Clock, SystemClock
from sidecar.errors import MissingExtraError, SidecarError
from sidecar.validation.cause import as_request
from sidecar.validation.files import ValidationInputError, is_case_folder, read_safetensors
from validators.results import RunResult, WorstCase, metric_key

if TYPE_CHECKING:
    from sidecar.cases import Case, CaseWriter
    from sidecar.runtimes.base import Array
    from sidecar.validation.options import Outcome
    from sidecar.validation.tally import KeptRow

METRICS, DOCUMENT, CASES = "metrics.safetensors", "report.json", "cases"

_CENTURY_S = 100 * 365 * 86400.0


class StoreError(SidecarError):
    """A report's folder cannot be written: says why."""


def write_run(
    outcome: Outcome, folder: Path, *, config: Path | None = None, clock: Clock | None = None
) -> Path:
    """Write everything a run gives; files of an earlier report are replaced.

    Args:
        outcome: the run. Its result's worst cases are filled in.
        folder: made if it is missing.
        config: for the commands that replay cases.
        clock: for the cases' times.

    Returns:
        The path of the page.

    Raises:
        StoreError: the folder cannot be written.
        MissingExtraError: an extra is not installed.
    """
    check_extras()
    from exporters.reports import ReportError, write_report

    try:
        folder.mkdir(parents=True, exist_ok=True)
        cases = _write_cases(outcome, folder / CASES, config, clock or SystemClock())
        write_metrics(outcome.metrics, folder)
        return write_report(outcome.result, folder, cases)
    except OSError as error:
        message = f"the report cannot be written to {folder}: {error.strerror or error}"
        raise StoreError(message) from None
    except ReportError as error:
        raise StoreError(str(error)) from None


def check_extras() -> None:
    """Find out before anything is run that a report cannot be written.

    Raises:
        MissingExtraError: names what is missing.
    """
    for module in ("safetensors", "pyarrow", "matplotlib", "jinja2"):
        try:
            __import__(module)
        except ModuleNotFoundError:
            message = f"--report needs {module}: install model-sidecar[validate]"
            raise MissingExtraError(message) from None


def check_folder(folder: Path) -> None:
    """Make the folder of a report, and find out before anything is run that it takes no files.

    Raises:
        StoreError: it cannot be made or written.
    """
    probe = folder / ".tmp-probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        message = f"the report cannot be written to {folder}: {error.strerror or error}"
        raise StoreError(message) from None


def write_metrics(metrics: Mapping[str, Array], folder: Path) -> None:
    """Write the metrics of every row, so that they can be judged again."""
    from safetensors.numpy import save

    temporary = folder / f".tmp-{METRICS}"
    # Not save_file, whose files only their owner can read.
    temporary.write_bytes(save({key: np.ascontiguousarray(a) for key, a in metrics.items()}))
    temporary.replace(folder / METRICS)


# --- cases ----------------------------------------------------------------------------------------


def _write_cases(
    outcome: Outcome, folder: Path, config: Path | None, clock: Clock
) -> dict[str, Case]:
    from sidecar.cases import CaseWriter, iter_cases
    from sidecar.config_monitor import CasesConfig

    if is_case_folder(folder):
        shutil.rmtree(folder)  # of an earlier report, which is being replaced
    for variant in outcome.result.variants:
        variant.worst = []
    if not outcome.rows:
        return {}
    # All that is offered is kept: it was chosen already.
    settings = CasesConfig(
        reservoir=100_000, worst=0, per_failure=100_000, inputs="keep", max_bytes=2**33,
        time_to_live_s=_CENTURY_S,
    )  # fmt: skip
    with CaseWriter(folder, settings, clock) as writer:
        for row in outcome.rows:
            _write_case(writer, row, outcome, config)
    return {case.id: case for case in iter_cases(folder)}


def _write_case(writer: CaseWriter, row: KeptRow, outcome: Outcome, config: Path | None) -> None:
    from sidecar.cases import Arrays, Offer

    result, layout = outcome.result, outcome.layout
    assert layout is not None
    arrays = Arrays(
        as_request(row.inputs, layout),
        {f"{result.model}:{key}": as_request(rows, layout) for key, rows in row.outputs.items()},
    )
    failure = row.reason.partition(":")[2] if row.reason.startswith("failure:") else None
    offer = Offer(
        model=result.model,
        candidate=f"{result.model}:{row.variant}",
        baseline=f"{result.model}:{result.reference}",
        metrics={f"{row.output}.{metric}": value for metric, value in row.metrics.items()},
        failure=failure,
        info={"input_set": row.input_set, "row": row.row, "output": row.output},
    )
    case_id = writer.offer(offer, lambda: arrays)
    variant = result.variant(row.variant)
    if case_id is None or variant is None:
        return
    command = ["sidecar", "replay", f"{writer.folder}#{case_id}"]
    if config is not None:
        command += ["--config", str(config)]
    variant.worst.append(
        WorstCase(
            case_id,
            row.input_set,
            row.row,
            row.output,
            row.reason,
            row.metrics,
            shlex.join(command),
        )
    )


# --- reading --------------------------------------------------------------------------------------


def read_run(folder: Path) -> tuple[RunResult, dict[tuple[str, str, str], dict[str, Array]]]:
    """Read a report's folder (or its ``report.json``) for ``validators.judge.rejudge``.

    Returns:
        The result, and (variant, input set, output) → metric → values.

    Raises:
        ValidationInputError: it is no report, or not whole.
    """
    document = folder / DOCUMENT if folder.is_dir() or not folder.suffix else folder
    try:
        plain: Any = json.loads(document.read_text(encoding="utf-8"))
        result = RunResult.from_plain(plain)
    except OSError as error:
        message = (
            f"{document} cannot be read: {error.strerror}; give the folder that --report wrote"
        )
        raise ValidationInputError(message) from None
    except ValueError as error:  # also what is no JSON, or no text
        message = f"{document} is no report: {error}"
        raise ValidationInputError(message) from None
    path = document.parent / METRICS
    if not path.is_file():
        message = f"{path} is missing: without the metrics of each row nothing can be judged again"
        raise ValidationInputError(message)
    stored = read_safetensors(path)
    found: dict[tuple[str, str, str], dict[str, Array]] = {}
    for variant in result.variants:
        for group in variant.groups:
            for output in group.outputs:
                key = (variant.key, group.input_set, output.output)
                prefix = metric_key(*key, "")
                found[key] = {
                    name.removeprefix(prefix): array
                    for name, array in stored.items()
                    if name.startswith(prefix)
                }
    return result, found
