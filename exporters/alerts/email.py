"""E-mail by SMTP, as plain text and as simple HTML.

What is sent twice has the same Message-ID, and that it is resolved answers the mail that said it:
mail programs show one of each, and both together.
"""

from __future__ import annotations

import smtplib
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from html import escape

from exporters.alerts.alert import Alert, ChannelError, DeliveryError, State
from exporters.alerts.base import (
    BaseChannel,
    Common,
    clip,
    event_id,
    facts,
    one_line,
    title,
)  # fmt: skip

_SUBJECT_MAX, _SHOWN = 200, 200
_DOMAIN = "model-sidecar.invalid"  # RFC 2606: nobody's


class EmailChannel(BaseChannel):
    """One mail an alert and state, to all at once; a connection for each."""

    kind = "email"

    def __init__(
        self,
        common: Common,
        host: str,
        port: int,
        security: str,
        user: str | None,
        password: str | None,
        sender: str,
        to: Sequence[str],
    ) -> None:
        super().__init__(common)
        self._host, self._port, self._security = host, port, security
        self._user, self._password = user, password
        self._sender, self._to = sender, tuple(to)
        self._context = ssl.create_default_context() if security != "none" else None

    def send(self, alert: Alert, now_ns: int) -> None:
        """Send the mail; it was taken when the server has said so."""
        mail = message(alert, self._sender, self._to, now_ns)
        given = False
        try:
            server = self._connect()
            try:
                given = True
                server.send_message(mail)
            finally:
                with suppress(OSError, smtplib.SMTPException):
                    server.quit()
        except smtplib.SMTPRecipientsRefused as error:
            code = max((code for code, _ in error.recipients.values()), default=0)
            said = "; ".join(sorted({_text(text) for _, text in error.recipients.values()}))
            raise self._failed(f"refused every recipient: {said}", final=code >= 500) from None
        except smtplib.SMTPAuthenticationError as error:
            raise self._failed(f"refused the user: {error.smtp_code}") from None
        except smtplib.SMTPResponseException as error:
            said = f"answered {error.smtp_code}: {_text(error.smtp_error)}"
            raise self._failed(said, final=given and error.smtp_code >= 500) from None
        except smtplib.SMTPNotSupportedError as error:
            raise self._failed(_text(str(error))) from None
        except (OSError, smtplib.SMTPException) as error:  # also time-outs, and TLS
            said = one_line(str(error)) or type(error).__name__
            raise self._failed(f"cannot be reached: {said}", maybe=given) from None

    def _connect(self) -> smtplib.SMTP:
        # A name of our own: smtplib would ask the DNS for one, which may take half a minute.
        own = socket.gethostname() or "localhost"
        server: smtplib.SMTP
        if self._security == "tls":
            server = smtplib.SMTP_SSL(
                self._host, self._port, own, timeout=self.timeout_s, context=self._context
            )
        else:
            server = smtplib.SMTP(self._host, self._port, own, timeout=self.timeout_s)
        try:
            if self._security == "starttls":
                server.starttls(context=self._context)  # raises where the server has none
            if self._user is not None:
                server.login(self._user, self._password or "")
        except BaseException:
            server.close()
            raise
        return server

    def _failed(self, what: str, *, final: bool = False, maybe: bool = False) -> DeliveryError:
        if self._password:
            what = what.replace(self._password, "***")
        text = f"{self._host}:{self._port} {clip(what, _SHOWN)}"
        return DeliveryError(text, is_final=final, maybe_taken=maybe)


def message(alert: Alert, sender: str, to: Sequence[str], now_ns: int) -> EmailMessage:
    """The mail."""
    mail = EmailMessage()
    mail["Subject"] = clip(title(alert), _SUBJECT_MAX)
    mail["From"] = sender
    mail["To"] = ", ".join(to)
    mail["Date"] = format_datetime(datetime.fromtimestamp(now_ns // 10**9, UTC))
    mail["Message-ID"] = f"<{event_id(alert)}@{_DOMAIN}>"
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no replies from people on holiday
    mail["X-Model-Sidecar-Alert"] = one_line(alert.id)
    if alert.state is State.RESOLVED:
        first = f"<{event_id(replace(alert, state=State.FIRING))}@{_DOMAIN}>"
        mail["In-Reply-To"] = mail["References"] = first
    known = list(facts(alert))
    width = max(len(name) for name, _ in known)
    links = [f"{name}: {url}" for name, url in alert.links.items()]
    table = "\n".join(f"{name:<{width}}  {value}" for name, value in known)
    parts = [alert.summary, alert.text, table, "\n".join(links)]
    mail.set_content("\n\n".join(part for part in parts if part) + "\n")
    mail.add_alternative(_html(alert, known), subtype="html")
    return mail


def _html(alert: Alert, known: Sequence[tuple[str, str]]) -> str:
    rows = "".join(
        f"<tr><th align='left'>{escape(name)}</th><td>{escape(value)}</td></tr>\n"
        for name, value in known
    )
    links = "".join(
        f"<p><a href='{escape(url, quote=True)}'>{escape(name)}</a></p>\n"
        for name, url in alert.links.items()
    )
    paragraphs = "".join(f"<p>{escape(part)}</p>\n" for part in alert.text.split("\n") if part)
    return (
        f"<!DOCTYPE html>\n<html><body>\n<h3>{escape(title(alert))}</h3>\n{paragraphs}"
        f"<table cellpadding='4'>\n{rows}</table>\n{links}</body></html>\n"
    )


def _text(said: bytes | str) -> str:
    return one_line(said.decode("utf-8", "replace") if isinstance(said, bytes) else said)


def make(
    common: Common,
    *,
    host: str,
    port: int,
    security: str,
    user: str | None,
    password: str | None,
    sender: str,
    to: Sequence[str],
) -> EmailChannel:
    """The channel of a mail server.

    Raises:
        ChannelError: an address cannot be one.
    """
    for key, values in (("sender", (sender,)), ("to", tuple(to))):
        for value in values:
            probe = EmailMessage()
            try:
                probe["To"] = value
                known = any(one.domain for one in probe["To"].addresses)
            except (ValueError, IndexError):
                known = False
            if not known:
                raise ChannelError(f"{value!r} is no e-mail address", key)
    return EmailChannel(common, host, port, security, user, password, sender, to)
