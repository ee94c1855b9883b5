"""Ask a delivery system to roll back: a POST with JSON, which may come more than once.

The header `Idempotency-Key` is the decision's id and stays the same over retries, restarts and
leaders; the receiver acts on the first and answers the others alike. `X-Sidecar-Fence` (also in the
body) grows with every leader: of what carries a lower one than was seen, nothing needs to be done.
What its answers mean is in
``docs/actions.md``; the effect is not believed but looked for in the gateway's traffic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sidecar.clock import Clock
from sidecar.errors import RequestError
from sidecar.monitor.actions.base import DEPOSED, Outcome, Request, Result
from sidecar.monitor.actions.traffic import Traffic
from sidecar.monitor.actions.within import Within
from sidecar.monitor.routing import Routes

if TYPE_CHECKING:
    from sidecar.config_rollback import WebhookConfig

_AGAIN = {408, 425, 429, 500, 502, 503, 504}
#: Of an answer, shown to people.
_SHOWN = 200
_ANSWER_BYTES_MAX = 64 * 1024


class WebhookAction:
    """One address."""

    kind = "webhook"

    def __init__(self, config: WebhookConfig, routes: Routes, clock: Clock) -> None:
        self._config = config
        self._traffic = Traffic(routes, clock)
        self._within = Within(config.timeout_s)

    def check(self, request: Request) -> Result:
        """Nobody is asked before: the protocol has no question without consequences."""
        return Result(Outcome.DONE, "the webhook is asked when it is done, and answers then")

    def perform(self, request: Request) -> Result:
        """Ask. There is nothing to compare and swap: the receiver knows the key, and the fence."""
        if not request.leads():
            return DEPOSED
        result = self._post(request, "rollback")
        if result.outcome is Outcome.DONE:
            self._traffic.forget(request)
        return result

    def verify(self, request: Request) -> Result:
        """Do requests go to the previous version, as the gateway counts them?"""
        try:
            return self._traffic.moved(request)
        except RequestError as error:
            return Result(Outcome.BLOCKED, str(error))

    def undo(self, request: Request) -> Result:
        """Ask for the opposite; the key is another one."""
        return self._post(request, "undo")

    def _post(self, request: Request, wish: str) -> Result:
        import httpx

        key = request.decision_id if wish == "rollback" else f"{request.decision_id}-{wish}"
        headers = {name: value.get_secret_value() for name, value in self._config.headers.items()}
        headers |= {
            "idempotency-key": key, "x-sidecar-fence": str(request.fence),
            "user-agent": "model-sidecar",
        }  # fmt: skip
        body = {
            "action": wish, "decision_id": request.decision_id, "fence": request.fence,
            "model": request.model, "new": request.new, "previous": request.previous,
            "new_version": request.new_version, "previous_version": request.previous_version,
            "reason": request.reason,
        }  # fmt: skip
        try:
            code, text = self._within.run(lambda: self._ask(body, headers))
        except (httpx.TimeoutException, TimeoutError) as error:
            text = str(error) if isinstance(error, TimeoutError) else "no answer in time"
            again = "it is asked again with the same Idempotency-Key"
            return Result(Outcome.RETRY, f"the webhook: {text}; {again}")
        except httpx.HTTPError as error:
            # Its text, not the URL's, which may hold a secret.
            reason = str(error) or type(error).__name__
            return Result(Outcome.RETRY, f"the webhook cannot be asked: {reason}")
        return _meaning(code, text)

    def _ask(self, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, str]:
        """The answer's status, and its beginning, for people."""
        import httpx

        # Redirects are not followed: the headers may hold secrets that are not the other's.
        with (
            httpx.Client(timeout=self._config.timeout_s, follow_redirects=False) as client,
            client.stream("POST", self._config.url, json=body, headers=headers) as response,
        ):
            found = b""
            for part in response.iter_bytes():
                found += part
                if len(found) > _ANSWER_BYTES_MAX:
                    break
            text = " ".join(found.decode("utf-8", "replace").split())
            return response.status_code, text[:_SHOWN]


def _meaning(code: int, text: str) -> Result:
    said = f": {text}" if text else ""
    details: dict[str, Any] = {"status": str(code)}
    if 200 <= code < 300:
        return Result(Outcome.DONE, f"the webhook answers {code}{said}", details)
    if code == 409:
        what = f"the webhook answers 409, somebody changes the same thing just now{said}"
        return Result(Outcome.RETRY, what, details)
    if code == 410:
        what = f"the webhook answers 410, this decision is no longer wanted{said}"
        return Result(Outcome.BLOCKED, what, details)
    outcome = Outcome.RETRY if code in _AGAIN else Outcome.BLOCKED
    return Result(outcome, f"the webhook answers {code}{said}", details)
