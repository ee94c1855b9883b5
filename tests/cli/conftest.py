"""The command line as a user has it: processes, and a server they call."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from tests.support import models

END_WITHIN_S = 60


def sidecar(
    *arguments: str, stdin: bytes = b"", folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``sidecar`` to its end; its output is 120 characters wide and has no colors."""
    found = subprocess.run(
        [sys.executable, "-m", "sidecar", *arguments],
        cwd=folder, input=stdin, capture_output=True, check=False, timeout=END_WITHIN_S,
        env={**os.environ, "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"},
    )  # fmt: skip
    return subprocess.CompletedProcess(
        found.args, found.returncode, found.stdout.decode(), found.stderr.decode()
    )


class Server(NamedTuple):
    """Where a server listens, and what it printed until it was ready."""

    grpc: str
    http: str
    printed: str


def start(config: Path, command: str) -> tuple[subprocess.Popen[str], Server]:
    """Start ``sidecar COMMAND CONFIG``; return once it says that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sidecar", command, str(config)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    printed = ""
    assert process.stderr is not None
    for line in process.stderr:  # ends when the process does; pytest's own limit bounds the rest
        printed += line
        if line.startswith("ready: "):
            addresses = dict(re.findall(r"^(gRPC|HTTP): (\S+)$", printed, re.MULTILINE))
            return process, Server(addresses["gRPC"], addresses["HTTP"], printed)
    process.wait()
    raise AssertionError(printed)


def end(process: subprocess.Popen[str]) -> int:
    """Ask the process to end, and return its exit code."""
    process.terminate()
    try:
        process.communicate(timeout=END_WITHIN_S)
    finally:
        process.kill()  # nothing, when it has ended
    return process.returncode


def write_config(folder: Path) -> Path:
    """A configuration of small models of several datatypes, on free ports."""
    paths = {
        "mlp": models.onnx_mlp(folder),
        "many": models.onnx_many(folder),
        "text": models.onnx_identity(folder, "BYTES"),
        "int8": models.onnx_identity(folder, "INT8"),
        "half": models.onnx_identity(folder, "FP16"),
    }
    served = [
        {
            "name": name,
            "variants": [
                {
                    "name": "onnx",
                    "version": version,
                    "roles": ["serving"],
                    "runtime": {"kind": "onnxruntime", "path": path.name},
                }
                for version in (1, 2)
            ],
        }
        for name, path in paths.items()
    ]
    gateway = {
        "grpc": {"address": "127.0.0.1:0"},
        "http": {"address": "127.0.0.1:0"},
        "drain": {"delay_s": 0, "timeout_s": 5},
    }
    config = folder / "served.yaml"
    config.write_text(yaml.safe_dump({"models": served, "gateway": gateway}))
    return config


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running ``sidecar gateway``."""
    process, found = start(write_config(tmp_path_factory.mktemp("served")), "gateway")
    yield found
    assert end(process) == 0
