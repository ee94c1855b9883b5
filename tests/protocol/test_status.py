"""The table of codes, and what of an error's text a client may read."""

from __future__ import annotations

import grpc
import pytest

from sidecar import errors
from sidecar.protocol import status


def kinds() -> list[type[Exception]]:
    """Those that the tree names. (Others elsewhere come under their parent.)"""
    found = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return [kind for kind in found if issubclass(kind, errors.RequestError)]


def make(kind: type[Exception]) -> Exception:
    if kind is errors.UpstreamError:
        return errors.UpstreamError("text", "INTERNAL")
    return kind("text")


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_of_error_has_codes_that_exist(kind: type[Exception]) -> None:
    found = status.status_of(make(kind))
    code = grpc.StatusCode[found.grpc]
    assert code.value[0] == found.grpc_code
    assert 400 <= found.http < 600
    assert status.client_message(make(kind)) == "text"
    if kind is not errors.RequestError and not issubclass(kind, errors.ExecutionError):
        assert found != status.INTERNAL, "every kind but a failure of the server has its own code"


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.value[0]], ids=str)
def test_another_servers_code_is_carried_through(code: grpc.StatusCode) -> None:
    found = status.status_of(errors.UpstreamError("text", code.name))
    assert (found.grpc, found.grpc_code) == (code.name, code.value[0])


def test_an_unknown_code_of_another_server() -> None:
    assert status.status_of(errors.UpstreamError("text", "NO_SUCH")) == status.INTERNAL


def test_kinds_that_are_not_in_the_table_have_their_parents_code() -> None:
    class Special(errors.NotFoundError):
        pass

    assert status.status_of(Special("x")).grpc == "NOT_FOUND"


@pytest.mark.parametrize(
    "error",
    [ValueError("/etc/secret"), errors.ArtifactError("/models/x"), KeyboardInterrupt("/x")],
)
def test_other_errors_say_nothing_of_themselves(error: BaseException) -> None:
    assert status.status_of(error) == status.INTERNAL
    assert "/" not in status.client_message(error)
    assert "internal error" in status.client_message(error)


@pytest.mark.parametrize("letter", ["a", "ä", "字", "🚀"])
@pytest.mark.parametrize("count", [0, 1, 400, 499, 501, 700, 1000, 2000, 2001, 10_000_000])
def test_messages_fit_in_the_headers_that_clients_take(letter: str, count: int) -> None:
    """8 KiB for all of them, percent-encoded: three bytes for each that is not ASCII."""
    text = letter * count
    got = status.client_message(errors.InvalidRequestError(text))
    assert len(got.encode()) <= 2003
    if len(text.encode()) <= 2000:
        assert got == text
    else:
        assert got.endswith("…")
        assert text.startswith(got[:-1])
        assert len(got.encode()) > 1990
