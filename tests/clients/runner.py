"""Runs client scripts in the clients' own environment, and tells their checks apart."""

from __future__ import annotations

import ast
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ENVIRONMENT = HERE.parents[1] / ".venvs" / "clients"
PYTHON = ENVIRONMENT / "bin" / "python"
#: Longer than ``HANG_S`` in scripts/harness.py, which explains a hang better than we can.
SCRIPT_TIMEOUT_S = 195


def require_environment() -> None:
    """Fail (a skip would hide that no stock client was tried) and say what to do."""
    if not (ENVIRONMENT / "requirements.sha256").exists():
        pytest.fail("the stock clients are not installed: run `make clients`", pytrace=False)


def checks_of(script: str) -> list[str]:
    """The names of a script's checks, read without running it: its imports are not ours."""
    tree = ast.parse((HERE / "scripts" / f"{script}.py").read_text())
    functions = (n for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return [node.name for node in functions if node.name.startswith("check_")]


def cases(*runs: tuple[str, str, str]) -> list[Any]:
    """Parameters ``(script, server, api, check)``: one test per check of each run."""
    made = []
    for script, server, api in runs:
        label = "-".join(filter(None, [script, api, server]))
        for check in checks_of(script):
            made.append(pytest.param(script, server, api, check, id=f"{label}-{check}"))  # noqa: PERF401
    return made  # fmt: skip


class Scripts:
    """Each script runs once against each server: a client is slow to start, a check is quick."""

    def __init__(self) -> None:
        self._results: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._output: dict[tuple[str, str, str], str] = {}

    def verify(
        self, script: str, server: str, api: str, check: str, target: dict[str, Any]
    ) -> None:
        """Fail with the client's own traceback."""
        run = (script, server, api)
        if run not in self._results:
            self._run(run, target)
        result = self._results[run].get(check)
        if result is None:
            pytest.fail(f"the check did not report; {script} wrote:\n{self._output[run]}", False)
        if not result["ok"]:
            pytest.fail(result["detail"], pytrace=False)

    def _run(self, run: tuple[str, str, str], target: dict[str, Any]) -> None:
        script, _, api = run
        options = target | ({"api": api} if api else {})
        path = HERE / "scripts" / f"{script}.py"
        # -E: variables meant for our Python must not steer the clients'.
        command = [str(PYTHON), "-E", str(path), json.dumps(options)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=SCRIPT_TIMEOUT_S, check=False
            )
            out, err, end = done.stdout, done.stderr, f"exit code {done.returncode}"
        except subprocess.TimeoutExpired as error:
            out, err = (x.decode() if x else "" for x in (error.stdout, error.stderr))
            end = f"still running after {SCRIPT_TIMEOUT_S} s"
        lines = [json.loads(line) for line in out.splitlines() if line.startswith('{"check"')]
        self._results[run] = {line["check"]: line for line in lines}
        self._output[run] = f"{out[-2000:]}\n{err[-4000:]}\n{end}"
