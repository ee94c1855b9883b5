"""Spans of a micro-batch: of each sampled exchange whose own trace is sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from exporters.telemetry.model import Span
from sidecar.clock import Clock
from sidecar.config import SidecarConfig
from sidecar.monitor.exchanges import Item
from sidecar.monitor.mirror_protocol import Answer
from sidecar.monitor.record import PairBatch
from sidecar.monitor.spans import linked, mirror_compare, mirror_execute

#: The first that a variant has says why it was executed.
_ROLES = ("reference", "mirror", "previous", "candidate", "serving", "fallback")


def roles_of(config: SidecarConfig) -> dict[str, str]:
    """Key (``model:version/name``) → the role that a variant is executed in by the monitor."""
    return {
        f"{model.name}:{variant.key}": next(role for role in _ROLES if role in variant.roles)
        for model in config.models
        for variant in model.variants
    }


class MirrorSpans:
    """Makes spans of what the worker has done, as the worker's ``watch``.

    Args:
        tell: takes a span, without waiting.
        roles: as ``roles_of`` gives them.
        clock: both of its times, to place what was measured by the monotonic one.
    """

    def __init__(
        self, tell: Callable[[Span], object], roles: Mapping[str, str], clock: Clock
    ) -> None:
        self._tell, self._roles, self._clock = tell, roles, clock

    def __call__(
        self,
        items: Sequence[Item],
        compared: Sequence[PairBatch],
        compare_start_ns: int,
        compare_end_ns: int,
    ) -> None:
        """Tell of a micro-batch.

        Args:
            items: with their answers.
            compared: what came of comparing them.
            compare_start_ns, compare_end_ns: monotonic, when they were compared.
        """
        wall_ns = self._clock.now_ns() - self._clock.monotonic_ns()
        executions: dict[int, dict[str, Span]] = {}
        for item in items:
            if (of := linked(item.exchange.traceparent)) is None:
                continue
            found = executions[id(item)] = {}
            for variant, role, answer in _answers(item, self._roles):
                if not answer.started_ns:
                    continue
                start_ns = wall_ns + answer.started_ns
                span = mirror_execute(
                    of, variant=variant, role=role, failure=answer.failure, start_ns=start_ns,
                    end_ns=start_ns + answer.compute_ns, rows=item.rows,
                )  # fmt: skip
                found.setdefault(variant, span)
                self._tell(span)
        if not executions:
            return
        for batch in compared:
            self._compared(batch, executions, wall_ns + compare_start_ns, wall_ns + compare_end_ns)

    def _compared(
        self,
        batch: PairBatch,
        executions: Mapping[int, Mapping[str, Span]],
        start_ns: int,
        end_ns: int,
    ) -> None:
        pair, result = batch.pair, batch.result
        if result is None:
            return
        for position, item in enumerate(batch.items):
            found = executions.get(id(item), {})
            # What was served was not executed here: then it stands with what it was compared with.
            parent = found.get(pair.candidate) or found.get(pair.baseline)
            if parent is None:
                continue
            broken = any(bool(output.structural[position]) for output in result.outputs.values())
            bad_rows = int(result.bad_rows[position])
            span = mirror_compare(
                parent, candidate=pair.candidate, baseline=pair.baseline,
                verdict="INVALID" if broken else "FAIL" if bad_rows else "PASS",
                rows=int(result.rows[position]), bad_rows=bad_rows, start_ns=start_ns,
                end_ns=end_ns,
            )  # fmt: skip
            self._tell(span)


def _answers(item: Item, roles: Mapping[str, str]) -> Iterator[tuple[str, str, Answer]]:
    for variant, answer in item.answers.items():
        yield variant, roles.get(variant, "mirror"), answer
    if item.noise is not None and item.again is not None:
        yield item.noise.baseline, "noise", item.again
