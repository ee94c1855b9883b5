"""Decoding exchanges for drift alone: of models that nobody is compared with."""

from __future__ import annotations

from sidecar.errors import RequestError
from sidecar.gateway.messages import InferRequest
from sidecar.monitor.decode import NotComparableError, decode_inputs, decode_outputs, parse
from sidecar.monitor.drift_watch import DriftWatch
from sidecar.monitor.exchange import Exchange
from sidecar.monitor.plan import ServedPlan
from sidecar.monitor.self_described import signature_of
from sidecar.runtimes.base import Array, Signature
from sidecar.validation.layout import layout_of


def has_rows(signature: Signature) -> bool:
    """Whether the first axis of its tensors counts rows; as ``sidecar reference`` sees it."""
    return layout_of(signature).batched


def look(drift: DriftWatch, exchange: Exchange, plan: ServedPlan | None) -> None:
    """Decode an exchange and hand it over; one that cannot be read is counted.

    ``plan``: by its signature, where there is a copy; else by what the exchange says of itself.
    """
    try:
        parsed = parse(exchange)
        signature = signature_of(exchange, parsed) if plan is None else plan.signature
        inputs = decode_inputs(exchange, signature, parsed=parsed)
        outputs = _outputs(exchange, signature, parsed)
    except NotComparableError as error:
        drift.skip(exchange.model, error.reason)
    except RequestError:
        drift.skip(exchange.model, "bad_request")
    else:
        batched = None if plan is None else has_rows(signature)
        drift.take(exchange.model, inputs, outputs, batched)


def _outputs(
    exchange: Exchange, signature: Signature, parsed: InferRequest
) -> dict[str, Array] | None:
    """``None``: there are some, and they cannot be read."""
    try:
        return decode_outputs(exchange, signature, parsed=parsed)
    except NotComparableError:
        return None
