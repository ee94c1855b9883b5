"""``POST /v1/labels``, on a real socket."""

from __future__ import annotations

import http.client
import json
import socket
import threading

import pytest
import uvicorn
from starlette.applications import Starlette

from sidecar.errors import InvalidRequestError, NotFoundError
from sidecar.monitor import http_labels
from sidecar.monitor.label_intake import LabelCounts
from tests.e2e.support import until

TOKEN = "secret"


class Sink:
    """Counts every label as matched, and keeps it."""

    def __init__(self) -> None:
        self.labels: list = []

    def check(self, model):
        if model == "none":
            message = "there is no model 'none'; there is m"
            raise NotFoundError(message)
        if model == "shy":
            message = "shy takes no labels"
            raise InvalidRequestError(message)

    def put(self, labels):
        self.labels += labels
        return LabelCounts(matched=len(labels), refused={"why": 2})


class Listening:
    """A server with the routes."""

    def __init__(self, token):
        self.sink = Sink()
        app = Starlette(routes=http_labels.routes(self.sink, token))
        self.socket = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="warning", lifespan="off")
        self.server = uvicorn.Server(config)
        run = {"sockets": [self.socket]}
        self.thread = threading.Thread(target=self.server.run, kwargs=run, daemon=True)

    def __enter__(self):
        self.thread.start()
        until(lambda: self.server.started, "it listens")
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(30)
        self.socket.close()

    def post(self, body, *, headers=None, method="POST"):
        connection = http.client.HTTPConnection(*self.socket.getsockname(), timeout=30)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, http_labels.LABELS_PATH, data, headers or {})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return answer.status, text.decode()


@pytest.fixture(scope="module")
def listening():
    with Listening(None) as found:
        yield found


def test_labels_arrive_with_one_value_or_one_for_each_row(listening):
    items = [{"request_id": "a", "value": 7}, {"request_id": "b", "values": ["cat", 2.5]}]
    status, text = listening.post({"model": "m", "labels": items})
    assert status == 200
    assert json.loads(text) == {"matched": 2, "early": 0, "repeated": 0, "refused": {"why": 2}}
    found = [(one.model, one.request_id, one.values) for one in listening.sink.labels]
    assert found == [("m", "a", (7,)), ("m", "b", ("cat", 2.5))]


def label(**changes):
    return {"model": "m", "labels": [{"request_id": "a", "value": 1, **changes}]}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "the body is not JSON"),
        (b"[" * 100_000, 400, "the body is not JSON"),
        (b"\xff\xfe", 400, "the body is not JSON"),
        ([], 400, "the body is no object"),
        ({"model": "m"}, 400, "labels is None; it must be a list"),
        ({"model": 3, "labels": []}, 400, "model is 3; it must be a model's name"),
        ({"model": "m", "labels": [], "more": 1}, 400, "there is no field 'more'"),
        ({"model": "m", "labels": [7]}, 400, "labels[0] is 7; it must be an object"),
        (label(request_id=5), 400, "labels[0].request_id is 5; it must be a text"),
        (label(values=[1]), 400, "labels[0] needs value, or values (one for each row)"),
        (label(value=None), 400, "labels[0].value holds None; it must be"),
        (label(value=True), 400, "labels[0].value holds True; it must be"),
        (label(value=[1]), 400, "labels[0].value holds a list of 1; it must be"),
        (label(extra=1), 400, "labels[0] has a field 'extra'"),
        ({"model": "shy", "labels": []}, 400, "shy takes no labels"),
        ({"model": "none", "labels": []}, 404, "there is no model 'none'; there is m"),
    ],
)
def test_what_cannot_be_read_is_refused_whole_and_says_where(listening, body, status, message):
    before = len(listening.sink.labels)
    found, text = listening.post(body)
    assert found == status
    assert message in json.loads(text)["error"]
    assert len(listening.sink.labels) == before


def test_a_body_is_bounded_whatever_it_says_of_itself(listening):
    big = b" " * (http_labels.BODY_BYTES_MAX + 1)
    status, text = listening.post(big)
    assert status == 413
    assert "send several batches" in text


def test_other_methods_are_none(listening):
    assert listening.post(b"", method="PUT")[0] == 405


def test_the_token_is_asked_for():
    with Listening(TOKEN) as found:
        assert found.post(label())[0] == 401
        assert found.post(label(), headers={"authorization": "Bearer other"})[0] == 403
        assert found.sink.labels == []
        assert found.post(label(), headers={"authorization": f"Bearer {TOKEN}"})[0] == 200
