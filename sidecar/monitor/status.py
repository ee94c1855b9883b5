"""What the monitor shows of each model and pair, put together from evidence and certificates."""

from __future__ import annotations

import math
from dataclasses import replace

from sidecar.monitor.evidence import Evidence
from sidecar.monitor.judge import Judge
from sidecar.monitor.plan import ModelPlan, Pair
from sidecar.monitor.rows import EvidenceKey
from sidecar.monitor.versions import NEW_MS, PREVIOUS_MS
from sidecar.monitor.view import ModelStatus, NoiseView, OutputStatus, PairStatus
from validators.sequential.certificate import lower_bound, upper_bound
from validators.verdict import Verdict, worst

_Bounds = tuple[float, float]


class StatusBoard:
    """Builds ``ModelStatus``; for any thread, one at a time."""

    def __init__(self, evidence: Evidence, judge: Judge) -> None:
        self._evidence = evidence
        self._judge = judge
        self._bounds: dict[tuple[EvidenceKey, float], tuple[float, float, _Bounds]] = {}

    def model(self, plan: ModelPlan) -> ModelStatus:
        """One model and its pairs."""
        return ModelStatus(
            plan.config.name,
            plan.reference,
            plan.config.validation.retention_class,
            [self._pair(plan, pair) for pair in plan.pairs],
            plan.message,
        )

    def _pair(self, plan: ModelPlan, pair: Pair) -> PairStatus:
        if pair.blocked:
            status = PairStatus(pair.candidate, pair.baseline, pair.purpose, 0, None, pair.blocked)
        elif pair.purpose == "versions":
            status = self._versions(pair)
        else:
            status = self._certificates(plan, pair)
        return status

    def _certificates(self, plan: ModelPlan, pair: Pair) -> PairStatus:
        outputs = [self._output(plan, pair, key) for key in self._judge.keys(pair)]
        verdicts = [output.certificate.verdict for output in outputs if output.certificate]
        failures = self._evidence.cells(
            EvidenceKey(pair.model, pair.candidate, pair.baseline, "", "failures")
        )
        return PairStatus(
            pair.candidate,
            pair.baseline,
            pair.purpose,
            max((output.requests for output in outputs), default=0),
            worst(verdicts) if verdicts else Verdict.INVALID,
            "",
            outputs,
            {side: int(count) for side, count in failures.items()},
        )

    def _output(self, plan: ModelPlan, pair: Pair, key: EvidenceKey) -> OutputStatus:
        cells = self._evidence.cells(key)
        n, k = int(cells.get("n", 0)), cells.get("k", 0.0)
        policies = pair.policies.policies if pair.policies is not None else {}
        policy = policies.get(key.output)
        alpha = plan.config.validation.alpha
        lower, upper = self._bounds_of(key, n, k, alpha)
        return OutputStatus(
            output=key.output,
            kind=policy.kind if policy is not None else "",
            policy=key.policy,
            inferred=policy.inferred if policy is not None else "",
            limits=tuple(str(limit) for limit in policy.limits) if policy is not None else (),
            requests=n,
            rows=int(cells.get("rows", 0)),
            bad_rows=int(cells.get("bad_rows", 0)),
            invalid=int(cells.get("invalid", 0)),
            rate=k / n if n else None,
            lower=lower,
            upper=upper,
            noise=self._noise(pair, key, alpha, upper),
            certificate=self._judge.certificate(plan, pair, key),
            worst=self._evidence.remarks(replace(key, metric="")).worst,
        )

    def _noise(
        self, pair: Pair, key: EvidenceKey, alpha: float, raw_upper: float
    ) -> NoiseView | None:
        found = EvidenceKey(
            pair.model, pair.baseline, pair.baseline, key.output, "noise", key.policy
        )
        cells = self._evidence.cells(found)
        n = int(cells.get("n", 0))
        if not n:
            return None
        k = cells.get("k", 0.0)
        lower, upper = self._bounds_of(found, n, k, alpha)
        return NoiseView(n, k / n, lower, upper, max(0.0, raw_upper - lower))

    def _bounds_of(self, key: EvidenceKey, n: int, k: float, alpha: float) -> _Bounds:
        """Bounds of a rate at alpha / 2 each, valid at every look; kept until more is counted."""
        if not n:
            return 0.0, 1.0
        known = self._bounds.get((key, alpha))
        if known is not None and known[:2] == (n, k):
            return known[2]
        bounds = lower_bound(k, n, alpha / 2), upper_bound(k, n, alpha / 2)
        self._bounds[key, alpha] = (n, k, bounds)
        return bounds

    def _versions(self, pair: Pair) -> PairStatus:
        errors = {"candidate": 0, "baseline": 0}
        compared = 0
        for key in self._judge.keys(pair, "error"):
            cells = self._evidence.cells(key)
            compared += int(sum(cells.values()))
            both = cells.get("n11", 0)
            errors["candidate"] += int(both + cells.get("n10", 0))
            errors["baseline"] += int(both + cells.get("n01", 0))
        p50: dict[str, float] = {}
        p99: dict[str, float] = {}
        for side, name in (("candidate", NEW_MS), ("baseline", PREVIOUS_MS)):
            sketch = self._evidence.sketch(
                EvidenceKey(pair.model, pair.candidate, pair.baseline, "", name, pair.identity)
            )
            middle, tail = sketch.quantile(0.5), sketch.quantile(0.99)
            if not math.isnan(middle):
                p50[side], p99[side] = middle, tail
        outputs = [
            OutputStatus(
                output=key.output, kind="", policy=key.policy, inferred="", limits=(),
                requests=int(sum(cells.values())), rows=0, bad_rows=0, invalid=0,
                rate=cells.get("n10", 0.0) / sum(cells.values()), lower=0.0, upper=1.0,
            )
            for key, cells in self._flips(pair)
        ]  # fmt: skip
        return PairStatus(
            pair.candidate, pair.baseline, pair.purpose, compared, None, "", outputs, errors,
            p50, p99,
        )  # fmt: skip

    def _flips(self, pair: Pair) -> list[tuple[EvidenceKey, dict[str, float]]]:
        """Flips by output, over all blocks."""
        total: dict[tuple[str, str], dict[str, float]] = {}
        for key in self._judge.keys(pair, "flip"):
            cells = total.setdefault((key.output, key.policy), {})
            for name, count in self._evidence.cells(key).items():
                cells[name] = cells.get(name, 0.0) + count
        return [
            (
                EvidenceKey(pair.model, pair.candidate, pair.baseline, output, "flip", policy),
                cells,
            )
            for (output, policy), cells in sorted(total.items())
            if sum(cells.values()) > 0
        ]
