"""Other model servers on the same tiny model, beside ours with everything on."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.benchmarks import mirror, tools
from tests.benchmarks.tools import Row
from tests.support.ports import free_ports

_SMALL = np.random.default_rng(0).normal(size=(1, 32)).astype(np.float32)
_ENVIRONMENTS = Path(__file__).parents[2] / ".venvs"
_MODELS = Path(__file__).with_name("peer_models.py")
_START_WITHIN_S = 120


def peers(rounds: int) -> list[Row]:
    """Requests a second with 16 in flight: ours, 10 % of them mirrored, against each peer."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = tools.mlp(folder / "m.onnx")
        message = tools.request(_SMALL)

        def load(address: str, requests: int) -> float:
            return tools.h2load(address, message, requests=requests, connections=4, streams=4)

        rows = []
        with mirror.serving(folder, model, monitored=True) as ours:
            load(ours.address, 2000)
            for peer, start in (("MLServer", _mlserver), ("KServe", _kserve)):
                with start(folder) as address:
                    load(address, 1000)
                    mine, theirs, ratio = tools.alternate(
                        rounds, lambda: load(ours.address, 6000), lambda a=address: load(a, 3000)
                    )
                detail = f"{mine:.0f} against {theirs:.0f} requests/s"
                what = f"throughput, tiny model, 16 in flight, 10 % mirrored, against {peer}"
                rows.append(Row(what, "> 1", f"{ratio:.2f}", ratio > 1, detail))
    return rows


@contextlib.contextmanager
def _mlserver(folder: Path) -> Iterator[str]:
    """In one process, without its workers: a hop less, which so small a model would feel."""
    grpc, http = free_ports(2)
    place = folder / "mlserver"
    place.mkdir()
    shutil.copy(_MODELS, place)
    settings = {
        "host": "127.0.0.1", "grpc_port": grpc, "http_port": http, "metrics_endpoint": None,
        "parallel_workers": 0, "debug": False,
    }  # fmt: skip
    (place / "settings.json").write_text(json.dumps(settings))
    model = {"name": "m", "implementation": "peer_models.Mlp"}
    (place / "model-settings.json").write_text(json.dumps(model))
    program = _ENVIRONMENTS / "mlserver" / "bin" / "mlserver"
    with _process([str(program), "start", str(place)], place, grpc) as address:
        yield address


@contextlib.contextmanager
def _kserve(folder: Path) -> Iterator[str]:
    """Its Python server, as its documentation starts it."""
    grpc, http = free_ports(2)
    place = folder / "kserve"
    place.mkdir()
    python = _ENVIRONMENTS / "clients" / "bin" / "python"
    command = [str(python), "-E", str(_MODELS), str(grpc), str(http)]
    with _process(command, place, grpc) as address:
        yield address


@contextlib.contextmanager
def _process(command: list[str], place: Path, port: int) -> Iterator[str]:
    log = place / "log"
    address = f"127.0.0.1:{port}"
    with log.open("wb") as sink:
        process = subprocess.Popen(command, cwd=place, stdout=sink, stderr=sink)
    try:
        with tools.channel(address) as channel:
            call = tools.stub(channel)
            call(tools.request(_SMALL), timeout=_START_WITHIN_S, wait_for_ready=True)
        yield address
    except Exception as error:
        error.add_note(log.read_text(errors="replace")[-2000:])
        raise
    finally:
        process.kill()
        process.wait()
