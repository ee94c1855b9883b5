"""What a run ran on: versions, machine, precision flags, artifacts with their hashes."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from validators.results import Artifact

if TYPE_CHECKING:
    from sidecar.config import VariantConfig

_PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "pytorch": ("torch",),
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt_rtx"),
    "remote": ("grpcio",),
}
_CHUNK_BYTES = 1 << 20


def artifacts_of(variant: VariantConfig) -> list[Artifact]:
    """A variant's files: name, SHA-256, bytes. None for a remote, whose files are elsewhere.

    A file that cannot be read is left out: loading the variant says why, and better.
    """
    if variant.runtime.kind == "remote":
        return []
    from sidecar.runtimes.artifacts import files_of

    found = []
    try:
        for path in files_of(variant.runtime.path):
            digest, size = _hash(path)
            found.append(Artifact(path.name, digest, size))
    except Exception:  # noqa: BLE001 - a damaged model may fail anywhere; see above
        return found
    return found


def _hash(path: Path) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def environment_of(variants: Iterable[VariantConfig]) -> dict[str, str]:
    """Facts for people who read the report elsewhere: no host name, no paths."""
    facts = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0),
        "numpy": version("numpy"),
    }
    for variant in variants:
        runtime = variant.runtime
        for package in _PACKAGES[runtime.kind]:
            try:
                facts[package] = version(package)
            except PackageNotFoundError:
                continue
        if runtime.kind == "remote":
            continue
        flags = [f"device {runtime.device}"]
        flags += ["tf32"] if runtime.tf32 else []
        if runtime.kind == "pytorch":
            flags += ["deterministic"] if runtime.deterministic else []
            flags += [] if runtime.precision == "as_exported" else [f"cast to {runtime.precision}"]
        if runtime.kind == "onnxruntime":
            flags.append(f"graph optimization {runtime.graph_optimization}")
        facts[variant.key] = ", ".join(flags)
    return facts


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
