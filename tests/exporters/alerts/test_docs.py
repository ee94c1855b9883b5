"""docs/alerts.md: its configurations are valid, and its payloads are what is sent."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from exporters.alerts.build import BUILTIN
from sidecar.alert_channels import channel_name, make_channels
from sidecar.config import parse
from sidecar.config_alerts import AlertsConfig
from tests.support.alert_receiver import NOON_NS, AlertReceiver, Reply, alert

PAGE = Path(__file__).parents[3] / "docs" / "alerts.md"
TEXT = PAGE.read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
PAYLOADS = dict(re.findall(r"```json (\w+)\n(.*?)```", TEXT, re.DOTALL))
SERVING = {
    "name": "m",
    "variants": [
        {"version": "1", "name": "v", "roles": ["serving"],
         "runtime": {"kind": "remote", "address": "127.0.0.1:1"}},
    ],
}  # fmt: skip


@pytest.fixture
def variables(monkeypatch):
    for name in re.findall(r"\$\{([A-Z_]+)\}", TEXT):
        monkeypatch.setenv(name, "https://hooks.example/x")
    monkeypatch.setenv("APPRISE_URL", "json://localhost")


def configured(example: str) -> AlertsConfig:
    return parse({"models": [SERVING], **yaml.safe_load(example)}).alerts


@pytest.mark.usefixtures("variables")
@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_are_valid(example):
    for channel in make_channels(configured(example)):
        channel.close()


@pytest.mark.usefixtures("variables")
def test_every_channel_has_its_example():
    kinds = [channel.kind for example in EXAMPLES for channel in configured(example).channels]
    assert set(kinds) == set(BUILTIN)
    assert all(f"\n### {kind}\n" in TEXT for kind in BUILTIN)


def sent(kind: str) -> object:
    """What its example's channel posts of the usual alert, to a receiver of ours."""
    example = next(
        one
        for one in EXAMPLES
        if one.lstrip().startswith("alerts:\n  channels:\n    - kind: " + kind)
    )
    [channel] = configured(example).channels
    with AlertReceiver(lambda _: Reply(202)) as receiver:
        value = type(channel).model_fields["url"].annotation
        url = receiver.url if value is str else type(channel.url)(receiver.url)
        local = channel.model_copy(update={"url": url})
        [made] = make_channels(AlertsConfig.model_construct(channels=(local,)))
        assert made.name == channel_name(channel)
        made.send(alert(), NOON_NS)
        return receiver.got[0].json


@pytest.mark.usefixtures("variables")
@pytest.mark.parametrize("kind", ["alertmanager", "pagerduty", "slack", "cloudevents"])
def test_the_payloads_are_what_is_sent(kind):
    found = sent(kind)
    if kind == "pagerduty":
        found["routing_key"] = "…"
    assert json.loads(PAYLOADS[kind]) == found, json.dumps(found, indent=2, ensure_ascii=False)
