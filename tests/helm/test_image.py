"""The image: its Dockerfile is linted and read; its steps are run, and what they make is used.

There is no engine here. The two steps of `helm/Dockerfile` are a script; the same script, on the
same files, makes an environment in a folder (`tests/helm/make_env.sh` keeps its libraries). It is
then run like a container: a root of its own, read-only, another user, nothing else to import.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from time import monotonic, sleep
from typing import NamedTuple

import grpc
import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement

import sidecar
from sidecar.protocol.pb import inference_pb2 as pb
from tests.support import models
from tests.support.container import UID, Container, instructions, stages, words
from tests.support.ports import free_ports

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "helm" / "Dockerfile"
IGNORE = ROOT / "helm" / "Dockerfile.dockerignore"
BUILD = ROOT / "helm" / "image" / "build.py"
LABELS = ("title", "description", "licenses", "version", "revision", "created")

pytestmark = pytest.mark.timeout(900)


# --- the Dockerfile -------------------------------------------------------------------------------


def test_the_linter_finds_nothing(tmp_path: Path):
    """All rules, down to style; no rule is ignored, here or by a comment."""
    labels = [f"org.opencontainers.image.{name}:text" for name in LABELS]
    command = [
        str(Path(sys.executable).with_name("hadolint")), "--failure-threshold", "style",
        "--disable-ignore-pragma", *(part for one in labels for part in ("--require-label", one)),
        str(DOCKERFILE),
    ]  # fmt: skip
    environ = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_runs_as_somebody_without_a_name_that_kubernetes_must_look_up():
    final = dict(stages(DOCKERFILE)[-1])
    assert final["USER"] == f"{UID}:{UID}"
    assert words(final["ENTRYPOINT"]) == ["sidecar"]
    assert final["STOPSIGNAL"] == "SIGTERM"
    assert final["HEALTHCHECK"] == "NONE"
    assert "VOLUME" not in final, "an engine would make volumes that nobody asked for"


def test_every_stage_starts_from_the_base_that_is_given():
    bases = [rest.split()[0] for word, rest in instructions(DOCKERFILE) if word == "FROM"]
    assert bases == ["${PYTHON_IMAGE}", "${PYTHON_IMAGE}"], "the environment links to the base's"


def copied() -> list[tuple[list[str], str]]:
    """What the first stage copies out of the context, and to where."""
    found = [words(rest) for word, rest in stages(DOCKERFILE)[0] if word == "COPY"]
    return [(each[:-1], each[-1]) for each in found]


def test_the_context_holds_what_is_copied_and_nothing_else():
    lines = [line for line in IGNORE.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    assert lines[0] == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert let_in == {source.rstrip("/") for sources, _ in copied() for source in sources}
    assert all((ROOT / path).exists() for path in let_in)


# --- what is installed ----------------------------------------------------------------------------


def build(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys._base_executable, str(folder / "helm/image/build.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("extras", ["dev", "demo", "drift,no-such"])
def test_extras_that_are_not_for_an_image_are_refused(extras: str, tmp_path: Path):
    done = build("libraries", "--to", str(tmp_path / "env"), "--extras", extras)
    assert done.returncode == 1
    assert f"no such extra for an image: {extras.rpartition(',')[2]}" in done.stderr
    assert not (tmp_path / "env").exists()


def test_a_variant_asks_for_what_its_name_says():
    spec = importlib.util.spec_from_file_location("image_build", BUILD)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def names(variant: str, *extras: str) -> set[str]:
        return {Requirement(line).name for line in script.requirements(variant, list(extras))}

    base = names("base")
    assert {"onnxruntime", "SQLAlchemy", "kubernetes", "psycopg", "opentelemetry-sdk"} <= base
    assert not {"torch", "evidently", "onnx", "tensorrt"} & base
    assert names("torch") - base == {"torch"}
    assert names("base", "drift") - base == {"evidently", "pandas"}
    assert names("gpu") ^ base == {"onnxruntime", "onnxruntime-gpu", "tensorrt-rtx"}


class Image(NamedTuple):
    environment: Path
    packages: Path


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The base variant, in a folder: the Dockerfile's first stage, step by step."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the image has Python 3.11, this is another")
    python = sys._base_executable
    subprocess.run(["sh", str(ROOT / "tests/helm/make_env.sh"), python], check=True)
    folder = tmp_path_factory.mktemp("image")
    folder.chmod(0o755)
    source, environment = folder / "src", folder / "model-sidecar"
    ignored = [line for line in IGNORE.read_text(encoding="utf-8").splitlines() if "*." in line]
    for sources, where in copied():
        for name in sources:
            copy(ROOT / name, source / where / (Path(name).name if where == "./" else ""), ignored)
    # Links: a copy of half a gigabyte takes longer. Our own files are new ones.
    subprocess.run(["cp", "-al", f"{ROOT}/.venvs/image/.", environment], check=True)
    done = build("sidecar", "--to", str(environment), folder=source)
    assert done.returncode == 0, done.stderr
    return Image(environment, environment / "lib" / "python3.11" / "site-packages")


def copy(source: Path, target: Path, ignored: list[str]) -> None:
    """`COPY`, without what the context leaves out."""
    for path in [source] if source.is_file() else sorted(source.rglob("*")):
        name = path.relative_to(ROOT).as_posix()
        if path.is_dir() or any(fnmatch(name, pattern) for pattern in ignored):
            continue
        to = target if source.is_file() else target / path.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to)


def test_it_holds_python_and_our_command_and_no_other(image: Image):
    names = {path.name for path in (image.environment / "bin").iterdir()}
    assert names == {"python", "python3", "python3.11", "sidecar"}
    assert not {"pip", "setuptools", "wheel", "torch", "onnx", "aiohttp", "pytest"} & {
        path.name for path in image.packages.iterdir()
    }


def test_nothing_is_missing_but_what_was_left_out_on_purpose(image: Image):
    command = [sys.executable, "-m", "pip", "--python", str(image.environment / "bin/python"),
               "check", "--disable-pip-version-check"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert {line.split(" requires ")[0].split()[0] for line in done.stdout.splitlines()} <= {
        "kubernetes"
    }, done.stdout


def test_everything_of_ours_is_compiled_beforehand(image: Image):
    ours = [
        path
        for name in ("sidecar", "validators", "exporters")
        for path in (image.packages / name).rglob("*.py")
    ]
    assert len(ours) > 100
    made = [path.parent / "__pycache__" / f"{path.stem}.cpython-311.pyc" for path in ours]
    assert [path for path in made if not path.exists()] == []
    assert (image.packages / "sidecar/protocol/pb/inference_pb2.py").exists(), "generated"


# --- what runs in it ------------------------------------------------------------------------------


class Pod(NamedTuple):
    container: Container
    address: str
    monitor: str
    state: Path


@pytest.fixture(scope="module")
def pod(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Pod:
    """The volumes of a pod, and the configuration; a model and an older version of it."""
    if os.geteuid() != 0:
        pytest.skip("a root of one's own needs root")
    folder = tmp_path_factory.mktemp("pod")
    volumes = {
        "/models": folder / "models", "/etc/model-sidecar": folder / "config",
        "/var/lib/model-sidecar": folder / "state", "/run/model-sidecar": folder / "run",
    }  # fmt: skip
    for path in volumes.values():
        path.mkdir()
    writable = ("/var/lib/model-sidecar", "/run/model-sidecar")
    for name in writable:
        os.chown(volumes[name], UID, UID)
    models.onnx_mlp(volumes["/models"])
    grpc_port, health, hooks, monitor, monitor_health = free_ports(5)
    config = settings(grpc_port, health, hooks, monitor, monitor_health)
    (folder / "config" / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "root").mkdir()
    container = Container(
        root=folder / "root", environment=image.environment, variables=variables(image),
        passwd=f"sidecar:x:{UID}:{UID}::/tmp:/usr/sbin/nologin\n",
        volumes=volumes, writable=writable,
    )  # fmt: skip
    return Pod(container, f"127.0.0.1:{grpc_port}", f"127.0.0.1:{monitor}", folder / "state")


def settings(grpc_port: int, health: int, hooks: int, monitor: int, monitor_health: int) -> dict:
    """As the chart computes them, on this machine's loopback."""
    runtime = {"kind": "onnxruntime", "path": "/models/mlp.onnx"}
    return {
        "models": [
            {
                "name": "mlp",
                "variants": [
                    {"name": "new", "version": 2, "roles": ["serving"], "runtime": runtime},
                    {"name": "old", "version": 1, "roles": ["previous"], "runtime": runtime},
                ],
            }
        ],
        "gateway": {
            "grpc": {"address": f"127.0.0.1:{grpc_port}", "max_connection_age_s": 1},
            "http": None,
            "health": f"127.0.0.1:{health}",
            "hooks": f"127.0.0.1:{hooks}",
            "drain": {"delay_s": 0, "timeout_s": 10},
        },
        "monitor": {
            "state_dir": "/var/lib/model-sidecar",
            "socket": "/run/model-sidecar/tap.sock",
            "pages": "/run/model-sidecar/pages",
            "grpc": f"127.0.0.1:{monitor}",
            "health": f"127.0.0.1:{monitor_health}",
            "mirror": {"sample_rate": 1.0, "cpu_share": 1.0},
        },
        "log": {"format": "json"},
    }


def variables(image: Image) -> dict[str, str]:
    """The image's `ENV`, with its own folder in place of the image's."""
    (text,) = [rest for word, rest in stages(DOCKERFILE)[-1] if word == "ENV"]
    found = dict(word.split("=", 1) for word in words(text))
    found["PATH"] = found["PATH"].replace("${PATH}", "/usr/local/bin:/usr/bin:/bin")
    return {k: v.replace("/opt/model-sidecar", str(image.environment)) for k, v in found.items()}


def test_the_command_answers_as_another_user_on_a_read_only_root(pod: Pod):
    done = pod.container.run("sidecar", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert sidecar.__version__ in done.stdout


def test_a_container_is_what_it_should_be(pod: Pod):
    """Else the other tests would show nothing."""
    code = (
        "import os, getpass\n"
        "print(os.getpid(), os.getuid(), os.getgid(), getpass.getuser())\n"
        "for folder in '/', '/opt', '/etc', '/models', '/etc/model-sidecar', '/usr', "
        f"'{pod.container.environment}', '/tmp', '/var/lib/model-sidecar', '/run/model-sidecar':\n"
        "    try:\n"
        "        os.close(os.open(f'{folder}/probe', os.O_CREAT | os.O_WRONLY))\n"
        "        os.unlink(f'{folder}/probe')\n"
        "        print('writes', folder)\n"
        "    except OSError:\n"
        "        pass\n"
    )
    done = pod.container.run("python", "-c", code)
    assert done.stdout.splitlines() == [
        f"1 {UID} {UID} sidecar", "writes /tmp", "writes /var/lib/model-sidecar",
        "writes /run/model-sidecar",
    ], done.stderr  # fmt: skip


@pytest.mark.parametrize(
    "name", ["torch", "onnx", "evidently", "aiohttp", "pip", "pytest", "tests"]
)
def test_it_cannot_import_what_the_variant_does_not_have(pod: Pod, name: str):
    done = pod.container.run("python", "-c", f"import {name}")
    assert f"No module named '{name}'" in done.stderr


def test_it_imports_all_that_a_configuration_can_ask_of_it(pod: Pod):
    code = (
        "import psycopg, uvloop, httptools, pyarrow.parquet, safetensors, sqlalchemy, alembic\n"
        "import opentelemetry.sdk.trace, h11, httpx, apscheduler.schedulers.background\n"
        "import opentelemetry.exporter.otlp.proto.grpc.trace_exporter\n"
        "import opentelemetry.exporter.otlp.proto.http.trace_exporter\n"
        "from kubernetes import client, config\n"
        "client.CustomObjectsApi(client.ApiClient(client.Configuration()))\n"
        "print('all')"
    )
    done = pod.container.run("python", "-W", "error::ImportWarning", "-c", code)
    assert done.stdout == "all\n", done.stderr


def test_the_configuration_is_checked(pod: Pod):
    done = pod.container.run("sidecar", "check-config", "/etc/model-sidecar/config.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mlp" in done.stdout


@contextmanager
def running(pod: Pod, *command: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a container, until the end of the block; its log is looked through."""
    with log.open("wb") as out:
        process = subprocess.Popen(pod.container.command(*command), stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
    text = log.read_text(encoding="utf-8")
    for sign in ("Read-only file system", "Permission denied", "Traceback", "Errno"):
        assert sign not in text, text


def until(done: Callable[[], object], *, timeout_s: float) -> None:
    deadline = monotonic() + timeout_s
    while not done():
        assert monotonic() < deadline, "it did not happen"
        sleep(0.05)


def first_process(outer: subprocess.Popen[bytes]) -> int:
    """The container's process 1, as this machine numbers it."""
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text(encoding="utf-8")
    (child,) = children.split()
    return int(child)


def test_it_serves_compares_and_stops_in_two_containers(pod: Pod, tmp_path: Path):
    config = "/etc/model-sidecar/config.yaml"
    x = np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)
    with (
        running(pod, "sidecar", "gateway", config, log=tmp_path / "gateway") as gateway,
        running(pod, "sidecar", "monitor", config, log=tmp_path / "monitor") as monitor,
        grpc.insecure_channel(pod.address) as channel,
    ):
        grpc.channel_ready_future(channel).result(timeout=120)
        until(lambda: compared(pod, channel, x) > 0, timeout_s=120)
        # As Kubernetes does it: the hook in the gateway's container first.
        hook = pod.container.run("sidecar", "drain", config)
        assert hook.returncode == 0, hook.stderr
        for process in (gateway, monitor):
            os.kill(first_process(process), signal.SIGTERM)
        assert [process.wait(timeout=30) for process in (gateway, monitor)] == [0, 0]
    assert (pod.state / "monitor.sqlite3").exists()


def compared(pod: Pod, channel: grpc.Channel, x: np.ndarray) -> int:
    """Ask once more, check the answer; return how many requests the monitor has compared."""
    request = pb.ModelInferRequest(model_name="mlp")
    request.inputs.add(name="x", datatype="FP32", shape=list(x.shape))
    request.raw_input_contents.append(x.tobytes())
    call = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelInferResponse.FromString,
    )
    answer = call(request, timeout=30)
    got = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(2, 10)
    np.testing.assert_allclose(got, models.mlp_expected(x), rtol=1e-4, atol=1e-5)
    done = pod.container.run("sidecar", "status", pod.monitor, "--json")
    if done.returncode != 0:
        return 0
    found = json.loads(done.stdout)["models"]
    return sum(pair["compared"] for model in found for pair in model["pairs"])
