"""The configuration as plain objects is the checked one, and a worker that reads it is smaller."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from pydantic import BaseModel, SecretStr

from sidecar.config import parse
from sidecar.config_plain import PlainSecret, pack, read_token, unpack
from sidecar.errors import ConfigError
from tests.e2e.support import Client, running, variant, write
from tests.support import models

RUNTIMES: list[dict[str, Any]] = [
    {"kind": "onnxruntime", "path": "m.onnx", "session_options": {"a.b": "1"}},
    {"kind": "pytorch", "path": "m.pt", "factory": "m:f", "factory_args": {"a": [1, {2: "x"}]}},
    {
        "kind": "tensorrt",
        "path": "m.onnx",
        "profiles": [{"x": {"min": [1, 2], "opt": [2, 2], "max": [4, 2]}}],
    },
    {"kind": "remote", "address": "unix:/s", "tls": {"ca": "ca.pem"}, "model_version": "7"},
]


def full(**admin: object):
    roles = ["serving", "reference", "mirror", "fallback"]
    variants = [
        {"name": f"v{i}", "version": str(i), "roles": [role], "runtime": runtime}
        for i, (runtime, role) in enumerate(zip(RUNTIMES, roles, strict=True))
    ]
    shape = {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
    variants[1]["inputs"] = [shape]
    model = {
        "name": "m",
        "variants": variants,
        "validation": {"outputs": {"y": {"kind": "tensor"}}},
    }
    gateway = {"admin": admin, "http": None, "trace": {"file": "trace.jsonl"}}
    return parse({"models": [model], "gateway": gateway}, base_dir=Path("/somewhere"))


def over_the_channel(config: BaseModel) -> Any:
    return unpack(json.loads(json.dumps(pack(config))))


def check_same(typed: Any, plain: Any) -> int:
    """Every setting and property below ``typed`` is the same in ``plain``; how many there were."""
    if isinstance(typed, BaseModel):
        kind = type(typed)
        names = set(kind.model_fields)
        names |= {
            n
            for n in ("key", "monitored", "is_watched", "wanted")
            if isinstance(vars(kind).get(n), property)
        }
        assert set(vars(plain)) == names, kind
        return sum(check_same(getattr(typed, name), getattr(plain, name)) for name in names)
    if isinstance(typed, SecretStr):
        assert plain.get_secret_value() == typed.get_secret_value()
        return 1
    assert type(plain) is type(typed) or isinstance(typed, Path)
    if isinstance(typed, Mapping):
        assert list(plain) == list(typed)
        return sum(check_same(typed[key], plain[key]) for key in typed)
    if isinstance(typed, Sequence) and not isinstance(typed, str):
        assert len(plain) == len(typed)
        return sum(map(check_same, typed, plain))
    assert plain == typed
    return 1


def test_every_setting_and_property_arrives():
    config = full(token="hush")
    assert check_same(config, over_the_channel(config)) > 100
    plain = over_the_channel(config)
    assert plain.monitored
    assert plain.models[0].variants[1].key == "1/v1"
    assert plain.models[0].variants[1].runtime.factory_args == {"a": [1, {2: "x"}]}
    assert plain.gateway.trace.file == Path("/somewhere/trace.jsonl")


def test_it_is_read_only():
    plain = over_the_channel(full())
    with pytest.raises(AttributeError, match="read-only"):
        plain.gateway.workers = 2


def test_a_secret_is_not_shown():
    plain = over_the_channel(full(token="hush-hush"))
    assert isinstance(plain.gateway.admin.token, PlainSecret)
    assert "hush" not in repr(plain)
    assert read_token(plain.gateway.admin) == "hush-hush"


def test_a_token_file_is_read_by_who_uses_it(tmp_path):
    (tmp_path / "token").write_text(" from-file\n")
    plain = over_the_channel(full(token_file=str(tmp_path / "token")))
    assert read_token(plain.gateway.admin) == "from-file"
    (tmp_path / "token").write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        read_token(plain.gateway.admin)


def test_a_worker_is_without_pydantic(tmp_path):
    models.onnx_mlp(tmp_path)
    served = [{"name": "mlp", "variants": [variant("onnx", tmp_path / "mlp.onnx")]}]
    with running(write(tmp_path, served)) as server:
        with Client(server.addresses["grpc"]) as client:
            client.infer("mlp", np.zeros((1, 32), np.float32))
        mapped = {Path(area.path).name for area in psutil.Process(server.pids[0]).memory_maps()}
    assert any(name.startswith("onnxruntime_pybind11_state") for name in mapped)
    assert not [name for name in mapped if "pydantic" in name]


def test_a_worker_imports_nothing_for_http_before_it_is_wanted():
    said = subprocess.run(
        [sys.executable, "-c", "import sidecar.gateway.main, sys; print(*sys.modules)"],
        check=True, capture_output=True, text=True, timeout=60,
    ).stdout.split()  # fmt: skip
    assert "sidecar.gateway.core" in said
    assert not {"pydantic", "uvicorn", "starlette"} & set(said)
