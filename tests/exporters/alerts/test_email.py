"""Mail on a real SMTP server: what arrives, with and without TLS, and what is refused."""

from __future__ import annotations

import email
import email.policy
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

from exporters.alerts.alert import ChannelError, DeliveryError
from exporters.alerts.base import Common
from exporters.alerts.email import EmailChannel, make
from tests.clients import certificates
from tests.support.alert_receiver import NOON_NS, alert, resolved
from tests.support.ports import free_port

SECRET = "sesame-open-sesame"


class Box:
    """A mail box; it refuses whom it is told to."""

    def __init__(self, refused: dict[str, str] | None = None, data: str = "250 taken") -> None:
        self.mails: list[email.message.EmailMessage] = []
        self.recipients: list[list[str]] = []
        self.secured: list[bool] = []
        self._refused = refused or {}
        self._data = data

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address in self._refused:
            return self._refused[address]
        envelope.rcpt_tos.append(address)
        return "250 ok"

    async def handle_DATA(self, server, session, envelope):
        parsed = email.message_from_bytes(envelope.content, policy=email.policy.default)
        self.mails.append(parsed)
        self.recipients.append(envelope.rcpt_tos)
        self.secured.append(session.ssl is not None)
        return self._data


@contextmanager
def serving(box: Box, **options) -> Iterator[int]:
    port = free_port()
    controller = Controller(box, hostname="127.0.0.1", port=port, ready_timeout=60, **options)
    controller.start()
    try:
        yield port
    finally:
        controller.stop()


def channel(port: int, *, timeout_s: float = 20, **changes) -> EmailChannel:
    settings = {
        "host": "127.0.0.1", "port": port, "security": "none", "user": None, "password": None,
        "sender": "Sidecar <sidecar@example.org>",
        "to": ("ops@example.org", "Ärztin <b@example.org>"), **changes,
    }  # fmt: skip
    return make(Common("mail", timeout_s=timeout_s), **settings)


def test_what_arrives():
    box = Box()
    with serving(box) as port:
        mine = channel(port)
        for one in (alert(), alert(), resolved()):
            mine.send(one, NOON_NS)
    first, again, over = box.mails
    assert box.recipients[0] == ["ops@example.org", "b@example.org"]
    assert first["subject"] == "[FIRING] critical: digits 3 is worse than 2"
    assert first["from"] == "Sidecar <sidecar@example.org>"
    assert first["date"].datetime.timestamp() == NOON_NS / 1e9
    assert first["auto-submitted"] == "auto-generated"
    assert again["message-id"] == first["message-id"], "mail programs show it once"
    assert over["message-id"] != first["message-id"]
    assert over["in-reply-to"] == over["references"] == first["message-id"], "one thread"
    plain = first.get_body(("plain",)).get_content().replace("\r\n", "\n")
    assert "In 812 pairs, 41 errors of version 3 alone.\nVersion 2 answers again." in plain
    assert "d-17" in plain
    assert "runbook: https://wiki.example/r" in plain
    page = first.get_body(("html",)).get_content()
    assert "<a href='https://grafana.example/d/1'>dashboard</a>" in page
    assert "<th align='left'>log_e</th><td>7.25</td>" in page


def test_what_others_wrote_is_neither_a_header_nor_html():
    box = Box()
    odd = alert(
        summary="a\r\nBcc: all@example.org", labels={"model": "<script>x</script>"},
        links={"x": "https://x/'onclick='y"}, id="1\n2",
    )  # fmt: skip
    with serving(box) as port:
        channel(port).send(odd, NOON_NS)
    [mail] = box.mails
    assert mail["bcc"] is None
    assert mail["subject"] == "[FIRING] critical: a Bcc: all@example.org"
    page = mail.get_body(("html",)).get_content()
    assert "<script>" not in page
    assert "'onclick" not in page


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return certificates.write(tmp_path_factory.mktemp("tls"))


def context(files: certificates.Files) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(files.server, files.server_key)
    return made


def who(server, session, envelope, mechanism, data) -> AuthResult:
    known = (data.login, data.password) == (b"me", SECRET.encode())
    return AuthResult(success=known, handled=False)


def test_starttls_and_a_password(files, monkeypatch):
    box = Box()
    options = {"tls_context": context(files), "authenticator": who, "auth_required": True}
    account = {"security": "starttls", "user": "me", "password": SECRET}
    with serving(box, **options) as port:
        with pytest.raises(DeliveryError, match="CERTIFICATE_VERIFY_FAILED"):
            channel(port, **account).send(alert(), NOON_NS)
        monkeypatch.setenv("SSL_CERT_FILE", str(files.ca))
        channel(port, **account).send(alert(), NOON_NS)
        with pytest.raises(DeliveryError, match="refused the user: 535") as caught:
            channel(port, **{**account, "password": "wrong"}).send(alert(), NOON_NS)
        assert not caught.value.is_final, "somebody mends it, and then it should arrive"
        assert "wrong" not in str(caught.value)
    assert box.secured == [True]


def test_tls_from_the_first_byte(files, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(files.ca))
    box = Box()
    with serving(box, ssl_context=context(files)) as port:
        channel(port, security="tls").send(alert(), NOON_NS)
    assert len(box.mails) == 1


def test_a_server_without_starttls_is_not_used():
    box = Box()
    with serving(box) as port, pytest.raises(DeliveryError, match="STARTTLS") as caught:
        channel(port, security="starttls", user="me", password=SECRET).send(alert(), NOON_NS)
    assert box.mails == []
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(("code", "final"), [("550", True), ("450", False)])
def test_recipients_that_are_refused(code, final):
    one, other = f"{code} no such box", f"{code} nor that one"
    box = Box({"ops@example.org": one})
    with serving(box) as port:
        channel(port).send(alert(), NOON_NS)
    assert box.recipients == [["b@example.org"]], "the others get it"
    box = Box({"ops@example.org": one, "b@example.org": other})
    with serving(box) as port, pytest.raises(DeliveryError, match="no such box") as caught:
        channel(port).send(alert(), NOON_NS)
    assert caught.value.is_final is final


@pytest.mark.parametrize(("said", "final"), [("554 spam", True), ("451 later", False)])
def test_a_mail_that_is_refused(said, final):
    with serving(Box(data=said)) as port, pytest.raises(DeliveryError, match=said[4:]) as caught:
        channel(port).send(alert(), NOON_NS)
    assert caught.value.is_final is final


def test_nobody_and_somebody_who_says_nothing():
    with pytest.raises(DeliveryError, match="cannot be reached") as caught:
        channel(free_port()).send(alert(), NOON_NS)
    assert not caught.value.maybe_taken
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mine = channel(silent.getsockname()[1], timeout_s=0.2)
        with pytest.raises(DeliveryError, match="timed out"):
            mine.send(alert(), NOON_NS)


@pytest.mark.parametrize(
    ("changes", "key"), [({"sender": "nobody at all"}, "sender"), ({"to": ("a@b", "x")}, "to")]
)
def test_an_address_that_is_none(changes, key):
    with pytest.raises(ChannelError, match="no e-mail address") as caught:
        channel(25, **changes)
    assert caught.value.key == key
