"""From counts to certificates: what is shown of a pair, and when its verdict became another one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from sidecar.config_validation import RETENTION_LIMITS
from sidecar.monitor.events import EventLog
from sidecar.monitor.evidence import Cells, CertificateKey, Evidence
from sidecar.monitor.plan import ModelPlan, Pair
from sidecar.monitor.record import whole_hash
from sidecar.monitor.rows import EvidenceKey
from sidecar.monitor.view import CertificateView
from validators.sequential.certificate import certify_live, evidence_under, log_e, log_e_over
from validators.verdict import Verdict

#: More than this many further requests are not worth telling.
_TO_GO_MAX = 10_000_000


@dataclass(slots=True)
class _Known:
    """What was last concluded of one certificate, so that only changes cost anything."""

    n: float = -1
    verdict: Verdict | None = None
    log_e_over: float = -math.inf
    view: CertificateView | None = None


class Judge:
    """Looks at evidence; ``look`` and ``certificate`` are for any thread, one at a time.

    Args:
        plans: model → its plan.
    """

    def __init__(
        self,
        evidence: Evidence,
        plans: Mapping[str, ModelPlan],
        events: EventLog,
    ) -> None:
        self._evidence = evidence
        self._plans = plans
        self._events = events
        self._known: dict[tuple[EvidenceKey, float, float], _Known] = {}

    def keys(self, pair: Pair, metric: str = "disagrees") -> list[EvidenceKey]:
        """The keys of a pair's evidence under its present limits.

        Before the first answer an inferred policy is not known: then under all that there is.
        """
        candidate = pair.baseline if metric == "noise" else pair.candidate
        sides = (pair.model, candidate, pair.baseline)
        found = [
            key
            for key in self._evidence.all_keys()
            if (key.model, key.candidate, key.baseline) == sides
            and key.metric == metric
            and key.policy.startswith(pair.identity)
        ]
        hashes = pair.policies.hashes if pair.policies is not None else {}
        if not hashes or metric not in {"disagrees", "noise", "flip"}:
            return found
        current = {**hashes, "": whole_hash(pair.identity, hashes)}
        unknown = f"{pair.identity}-"  # of an output that no policy fits
        return [key for key in found if key.policy in {current.get(key.output), unknown}]

    def look(self, *, quiet: bool = False) -> None:
        """Latch every certificate's evidence; tell what has become another verdict.

        Args:
            quiet: what is found is old, and nobody is told (after a restart).
        """
        for plan, pair in self._judged():
            for key in self.keys(pair):
                self._look_at(plan, pair, key, quiet=quiet)

    def _judged(self) -> Iterator[tuple[ModelPlan, Pair]]:
        for plan in self._plans.values():
            for pair in plan.pairs:
                if pair.purpose == "certificate" and not pair.blocked:
                    yield plan, pair

    def _look_at(self, plan: ModelPlan, pair: Pair, key: EvidenceKey, *, quiet: bool) -> None:
        limit, alpha = _terms(plan)
        known = self._known.setdefault((key, limit, alpha), _Known())
        cells = self._evidence.cells(key)
        n = int(cells.get("n", 0))
        if n == known.n:
            return
        known.n = n
        threshold = -math.log(alpha)
        now = log_e(cells.get("k", 0.0), n, limit)
        over = log_e_over(cells.get("k", 0.0), n, limit)
        latched = certificate_key(key, limit, alpha, over=True)
        self._evidence.note_certificate(latched, over, certified=over >= threshold)
        known.log_e_over = max(over, self._best(latched))
        name = certificate_key(key, limit, alpha)
        best = max(now, self._best(name))
        self._evidence.note_certificate(name, now, certified=best >= threshold)
        before, known.verdict = known.verdict, _verdict(cells, best, known.log_e_over, threshold)
        began = before is None and known.verdict is Verdict.INCONCLUSIVE
        if before is not known.verdict and not began and not quiet:
            self._tell(plan, pair, key, known.verdict)

    def _best(self, name: CertificateKey) -> float:
        """The best evidence that was ever seen, over all lives."""
        row = self._evidence.certificate(name)
        return row.best_log_e if row is not None else -math.inf

    def _tell(self, plan: ModelPlan, pair: Pair, key: EvidenceKey, verdict: Verdict) -> None:
        view = self.certificate(plan, pair, key)
        of = f", output {key.output}" if key.output else ""
        text = f"{pair.candidate} beside {pair.baseline}{of}: {self.sentence(plan, pair, key)}"
        self._events.append(
            model=pair.model, candidate=pair.candidate, baseline=pair.baseline, output=key.output,
            verdict=verdict, text=text, certificate=view,
        )  # fmt: skip

    def sentence(self, plan: ModelPlan, pair: Pair, key: EvidenceKey) -> str:
        """What is known of one output, for people."""
        cells = self._evidence.cells(key)
        if cells.get("structural"):
            problem = self._evidence.remarks(replace(key, metric="")).problem
            problem = problem or "their structures differ"
            counted = f"{cells['structural']:g} of {cells['n']:g} answers"
            return f"{counted} cannot be compared: {problem}"
        limit, alpha = _terms(plan)
        best = self._best(certificate_key(key, limit, alpha))
        over = self._best(certificate_key(key, limit, alpha, over=True))
        n = int(cells.get("n", 0))
        return certify_live(cells.get("k", 0.0), n, limit, alpha, best, over).sentence

    def certificate(self, plan: ModelPlan, pair: Pair, key: EvidenceKey) -> CertificateView:
        """A certificate as it stands now."""
        limit, alpha = _terms(plan)
        known = self._known.setdefault((key, limit, alpha), _Known())
        cells = self._evidence.cells(key)
        n, k = int(cells.get("n", 0)), cells.get("k", 0.0)
        row = self._evidence.certificate(certificate_key(key, limit, alpha))
        best = row.best_log_e if row is not None else -math.inf
        certified_ns = row.certified_ns if row is not None else None
        if known.view is not None and (known.view.n, known.view.k) == (n, k):
            # Inverting for the bounds takes ten milliseconds: only when something was counted.
            return replace(
                known.view, best_log_e=max(best, known.view.best_log_e),
                certified_wall_ns=certified_ns,
            )  # fmt: skip
        over = self._best(certificate_key(key, limit, alpha, over=True))
        found = certify_live(k, n, limit, alpha, best, over)
        verdict = _verdict(cells, found.log_e, found.log_e_over, -math.log(alpha))
        now = log_e(k, n, limit)
        known.view = CertificateView(
            model=pair.model, candidate=pair.candidate, baseline=pair.baseline, output=key.output,
            policy=key.policy, retention_class=plan.config.validation.retention_class, limit=limit,
            alpha=alpha, method=found.method, n=n, k=k, bound=found.bound, verdict=verdict,
            log_e=now, best_log_e=max(best, now), certified_wall_ns=certified_ns,
            requests_to_go=_to_go(k, n, limit, alpha) if verdict is Verdict.INCONCLUSIVE else None,
        )  # fmt: skip
        return known.view

    def certificates(self, model: str | None) -> list[CertificateView]:
        """All that there is evidence for."""
        return [
            self.certificate(plan, pair, key)
            for plan, pair in self._judged()
            if model is None or pair.model == model
            for key in self.keys(pair)
        ]


def _terms(plan: ModelPlan) -> tuple[float, float]:
    validation = plan.config.validation
    return RETENTION_LIMITS[validation.retention_class], validation.alpha


def certificate_key(
    key: EvidenceKey, limit: float, alpha: float, *, over: bool = False
) -> CertificateKey:
    """What a certificate is latched by: the best evidence is evidence for one rate only.

    With ``over``: the evidence that the rate is over the limit, which is latched as well.
    """
    policy = f"{key.policy}{'>' if over else '<'}{limit:g}@{alpha:g}"
    return key.model, key.candidate, key.baseline, key.output, policy


def _verdict(cells: Cells, best: float, over: float, threshold: float) -> Verdict:
    if not cells.get("n") or cells.get("structural"):
        return Verdict.INVALID
    if over >= threshold:
        return Verdict.FAIL
    return Verdict.PASS if best >= threshold else Verdict.INCONCLUSIVE


def _to_go(k: float, n: int, limit: float, alpha: float) -> int | None:
    """How many more requests certify if none of them disagrees; ``None``: too many to tell."""
    low, high = 0, _TO_GO_MAX
    threshold = -math.log(alpha)
    while high - low > max(1, low // 1000):
        # Thirty points at once: one vectorized call instead of five.
        more = np.unique(np.linspace(low, high, 32).astype(np.int64))[1:-1]
        if more.size == 0:
            break
        enough = evidence_under(k, n + more, limit) >= threshold
        at = int(np.argmax(enough)) if enough.any() else len(more)
        low, high = (
            int(more[at - 1]) if at > 0 else low,
            int(more[at]) if at < len(more) else high,
        )
    return None if high >= _TO_GO_MAX else high
