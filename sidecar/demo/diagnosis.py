"""Naming the cause: ``sidecar validate --localize`` on the conversion that was found broken."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sidecar.demo.export import LABEL, LABELLED_FILE, VERSIONS
from sidecar.demo.verdicts import MODEL

REPORT_FOLDER = "report"
#: torch alone takes seconds to import on a busy machine.
_TIMEOUT_S = 180
#: What `sidecar validate` ends with when it has judged.
_JUDGED = {0: "PASS", 1: "FAIL", 3: "INCONCLUSIVE", 4: "INVALID"}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What the offline validation says.

    Attributes:
        command: what was run, without ``--json``.
        verdict: ``""`` when it could not be run; then ``problem`` says why.
        reason: the most important one, in a sentence.
        first: the first diverging value (a ``ValueRow`` in plain form); empty: none was found.
        accuracy: of the broken conversion on the labelled digits; ``None``: not known.
        report: the page with pictures.
    """

    command: list[str]
    verdict: str = ""
    reason: str = ""
    first: dict[str, Any] = field(default_factory=dict)
    accuracy: float | None = None
    report: str = ""
    problem: str = ""

    def in_words(self) -> list[str]:
        """Return the few lines that say it."""
        if not self.verdict:
            return [f"validate: could not be run: {self.problem}"]
        line = f"validate: {self.verdict}: {self.reason}"
        if self.accuracy is not None:
            line += f" (it still reads {self.accuracy:.1%} of the digits right)"
        lines = [line]
        if self.first:
            where = f"{self.first['op_type']} node {self.first['onnx_node']}"
            where += f" (value {self.first['value']}"
            where += f", module {self.first['module']})" if self.first["module"] else ")"
            lines.append(f"localized: {where}")
            if self.first["source"]:
                lines.append(f"           {self.first['source']}")
        lines.append(f"the page with its worst digits: {self.report}")
        return lines


def diagnose(config: Path, output: Path) -> Diagnosis:
    """Validate the broken variant against the reference, as a user would.

    Args:
        config: the demo's.
        output: its folder; the report is written below it.
    """
    report = output / REPORT_FOLDER
    command = [
        "validate", str(config), "--model", MODEL, "--variant", f"{VERSIONS[-1]}/broken",
        "--input", str(output / LABELLED_FILE), "--labels", LABEL, "--localize",
        "--report", str(report),
    ]  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, "-m", "sidecar", *command, "--json"],
            capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Diagnosis(command, problem=f"it took longer than {_TIMEOUT_S} s")
    if done.returncode not in _JUDGED:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        return Diagnosis(command, problem=said[-1])
    (result,) = json.loads(done.stdout)["runs"]
    (variant,) = (each for each in result["variants"] if each["key"].endswith("/broken"))
    divergence = variant["divergence"] or {}
    labels = variant["labels"]
    return Diagnosis(
        command,
        verdict=_JUDGED[done.returncode],
        reason=next(iter(variant["reasons"]), ""),
        first=divergence.get("first") or {},
        accuracy=None if labels is None else labels["accuracy"],
        report=str(report / "report.html"),
    )
