"""One POST to a receiver: bounded in time and size, and silent about secrets."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Self

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
        headers = {"content-type": content_type}
        deadline = _Deadline(self._timeout_s)
        try:
            with (
                deadline,
                self._client.stream(
                    "POST", self._url, content=content, headers=headers,
                    extensions={"trace": deadline.trace},
                ) as response,
            ):  # fmt: skip
                text = self._read(response)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            message = f"{self._host} cannot be reached: {self._words(error)}"
            raise DeliveryError(message) from None
        except httpx.TimeoutException:
            message = f"{self._host} has not answered within {self._timeout_s:g} s"
            raise DeliveryError(message, maybe_taken=True) from None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            message = f"{self._host} broke off: {self._words(error)}"
            if deadline.is_over:
                message = f"{self._host} has not answered within {self._timeout_s:g} s"
            raise DeliveryError(message, maybe_taken=True) from None
        status = response.status_code
        if status in self._accepted or (not self._accepted and response.is_success):
            return
        raise self._refusal(status, text, _seconds(response.headers.get("retry-after"), now_ns))

    def _read(self, response: Any) -> str:
        """The beginning of the answer, for people: its status is what counts."""
        body = b""
        with suppress(self._httpx.HTTPError):
            for chunk in response.iter_raw():
                body += chunk
                if len(body) >= _BODY_BYTES_MAX:
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


class _Deadline:
    """Ends a connection that is not done in time; a context manager.

    httpx bounds each read by itself, so that a receiver that drips would never be over.
    """

    def __init__(self, seconds: float) -> None:
        self.is_over = False
        self._stream: Any = None
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """What httpcore tells of each step."""
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            self._stream = info["return_value"]

    def _end(self) -> None:
        self.is_over = True
        if self._stream is not None:
            with suppress(OSError):
                self._stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


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
