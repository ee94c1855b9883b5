"""Late labels over HTTP: ``POST /v1/labels``, mounted by the monitor's HTTP listener.

    {"model": "digits", "labels": [{"request_id": "…", "value": 7},
                                   {"request_id": "…", "values": [3, 8]}]}

answers ``{"matched": 1, "early": 1, "repeated": 0, "refused": {}}``. A batch that cannot be read is
refused whole; of one that can, each label by itself.
"""

from __future__ import annotations

import json
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sidecar.errors import InvalidRequestError, RequestError
from sidecar.monitor.label_intake import Label, LabelSink
from sidecar.monitor.service import check_token
from sidecar.protocol.json_data import brief
from sidecar.protocol.status import client_message, status_of

#: Of one batch; about a hundred thousand labels.
BODY_BYTES_MAX = 8 * 2**20
LABELS_PATH = "/v1/labels"


def routes(sink: LabelSink, token: str | None) -> list[Route]:
    """The handlers.

    Args:
        token: what ``authorization: Bearer`` must carry; ``None``: whoever reaches the listener
            may.
    """

    async def post(request: Request) -> Response:
        try:
            if token is not None:
                check_token(request.headers.get("authorization"), token)
            body = await _body(request)
            if body is None:
                text = f"the body is over {BODY_BYTES_MAX} bytes: send several batches"
                return JSONResponse({"error": text}, 413)
            model, labels = parse(body)
            sink.check(model)
            counts = await run_in_threadpool(sink.put, labels)
        except RequestError as error:
            return JSONResponse({"error": client_message(error)}, status_of(error).http)
        return JSONResponse({
            "matched": counts.matched, "early": counts.early, "repeated": counts.repeated,
            "refused": counts.refused or {},
        })  # fmt: skip

    return [Route(LABELS_PATH, post, methods=["POST"])]


async def _body(request: Request) -> bytes | None:
    """The body; ``None``: it is too large, whatever its header says."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > BODY_BYTES_MAX:
            return None
        parts.append(part)
    return b"".join(parts)


def parse(body: bytes) -> tuple[str, list[Label]]:
    """A body as its model and labels.

    Raises:
        InvalidRequestError: says what is wrong, and where.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidRequestError('the body is no object: {"model": …, "labels": […]}')
    if unknown := document.keys() - {"model", "labels"}:
        raise InvalidRequestError(f"there is no field {brief(min(unknown))}; model and labels are")
    model, items = document.get("model"), document.get("labels")
    if not isinstance(model, str) or not model:
        raise InvalidRequestError(f"model is {brief(model)}; it must be a model's name")
    if not isinstance(items, list):
        raise InvalidRequestError(f"labels is {brief(items)}; it must be a list")
    return model, [_label(model, item, f"labels[{at}]") for at, item in enumerate(items)]


def _label(model: str, item: Any, where: str) -> Label:
    if not isinstance(item, dict):
        raise InvalidRequestError(f"{where} is {brief(item)}; it must be an object")
    if unknown := item.keys() - {"request_id", "value", "values"}:
        raise InvalidRequestError(f"{where} has a field {brief(min(unknown))}, which is none")
    request_id = item.get("request_id")
    if not isinstance(request_id, str):
        raise InvalidRequestError(f"{where}.request_id is {brief(request_id)}; it must be a text")
    if ("value" in item) is ("values" in item):
        raise InvalidRequestError(f"{where} needs value, or values (one for each row)")
    field = "value" if "value" in item else "values"
    values = [item["value"]] if field == "value" else item["values"]
    if not isinstance(values, list):
        raise InvalidRequestError(f"{where}.values is {brief(values)}; it must be a list")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            wanted = "a class's index or name, or a score"
            found = f"{where}.{field} holds {brief(value)}"
            raise InvalidRequestError(f"{found}; it must be {wanted}")
    return Label(model, request_id, tuple(values))
