"""What a run found, in words, in JSON, and as commands to go on with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sidecar.demo import export, screen, traces
from sidecar.demo.diagnosis import Diagnosis
from sidecar.demo.drift import Drifted
from sidecar.demo.figures import Comparison, VariantFigures
from sidecar.demo.rollout import RolledBack
from sidecar.demo.train import Split
from sidecar.demo.verdicts import Finding, in_words
from sidecar.monitor.view import Coverage

REQUEST_FILE = "digit.json"


@dataclass(frozen=True, slots=True)
class Report:
    """What a run found."""

    output: str
    config: str
    addresses: dict[str, str]
    was_cached: bool
    prepare_s: float
    ready_s: float
    elapsed_s: float
    hold_out_digits: int
    requests: dict[str, int]
    failures: int
    first_error: str | None
    variants: list[VariantFigures]
    fp32_against_int8: list[Comparison]
    findings: list[Finding]
    coverage: Coverage | None
    diagnosis: Diagnosis
    drifted: Drifted
    rolled_back: RolledBack
    trace: traces.Trace | None
    telemetry_backend: str

    def plain(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        trace = None if self.trace is None else self.trace.plain()
        return {**asdict(self), "trace": trace}

    @property
    def is_good(self) -> bool:
        """Every request was answered, each variant gave one answer to each digit, and the monitor
        told the good conversion from the broken one, and turned digits from those as they are.
        """
        told = all(finding.is_right for finding in self.findings) and self.drifted.is_good
        told = told and self.rolled_back.is_good
        same = not any(row.differences for row in self.variants)
        return told and same and not self.failures


def summary(report: Report) -> list[str]:
    """Return the few lines that say how it went."""
    total = sum(report.requests.values())
    rate = total / report.elapsed_s if report.elapsed_s > 0 else 0.0
    over = ", ".join(
        f"{count:,} over {screen.TRANSPORTS[name]}" for name, count in report.requests.items()
    )
    lines = [
        f"{total:,} requests in {report.elapsed_s:.1f} s ({rate:,.0f}/s: {over}), "
        f"{report.failures} failed"
    ]
    if report.first_error is not None:
        lines.append(f"the first failure: {report.first_error}")
    main = [row for row in report.variants if row.variant.endswith("/onnx") and row.accuracy]
    lines += [
        f"{row.variant} reads {row.accuracy:.1%} of {row.answered} digits it was never trained on"
        for row in main
    ]
    for row in report.variants:
        if row.differences:
            lines.append(f"{row.variant} changed its answer to a digit {row.differences} times")
        if row.answered < report.hold_out_digits:
            lines.append(f"{row.variant} has only answered {row.answered} of the digits")
    for result in report.fp32_against_int8:
        line = f"version {result.version}: int8 disagrees with fp32 on {result.disagreements} "
        line += f"of {result.digits} held-out digits"
        if result.score_difference_max is not None:
            line += f" (scores differ by at most {result.score_difference_max:.2f})"
        lines.append(line)
    return [*lines, "", *watched(report)]


def watched(report: Report) -> list[str]:
    """Return what the monitor found, and what the validation after it named as the cause."""
    lines = [in_words(finding) for finding in report.findings]
    coverage = report.coverage
    if coverage is None:
        lines.append(f"the monitor did not answer; its log: {report.output}/serve.log")
    elif coverage.sampled:
        share = coverage.compared / coverage.sampled
        lines.append(
            f"of {coverage.sampled:,} sampled requests {share:.0%} were really compared, at "
            f"{coverage.cpu_share_used:.0%} of the processors' time"
        )
    told = traces.in_words(report.trace, report.telemetry_backend)
    return [
        *lines,
        *report.diagnosis.in_words(),
        *report.drifted.in_words(),
        *report.rolled_back.in_words(),
        "",
        *told,
    ]


def how_to_go_on(report: Report, *, stay: bool) -> list[str]:
    """Return commands to try; their addresses and paths are those of this run."""
    grpc_address, http_address = report.addresses["grpc"], report.addresses["http"]
    folder = report.output
    head = ["", "Still up, until Ctrl-C. In another terminal:"]
    if not stay:
        head = ["", "Keep it up with --stay, or serve it yourself and ask it:"]
        head.append(f"  sidecar serve {report.config}")
    return [
        *head,
        f"  curl -s http://{http_address}/v2/models/digits/infer -d @{folder}/{REQUEST_FILE}",
        f"  curl -s http://{http_address}/v2/models/digits-int8/stats",
        f"  sidecar infer {grpc_address} digits --input {folder}/{REQUEST_FILE}",
        f"  sidecar status {report.addresses['monitor']}",
        f"  sidecar drift {report.addresses['monitor']}",
        f"  sidecar rollback status {report.addresses['monitor']}",
        "  OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317 sidecar demo   # traces to a backend",
        "or in Python, with a stock client (pip install 'tritonclient[grpc]'):",
        "  import numpy as np, tritonclient.grpc as triton",
        f'  digits = np.load("{folder}/{export.HOLD_OUT_FILE}")',
        f'  image = triton.InferInput("{export.INPUT}", [1, 1, 8, 8], "FP32")',
        '  image.set_data_from_numpy(digits["images"][:1])',
        f'  answer = triton.InferenceServerClient("{grpc_address}").infer("digits", [image])',
        f'  print(answer.as_numpy("{export.OUTPUT}").argmax(), "is", digits["labels"][0])',
    ]


def write_request(path: Path, hold_out: Split) -> None:
    """Write one digit as an inference request for curl."""
    image = hold_out.images[:1]
    tensor = {
        "name": export.INPUT,
        "datatype": "FP32",
        "shape": list(image.shape),
        "data": image.ravel().astype(int).tolist(),  # pixels are whole numbers
    }
    path.write_text(json.dumps({"inputs": [tensor]}) + "\n", encoding="utf-8")
