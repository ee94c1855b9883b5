"""One POST to a receiver: bounded in time and size, and silent about secrets."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from time import monotonic_ns
from typing import Any

from typing_extensions import override

from exporters.alerts.alert import ChannelError, DeliveryError
from exporters.alerts.base import BaseChannel, Common, clip, finite, one_line

#: Of an answer so much is read, and of that so much is shown.
_BODY_BYTES_MAX, _SHOWN = 16 * 2**10, 200
#: Answers that say that this alert will not be taken, ever. Those that blame the address or the key
#: are not among them: somebody mends that, and a receiver that is being replaced says 404 as well.
_FINAL = frozenset({400, 405, 406, 411, 413, 414, 415, 422, 431})


class Poster:
    """Posts JSON to one URL.

    Redirects are not followed: what is in the headers or the URL may be a secret, and not for
    wherever it points. Connections are not kept: alerts are rare, and one that was idle for an hour
    is dead more often than not. Proxies come from the environment, as httpx has it.

    Args:
        secrets: what no message may show.
        accepted: statuses that mean that it was taken; empty: every 2xx.

    Raises:
        ChannelError: the URL or a header cannot be one.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
        secrets: Iterable[str] = (),
        accepted: Iterable[int] = (),
    ) -> None:
        try:
            import httpx
        except ModuleNotFoundError:
            message = "alerts over HTTP need httpx: install model-sidecar[monitor]"
            raise ChannelError(message) from None
        # It logs every URL, also those that are secrets.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        logging.getLogger("httpcore").setLevel(logging.WARNING)
        self._httpx = httpx
        self._timeout_s = timeout_s
        self._accepted = frozenset(accepted)
        hidden = {*secrets, *(headers or {}).values()}
        self._secrets = sorted((one for one in hidden if one), key=len, reverse=True)
        try:
            self._url = httpx.URL(url)
            known = self._url.scheme in {"http", "https"} and bool(self._url.host)
        except (httpx.InvalidURL, UnicodeError):
            known = False
        if not known:
            message = "is no URL of the form http://host/path or https://…"
            raise ChannelError(message, "url")
        try:
            self._client = httpx.Client(
                headers={"user-agent": "model-sidecar", **(headers or {})},
                timeout=timeout_s,
                follow_redirects=False,
                limits=httpx.Limits(max_keepalive_connections=0),
            )
        except (ValueError, UnicodeError):
            message = "holds what no HTTP header can"
            raise ChannelError(message, "headers") from None

    def post(self, body: Any, now_ns: int, content_type: str = "application/json") -> None:
        """Send ``body`` as JSON; return once it was taken.

        Raises:
            DeliveryError: it was not.
        """
        content = json.dumps(finite(body), separators=(",", ":")).encode()
        httpx = self._httpx
        deadline_ns = monotonic_ns() + int(self._timeout_s * 1e9)
        headers = {"content-type": content_type}
        try:
            with self._client.stream(
                "POST", self._url, content=content, headers=headers
            ) as response:
                text = self._read(response, deadline_ns)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            message = f"{self._host} cannot be reached: {self._words(error)}"
            raise DeliveryError(message) from None
        except httpx.TimeoutException:
            message = f"{self._host} has not answered within {self._timeout_s:g} s"
            raise DeliveryError(message, maybe_taken=True) from None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            message = f"{self._host} broke off: {self._words(error)}"
            raise DeliveryError(message, maybe_taken=True) from None
        status = response.status_code
        if status in self._accepted or (not self._accepted and response.is_success):
            return
        raise self._refusal(status, text, _seconds(response.headers.get("retry-after"), now_ns))

    @staticmethod
    def _read(response: Any, deadline_ns: int) -> str:
        """The beginning of the answer; an answer that drips does not hold us up."""
        body = b""
        for chunk in response.iter_raw():
            body += chunk
            if len(body) >= _BODY_BYTES_MAX or monotonic_ns() >= deadline_ns:
                break
        return body[:_BODY_BYTES_MAX].decode("utf-8", "replace")

    def _refusal(self, status: int, text: str, retry_after_s: float | None) -> DeliveryError:
        phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else ""
        message = f"{self._host} answered {status} {phrase}".rstrip()
        if 300 <= status < 400:
            message += ", which is not followed: configure the address that it leads to"
        elif shown := self._hide(one_line(text)):
            message += f": {clip(shown, _SHOWN)}"
        return DeliveryError(
            message,
            retry_after_s=retry_after_s,
            is_final=status in _FINAL,
            maybe_taken=status >= 500 and status != HTTPStatus.SERVICE_UNAVAILABLE,
        )

    @property
    def _host(self) -> str:
        port = f":{self._url.port}" if self._url.port else ""
        return f"{self._url.host}{port}"

    def _words(self, error: Exception) -> str:
        return clip(self._hide(one_line(str(error))) or type(error).__name__, _SHOWN)

    def _hide(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def close(self) -> None:
        """Close what is open."""
        self._client.close()


class HttpChannel(BaseChannel):
    """A channel that posts."""

    def __init__(self, common: Common, poster: Poster) -> None:
        super().__init__(common)
        self._poster = poster

    @override
    def close(self) -> None:
        """Close what is open."""
        self._poster.close()


def _seconds(retry_after: str | None, now_ns: int) -> float | None:
    """The header as seconds from now; ``None``: there is none that can be read."""
    if retry_after is None:
        return None
    if retry_after.strip().isascii() and retry_after.strip().isdigit():
        return float(retry_after[:12])
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - now_ns / 1e9)
    except (ValueError, TypeError):
        return None
