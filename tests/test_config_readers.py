"""Gateway and monitor with one configuration: each needs the secrets that it uses itself."""

from __future__ import annotations

import pytest
import yaml

from sidecar.config import load
from sidecar.errors import ConfigError

MONITORS = {
    "monitor.store.url": "STORE_URL",
    "alerts.channels[0].url": "SLACK_URL",
    "telemetry.headers.authorization": "OTEL_KEY",
}


@pytest.fixture
def path(tmp_path):
    runtime = {"kind": "remote", "address": "127.0.0.1:1", "model_name": "m"}
    variant = {"name": "v", "version": "1", "roles": ["serving"], "runtime": runtime}
    tree = {
        "models": [{"name": "m", "variants": [variant]}],
        "gateway": {"admin": {"token": "${ADMIN_TOKEN}"}},
        "monitor": {"enabled": True, "store": {"url": "${STORE_URL}"}},
        "alerts": {"channels": [{"kind": "slack", "url": "${SLACK_URL}"}]},
        "telemetry": {
            "endpoint": "http://127.0.0.1:4318", "headers": {"authorization": "${OTEL_KEY}"},
        },
    }  # fmt: skip
    made = tmp_path / "sidecar.yaml"
    made.write_text(yaml.safe_dump(tree))
    return made


def missing(path, reader):
    with pytest.raises(ConfigError) as caught:
        load(path, reader=reader)
    return {problem.path: problem.message for problem in caught.value.problems}


def test_each_needs_its_own_and_both_together_need_all(path, monkeypatch):
    assert set(missing(path, None)) == {*MONITORS, "gateway.admin.token"}
    assert set(missing(path, "gateway")) == {"gateway.admin.token"}
    assert set(missing(path, "monitor")) == set(MONITORS)
    monkeypatch.setenv("ADMIN_TOKEN", "known")
    assert load(path, reader="gateway").gateway.admin.read_token() == "known"
    for name in MONITORS.values():
        monkeypatch.setenv(name, f"https://host/{name}")
    assert load(path, reader="monitor").gateway.admin.read_token() == "known"


def test_a_token_that_the_monitor_lacks_opens_nothing(path, monkeypatch):
    for name in MONITORS.values():
        monkeypatch.setenv(name, f"https://host/{name}")
    first, second = (load(path, reader="monitor").gateway.admin.read_token() for _ in range(2))
    assert first
    assert second
    assert first != second  # nobody can know it
    assert "ADMIN_TOKEN" not in first


def test_what_is_written_out_is_checked_for_everybody(path):
    tree = yaml.safe_load(path.read_text())
    tree["monitor"]["store"]["url"] = ""
    path.write_text(yaml.safe_dump(tree))
    assert "monitor.store.url" in missing(path, "gateway")
