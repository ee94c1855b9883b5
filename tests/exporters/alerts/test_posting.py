"""Receivers that misbehave, and what is said of them: never a secret."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from datetime import UTC, datetime
from email.utils import format_datetime
from time import monotonic

import pytest

from exporters.alerts import apprise, cloudevents, log, pagerduty, slack
from exporters.alerts.alert import ChannelError, DeliveryError, Severity
from exporters.alerts.base import Common
from exporters.alerts.http import Poster
from tests.clients import certificates
from tests.support.alert_receiver import NOON_NS, AlertReceiver, Reply, alert, resolved
from tests.support.ports import free_port

COMMON = Common("ops", timeout_s=10)
SECRET = "sesame-open-sesame"


def failing(reply: Reply, *, timeout_s: float = 10.0, **settings) -> DeliveryError:
    with AlertReceiver(lambda _: reply) as receiver:
        poster = Poster(receiver.url + "/hook", timeout_s=timeout_s, **settings)
        with pytest.raises(DeliveryError) as caught:
            poster.post({}, NOON_NS)
        poster.close()
        assert len(receiver.got) == 1, "one attempt is one request"
    return caught.value


@pytest.mark.parametrize(
    ("status", "final", "maybe"),
    [
        (400, True, False), (422, True, False), (401, False, False), (404, False, False),
        (429, False, False), (500, False, True), (502, False, True), (503, False, False),
    ],
)  # fmt: skip
def test_an_answer_that_is_no_success(status, final, maybe):
    error = failing(Reply(status, body=b"because\nof that"))
    assert f"answered {status}" in str(error)
    assert str(error).endswith("because of that")
    assert (error.is_final, error.maybe_taken) == (final, maybe)


def test_the_pause_that_is_asked_for():
    assert failing(Reply(429, {"retry-after": "7"})).retry_after_s == 7
    assert failing(Reply(429, {"retry-after": "soon"})).retry_after_s is None
    assert failing(Reply(429)).retry_after_s is None
    then = format_datetime(datetime.fromtimestamp(NOON_NS / 1e9 + 90, UTC), usegmt=True)
    assert failing(Reply(503, {"retry-after": then})).retry_after_s == pytest.approx(90)
    past = format_datetime(datetime.fromtimestamp(NOON_NS / 1e9 - 90, UTC), usegmt=True)
    assert failing(Reply(503, {"retry-after": past})).retry_after_s == 0


def test_a_redirect_is_not_followed():
    with AlertReceiver() as elsewhere:
        error = failing(Reply(307, {"location": elsewhere.url}), headers={"x-key": SECRET})
        assert elsewhere.got == []
    assert "not followed: configure the address" in str(error)
    assert not error.is_final


def test_nobody_listens():
    port = free_port()
    poster = Poster(f"http://127.0.0.1:{port}", timeout_s=10)
    with pytest.raises(DeliveryError, match=f"127.0.0.1:{port} cannot be reached") as caught:
        poster.post({}, NOON_NS)
    assert not caught.value.maybe_taken


def test_a_receiver_that_hangs_and_one_that_breaks_off():
    error = failing(Reply(hang=True), timeout_s=0.2)
    assert "has not answered within 0.2 s" in str(error)
    assert error.maybe_taken, "it has been sent, and nobody knows"
    assert failing(Reply(drop=True)).maybe_taken


@pytest.mark.parametrize(
    ("begin", "is_taken"),
    [(b"HTTP/1.1 200 OK\r\n\r\n", True), (b"HTTP/1.1 200 OK\r\nx: ", False)],
    ids=["body", "headers"],
)
@pytest.mark.parametrize("is_tls", [False, True])
def test_an_answer_that_never_ends_is_not_waited_for(
    tmp_path, monkeypatch, begin, is_taken, is_tls
):
    files = certificates.write(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(files.ca))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.server, files.server_key)
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended = threading.Event()

        def drip() -> None:
            connection, _ = server.accept()
            if is_tls:
                connection = context.wrap_socket(connection, server_side=True)
            with connection:
                connection.recv(65536)
                connection.sendall(begin)
                try:
                    while not ended.wait(0.02):
                        connection.sendall(b"x")
                except OSError:
                    ended.set()

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        scheme = "https" if is_tls else "http"
        poster = Poster(f"{scheme}://127.0.0.1:{server.getsockname()[1]}", timeout_s=2)
        start = monotonic()
        if is_taken:
            poster.post({}, NOON_NS)  # its status is known
        else:
            with pytest.raises(DeliveryError, match="has not answered within 2 s") as caught:
                poster.post({}, NOON_NS)
            assert caught.value.maybe_taken
        assert monotonic() - start < 20, "which drips for ever"
        thread.join(20)
        assert ended.is_set(), "the connection was closed"


@pytest.mark.parametrize("url", ["ftp://x/y", "http://", "https:///path", "no url", "http://[::1"])
def test_an_address_that_is_none(url):
    with pytest.raises(ChannelError, match="no URL") as caught:
        Poster(url, timeout_s=1)
    assert caught.value.key == "url"


# --- secrets --------------------------------------------------------------------------------------


def test_what_a_receiver_echoes_is_not_told_on():
    body = f"no such key: {SECRET}; url /services/T1/{SECRET}".encode()
    for channel in (
        lambda url: pagerduty.make(COMMON, routing_key=SECRET, url=url),
        lambda url: slack.make(COMMON, url=f"{url}/services/T1/{SECRET}"),
        lambda url: cloudevents.make(
            COMMON, url=url, headers={"authorization": SECRET}, source="s"
        ),
    ):
        with AlertReceiver(lambda _: Reply(403, body=body)) as receiver:
            made = channel(receiver.url)
            with pytest.raises(DeliveryError, match=r"403 Forbidden: no such key: \*") as caught:
                made.send(alert(), NOON_NS)
        assert SECRET not in str(caught.value)
        assert SECRET not in repr(caught.value)
        assert SECRET not in repr(made)
        assert SECRET not in repr(vars(made)["_poster"])


def test_no_log_has_a_secret(caplog):
    caplog.set_level(logging.DEBUG)
    with AlertReceiver(lambda n: Reply() if n else Reply(500)) as receiver:
        made = slack.make(COMMON, url=f"{receiver.url}/services/T1/{SECRET}")
        with pytest.raises(DeliveryError):
            made.send(alert(), NOON_NS)
        made.send(alert(), NOON_NS)
    with pytest.raises(DeliveryError):
        made.send(alert(), NOON_NS)  # nobody listens any more
    assert SECRET not in caplog.text


# --- the log, and Apprise -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "level"),
    [
        (alert(), logging.ERROR),
        (alert(severity=Severity.WARNING), logging.WARNING),
        (alert(severity=Severity.INFO), logging.INFO),
        (resolved(), logging.INFO),
    ],
)
def test_the_log_has_one_line(caplog, one, level):
    caplog.set_level(logging.INFO)
    log.make(COMMON).send(one, NOON_NS)
    [record] = caplog.records
    assert record.levelno == level
    assert "digits 3 is worse than 2" in record.getMessage()
    assert "id=d-17" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_apprise_tells_and_says_that_it_is_over():
    with AlertReceiver() as receiver:
        channel = apprise.make(COMMON, url=f"json://127.0.0.1:{receiver.port}/hook")
        channel.send(alert(), NOON_NS)
        channel.send(resolved(), NOON_NS)
        first, last = (one.json for one in receiver.got)
    assert first["title"] == "[FIRING] critical: digits 3 is worse than 2"
    assert (first["type"], last["type"]) == ("failure", "success")
    assert "id: d-17" in first["message"]
    assert "https://wiki.example/r" in first["message"]
    with pytest.raises(DeliveryError, match="Apprise could not deliver"):
        channel.send(alert(), NOON_NS)


def test_apprise_keeps_secrets_and_refuses_what_it_does_not_know(caplog):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ChannelError, match="no URL that Apprise knows") as caught:
        apprise.make(COMMON, url=f"nothing-like-it://{SECRET}")
    assert caught.value.key == "url"
    assert SECRET not in str(caught.value) + caplog.text
    with AlertReceiver() as receiver:
        url = f"json://user:{SECRET}@127.0.0.1:{receiver.port}/{SECRET}"
        channel = apprise.make(COMMON, url=url)
        channel.send(alert(), NOON_NS)
    with pytest.raises(DeliveryError) as failed:
        channel.send(alert(), NOON_NS)
    assert SECRET not in str(failed.value) + caplog.text


def test_a_server_that_nobody_vouches_for_is_told_nothing(tmp_path, monkeypatch):
    files = certificates.write(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.server, files.server_key)
    with AlertReceiver(tls=context) as receiver:
        with pytest.raises(DeliveryError, match="CERTIFICATE_VERIFY_FAILED"):
            Poster(receiver.url, timeout_s=10).post({}, NOON_NS)
        assert receiver.got == []
        monkeypatch.setenv("SSL_CERT_FILE", str(files.ca))
        Poster(receiver.url, timeout_s=10).post({}, NOON_NS)
        assert len(receiver.got) == 1


def test_a_proxy_of_the_environment_is_used(monkeypatch):
    with AlertReceiver() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        Poster("http://hooks.example/x", timeout_s=10).post({}, NOON_NS)
        [got] = proxy.got
    assert got.path == "http://hooks.example/x"
