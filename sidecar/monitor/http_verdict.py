"""The verdict over HTTP, for delivery tools that ask before they go on.

``GET /v1/rollback/MODEL`` is made for Argo Rollouts' web metric (``docs/argo-rollouts.md``): a
small document whose ``verdict`` is ``pass``, ``fail`` or ``inconclusive``. ``POST
/v1/flagger/HOOK`` is for Flagger's webhooks (``docs/flagger.md``), which hear only the status.
What is missing, old, or not enough is inconclusive, and never a pass.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sidecar.clock import Clock
from sidecar.errors import InvalidRequestError, NotFoundError, RequestError
from sidecar.monitor.view_rollback import HarmView, RollbackView
from sidecar.protocol.status import client_message, status_of

Views = Callable[[str], Sequence[RollbackView]]

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"
#: What decides where several pairs are asked for at once: the first of them that is there.
_WORST = (FAIL, INCONCLUSIVE, PASS)

#: Flagger's hooks that gate something. Of `rollback` a success means: roll back.
HOOKS = ("rollout", "confirm-traffic-increase", "confirm-promotion", "rollback")
_HOOK_BYTES_MAX = 64 * 1024

#: A verdict is as old as its check. After so many intervals without one, none is given.
_INTERVALS = 3
_LEAST_AGE_S = 60.0


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: a model, maybe one pair of its versions (a version, or ``version/name``).

    Attributes:
        min_pairs: fewer are inconclusive, whatever the monitor's own limit is.
        strict: what is only suspected counts as a failure.
    """

    model: str
    new: str = ""
    previous: str = ""
    min_pairs: int = 0
    strict: bool = False


class Verdicts:
    """Answers questions.

    Args:
        views: a model's pairs of versions, as they stand.
        intervals: model → seconds between two checks; what is not in it is no model.
    """

    def __init__(self, views: Views, intervals: Mapping[str, float], clock: Clock) -> None:
        self._views = views
        self._intervals = intervals
        self._clock = clock

    def answer(self, question: Question) -> dict[str, Any]:
        """The document; its fields stay as they are in later releases, others may come.

        Raises:
            NotFoundError: no such model; names those there are.
        """
        interval_s = self._intervals.get(question.model)
        if interval_s is None:
            known = ", ".join(sorted(self._intervals)) or "none"
            message = f"no model {question.model!r}; there is {known}"
            raise NotFoundError(message)
        found = [
            (view, *self._judge(view, question, interval_s))
            for view in self._views(question.model)
            if _is(view.new, question.new) and _is(view.previous, question.previous)
        ]
        if not found:
            text = "no such pair of versions is compared yet"
            return _document(question, None, INCONCLUSIVE, text)
        view, verdict, text = min(found, key=lambda one: _WORST.index(one[1]))
        return _document(question, view, verdict, text)

    def _judge(self, view: RollbackView, asked: Question, interval_s: float) -> tuple[str, str]:
        decided = view.decision is not None and bool(view.decision.metric)
        if view.state in {"regressed", "rolled_back"} or (view.state == "blocked" and decided):
            return FAIL, view.text
        if view.checked_wall_ns is None:
            return INCONCLUSIVE, f"it has not been checked yet: {view.text}"
        age_s = (self._clock.now_ns() - view.checked_wall_ns) / 1e9
        # A check that lies in the future (the clock was set back) is as little to be relied on.
        if abs(age_s) > max(_LEAST_AGE_S, _INTERVALS * interval_s):
            return INCONCLUSIVE, f"the latest check is {age_s:.0f} s old: {view.text}"
        if view.stale:
            return INCONCLUSIVE, f"nothing new is compared: {view.text}"
        if view.state == "suspect":
            return (FAIL if asked.strict else INCONCLUSIVE), view.text
        if view.state != "ok":
            return INCONCLUSIVE, view.text
        pairs = _pairs(view)
        if pairs < asked.min_pairs:
            return INCONCLUSIVE, f"{pairs} of {asked.min_pairs} pairs that are asked for"
        return PASS, view.text


def _is(key: str, asked: str) -> bool:
    """Whether ``version/name`` is what was asked for: it, or its version; nothing: any."""
    return asked in {"", key, key.partition("/")[0]}


def _pairs(view: RollbackView) -> int:
    """Of the check that has seen most; labels come late, or never."""
    return max((harm.pairs for harm in view.metrics), default=0)


def _document(
    asked: Question, view: RollbackView | None, verdict: str, text: str
) -> dict[str, Any]:
    harms = [] if view is None else view.metrics
    return {
        "model": asked.model,
        "new": asked.new if view is None else view.new,
        "previous": asked.previous if view is None else view.previous,
        "verdict": verdict,
        "passed": verdict == PASS,
        "failed": verdict == FAIL,
        "state": "insufficient" if view is None else view.state,
        "text": text,
        "pairs": 0 if view is None else _pairs(view),
        "evidence": max((_ratio(harm.log_e, harm.threshold) for harm in harms), default=0.0),
        "stale": False if view is None else view.stale,
        "frozen": False if view is None else view.frozen,
        "decision": "" if view is None or view.decision is None else view.decision.id,
        "metrics": {harm.metric: _harm(harm) for harm in harms},
    }


def _harm(harm: HarmView) -> dict[str, Any]:
    return {
        "pairs": harm.pairs,
        "new_only": harm.new_only,
        "previous_only": harm.previous_only,
        "evidence": _ratio(harm.log_e, harm.threshold),
        "evidence_act": _ratio(harm.log_e_act, harm.threshold_act),
        "may_act": harm.may_act,
        "text": harm.text,
    }


def _ratio(log_e: float, threshold: float) -> float:
    """Evidence over what it is compared with: 1 is enough. Always a number of JSON."""
    if not math.isfinite(log_e) or not math.isfinite(threshold) or threshold <= 0:
        return 0.0 if log_e <= 0 else 1e9
    return round(max(0.0, log_e / threshold), 4)


# --- HTTP -----------------------------------------------------------------------------------------


def routes(views: Views, intervals: Mapping[str, float], clock: Clock) -> list[Route]:
    """The handlers: see ``Verdicts``. They change nothing, and need no token."""
    verdicts = Verdicts(views, intervals, clock)

    async def get(request: Request) -> Response:
        def answer() -> Response:
            query = dict(request.query_params)
            return JSONResponse(verdicts.answer(_question(request.path_params["model"], query)))

        return await _answered(answer)

    async def post(request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _HOOK_BYTES_MAX:
                return JSONResponse({"error": f"more than {_HOOK_BYTES_MAX} bytes"}, 413)
        return await _answered(lambda: _hook(verdicts, request.path_params["hook"], body))

    return [
        Route("/v1/rollback/{model}", get, methods=["GET"]),
        Route("/v1/flagger/{hook}", post, methods=["POST"]),
    ]


async def _answered(call: Callable[[], Response]) -> Response:
    # Views wait for locks and the store: not on the loop that everybody's requests share.
    try:
        return await run_in_threadpool(call)
    except RequestError as error:
        return JSONResponse({"error": client_message(error)}, status_of(error).http)


def _question(model: str, fields: Mapping[str, Any]) -> Question:
    """From a URL's query, or a hook's metadata: texts.

    Raises:
        InvalidRequestError: a field that is none, or not what it should be. A misspelt one must not
            widen what is asked.
    """
    known = {"new", "previous", "min_pairs", "suspect"}
    if unknown := fields.keys() - known:
        message = f"there is no field {min(unknown)!r}; there is {', '.join(sorted(known))}"
        raise InvalidRequestError(message)
    pairs = str(fields.get("min_pairs", "0"))
    if not (pairs.isascii() and pairs.isdigit() and len(pairs) < 10):
        message = f"min_pairs is {pairs[:40]!r}; it must be a whole number"
        raise InvalidRequestError(message)
    suspect = fields.get("suspect", INCONCLUSIVE)
    if suspect not in {INCONCLUSIVE, FAIL}:
        message = f"suspect is {str(suspect)[:40]!r}; it must be {FAIL} or {INCONCLUSIVE}"
        raise InvalidRequestError(message)
    new, previous = str(fields.get("new", "")), str(fields.get("previous", ""))
    return Question(model, new, previous, int(pairs), suspect == FAIL)


def _hook(verdicts: Verdicts, hook: str, body: bytes) -> Response:
    """Flagger hears the status (any 2xx is yes), and logs the body of a no."""
    if hook not in HOOKS:
        message = f"no hook {hook!r}; there is {', '.join(HOOKS)}"
        raise NotFoundError(message)
    fields = _metadata(body)
    model = fields.pop("model", None)
    if not isinstance(model, str) or not model:
        message = "the webhook's metadata needs `model`"
        raise InvalidRequestError(message)
    wait = fields.pop("inconclusive", "halt")
    if wait not in {"halt", "continue"}:
        message = f"inconclusive is {str(wait)[:40]!r}; it must be halt or continue"
        raise InvalidRequestError(message)
    document = verdicts.answer(_question(model, fields))
    verdict = document["verdict"]
    if hook == "rollback":
        yes = verdict == FAIL
    else:
        # A promotion is never let through on missing data, whatever is asked for.
        waits = hook == "confirm-promotion" or wait == "halt"
        yes = verdict == PASS or (verdict == INCONCLUSIVE and not waits)
    return JSONResponse(document, 200 if yes else 409)


def _metadata(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    fields = document.get("metadata") if isinstance(document, dict) else None
    if not isinstance(fields, dict):
        message = "the body must be Flagger's JSON: an object with `metadata`"
        raise InvalidRequestError(message)
    return dict(fields)
