"""The pictures of docs/backends.md: the demo, told to real backends, as a browser shows it.

``python -m tests.support.backend_pictures`` makes them anew; it takes minutes. It needs Phoenix
(``make backends``), Prometheus and Chromium (``apt install prometheus chromium``), and writes to
``docs/images``. Look at what it has made before it is committed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from time import time_ns
from typing import Any
from urllib.parse import urlencode

from tests.backends.processes import Phoenix, Prometheus
from tests.support.upstream import free_port

IMAGES = Path(__file__).parents[2] / "docs" / "images"
SECONDS = 120
#: A second is too little for a monitor of low priority on a machine that is busy with the load.
INTERVAL = "5s"
PROJECT = "digits"
#: Documents are read on slow lines, too.
BYTES_MAX = 200_000
LATENCY = (
    "histogram_quantile(0.95, sum by (le, stage) (rate("
    'model_sidecar_inference_duration_seconds_bucket{role="serving"}[30s])))'
)
AGREEMENT = 'model_sidecar_comparison_disagreement_upper_bound_ratio{model_version="2"}'


def run_demo(folder: Path, phoenix: Phoenix, metrics: str) -> None:
    """The demo, with nothing but the standard variables."""
    host, _, port = metrics.rpartition(":")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("OTEL_")},
        "OTEL_SERVICE_NAME": "digits",
        "OTEL_RESOURCE_ATTRIBUTES": f"openinference.project.name={PROJECT}",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{phoenix.url}/v1/traces",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.02",
        "OTEL_METRICS_EXPORTER": "prometheus",
        "OTEL_EXPORTER_PROMETHEUS_HOST": host,
        "OTEL_EXPORTER_PROMETHEUS_PORT": port,
    }
    command = [sys.executable, "-m", "sidecar", "demo", "--seconds", str(SECONDS)]
    command += ["--output", str(folder)]
    subprocess.run(command, env=environment, check=True)


def seconds(span: dict[str, Any]) -> float:
    begin, end = (datetime.fromisoformat(span[f"{at}_time"]) for at in ("start", "end"))
    return (end - begin).total_seconds()


def project_page(phoenix: Phoenix) -> str:
    """Of the demo's project."""
    [project] = [one["id"] for one in phoenix.get("/v1/projects")["data"] if one["name"] == PROJECT]
    return f"{phoenix.url}/projects/{project}"


def request_page(phoenix: Phoenix) -> str:
    """Of the request that both waited and computed longest, so that there is something to see."""
    spans = phoenix.spans(PROJECT, names={"queue", "execute", "mirror.execute"})
    stages: dict[str, dict[str, float]] = {}
    for one in spans:
        if one["name"] in {"queue", "execute"}:
            stages.setdefault(one["context"]["trace_id"], {})[one["name"]] = seconds(one)
    both = {trace: min(found.values()) for trace, found in stages.items() if len(found) == 2}
    return f"{project_page(phoenix)}/traces/{max(both, key=both.__getitem__)}"


def mirror_page(phoenix: Phoenix) -> str:
    """Of a mirror that does not agree with its reference."""
    found = phoenix.get(f"/v1/projects/{PROJECT}/spans", name="mirror.compare", limit=1000)
    failed = [one for one in found["data"] if one["attributes"]["verdict"] == "FAIL"]
    assert failed, "no comparison failed: let the demo run longer"
    trace, span = failed[0]["context"]["trace_id"], failed[0]["id"]
    return f"{project_page(phoenix)}/traces/{trace}?{urlencode({'selectedSpanNodeId': span})}"


def graph_page(prometheus: Prometheus, begin_s: float, *queries: str) -> str:
    """Graphs of what came since ``begin_s``, one below the other."""
    found = prometheus.api(
        "query_range", query=queries[0], start=begin_s, end=time_ns() / 1e9, step=1
    )
    times = [at for one in found["result"] for at, _ in one["values"]]
    # The page knows whole minutes.
    moment = datetime.fromtimestamp(max(times) // 60 * 60 + 60, UTC).strftime("%Y-%m-%d %H:%M")
    minutes = (max(times) - min(times)) // 60 + 2
    parameters = {}
    for number, query in enumerate(queries):
        parameters |= {
            f"g{number}.expr": query,
            f"g{number}.tab": "0",
            f"g{number}.range_input": f"{minutes:.0f}m",
            f"g{number}.end_input": moment,
            f"g{number}.moment_input": moment,
            f"g{number}.step_input": "1",
        }
    return f"{prometheus.url}/graph?{urlencode(parameters)}"


def shoot(url: str, name: str, width: int, height: int, wait_ms: int = 30_000) -> None:
    """What Chromium shows of ``url``, once it has settled."""
    chromium = shutil.which("chromium")
    assert chromium, "no chromium: apt install chromium"
    target = IMAGES / name
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
                "--no-first-run", "--disable-background-networking",
                "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}",
                "--hide-scrollbars", f"--window-size={width},{height}",
                "--force-prefers-reduced-motion",  # else a panel is caught while it slides in
                f"--virtual-time-budget={wait_ms}", f"--screenshot={target}", url,
            ],
            check=True, capture_output=True, timeout=180,
        )  # fmt: skip
    assert target.stat().st_size < BYTES_MAX, f"{target}: {target.stat().st_size} bytes"
    print(target, target.stat().st_size)


def main() -> None:
    """Make all of them."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    metrics = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("phoenix", "prometheus"):
            (root / name).mkdir()
        with (
            Phoenix(root / "phoenix") as phoenix,
            Prometheus(root / "prometheus", [metrics], interval=INTERVAL) as prometheus,
        ):
            begin_ns = time_ns()
            run_demo(root / "demo", phoenix, metrics)
            shoot(request_page(phoenix), "phoenix-request.png", 1400, 760)
            shoot(mirror_page(phoenix), "phoenix-mirror.png", 1400, 760)
            graphs = graph_page(prometheus, begin_ns / 1e9, LATENCY, AGREEMENT)
            shoot(graphs, "prometheus.png", 1300, 1500)


if __name__ == "__main__":
    main()
