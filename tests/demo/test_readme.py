"""Every command of the README, run as it stands there (but on free ports)."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from time import monotonic

import pytest

from sidecar.demo import report
from sidecar.demo.process import write_config
from tests.support.ports import free_ports

pytestmark = pytest.mark.timeout(900)  # a training, two releases judged, a monitor's start
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def place(trained, tmp_path_factory):
    """A folder that looks as it does after ``make demo``, and the README with free ports."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(trained.folder, folder / "demo-output")
    (folder / "helm").symlink_to(ROOT / "helm")
    report.write_request(folder / "demo-output" / report.REQUEST_FILE, trained.prepared.hold_out)
    known = ("9000", "8080", "9002", "9464")
    ports = dict(zip(known, map(str, free_ports(len(known))), strict=True))

    def adapt(text: str) -> str:
        return re.sub(r"\b(9000|8080|9002|9464)\b", lambda match: ports[match.group(1)], text)

    config = next(block for block in blocks("yaml") if block.startswith("models:"))
    monitor = f'monitor: {{grpc: "127.0.0.1:{ports["9002"]}"}}\n'  # elsewhere its default is free
    (folder / "demo-output" / "mine.yaml").write_text(adapt(config) + monitor)
    write_config(
        folder / "demo-output",
        grpc_address="127.0.0.1:0",
        http_address="127.0.0.1:0",
        monitor_address="127.0.0.1:0",
    )
    return folder, adapt


def run(command: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip


def test_make_targets_run_the_demo_and_the_tests():
    """`make demo` is run by test_demo_e2e (as the command it runs), `make test` is running."""
    for target, expected in (("demo", "sidecar demo"), ("test", "pytest")):
        dry = run(f"make -n {target}", ROOT)
        assert expected in dry.stdout, dry.stderr
    assert {"make demo", "make test"} <= {line.partition("#")[0].strip() for line in commands()}


def test_every_other_command(place):
    folder, adapt = place
    todo = [c for c in commands() if not c.startswith("make ") and c != "kill %1"]
    served = [c for c in todo if c.endswith("&")]
    assert served == ["sidecar serve demo-output/mine.yaml &"]
    before, after = todo[: todo.index(served[0])], todo[todo.index(served[0]) + 1 :]
    for command in before:
        done = run(adapt(command), folder)
        assert done.returncode == 0, done.stderr
    process = subprocess.Popen(
        [BIN / "sidecar", *served[0].removesuffix("&").split()[1:]],
        cwd=folder, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    rest = threading.Thread(target=process.stderr.read)
    try:
        assert any(line.startswith("ready") for line in process.stderr)
        rest.start()
        outputs = {}
        for command in after:
            done = run(adapt(command), folder)
            if command.startswith("sidecar status"):
                done = until_the_monitor_is_ready(adapt(command), folder)
            if command.startswith("sidecar rollback status"):  # its copies take a while to load
                done = until_the_monitor_is_ready(adapt(command), folder, "2/onnx beside 1/onnx")
            assert done.returncode == 0, (command, done.stderr)
            outputs[command] = done.stdout
        gate = [text for command, text in outputs.items() if "sidecar validate" in command]
        assert ["exit code 1" in text for text in gate] == [False, True]
        assert "node_div" in gate[1]
        assert outputs[next(c for c in after if "health" in c)].strip() == "200"
        assert 'outcome="success"' in outputs[next(c for c in after if "/metrics" in c)]
        assert "digits" in outputs[next(c for c in after if c.startswith("sidecar drift"))]
        assert '"scores"' in outputs[next(c for c in after if "versions/1" in c)]
        assert "2/onnx beside 1/onnx" in outputs[next(c for c in after if "rollback status" in c)]
        assert "1=0.5 2=0.5" in outputs["sidecar route 127.0.0.1:9002"]
        assert "error" in outputs[next(c for c in after if c.startswith("sidecar compare"))]
        assert "sent" in outputs[next(c for c in after if c.startswith("sidecar alerts test"))]
        assert "0 chart(s) failed" in outputs[next(c for c in after if c.startswith("helm lint"))]
        assert int(outputs[next(c for c in after if c.startswith("helm template"))]) >= 4
        check_python(folder, adapt)
    finally:
        process.send_signal(signal.SIGTERM)  # what `kill %1` sends
        code = process.wait(timeout=120)
        if rest.ident is not None:
            rest.join()
        process.stderr.close()
    assert code == 0


def until_the_monitor_is_ready(
    command: str, folder: Path, says: str = ""
) -> subprocess.CompletedProcess:
    deadline_s = monotonic() + 90
    while True:
        done = run(command, folder)
        if (done.returncode == 0 and says in done.stdout) or monotonic() > deadline_s:
            return done


def check_python(folder: Path, adapt) -> None:
    """The stock client's snippet, in the stock clients' environment."""
    python = ROOT / ".venvs" / "clients" / "bin" / "python"
    assert python.exists(), "the stock clients are missing: make clients"
    (snippet,) = blocks("python")
    done = subprocess.run(
        [python, "-c", adapt(snippet)], cwd=folder, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer, label = done.stdout.split(" is ")
    assert int(answer) == int(label)


def test_the_schema_is_printed(place):
    folder, _ = place
    done = run("sidecar schema", folder)
    assert '"$schema"' in done.stdout


def test_the_remote_example_is_a_valid_configuration(place):
    """The YAML that has no command: checked as part of a whole configuration."""
    import yaml

    from sidecar.config import parse

    example = next(b for b in blocks("yaml") if b.startswith("variants:"))
    tree = {"models": [{"name": "digits", **yaml.safe_load(example)}]}
    config = parse(tree, base_dir=place[0] / "demo-output")
    assert [v.runtime.kind for v in config.models[0].variants] == ["remote", "onnxruntime"]


def test_the_rollback_example_is_a_valid_configuration(place):
    import yaml

    from sidecar.config import parse

    example = yaml.safe_load(next(b for b in blocks("yaml") if b.startswith("rollback:")))
    tree = yaml.safe_load(next(b for b in blocks("yaml") if b.startswith("models:")))
    tree["models"][0]["rollback"] = example["rollback"]
    config = parse({**tree, "alerts": example["alerts"]}, base_dir=place[0] / "demo-output")
    assert config.models[0].rollback.action.kind == "switch"
    assert [channel.kind for channel in config.alerts.channels] == ["log", "alertmanager"]


def test_the_addresses_are_those_of_the_defaults():
    from sidecar.config import GatewayConfig

    assert GatewayConfig().grpc.address in README
    assert urllib.request.urlparse(f"http://{GatewayConfig().http.address}").port == 8080
