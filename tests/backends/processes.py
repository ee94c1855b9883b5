"""Real backends as processes on loopback, each in an empty folder of its own.

Phoenix comes from an environment of its own (``make backends``), Prometheus from Debian's package
(``apt.txt``), started with our configuration and not as the service that the package brings.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Self

import httpx

from tests.support.upstream import free_port

ROOT = Path(__file__).parents[2]
#: Phoenix imports for 20 s of processor time before it listens; on a busy machine, minutes.
READY_WITHIN_S = 300.0
ENDED_WITHIN_S = 30.0
#: Until what was sent can be read: Phoenix writes in batches, Prometheus scrapes once a second.
THERE_WITHIN_S = 60.0
PHOENIX_PYTHON = ROOT / ".venvs" / "phoenix" / "bin" / "python"
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
#: Why the tests of Prometheus cannot run here; empty where they can.
NO_PROMETHEUS = "" if PROMETHEUS and PROMTOOL else "no prometheus: apt install prometheus"


ALERTMANAGER = shutil.which("prometheus-alertmanager")
#: Why the tests of Alertmanager cannot run here; empty where they can.
NO_ALERTMANAGER = (
    "" if ALERTMANAGER else "no prometheus-alertmanager: apt install prometheus-alertmanager"
)


def until(check: Callable[[], Any], what: str, *, within_s: float = THERE_WITHIN_S) -> Any:
    """Poll until ``check`` gives something true; return that."""
    deadline = monotonic() + within_s
    while not (found := check()):
        assert monotonic() < deadline, f"not within {within_s:g} s: {what}"
        sleep(0.05)
    return found


class Backend:
    """A running process with an HTTP API; a context manager, ready once it is entered."""

    def __init__(
        self, command: Sequence[str], folder: Path, port: int, environment: Mapping[str, str]
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        # Without a proxy or an account of whoever runs the tests.
        self._http = httpx.Client(base_url=self.url, timeout=30.0, trust_env=False)
        self._log = folder / "backend.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=dict(environment), stdout=log, stderr=log
            )

    ready = "/"

    def get(self, path: str, **parameters: Any) -> Any:
        """What its API answers, as JSON."""
        answer = self._http.get(path, params=parameters)
        assert answer.is_success, f"{answer.url}: {answer.status_code} {answer.text}"
        return answer.json()

    def log(self) -> str:
        """The end of what it wrote."""
        return self._log.read_text(encoding="utf-8", errors="replace")[-4000:]

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, f"it ended:\n{self.log()}"
        with contextlib.suppress(httpx.HTTPError):
            return self._http.get(self.ready).is_success
        return False

    def __enter__(self) -> Self:
        try:
            until(self._is_ready, f"{self.url} is ready", within_s=READY_WITHIN_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()
        self.process.terminate()
        try:
            self.process.wait(ENDED_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Phoenix(Backend):
    """Arize Phoenix: traces over OTLP by gRPC (``grpc``) and HTTP (``url``)."""

    ready = "/readyz"

    def __init__(self, folder: Path) -> None:
        assert PHOENIX_PYTHON.exists(), (
            "there is no .venvs/phoenix; run `make backends` (`make test` does)"
        )
        port, grpc = free_port(), free_port()
        self.grpc = f"http://127.0.0.1:{grpc}"
        environment = {
            **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
            "HOME": str(folder),
            "PHOENIX_WORKING_DIR": str(folder),
            "PHOENIX_HOST": "127.0.0.1",
            "PHOENIX_PORT": str(port),
            "PHOENIX_GRPC_PORT": str(grpc),
            # It calls nobody: no pixels in its pages, no downloads, no assistant.
            "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
            "PHOENIX_TELEMETRY_ENABLED": "false",
            "PHOENIX_DISABLE_AGENT_ASSISTANT": "true",
            "PHOENIX_AGENTS_DISABLE_BASH": "true",
            "PHOENIX_ENABLE_MCP_SERVER": "false",
        }
        program = Path(__file__).parent / "phoenix" / "serve.py"
        super().__init__([str(PHOENIX_PYTHON), str(program), "serve"], folder, port, environment)

    def spans(
        self, project: str, count: int = 1, *, names: Collection[str] = ()
    ) -> list[dict[str, Any]]:
        """All spans of a project, once there are ``count`` and, of each of ``names``, one.

        Phoenix writes a little after it has taken them.
        """

        def found() -> list[dict[str, Any]]:
            answer = self._http.get(f"/v1/projects/{project}/spans", params={"limit": 1000})
            if answer.status_code == 404:  # no span has come yet
                return []
            assert answer.is_success, answer.text
            spans = answer.json()["data"]
            complete = set(names) <= {one["name"] for one in spans}
            return spans if complete and len(spans) >= count else []

        what = f"{count} spans in project {project}, among them {', '.join(names) or 'any'}"
        return until(found, what)

    def otlp(self, project: str) -> list[dict[str, Any]]:
        """The same in the form of OTLP, which has the links."""
        return self.get(f"/v1/projects/{project}/spans/otlpv1", limit=1000)["data"]

    def ask(self, query: str) -> Any:
        """The answer to a query in GraphQL."""
        answer = self._http.post("/graphql", json={"query": query})
        found = answer.raise_for_status().json()
        assert not found.get("errors"), found["errors"]
        return found["data"]


class Prometheus(Backend):
    """Prometheus, which scrapes ``targets`` (``host:port``) once a second."""

    ready = "/-/ready"

    def __init__(
        self,
        folder: Path,
        targets: Sequence[str] = (),
        *,
        rules: Sequence[Path] = (),
        interval: str = "1s",
        labels: Mapping[str, str] | None = None,
    ) -> None:
        assert PROMETHEUS, NO_PROMETHEUS
        config = {
            "global": {"scrape_interval": interval, "evaluation_interval": interval},
            "rule_files": [str(path) for path in rules],
            "scrape_configs": [
                {
                    "job_name": "model-sidecar",
                    "static_configs": [{"targets": list(targets), "labels": dict(labels or {})}],
                }
            ],
        }
        path = folder / "prometheus.yml"
        path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
        port = free_port()
        command = [
            PROMETHEUS, f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage",
        ]  # fmt: skip
        super().__init__(command, folder, port, {"PATH": os.environ.get("PATH", "")})

    def api(self, path: str, **parameters: Any) -> Any:
        """``data`` of an answer of the API."""
        return self.get(f"/api/v1/{path}", **parameters)["data"]

    def vector(self, query: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series that ``query`` gives now."""
        found = self.api("query", query=query)
        assert found["resultType"] == "vector", found
        return [(one["metric"], float(one["value"][1])) for one in found["result"]]

    def problem(self, query: str) -> str:
        """What Prometheus says against ``query``; empty where it can be evaluated."""
        answer = self._http.get("/api/v1/query", params={"query": query})
        return "" if answer.is_success else str(answer.json().get("error", answer.text))


def promtool(*arguments: str, given: bytes | None = None) -> tuple[int, str]:
    """Exit status and output of promtool."""
    assert PROMTOOL, NO_PROMETHEUS
    found = subprocess.run(
        [PROMTOOL, *arguments], input=given, capture_output=True, check=False, timeout=60
    )
    return found.returncode, (found.stdout + found.stderr).decode()


class Alertmanager(Backend):
    """Alertmanager, alone; its storage is in ``folder``.

    Args:
        port: where it is to listen again after it was stopped.
        receiver: a webhook that it tells, also of what is resolved.
    """

    ready = "/-/ready"

    def __init__(self, folder: Path, port: int = 0, receiver: str = "") -> None:
        assert ALERTMANAGER, NO_ALERTMANAGER
        hook = {"webhook_configs": [{"url": receiver, "send_resolved": True}]} if receiver else {}
        config = {
            "route": {
                "receiver": "all", "group_by": ["..."], "group_wait": "0s", "group_interval": "1s",
                "repeat_interval": "1h",
            },
            "receivers": [{"name": "all", **hook}],
        }  # fmt: skip
        path = folder / "alertmanager.yml"
        path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
        self.port = port or free_port()
        command = [
            ALERTMANAGER, f"--config.file={path}", f"--storage.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}", "--cluster.listen-address=",
        ]  # fmt: skip
        super().__init__(command, folder, self.port, {"PATH": os.environ.get("PATH", "")})

    def alerts(self, **labels: str) -> list[dict[str, Any]]:
        """The alerts that it has now and that go on, with these labels."""
        filters = [f'{name}="{value}"' for name, value in labels.items()]
        found: list[dict[str, Any]] = self.get("/api/v2/alerts", filter=filters)
        return found
