"""Where built engines are kept: an engine and its description, neither ever half written.

An entry is ``<model>.<key>.engine``, a plain engine any tool can load, and the same name with
``.json``: what it was built from, and the engine's own checksum. The description is written last,
so an entry counts only when both are whole; anything else is built again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any

from sidecar.errors import SidecarError
from sidecar.runtimes.base import TensorSpec

log = logging.getLogger(__name__)

_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class EngineFile:
    """A built engine on disk.

    Attributes:
        path: the engine.
        key: sha256 over everything the engine depends on.
        onnx_sha256: of the ONNX file with its external files.
        engine_sha256: of the engine.
        kind: ``"tensorrt"`` or ``"tensorrt_rtx"``.
        version: the library's; an engine loads in no other.
        target: the GPU it was built for (``"NVIDIA L4 sm_89"``), or ``"portable"``.
        inputs, outputs: as the network declares them; -1 where the size is dynamic.
        profiles: built optimization profiles, input name → [min, opt, max].
        build_ms: how long building took.
        built: this call built it; ``False`` when it came from the cache.
    """

    path: Path
    key: str
    onnx_sha256: str
    engine_sha256: str
    kind: str
    version: str
    target: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Mapping[str, list[list[int]]], ...]
    build_ms: float
    built: bool


class EngineStore:
    """The entry of one key in one folder."""

    def __init__(self, folder: Path, stem: str, key: str) -> None:
        self.key = key
        self.engine = folder / f"{stem}.{key[:16]}.engine"
        self._description = self.engine.with_suffix(".engine.json")
        self._lock = self.engine.with_suffix(".engine.lock")

    def find(self) -> EngineFile | None:
        """The entry, if it is whole. A damaged one is logged and counts as absent."""
        try:
            text = self._description.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, UnicodeDecodeError) as error:
            return self._damaged(f"its description cannot be read ({error})")
        try:
            entry = _from_json(json.loads(text), self.engine)
        except (ValueError, KeyError, TypeError, AttributeError):
            return self._damaged("its description is not what was written")
        if entry.key != self.key:
            return self._damaged("it belongs to another key")
        try:
            with self.engine.open("rb") as file:
                checksum = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            return self._damaged(f"the engine cannot be read ({error.strerror})")
        if checksum != entry.engine_sha256:
            return self._damaged("the engine's bytes are not those that were built")
        return entry

    def _damaged(self, why: str) -> EngineFile | None:
        log.warning("cached engine %s is not used: %s; it is built again", self.engine, why)
        return None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes and threads from building this entry meanwhile.

        A lock of the kernel, not a file whose existence means "taken": that one would outlive a
        killed builder and stop every later start. The empty file stays, because removing it would
        let a third process lock a new file of the same name while a second holds the old one.
        """
        with self._explain():
            self._lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            with self._explain():
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    log.info("waiting for another process that builds %s", self.engine)
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def put(self, engine: memoryview, entry: EngineFile) -> EngineFile:
        """Write the entry (under the lock) and return it with its checksum."""
        entry = replace(entry, engine_sha256=hashlib.sha256(engine).hexdigest())
        with self._explain():
            for leftover in self.engine.parent.glob(f".{escape(self.engine.name)}*.tmp"):
                leftover.unlink(missing_ok=True)  # of a builder that was killed; we hold the lock
            self._replace(self.engine, engine)
            self._replace(self._description, json.dumps(_to_json(entry), indent=1).encode())
        return entry

    def _replace(self, path: Path, content: memoryview | bytes) -> None:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _explain(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            message = (
                f"the engine cache in {self.engine.parent} cannot be written: "
                f"{error.strerror or error}; set runtime.cache_dir to a folder that can"
            )
            raise SidecarError(message) from error


def _to_json(entry: EngineFile) -> dict[str, Any]:
    tree = asdict(entry)
    del tree["path"], tree["built"]
    return {"schema": _SCHEMA, **tree}


def _from_json(tree: dict[str, Any], path: Path) -> EngineFile:
    if tree.pop("schema") != _SCHEMA:
        message = "another schema"
        raise ValueError(message)
    for side in ("inputs", "outputs"):
        tree[side] = tuple(
            TensorSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in tree[side]
        )
    tree["profiles"] = tuple(tree["profiles"])
    return EngineFile(path=path, built=False, **tree)
