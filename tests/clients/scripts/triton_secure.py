"""tritonclient with TLS, client certificates, and the token of the calls that change things."""

from __future__ import annotations

import ssl
import sys
from dataclasses import replace
from typing import Any

import harness
import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from geventhttpclient.response import HTTPConnectionClosed
from harness import Target, equal, refused
from tritonclient.utils import InferenceServerException

ROWS = np.ones((1, 4), np.float32)


def over_grpc(target: Target, **changed: Any) -> tritonclient.grpc.InferenceServerClient:
    options = {"ssl": True, "root_certificates": target.ca, "private_key": target.key,
               "certificate_chain": target.certificate} | changed  # fmt: skip
    return tritonclient.grpc.InferenceServerClient(target.grpc, **options)


def context(target: Target, *, present: bool = True) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=target.ca)
    if present and target.certificate is not None:
        made.load_cert_chain(target.certificate, target.key)
    return made


def over_http(target: Target, *, present: bool = True) -> tritonclient.http.InferenceServerClient:
    return tritonclient.http.InferenceServerClient(
        target.http, ssl=True, ssl_context_factory=lambda: context(target, present=present)
    )


def inputs(module: Any) -> list[Any]:
    made = module.InferInput("INPUT", [1, 4], "FP32")
    made.set_data_from_numpy(ROWS)
    return [made]


def bearer(token: str | None) -> dict[str, str]:
    return {} if token is None else {"authorization": f"Bearer {token}"}


def check_grpc(target: Target) -> None:
    with over_grpc(target) as c:
        equal(c.is_server_ready(), True, "ready")
        answer = c.infer("identity_fp32", inputs(tritonclient.grpc)).as_numpy("OUTPUT")
        equal(answer, ROWS, "answer")


async def check_grpc_aio(target: Target) -> None:
    made = tritonclient.grpc.aio.InferenceServerClient(
        target.grpc, ssl=True, root_certificates=target.ca, private_key=target.key,
        certificate_chain=target.certificate,
    )  # fmt: skip
    async with made as c:
        answer = await c.infer("identity_fp32", inputs(tritonclient.grpc))
        equal(answer.as_numpy("OUTPUT"), ROWS, "answer")


def check_http(target: Target) -> None:
    with over_http(target) as c:
        equal(c.is_server_ready(), True, "ready")
        answer = c.infer("identity_fp32", inputs(tritonclient.http)).as_numpy("OUTPUT")
        equal(answer, ROWS, "answer")


async def check_http_aio(target: Target) -> None:
    made = tritonclient.http.aio.InferenceServerClient(
        target.http, ssl=True, ssl_context=context(target)
    )
    async with made as c:
        answer = await c.infer("identity_fp32", inputs(tritonclient.http))
        equal(answer.as_numpy("OUTPUT"), ROWS, "answer")


def check_strangers_are_turned_away(target: Target) -> None:
    """Without TLS, without trust, and (with client certificates) without a certificate."""
    unavailable = "StatusCode.UNAVAILABLE"
    with (
        tritonclient.grpc.InferenceServerClient(target.grpc) as plain,
        refused(InferenceServerException, unavailable),
    ):
        plain.is_server_live(client_timeout=60)
    with (
        over_grpc(target, root_certificates=None) as distrustful,
        refused(InferenceServerException, unavailable),
    ):
        distrustful.is_server_live(client_timeout=60)
    if target.certificate is None:
        return
    with (
        over_grpc(target, private_key=None, certificate_chain=None) as nameless,
        refused(InferenceServerException, unavailable),
    ):
        nameless.is_server_live(client_timeout=60)
    with over_http(target, present=False) as nameless:
        try:
            nameless.is_server_live()
        except (OSError, HTTPConnectionClosed):  # ssl.SSLError, or the end that follows it
            pass
        else:
            raise harness.WrongError("HTTP accepted a client without a certificate")


def check_token(target: Target) -> None:
    """Calls that change things need the token; calls that read do not."""
    if target.token is None:
        return
    wrong = bearer("wrong")
    changes: tuple[tuple[str, tuple[Any, ...]], ...] = (
        ("load_model", ("loadable",)),
        ("unload_model", ("loadable",)),
        ("register_system_shared_memory", ("r", "/r", 64)),
        ("unregister_system_shared_memory", ()),
        ("update_trace_settings", (None, {"trace_rate": "5"})),
        ("update_log_settings", ({"log_info": True},)),
    )
    codes = ("StatusCode.UNAUTHENTICATED", "StatusCode.PERMISSION_DENIED")
    cases = (  # who gave no token, and who gave a wrong one
        (over_grpc(target), tritonclient.grpc, codes),
        (over_http(target), tritonclient.http, ("401", "403")),
    )
    for c, module, (without, with_wrong) in cases:
        with c:
            for headers, denied in (
                (None, without),
                ({"authorization": target.token}, without),
                (wrong, with_wrong),
            ):
                for name, arguments in changes:
                    with refused(InferenceServerException, denied):
                        getattr(c, name)(*arguments, headers=headers)
            equal(c.is_model_ready("loadable"), True, "the model that nobody could unload")
            c.get_model_repository_index()
            c.get_trace_settings()
            c.get_log_settings()
            c.get_system_shared_memory_status()
            right = bearer(target.token)
            c.unload_model("loadable", headers=right)
            equal(c.is_model_ready("loadable"), False, "ready after unload")
            c.load_model("loadable", headers=right)
            equal(c.is_model_ready("loadable"), True, "ready after load")
            answer = c.infer("loadable", inputs(module)).as_numpy("OUTPUT")
            equal(answer, ROWS, "inference needs no token")


def check_admin_listener(target: Target) -> None:
    """Where there is one, calls that change things are taken there and nowhere else."""
    if not target.admin:
        return
    with over_grpc(target) as c, over_http(target) as h:
        for other, denied in ((c, "StatusCode.PERMISSION_DENIED"), (h, "403")):
            with refused(InferenceServerException, denied, about="admin listener"):
                other.unload_model("loadable")
            with refused(InferenceServerException, denied, about="admin listener"):
                other.register_system_shared_memory("r", "/r", 64)
        with over_grpc(replace(target, grpc=target.admin)) as admin:
            admin.unload_model("loadable")
            equal(c.is_model_ready("loadable"), False, "ready after unload")
            admin.load_model("loadable")
            equal(c.is_model_ready("loadable"), True, "ready after load")


if __name__ == "__main__":
    harness.main(dict(vars(sys.modules["__main__"])))
