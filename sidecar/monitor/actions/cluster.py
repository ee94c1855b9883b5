"""One object in a Kubernetes cluster: read, listed beside, patched. With the `kubernetes` client.

Everything is plain JSON, on purpose: typed models drop the fields that they are too old to know,
and a pod template that lost some on its way through here would not be the one that was healthy.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from sidecar.config_rollback import KubernetesConfig
from sidecar.errors import ConfigError, MissingExtraError, Problem
from sidecar.monitor.actions.base import Outcome, Result
from sidecar.monitor.actions.within import Within

Object = dict[str, Any]

#: Who changed it, as the object's managed fields say.
FIELD_MANAGER = "model-sidecar"
#: What we write on an object that we change: which decision did, and what it was before.
MARK = "model-sidecar/rollback"
#: A pod template's label or annotation: which version of the model it serves. Optional.
VERSION = "model-sidecar/version"

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"

#: An object of a real cluster has at most 1.5 MiB (etcd's limit); a page of them holds 100.
_ANSWER_BYTES_MAX = 64 * 2**20
_PAGE, _PAGES_MAX = 100, 20


class CallError(Exception):
    """A call that did not succeed; ``result`` says it in words."""

    def __init__(self, outcome: Outcome, text: str) -> None:
        super().__init__(text)
        self.result = Result(outcome, text)


class StaleError(CallError):
    """The object is another one than was read: somebody else changed it meanwhile."""


@dataclass(frozen=True, slots=True)
class Target:
    """One object: ``plural`` as in URLs and in RBAC."""

    group: str
    version: str
    plural: str
    namespace: str
    name: str

    @override
    def __str__(self) -> str:
        return f"{self.plural}.{self.group} {self.namespace}/{self.name}"


def answered(call: Callable[[], Result]) -> Result:
    """A call's own result, or that of the ``CallError`` that ended it."""
    try:
        return call()
    except CallError as error:
        return error.result


class Cluster:
    """Calls about one object; any thread.

    Args:
        api: makes a ``kubernetes.client.CustomObjectsApi`` that sends bodies of a media type. (It
            takes any group, ``apps`` as well.) Of its releases some have no argument for the type,
            and choose a wrong one.
        role: the rules of the Role that allows what is called here (``roles.py``), for messages.
        timeout_s: of one call, whole: a server that sends an answer drop by drop does not hold
            anybody longer.
    """

    def __init__(
        self, api: Callable[[str], Any], target: Target, role: str, timeout_s: float
    ) -> None:
        self._api = api(JSON_PATCH)
        self._patching = {JSON_PATCH: self._api, MERGE_PATCH: api(MERGE_PATCH)}
        self.target = target
        self._role = role
        self._timeout_s = timeout_s
        self._within = Within(timeout_s)

    def get(self) -> Object:
        """Read the object.

        Raises:
            CallError: it cannot be read; says why.
        """
        one = self.target

        def call() -> Any:
            return self._api.get_namespaced_custom_object(
                one.group, one.version, one.namespace, one.plural, one.name,
                _preload_content=False, _request_timeout=self._timeout_s,
            )  # fmt: skip

        document = self._call("get", one.plural, call)
        if not isinstance(document.get("metadata"), dict):
            raise CallError(Outcome.RETRY, f"{one} was answered with something else")
        return document

    def listed(self, plural: str, selector: str) -> list[Object]:
        """Objects of the same group and namespace whose labels a selector takes.

        Raises:
            CallError: they cannot be listed, or are too many to be looked through.
        """
        one = self.target
        found: list[Object] = []
        token: str | None = None
        for _ in range(_PAGES_MAX):

            def call(token: str | None = token) -> Any:
                more = {} if token is None else {"_continue": token}
                return self._api.list_namespaced_custom_object(
                    one.group, one.version, one.namespace, plural, label_selector=selector,
                    limit=_PAGE, _preload_content=False, _request_timeout=self._timeout_s, **more,
                )  # fmt: skip

            page = self._call("list", plural, call)
            found += page.get("items") or []
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return found
        text = f"more than {_PAGE * _PAGES_MAX} {plural} match {selector}: too many to choose from"
        raise CallError(Outcome.BLOCKED, text)

    def patch(self, body: Any, kind: str, *, status: bool = False, dry_run: bool = False) -> Object:
        """Patch the object, or its status; ``dry_run``: let the server do all but keep it.

        Args:
            kind: ``JSON_PATCH`` or ``MERGE_PATCH``.

        Raises:
            StaleError: it is not as it was when the patch was made. CallError: anything else.
        """
        one = self.target
        name = "patch_namespaced_custom_object" + ("_status" if status else "")
        extra = {"dry_run": "All"} if dry_run else {}

        def call() -> Any:
            return getattr(self._patching[kind], name)(
                one.group, one.version, one.namespace, one.plural, one.name, body,
                field_manager=FIELD_MANAGER, _preload_content=False,
                _request_timeout=self._timeout_s, **extra,
            )  # fmt: skip

        return self._call("patch", f"{one.plural}/status" if status else one.plural, call)

    # --- one call -----------------------------------------------------------------------------

    def _call(self, verb: str, resource: str, call: Callable[[], Any]) -> Object:
        try:
            answer = self._within.run(lambda: call().read(_ANSWER_BYTES_MAX))
        except TimeoutError as error:
            raise self._silent(verb, str(error)) from None
        except Exception as error:  # noqa: BLE001 - every kind is said in words
            raise self._refusal(verb, resource, error) from None
        try:
            document = json.loads(answer)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            text = f"{self.target}: what answers at {self._host} is no Kubernetes API server"
            raise CallError(Outcome.RETRY, text)
        return document

    @property
    def _host(self) -> str:
        return str(self._api.api_client.configuration.host)

    def _silent(self, verb: str, why: str) -> CallError:
        text = f"{self.target}: {why} from {self._host}"
        if verb == "patch":
            text += "; whether the change was made is seen at the next attempt"
        return CallError(Outcome.RETRY, text)

    def _refusal(self, verb: str, resource: str, error: Exception) -> CallError:
        from kubernetes.client.exceptions import ApiException
        from urllib3 import exceptions as transport

        if isinstance(error, ApiException) and error.status:
            return self._status(verb, resource, int(error.status), _status_of(error.body))
        # Of urllib3 a refused connection is a time-out, too.
        refused = isinstance(error, transport.NewConnectionError)
        if isinstance(error, transport.TimeoutError) and not refused:
            return self._silent(verb, f"no answer within {self._timeout_s:g} s")
        if isinstance(error, (transport.HTTPError, ApiException, OSError)):
            # Of the client's own errors the first line is only a kind.
            lines = str(getattr(error, "reason", None) or error).strip().splitlines()
            reason = " ".join(lines)[:200]
            text = f"{self.target}: {self._host} cannot be reached: {reason}"
            return CallError(Outcome.RETRY, text)
        return CallError(Outcome.BLOCKED, f"{self.target}: {type(error).__name__}: {error}")

    def _status(self, verb: str, resource: str, code: int, status: Object) -> CallError:
        said = str(status.get("message") or "no reason given")[:500]
        one = self.target
        match code:
            case 401:
                text = f"{one}: {self._host} does not accept our token (401)"
            case 403:
                text = (
                    f"{one}: we may not {verb} {resource}.{one.group} in namespace "
                    f"{one.namespace} (403: {said}). A Role with these rules allows what this "
                    f"action needs: {self._role}"
                )
            case 404:
                text = f"{one} is not there (404: {said}): check its name and namespace"
            case 409:
                return StaleError(Outcome.RETRY, f"{one} was changed by somebody else (409)")
            # A `test` that fails is 422 as well as what is invalid; only the latter has causes.
            case 422 if not (status.get("details") or {}).get("causes"):
                return StaleError(Outcome.RETRY, f"{one} was changed by somebody else (422)")
            case 422:
                text = f"{one}: the API server says that the change is invalid (422): {said}"
            case 408 | 429 | 500 | 502 | 503 | 504:
                return CallError(Outcome.RETRY, f"{one}: {self._host} answers {code}: {said}")
            case _:
                text = f"{one}: {self._host} refuses to {verb} it ({code}): {said}"
        return CallError(Outcome.BLOCKED, text)


def _status_of(body: Any) -> Object:
    """A ``Status`` from the body of an error; empty where it is something else."""
    try:
        document = json.loads(body)
    except (TypeError, ValueError):
        return {"message": str(body or "")[:200]}
    return document if isinstance(document, dict) else {}


def connect(settings: KubernetesConfig, target: Target, role: str, where: str) -> Cluster:
    """Find the API server and the credentials.

    Args:
        where: the setting's path, for messages.

    Raises:
        MissingExtraError: the `kubernetes` client is not installed.
        ConfigError: no cluster is around us and no kubeconfig is given, or it cannot be used.
    """
    try:
        from kubernetes import client, config
    except ModuleNotFoundError as error:
        message = f"{where} needs {error.name}, which is not installed: install "
        message += "model-sidecar[kubernetes]"
        raise MissingExtraError(message) from None
    made = client.Configuration()
    try:
        if settings.kubeconfig is None and settings.context is None:
            config.load_incluster_config(client_configuration=made)
        else:
            file = None if settings.kubeconfig is None else str(settings.kubeconfig)
            config.load_kube_config(
                config_file=file, context=settings.context, client_configuration=made,
                persist_config=False,
            )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - of many kinds: YAML, missing keys, bad base64
        what = f"{error}" if settings.kubeconfig or settings.context else (
            f"this process is in no cluster ({error}); give kubernetes.kubeconfig"
        )  # fmt: skip
        raise ConfigError("monitor", [Problem(f"{where}.kubernetes", what)]) from None
    # Every attempt is core's to count and to bound: none is hidden in the client.
    made.retries = False

    def api(content_type: str) -> Any:
        return client.CustomObjectsApi(client.ApiClient(made, "Content-Type", content_type))

    return Cluster(api, target, role, settings.timeout_s)
