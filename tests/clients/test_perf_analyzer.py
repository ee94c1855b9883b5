"""NVIDIA's perf_analyzer against our server: it must run, and its figures must make sense."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clients.runner import ENVIRONMENT

pytestmark = [pytest.mark.clients, pytest.mark.timeout(400)]

CONCURRENT = ("--concurrency-range", "2")
PERF = ENVIRONMENT / "perf"
#: Short windows: what is tested is that it works, not how fast we are (tests/benchmarks does that).
#: Stability is not asked for, since a shared machine has none to give.
SHORT = ["--measurement-mode", "count_windows", "--measurement-request-count", "50",
         "--stability-percentage", "999", "--max-trials", "3"]  # fmt: skip

#: What add_sub answers to 0 … 15 and threes.
SUMS, DIFFERENCES = [n + 3 for n in range(16)], [n - 3 for n in range(16)]

Row = dict[str, float]


def _analyze(
    target: dict[str, Any], folder: Path, model: str, *options: str
) -> tuple[int, str, list[Row]]:
    """Run it; return its exit code, what it wrote, and the rows of its table."""
    protocol = "http" if "http" in options else "grpc"
    table = folder / "table.csv"
    command = [str(PERF / "bin" / "perf_analyzer"), "-m", model, "-u", target[protocol],
               "-f", str(table), *SHORT, *options]  # fmt: skip
    if "-i" not in options:
        command += ["-i", "grpc"]
    libraries = str(PERF / "nvidia" / "cuda_runtime" / "lib")
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=240, cwd=folder,
        env=os.environ | {"LD_LIBRARY_PATH": libraries},
    )  # fmt: skip
    output = f"{' '.join(command)}\n{done.stdout[-5000:]}\n{done.stderr[-3000:]}"
    if "libb64" in done.stderr:
        output += "\ninstall the Debian packages that tests/clients/apt.txt lists"
    rows: list[Row] = []
    if table.exists():
        with table.open(newline="") as file:
            rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    return done.returncode, output, rows


@pytest.fixture
def perf(target_of: Callable[[str], dict[str, Any]], tmp_path: Path) -> Callable[..., list[Row]]:
    """Run it against a kind of server; it must succeed; return the rows of its table."""

    def run(model: str, *options: str, kind: str = "open") -> list[Row]:
        code, output, rows = _analyze(target_of(kind), tmp_path, model, *options)
        assert code == 0, output
        assert "Failed" not in output, output
        assert rows, output
        return rows

    return run


def _check(rows: list[Row], concurrencies: list[int]) -> None:
    """Its table joins the client's times with those of our ModelStatistics, in microseconds."""
    assert sorted(int(row["Concurrency"]) for row in rows) == concurrencies
    for row in rows:
        assert row["Inferences/Second"] > 0
        assert 0 < row["p50 latency"] <= row["p90 latency"] <= row["p99 latency"]
        assert row["Server Compute Infer"] > 0
        assert row["Server Compute Input"] >= 0
        assert row["Server Compute Output"] >= 0
        # What the client waited less what we say we took; 0 if we claim more than it waited.
        assert row["Network+Server Send/Recv"] > 0


def test_grpc_over_a_range_of_concurrencies(perf: Callable[..., list[Row]]) -> None:
    _check(perf("mlp", "--concurrency-range", "1:4:3"), [1, 4])


def test_http(perf: Callable[..., list[Row]]) -> None:
    _check(perf("mlp", "-i", "http", "--concurrency-range", "1:4:3"), [1, 4])


def test_streaming(perf: Callable[..., list[Row]]) -> None:
    _check(perf("mlp", "--streaming", *CONCURRENT), [2])


def test_asynchronous_calls(perf: Callable[..., list[Row]]) -> None:
    _check(perf("mlp", "--async", "--concurrency-range", "4"), [4])


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("kind", ["open", "workers"])
def test_system_shared_memory(perf: Callable[..., list[Row]], protocol: str, kind: str) -> None:
    rows = perf(
        "add_sub", "-i", protocol, "--shared-memory", "system", "--output-shared-memory-size", "64",
        *CONCURRENT, kind=kind,
    )  # fmt: skip
    _check(rows, [2])


def test_a_model_with_dynamic_shapes(perf: Callable[..., list[Row]]) -> None:
    _check(perf("identity_fp32", "--shape", "INPUT:100", *CONCURRENT), [2])


def test_strings(perf: Callable[..., list[Row]]) -> None:
    rows = perf("identity_bytes", "--shape", "INPUT:8", "--string-length", "20",
                *CONCURRENT)  # fmt: skip
    _check(rows, [2])


def test_batches_and_versions(perf: Callable[..., list[Row]]) -> None:
    rows = perf("versions", "-x", "1", "-b", "4", "--shape", "INPUT:6", *CONCURRENT)
    _check(rows, [2])


def test_request_rate(perf: Callable[..., list[Row]]) -> None:
    (row,) = perf("mlp", "--request-rate-range", "100")
    assert row["Request Rate"] == 100
    assert 20 < row["Inferences/Second"] < 150  # a busy machine sends later


def test_compression(perf: Callable[..., list[Row]]) -> None:
    _check(perf("mlp", "--grpc-compression-algorithm", "gzip", *CONCURRENT), [2])


def test_tls(perf: Callable[..., list[Row]], target_of: Callable[[str], dict[str, Any]]) -> None:
    target = target_of("mutual")
    rows = perf(
        "mlp", "--ssl-grpc-use-ssl", "--ssl-grpc-root-certifications-file", target["ca"],
        "--ssl-grpc-private-key-file", target["key"], "--ssl-grpc-certificate-chain-file",
        target["certificate"], *CONCURRENT, kind="mutual",
    )  # fmt: skip
    _check(rows, [2])


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_answers_are_what_it_was_told_to_expect(
    perf: Callable[..., list[Row]], tmp_path: Path, protocol: str
) -> None:
    data = _expected(tmp_path, {"OUTPUT0": SUMS, "OUTPUT1": DIFFERENCES})
    _check(perf("add_sub", "-i", protocol, "--input-data", data, *CONCURRENT), [2])


def test_it_notices_a_wrong_answer(
    target_of: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    """Or the test above would prove nothing."""
    data = _expected(tmp_path, {"OUTPUT0": [0] * 16, "OUTPUT1": DIFFERENCES})
    code, output, _ = _analyze(target_of("open"), tmp_path, "add_sub", "--input-data", data)
    assert code != 0, output
    assert "doesn't match expected output" in output


def test_json_tensors_over_http(perf: Callable[..., list[Row]], tmp_path: Path) -> None:
    rows = perf("add_sub", "-i", "http", "--input-data", _expected(tmp_path, None),
                "--input-tensor-format", "json", "--output-tensor-format", "json",
                *CONCURRENT)  # fmt: skip
    _check(rows, [2])


def test_trace_settings(perf: Callable[..., list[Row]]) -> None:
    rows = perf("add_sub", "--trace-level", "TIMESTAMPS", "--trace-rate", "100", "--trace-count",
                "10", "--log-frequency", "5", *CONCURRENT)  # fmt: skip
    _check(rows, [2])


def test_unknown_model(target_of: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    code, output, _ = _analyze(target_of("open"), tmp_path, "nonesuch")
    assert code != 0
    assert "unknown model 'nonesuch'" in output


def _expected(folder: Path, outputs: dict[str, list[int]] | None) -> str:
    """A file of inputs for add_sub, and of the outputs that must come back."""
    content: dict[str, Any] = {"data": [{"INPUT0": list(range(16)), "INPUT1": [3] * 16}]}
    if outputs is not None:
        content["validation_data"] = [outputs]
    path = folder / "data.json"
    path.write_text(json.dumps(content))
    return str(path)
