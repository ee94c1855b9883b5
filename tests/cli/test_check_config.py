"""``sidecar check-config``."""

from __future__ import annotations

import json

import pytest
import yaml

from sidecar.cli.check_config import notes
from sidecar.config import parse
from tests.cli.conftest import sidecar, write_config


def test_a_good_configuration_is_summarized(tmp_path):
    path = write_config(tmp_path)
    found = sidecar("check-config", str(path))
    assert found.returncode == 0
    lines = [line.strip("│├└─ ") for line in found.stdout.splitlines()]
    assert lines[0] == f"{path} is fine"
    assert "mlp  default version 2" in lines
    assert f"2/onnx  serving  onnxruntime on cpu  {tmp_path}/mlp.onnx" in lines
    assert "gRPC  127.0.0.1:0  plaintext" in lines
    assert "workers  1 process" in lines


def test_the_monitors_http_listener_is_named(tmp_path):
    path = write_config(tmp_path)
    tree = yaml.safe_load(path.read_text())
    tree["monitor"] = {"enabled": True, "http": "127.0.0.1:9003"}
    path.write_text(yaml.safe_dump(tree))
    found = sidecar("check-config", str(path))
    assert "HTTP  127.0.0.1:9003  plaintext" in found.stdout


def test_json_has_the_whole_configuration_and_no_secret(tmp_path):
    path = write_config(tmp_path)
    tree = yaml.safe_load(path.read_text())
    tree["gateway"]["admin"] = {"token": "hushhush"}
    path.write_text(yaml.safe_dump(tree))
    found = sidecar("check-config", "--json", str(path))
    assert found.returncode == 0
    report = json.loads(found.stdout)
    assert report["valid"] is True
    assert report["config"]["gateway"]["pool"]["threads"] == 128
    assert "hushhush" not in found.stdout + sidecar("check-config", str(path)).stdout


def test_json_lists_the_problems(tmp_path):
    (tmp_path / "wrong.yaml").write_text("models:\n  - name: a\n    variants: []\nlog: 3\n")
    found = sidecar("check-config", "wrong.yaml", "--json", folder=tmp_path)
    assert found.returncode == 2
    assert json.loads(found.stdout) == {
        "source": "wrong.yaml",
        "valid": False,
        "problems": [
            {"path": "models[0].variants", "message": "needs at least one item", "line": 3},
            {"path": "log", "message": "must be a mapping, not 3", "line": 4},
        ],
    }


def test_names_in_brackets_are_not_taken_for_markup(tmp_path):
    path = write_config(tmp_path)
    odd = tmp_path / "served[red].yaml"
    path.rename(odd)
    assert f"{odd} is fine" in sidecar("check-config", str(odd)).stdout


@pytest.mark.parametrize(
    ("gateway", "model", "said"),
    [
        ({}, {}, None),
        ({"drain": {"timeout_s": 20}}, {}, "is shorter than delay_s + max_connection_age_s (35)"),
        ({"grpc": {"address": "0.0.0.0:9000"}}, {}, "everybody who reaches 0.0.0.0:9000 can load"),
        ({"grpc": {"address": "0.0.0.0:9000"}, "admin": {"address": "127.0.0.1:1"}}, {}, None),
        ({"grpc": {"address": "0.0.0.0:9000"}, "admin": {"token": "x"}}, {},
         "the admin token travels unencrypted"),
        ({"shared_memory": {"access": "map"}}, {}, "a client that truncates its region"),
        ({}, {"batching": {"max_size": 8}}, "m: batching.max_size is 8, but 1/a takes at most 4"),
    ],
)  # fmt: skip
def test_what_is_often_not_meant_is_noted(gateway, model, said):
    runtime = {"kind": "onnxruntime", "path": "m", "max_batch_size": 4}
    variant = {"name": "a", "version": 1, "roles": ["serving"], "runtime": runtime}
    models = [{"name": "m", "variants": [variant], **model}]
    found = notes(parse({"models": models, "gateway": gateway}))
    assert len(found) == (said is not None)
    assert all(said in note for note in found)


def test_where_it_is_told_is_shown(tmp_path, monkeypatch):
    path = write_config(tmp_path)
    told = {"exporter": "otlp-http", "metrics": {"exporter": "prometheus"}}
    told["traces"] = {"sample_ratio": 0.01}
    tree = {**yaml.safe_load(path.read_text()), "telemetry": told}
    path.write_text(yaml.safe_dump(tree))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")
    found = sidecar("check-config", str(path)).stdout
    for said in (
        "traces, logs: otlp-http → http://localhost:4318",
        "metrics: http://127.0.0.1:9464/metrics",
        "traces: as the caller's sampled flag says, else 1% of them",
        "OTEL_EXPORTER_OTLP_TIMEOUT=soon is ignored",
    ):
        assert said in found
