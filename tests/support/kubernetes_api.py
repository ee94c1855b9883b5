"""A Kubernetes API server of the tests' own, on a real socket, for the real ``kubernetes`` client.

It has what the actions need, by the rules of a real one: GET and LIST with label selectors and
pages; JSON patch with ``test`` (422 without details where it fails, as the API server answers) and
merge patch; 409 on a stale ``metadata.resourceVersion``; ``dryRun=All`` changes nothing; the status
subresource; ``generation``; RBAC with the real text of a 403; bearer tokens. Strategic merge patch
is refused (415), as for custom resources. What controllers do is in ``kubernetes_controllers.py``.
Each call is kept, with what it would have needed by RBAC.
"""

from __future__ import annotations

import contextlib
import copy
import json
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.clients.certificates import Files
from tests.support.kubernetes_patch import PatchError, json_patch, merge_patch, selects

Object = dict[str, Any]
Key = tuple[str, str, str]

TOKEN = "token-of-the-service-account"
USER = "system:serviceaccount:shop:model-sidecar"
RESOURCES = {
    ("apps", "v1", "deployments"): "Deployment",
    ("apps", "v1", "replicasets"): "ReplicaSet",
    ("argoproj.io", "v1alpha1", "rollouts"): "Rollout",
    ("serving.kserve.io", "v1beta1", "inferenceservices"): "InferenceService",
}
_PATCHES = {
    "application/json-patch+json": json_patch,
    "application/merge-patch+json": merge_patch,
}


class StatusError(Exception):
    """An answer that is a ``Status``."""

    def __init__(self, code: int, reason: str, message: str, details: Object | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.body: Object = {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code,
        }  # fmt: skip
        if details is not None:
            self.body["details"] = details


@dataclass(frozen=True)
class Call:
    """One request: ``resource`` with its subresource (``rollouts/status``), as RBAC has it."""

    verb: str
    group: str
    resource: str
    namespace: str
    name: str
    dry_run: bool
    manager: str
    status: int
    body: Any = None


@dataclass
class Fault:
    """What goes wrong with the next calls of a verb.

    ``hang``: never answered; ``die``: applied, and the connection ends without an answer; ``drop``:
    it ends before anything is done; ``garbage``: not JSON; a number: that status.
    """

    verb: str
    what: str | int
    times: int = 1
    dry_run: bool | None = None


class KubernetesApi:
    """The server; a context manager. With certificates it speaks TLS.

    Attributes:
        rules: of a Role, as RBAC has them; ``None``: everything is allowed.
        meanwhile: run once each, before a real (not dry) PATCH is looked at: somebody else.
        controllers: called with the server after each write, under its lock.
    """

    def __init__(self, tls: Files | None = None) -> None:
        self._tls = tls
        self.objects: dict[Key, Object] = {}
        self.calls: list[Call] = []
        self.rules: list[Object] | None = None
        self.faults: list[Fault] = []
        self.meanwhile: list[Callable[[], object]] = []
        self.controllers: list[Callable[[KubernetesApi], object]] = []
        self.lock = threading.RLock()
        self.released = threading.Event()
        self._version = 1000
        self._server: _Server | None = None

    # --- the store, for tests and controllers -----------------------------------------------------

    def put(self, plural: str, document: Object) -> Object:
        """Create, as somebody with every right."""
        with self.lock:
            meta = document.setdefault("metadata", {})
            meta.setdefault("uid", f"uid-{plural}-{meta['name']}")
            meta.setdefault("generation", 1)
            self._keep((plural, meta["namespace"], meta["name"]), document)
            self.run_controllers()
            return self.get(plural, meta["namespace"], meta["name"])

    def get(self, plural: str, namespace: str, name: str) -> Object:
        with self.lock:
            return copy.deepcopy(self.objects[plural, namespace, name])

    def all(self, plural: str, namespace: str) -> list[Object]:
        with self.lock:
            return [
                copy.deepcopy(one)
                for (kind, where, _), one in sorted(self.objects.items())
                if (kind, where) == (plural, namespace)
            ]

    def change(
        self, plural: str, namespace: str, name: str, how: Callable[[Object], object]
    ) -> None:
        """Somebody else, or a controller, writes: ``how`` alters the document in place."""
        with self.lock:
            before = self.objects[plural, namespace, name]
            after = copy.deepcopy(before)
            how(after)
            self.write(plural, before, after)
            self.run_controllers()

    def write(self, plural: str, before: Object, after: Object) -> Object:
        """A new revision, unless nothing is different; the generation follows the spec."""
        meta = after["metadata"]
        if before == after:
            return before
        if before.get("spec") != after.get("spec"):
            meta["generation"] = before["metadata"]["generation"] + 1
        return self._keep((plural, meta["namespace"], meta["name"]), after)

    def _keep(self, key: Key, document: Object) -> Object:
        self._version += 1
        document["metadata"]["resourceVersion"] = str(self._version)
        self.objects[key] = document
        return document

    def run_controllers(self) -> None:
        for controller in self.controllers:
            controller(self)

    def patches(self, *, dry_run: bool = False) -> list[Call]:
        """Those that were accepted."""
        return [
            call
            for call in self.calls
            if call.verb == "patch" and call.status == 200 and call.dry_run == dry_run
        ]

    # --- calls ------------------------------------------------------------------------------------

    def answer(self, method: str, target: str, headers: Object, body: bytes) -> tuple[int, Any]:
        """Route, authenticate, authorise, do; the call is kept with its status."""
        url = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        parts = url.path.strip("/").split("/")
        if len(parts) not in {6, 7, 8} or parts[0] != "apis" or parts[3] != "namespaces":
            return 404, "404 page not found\n"
        _, group, version, _, namespace, plural, *rest = parts
        if (group, version, plural) not in RESOURCES:
            return 404, "404 page not found\n"
        name, sub = (*rest, "", "")[:2]
        verb = {"GET": "get" if name else "list", "PATCH": "patch"}.get(method, method.lower())
        resource = f"{plural}/{sub}" if sub else plural
        dry = query.get("dryRun") == "All"
        if verb == "patch" and not dry and self.meanwhile:
            self.meanwhile.pop(0)()
        with self.lock:
            try:
                self._authorise(headers, verb, group, resource, namespace, name)
                if verb == "list":
                    answer = self._list(group, version, plural, namespace, query)
                elif verb == "get":
                    answer = self._find(group, plural, namespace, name)
                else:
                    kind = headers.get("content-type", "")
                    answer = self._patch(group, plural, namespace, name, sub, kind, body, dry)
                code: int = 200
            except StatusError as error:
                code, answer = error.code, error.body
            manager = query.get("fieldManager", "")
            sent = json.loads(body) if body else None
            self.calls.append(
                Call(verb, group, resource, namespace, name, dry, manager, code, sent)
            )
        return code, answer

    def _authorise(
        self, headers: Object, verb: str, group: str, resource: str, namespace: str, name: str
    ) -> None:
        if headers.get("authorization", "").lower() != f"bearer {TOKEN}":
            raise StatusError(401, "Unauthorized", "Unauthorized")
        if self.rules is None or any(
            allows(rule, verb, group, resource, name) for rule in self.rules
        ):
            return
        shown = f' "{name}"' if name else ""
        plural = resource.partition("/")[0]
        message = (
            f'{plural}.{group}{shown} is forbidden: User "{USER}" cannot {verb} '
            f'resource "{resource}" in API group "{group}" in the namespace "{namespace}"'
        )
        raise StatusError(
            403, "Forbidden", message, {"name": name, "group": group, "kind": resource}
        )

    def _find(self, group: str, plural: str, namespace: str, name: str) -> Object:
        found = self.objects.get((plural, namespace, name))
        if found is None:
            message = f'{plural}.{group} "{name}" not found'
            raise StatusError(
                404, "NotFound", message, {"name": name, "group": group, "kind": plural}
            )
        return copy.deepcopy(found)

    def _list(
        self, group: str, version: str, plural: str, namespace: str, query: dict[str, str]
    ) -> Object:
        selector = query.get("labelSelector", "")
        found = [
            one
            for one in self.all(plural, namespace)
            if selects(selector, one["metadata"].get("labels", {}))
        ]
        begin = int(query.get("continue", "0"))
        size = int(query.get("limit", "0")) or len(found) or 1
        more = {"continue": str(begin + size)} if begin + size < len(found) else {}
        kind = f"{RESOURCES[group, version, plural]}List"
        meta = {"resourceVersion": str(self._version), **more}
        page = found[begin : begin + size]
        return {"kind": kind, "apiVersion": f"{group}/{version}", "metadata": meta, "items": page}

    def _patch(
        self, group: str, plural: str, namespace: str, name: str, sub: str, kind: str,
        body: bytes, dry: bool,
    ) -> Object:  # fmt: skip
        before = self._find(group, plural, namespace, name)
        apply = _PATCHES.get(kind)
        if apply is None:
            accepted = ", ".join(_PATCHES)
            message = "the body of the request was in an unknown format - accepted media types "
            raise StatusError(415, "UnsupportedMediaType", f"{message}include: {accepted}")
        try:
            after = apply(before, json.loads(body))
        except PatchError:
            # As the API server says it: neither which test failed nor any details.
            message = "the server rejected our request due to an error in our request"
            raise StatusError(422, "Invalid", message, {}) from None
        if after["metadata"].get("resourceVersion") != before["metadata"]["resourceVersion"]:
            message = f'Operation cannot be fulfilled on {plural}.{group} "{name}": the object has '
            message += (
                "been modified; please apply your changes to the latest version and try again"
            )
            raise StatusError(
                409, "Conflict", message, {"name": name, "group": group, "kind": plural}
            )
        # The status subresource takes the status alone, everything else takes all but it.
        if sub == "status":
            after = {**before, "status": after.get("status", {})}
        elif "status" in before:
            after = {**after, "status": before["status"]}
        _validate(group, plural, after)
        if dry:
            return after
        stored = copy.deepcopy(self.write(plural, self.objects[plural, namespace, name], after))
        self.run_controllers()
        return stored

    # --- the socket -------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self):
                _serve(api, self)

            def do_PATCH(self):
                _serve(api, self)

            def log_message(self, *_):
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        if self._tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._tls.server, self._tls.server_key)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """It is gone: connections are ended, and nobody listens."""
        self.released.set()
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        self._server.hang_up()

    @property
    def url(self) -> str:
        assert self._server is not None
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://127.0.0.1:{self._server.server_port}"

    def kubeconfig(self, path: Path, *, token: str = TOKEN, url: str | None = None) -> Path:
        """Write one; its current context is another server, so that ``context`` means something."""
        document = {
            "apiVersion": "v1", "kind": "Config", "current-context": "elsewhere",
            "clusters": [
                {"name": "here", "cluster": {"server": url or self.url}},
                {"name": "elsewhere", "cluster": {"server": "http://127.0.0.1:1"}},
            ],
            "users": [{"name": "sidecar", "user": {"token": token}}],
            "contexts": [
                {"name": name, "context": {"cluster": name, "user": "sidecar"}}
                for name in ("here", "elsewhere")
            ],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        return path

    def take_fault(self, verb: str, dry_run: bool) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.verb == verb and fault.dry_run in {None, dry_run}:
                    fault.times -= 1
                    if fault.times <= 0:
                        self.faults.remove(fault)
                    return fault
        return None


def allows(rule: Object, verb: str, group: str, resource: str, name: str) -> bool:
    """Whether one rule of a Role allows a call; a LIST has no name to be allowed by."""
    named = rule.get("resourceNames")
    return (
        group in rule["apiGroups"]
        and resource in rule["resources"]
        and verb in rule["verbs"]
        and (not named or name in named)
    )


def _validate(group: str, plural: str, document: Object) -> None:
    if plural != "deployments":
        return
    template = document["spec"]["template"]
    labels = template.get("metadata", {}).get("labels", {})
    wanted = document["spec"]["selector"].get("matchLabels", {})
    if any(labels.get(key) != value for key, value in wanted.items()):
        name = document["metadata"]["name"]
        what = "`selector` does not match template `labels`"
        cause = {"reason": "FieldValueInvalid", "message": what, "field": "spec.template"}
        details = {"name": name, "group": group, "kind": "Deployment", "causes": [cause]}
        message = f'Deployment.apps "{name}" is invalid: spec.template.metadata.labels: {what}'
        raise StatusError(422, "Invalid", message, details)


def _serve(api: KubernetesApi, request: BaseHTTPRequestHandler) -> None:
    body = request.rfile.read(int(request.headers.get("content-length", "0")))
    headers = {key.lower(): value for key, value in request.headers.items()}
    verb = {"GET": "get", "PATCH": "patch"}[request.command]
    fault = api.take_fault(verb, "dryRun=All" in request.path)
    what = None if fault is None else fault.what
    if what == "hang":
        api.released.wait()
    if what in {"hang", "drop"}:
        _hang_up(request)
        return
    if isinstance(what, int):
        code, answer = what, StatusError(what, "ServiceUnavailable", "the server is busy").body
    else:
        code, answer = api.answer(request.command, request.path, headers, body)
    if what == "die":
        _hang_up(request)
        return
    text = answer if isinstance(answer, str) else json.dumps(answer)
    data = b"<html>sign in</html>" if what == "garbage" else text.encode()
    request.send_response(200 if what == "garbage" else code)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    request.wfile.write(data)


def _hang_up(request: BaseHTTPRequestHandler) -> None:
    request.close_connection = True
    with contextlib.suppress(OSError):
        request.connection.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, *arguments: Any) -> None:
        self._connections: list[socket.socket] = []
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away."""

    def hang_up(self) -> None:
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
