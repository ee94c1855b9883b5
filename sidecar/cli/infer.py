"""``sidecar infer``: one request, and its answer for people or for programs."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sidecar.demo.client import Answer, Client, ModelInfo
    from sidecar.runtimes.base import Array, TensorSpec


@dataclass(frozen=True, slots=True)
class Call:
    """What to call and how; ``address`` is host:port, unix:path, or a http URL."""

    address: str
    model: str
    version: str = ""
    over_http: bool = False
    wanted: tuple[str, ...] = ()
    request_id: str = ""
    timeout_s: float = 30


def run(call: Call, source: str | None, target: Path | None, *, as_json: bool) -> int:
    """Send one request, or show the model's metadata when there is no ``source``.

    Args:
        call: what to call.
        source: a file (npz, npy, JSON), ``-`` for standard input, or ``None``.
        target: where to write the outputs (.npz, .json); ``None``: on the screen.
        as_json: print JSON instead of a table.

    Raises:
        SidecarError: the input is wrong, or the server refused or could not be reached.
    """
    from sidecar.cli import tensors
    from sidecar.demo.client import CallFailedError

    if target is not None:
        tensors.check_target(target)
    data = None if source is None else _read(source)
    client = _connect(call)
    try:
        try:
            info = client.metadata(call.model, call.version)
        except CallFailedError:
            # Some servers have no metadata; a request that says its datatypes needs none.
            if data is None:
                raise
            info = None
        if data is None:
            assert info is not None
            _show_model(info, as_json=as_json)
            return 0
        specs = {} if info is None else {spec.name: spec for spec in info.inputs}
        answer = client.infer(
            call.model,
            _arrays(source, data, specs),
            version=call.version,
            outputs=call.wanted,
            request_id=call.request_id,
        )
    finally:
        client.close()
    document = _document(answer)
    if target is not None:
        tensors.write(target, answer.outputs, document)
        print(f"{len(answer.outputs)} outputs written to {target}", file=sys.stderr)
    if as_json:
        print(json.dumps(document, indent=2))
    elif target is None:
        _show_answer(answer)
    return 0


def _read(source: str) -> bytes:
    from sidecar.cli.tensors import InputError

    if source == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(source).read_bytes()
    except OSError as error:
        message = f"{source} cannot be read: {error.strerror}"
        raise InputError(message) from None


def _arrays(source: str | None, data: bytes, specs: Mapping[str, TensorSpec]) -> dict[str, Array]:
    from sidecar.cli import tensors

    try:
        return tensors.read(data, specs)
    except tensors.InputError as error:
        message = str(error) if source == "-" else f"{source}: {error}"
        raise tensors.InputError(message) from None


def _connect(call: Call) -> Client:
    from sidecar.cli.tensors import InputError
    from sidecar.demo.client import GrpcClient, HttpClient

    address = call.address.removeprefix("http://").rstrip("/")
    if "//" in address:
        message = f"{call.address} cannot be called: write host:port or http://host:port"
        raise InputError(message)
    if not call.over_http and address == call.address:
        return GrpcClient(address, timeout_s=call.timeout_s)
    try:
        return HttpClient(address, timeout_s=call.timeout_s)
    except http.client.InvalidURL:
        message = f"{call.address} is not an address; write host:port"
        raise InputError(message) from None


def _document(answer: Answer) -> dict[str, Any]:
    from sidecar.cli.tensors import to_json
    from sidecar.protocol.datatypes import of_array

    return {
        "model_name": answer.model_name,
        "model_version": answer.model_version,
        "parameters": answer.parameters,
        "outputs": [
            {
                "name": name,
                "datatype": of_array(array).name,
                "shape": list(array.shape),
                "data": to_json(array),
            }
            for name, array in answer.outputs.items()
        ],
    }


def _show_answer(answer: Answer) -> None:
    from rich.console import Console
    from rich.markup import escape

    from sidecar.cli.tensors import show
    from sidecar.protocol.datatypes import of_array

    console = Console(highlight=False)
    marks = "".join(f"  {name}={value}" for name, value in answer.parameters.items())
    title = f"{answer.model_name} {answer.model_version}".strip()
    console.print(f"[bold]{escape(title)}[/]{escape(marks)}")
    width = max(console.width // 2, 40)
    rows = [
        (name, of_array(array).name, _shape(array.shape), show(array, width=width))
        for name, array in answer.outputs.items()
    ]
    console.print(_table(("output", "datatype", "shape", "values"), rows))


def _show_model(info: ModelInfo, *, as_json: bool) -> None:
    if as_json:
        document = {
            "name": info.name,
            "versions": list(info.versions),
            "platform": info.platform,
            "inputs": [_spec(spec) for spec in info.inputs],
            "outputs": [_spec(spec) for spec in info.outputs],
        }
        print(json.dumps(document, indent=2))
        return
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    versions = f"  versions {', '.join(info.versions)}" if info.versions else ""
    console.print(f"[bold]{escape(info.name)}[/]{escape(versions)}  {escape(info.platform)}")
    rows = [
        (kind, spec.name, spec.datatype, _shape(spec.shape))
        for kind, specs in (("input", info.inputs), ("output", info.outputs))
        for spec in specs
    ]
    console.print(_table(("", "name", "datatype", "shape"), rows))


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _shape(shape: Sequence[int]) -> str:
    return f"[{', '.join('any' if size < 0 else str(size) for size in shape)}]"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(*columns, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table
