"""Arguments, exit codes, and what is said when something is wrong."""

from __future__ import annotations

import json

import pytest

import sidecar as package
from sidecar.cli import run
from sidecar.config import json_schema
from tests.cli.conftest import end, sidecar, start, write_config

COMMANDS = (
    "serve", "gateway", "monitor", "drain", "status", "watch", "validate", "rejudge", "replay",
    "check-config", "schema", "infer", "demo",
)  # fmt: skip


def test_help_names_every_command_and_each_has_its_own():
    found = sidecar("--help")
    assert found.returncode == 0
    assert all(f"  {command} " in found.stdout for command in COMMANDS)
    for command in COMMANDS:
        assert f"Usage: sidecar {command}" in sidecar(command, "-h").stdout


def test_version():
    assert sidecar("--version").stdout == f"sidecar {package.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Usage: sidecar"),
        (("serv", "x.yaml"), "Did you mean 'serve'?"),
        (("serve",), "Missing argument 'CONFIG'"),
        (("serve", "a", "b"), "Got unexpected extra argument"),
        (("check-config", "a", "--jsn"), "No such option: --jsn"),
        (("infer", "127.0.0.1:1", "m", "--timeout", "soon"), "Invalid value for '--timeout'"),
        (("demo", "--seconds", "-1"), "greater than or equal to 0"),
    ],
)
def test_wrong_use_ends_with_2_and_says_how_it_is_right(arguments, said):
    found = sidecar(*arguments)
    assert found.returncode == 2
    assert said in found.stdout + found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("command", ["serve", "gateway", "check-config"])
def test_a_wrong_configuration_ends_with_2_and_without_a_traceback(command, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text("models: []\ngateway: {workers: 0}\n")
    found = sidecar(command, str(path))
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr.splitlines() == [
        f"error: {path}: 2 problems",
        f"  {path}:1: models: needs at least one item",
        f"  {path}:2: gateway.workers: must be at least 1, not 0",
    ]
    assert sidecar(command, str(tmp_path / "none.yaml")).returncode == 2


def test_debug_shows_where_an_error_comes_from(tmp_path):
    for arguments in (("--debug", "check-config", "none"), ("check-config", "none", "--debug")):
        found = sidecar(*arguments, folder=tmp_path)
        assert found.returncode == 1
        assert "Traceback" in found.stderr
        assert "ConfigError: none: 1 problem" in found.stderr


def test_the_schema_is_printed_as_json(capsys):
    assert run(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


@pytest.mark.parametrize("command", ["serve", "gateway"])
def test_what_is_served_is_printed_and_the_process_ends_in_order(command, tmp_path):
    process, found = start(write_config(tmp_path), command)
    try:
        assert "mlp" in found.printed
        assert "2/onnx (default)" in found.printed
        assert sidecar("infer", found.grpc, "mlp").returncode == 0
    finally:
        code = end(process)
    assert code == 0


def test_the_flags_of_serve_are_those_of_the_slow_way(tmp_path):
    # `serve FILE` alone takes a short cut past the parser; with a flag it does not.
    for arguments in (["serve", "none.yaml"], ["serve", "--", "none.yaml"]):
        found = sidecar(*arguments, folder=tmp_path)
        assert found.returncode == 2
        assert found.stderr == (
            "error: none.yaml: 1 problem\n  cannot be read: No such file or directory\n"
        )
