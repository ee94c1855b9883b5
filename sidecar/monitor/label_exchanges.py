"""Decoding exchanges for labels alone: of models that nobody is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.errors import RequestError
from sidecar.monitor.decode import NotComparableError, decode_outputs, parse
from sidecar.monitor.exchange import Exchange
from sidecar.monitor.plan import ServedPlan
from sidecar.monitor.self_described import signature_of

if TYPE_CHECKING:
    from sidecar.monitor.labels import LateLabels


def wait_for_labels(labels: LateLabels, exchange: Exchange, plan: ServedPlan | None) -> None:
    """Let the served answer wait; one that failed or cannot be read does not.

    ``plan``: by its signature, where there is a copy; else by what the exchange says of itself.
    """
    if exchange.response is None or exchange.outcome != "OK":
        return
    try:
        parsed = parse(exchange)
        signature = signature_of(exchange, parsed) if plan is None else plan.signature
        outputs = decode_outputs(exchange, signature, parsed=parsed)
    except (NotComparableError, RequestError):
        return
    if plan is not None:
        batched = plan.signature.max_batch_size > 0
    else:
        firsts = {tensor.shape[0] if tensor.shape else 0 for tensor in parsed.inputs}
        firsts |= {len(array) if array.ndim else 0 for array in outputs.values()}
        batched = len(firsts) == 1 and firsts != {0}
    labels.see_served(exchange, outputs, batched=batched)
