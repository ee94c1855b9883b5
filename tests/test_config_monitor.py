"""The configuration of validation and of the monitor."""

from __future__ import annotations

import pytest

from sidecar.cli.check_config import notes
from sidecar.config import SidecarConfig, parse
from sidecar.errors import ConfigError


def tree(*variants: dict, monitor: dict | None = None, **model: object) -> dict:
    content: dict = {"models": [{"name": "digits", "variants": list(variants), **model}]}
    return content if monitor is None else {**content, "monitor": monitor}


def variant(name: str, *roles: str, version: str = "2", device: str = "cpu") -> dict:
    runtime = {"kind": "onnxruntime", "path": "m.onnx", "device": device}
    return {"name": name, "version": version, "roles": list(roles), "runtime": runtime}


def problems(content: dict) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        parse(content)
    return {problem.path: problem.message for problem in caught.value.problems}


SERVING = variant("onnx", "serving")


@pytest.mark.parametrize(
    ("content", "monitored"),
    [
        (tree(SERVING), False),
        (tree(SERVING, variant("pt", "reference")), True),
        (tree(SERVING, variant("int8", "mirror")), True),
        (tree(SERVING, variant("onnx", "previous", version="1")), True),
        (tree(SERVING, variant("pt", "fallback")), False),
        (tree(SERVING, monitor={"enabled": True}), True),
        (tree(SERVING, variant("pt", "reference"), monitor={"enabled": False}), False),
    ],
)
def test_a_monitor_runs_where_the_roles_need_one_or_as_it_is_said(content, monitored):
    assert parse(content).monitored is monitored


def test_a_version_has_one_truth():
    found = problems(tree(SERVING, variant("a", "reference"), variant("b", "reference")))
    path, message = "models[0].variants[2].roles", "another variant of version 2 is the reference"
    assert list(found) == [path]
    assert message in found[path]
    parse(tree(SERVING, variant("a", "reference"), variant("b", "reference", version="1")))


def test_the_monitor_does_not_listen_where_the_gateway_does():
    found = problems(tree(SERVING, monitor={"grpc": "0.0.0.0:9000"}))
    assert found == {"monitor.grpc": "0.0.0.0:9000 is also gateway.grpc.address"}
    found = problems(tree(SERVING, monitor={"health": "0.0.0.0:8080"}))
    assert found == {"monitor.health": "0.0.0.0:8080 is also gateway.http.address"}
    parse(tree(SERVING, monitor={"grpc": "127.0.0.1:0"}))


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ({"kind": "class_score"}, "class_scores"),
        ({"kind": "tensor", "limits": {"sqnr": 40}}, "sqnr_db"),
        ({"kind": "tensor", "limits": {"sqnr_db": "over 40"}}, "is not a limit"),
        ({"kind": "class_scores", "options": {"tops": 3}}, "tops"),
    ],
)
def test_a_wrong_way_to_compare_is_refused_with_the_known_ones(output, words):
    found = problems(tree(SERVING, validation={"outputs": {"scores": output}}))
    assert all("validation" in path for path in found), found
    assert any(words in message for message in found.values()), found


def test_limits_are_numbers_or_comparisons():
    limits = {"sqnr_db": ">= 40", "max_abs": 0.5}
    outputs = {"scores": {"kind": "tensor", "limits": limits}}
    config = parse(tree(SERVING, validation={"outputs": outputs, "retention_class": "edge"}))
    assert config.models[0].validation.outputs["scores"].limits == limits


def on_gpu(monitor: dict | None = None) -> SidecarConfig:
    serving = variant("onnx", "serving", device="cuda:0")
    return parse(tree(serving, variant("pt", "reference"), monitor=monitor))


def test_what_is_on_a_gpu_is_not_mirrored_until_the_device_is_chosen():
    def noted(config: SidecarConfig) -> bool:
        return any("monitor.mirror.device" in note for note in notes(config))

    assert noted(on_gpu())
    assert not noted(on_gpu({"mirror": {"device": "cpu"}}))
    assert not noted(on_gpu({"enabled": False}))
    assert not noted(parse(tree(SERVING, variant("pt", "reference"))))


def test_a_watched_variant_that_nobody_watches_is_noted():
    config = parse(tree(SERVING, variant("int8", "mirror"), monitor={"enabled": False}))
    assert any("digits:2/int8" in note for note in notes(config))
