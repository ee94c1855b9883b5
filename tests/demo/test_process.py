from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from sidecar import config
from sidecar.demo.process import (
    CONFIG_FILE,
    LOG_FILE,
    TARGETS,
    ServeProcess,
    free_addresses,
    write_config,
)
from sidecar.errors import SidecarError
from tests.demo.conftest import Trained


def test_the_config_is_valid_and_serves_every_target(trained: Trained):
    path = write_config(
        trained.folder,
        grpc_address="127.0.0.1:9000",
        http_address="127.0.0.1:8080",
        monitor_address="127.0.0.1:9002",
    )
    assert path.name == CONFIG_FILE
    tree = config.load(path)
    path.unlink()
    serving = {
        (model.name, variant.version, variant.name)
        for model in tree.models
        for variant in model.variants
        if "serving" in variant.roles
    }
    assert serving == {(target.model, target.version, target.form) for target in TARGETS}
    assert len(serving) == 6
    by_role = {
        role: [v.key for v in tree.models[0].variants if role in v.roles]
        for role in ("fallback", "reference", "mirror", "previous")
    }
    assert by_role == {
        "fallback": ["2/pt2"],
        "reference": ["2/pt2"],
        "mirror": ["2/int8", "2/broken"],
        "previous": ["1/onnx"],
    }
    assert tree.monitor.grpc == "127.0.0.1:9002"
    assert tree.gateway.grpc.address == "127.0.0.1:9000"
    assert tree.gateway.http is not None
    assert tree.gateway.http.address == "127.0.0.1:8080"


def test_free_addresses_differ_and_can_be_bound():
    addresses = free_addresses(5)
    assert len(set(addresses)) == 5
    for address in addresses:
        host, _, port = address.rpartition(":")
        with socket.socket() as listener:
            listener.bind((host, int(port)))


def test_a_server_that_does_not_start_is_reported_with_its_own_words(tmp_path: Path):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("models: []\n")
    with ServeProcess(wrong, tmp_path / LOG_FILE) as server:
        pid = server.pid
        with pytest.raises(SidecarError) as caught:
            server.wait_ready(lambda: False)
    text = str(caught.value)
    assert "the server ended by itself (exit status 2)" in text
    assert "models: " in text
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
