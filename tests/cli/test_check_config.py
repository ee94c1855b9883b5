"""``sidecar check-config``."""

from __future__ import annotations

import json
import os

import pytest
import yaml

from sidecar.cli.check_config import notes
from sidecar.config import parse
from tests.cli.conftest import sidecar, write_config
from tests.support.ports import free_port


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


# --- the database that replicas share -------------------------------------------------------------


def with_store(folder, url):
    path = write_config(folder)
    tree = yaml.safe_load(path.read_text())
    tree["monitor"] = {"enabled": True, "store": {"url": url}}
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.parametrize("url", ["s3cret@db.internal/x", "postgresql://me:s3cret@h/x?nothing=1"])
def test_a_url_of_the_store_that_is_none_is_a_mistake(tmp_path, url):
    path = with_store(tmp_path, url)
    line = 1 + path.read_text().splitlines().index(f"    url: {url}")
    said = "is no PostgreSQL URL: postgresql://USER@HOST/…"
    found = sidecar("check-config", str(path))
    assert found.returncode == 2
    assert f"{path}:{line}: monitor.store.url: {said}" in found.stderr
    report = sidecar("check-config", "--json", str(path))
    assert json.loads(report.stdout)["problems"] == [
        {"path": "monitor.store.url", "message": said, "line": line}
    ]
    assert "s3cret" not in found.stdout + found.stderr + report.stdout + report.stderr


def test_a_store_that_nobody_answers_for_is_fine(tmp_path):
    path = with_store(tmp_path, f"postgresql://me:s3cret@127.0.0.1:{free_port()}/evidence")
    found = sidecar("check-config", str(path))
    assert (found.returncode, found.stderr) == (0, "")
    assert "psycopg" not in found.stdout
    assert "s3cret" not in found.stdout


def test_a_store_without_its_library_is_noted(tmp_path, monkeypatch):
    """As on a machine without it: an import of psycopg fails there."""
    path = with_store(tmp_path, "postgresql://h/evidence")
    (tmp_path / "psycopg.py").write_text("raise ImportError('no libpq')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    said = "monitor.store is a PostgreSQL database, which needs psycopg: install model-sidecar"
    found = sidecar("check-config", str(path))
    assert found.returncode == 0, found.stderr
    assert f"{said}[postgres]" in found.stdout
    assert (
        f"{said}[postgres]"
        in json.loads(sidecar("check-config", "--json", str(path)).stdout)["notes"]
    )
