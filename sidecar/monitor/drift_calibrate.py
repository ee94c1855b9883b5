"""Bins and thresholds of collected rows, made in a process of its own.

Calibrating takes seconds to a minute of a processor, and memory that should be given back: not on
the monitor's worker, whose queue would fill. It has the monitor's own low priority: at the very
lowest it would never end where all processors are taken. The parent writes the settings (JSON) and
the columns (npz) to the child's standard input, and reads JSON.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from validators.drift.calibrate import Calibration, calibrate
from validators.drift.columns import Column, ColumnType, Rows
from validators.drift.reference import Reference

#: One that takes longer is ended: 512 columns take two minutes where nothing else runs.
TIMEOUT_S = 1800.0
_PR_SET_PDEATHSIG = 1
_SIZE = struct.Struct("<Q")


class CalibrationError(Exception):
    """It could not be made; says why."""


def make(
    columns: Sequence[Column], rows: Rows, settings: Mapping[str, Any], on_progress: Any = None
) -> tuple[Reference, Calibration]:
    """A reference and its thresholds.

    Args:
        columns, rows: in the order in which they came.
        settings: ``window_rows``, ``min_rows``, ``expected_windows``, ``block_rows``, ``methods``,
            ``sample_rows``, ``seed``.
        on_progress: as of ``calibrate``.

    Raises:
        ValueError: as of ``Reference.of`` and ``calibrate``.
    """
    block = settings["block_rows"]
    reference = Reference.of(
        rows, columns, seed=settings["seed"], sample_rows=settings["sample_rows"],
        block_rows=block or 1,
    )  # fmt: skip
    known = {column.name for column in columns}
    if unknown := sorted(set(settings["methods"]) - known):
        raise ValueError(
            f"drift.methods names {unknown[0]!r}, which is no column; there are: "
            f"{', '.join(sorted(known))}"
        )
    calibration = calibrate(
        reference, reference.codes(rows), window_rows=settings["window_rows"],
        expected_windows=settings["expected_windows"], block_rows=block,
        methods=settings["methods"], min_rows=settings["min_rows"], seed=settings["seed"],
        on_progress=on_progress,
    )  # fmt: skip
    return reference, calibration


class CalibrationChild:
    """One run of ``make`` in a child process.

    For one thread; ``kill`` is for any. The child ends when the monitor does: its input is a pipe
    that breaks, or it has read everything and ends by itself.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False

    def run(
        self, columns: Sequence[Column], rows: Rows, settings: Mapping[str, Any],
        timeout_s: float = TIMEOUT_S,
    ) -> tuple[Reference, Calibration]:  # fmt: skip
        """Calibrate; waits for it.

        Raises:
            CalibrationError: it failed, took too long, or was killed.
        """
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", "sidecar.monitor.drift_calibrate", str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        if self._killed:
            process.kill()
        try:
            out, said = process.communicate(_pack(columns, rows, settings), timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            message = f"calibrating took more than {timeout_s:g} s: watch fewer columns"
            raise CalibrationError(message) from None
        if process.returncode != 0:
            last = said.decode(errors="replace").strip().rpartition("\n")[2]
            raise CalibrationError(last or f"its process ended with {process.returncode}")
        plain = json.loads(out)
        return (
            Reference.from_plain(plain["reference"]),
            Calibration.from_plain(plain["calibration"]),
        )

    def kill(self) -> None:
        """End it now. Idempotent."""
        self._killed = True
        if self._process is not None:
            self._process.kill()


def _pack(columns: Sequence[Column], rows: Rows, settings: Mapping[str, Any]) -> bytes:
    head = json.dumps({"columns": [(c.name, str(c.type)) for c in columns], **settings}).encode()
    body = io.BytesIO()
    # By number: an npz cannot hold every name.
    np.savez(body, **{f"c{at}": rows[c.name] for at, c in enumerate(columns)})  # type: ignore[arg-type]
    return _SIZE.pack(len(head)) + head + body.getvalue()


def _unpack(stream: BinaryIO) -> tuple[list[Column], Rows, dict[str, Any]]:
    (size,) = _SIZE.unpack(stream.read(_SIZE.size))
    settings = json.loads(stream.read(size))
    columns = [Column(name, ColumnType(kind)) for name, kind in settings.pop("columns")]
    with np.load(io.BytesIO(stream.read()), allow_pickle=False) as file:
        rows = {column.name: file[f"c{at}"] for at, column in enumerate(columns)}
    return columns, rows, settings


def main() -> int:
    """The child: read, calibrate, write; returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the supervisor's
    if not _ends_with(int(sys.argv[1])):
        return 1
    columns, rows, settings = _unpack(sys.stdin.buffer)
    try:
        reference, calibration = make(columns, rows, settings)
    except (ValueError, MemoryError) as error:
        sys.stderr.write(f"{str(error) or 'out of memory'}\n")
        return 1
    plain = {"reference": reference.to_plain(), "calibration": calibration.to_plain()}
    sys.stdout.write(json.dumps(plain, allow_nan=False))
    return 0


def _ends_with(parent: int) -> bool:
    """Linux: a monitor that is killed leaves nothing behind that computes on; False: it is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
