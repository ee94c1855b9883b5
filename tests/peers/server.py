"""A real MLServer on loopback, as a process in its own environment (``make peers``)."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Self

from tests.support.ports import free_port

_ROOT = Path(__file__).parents[2]
PROGRAM = _ROOT / ".venvs" / "mlserver" / "bin" / "mlserver"

#: Model → its settings. ``plain`` and ``affine`` say nothing of their tensors, as most do.
MODELS: dict[str, dict[str, Any]] = {
    "plain": {"implementation": "mlserver_models.Identity"},
    "described": {
        "implementation": "mlserver_models.Identity",
        "platform": "tests",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
        "parameters": {"version": "v3"},
    },
    "affine": {"implementation": "mlserver_models.Affine"},
}


class MLServer:
    """A running MLServer; a context manager. It may not be ready yet: a ``remote`` waits."""

    def __init__(self, folder: Path) -> None:
        assert PROGRAM.exists(), "there is no .venvs/mlserver; run `make peers` (`make test` does)"
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        settings = {
            "host": "127.0.0.1",
            "grpc_port": port,
            "http_port": free_port(),
            "metrics_endpoint": None,
            "parallel_workers": 0,
            "debug": False,
            "grpc_max_message_length": 64 * 2**20,
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        for name, model in MODELS.items():
            (folder / name).mkdir()
            shutil.copy(Path(__file__).with_name("mlserver_models.py"), folder / name)
            text = json.dumps({"name": name, **model})
            (folder / name / "model-settings.json").write_text(text)
        self._log = folder / "mlserver.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(PROGRAM), "start", str(folder)], cwd=folder, stdout=log, stderr=log
            )

    def log(self) -> str:
        """The end of what it wrote."""
        return self._log.read_text(errors="replace")[-4000:]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
