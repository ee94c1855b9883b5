"""Inside a pod: the service account's files, TLS by the cluster's own authority."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from kubernetes.config import incluster_config

from sidecar.monitor.actions import build
from sidecar.monitor.actions.base import Outcome
from tests.clients import certificates
from tests.monitor.actions.clusters import NAME, config, deploy, image, request, template
from tests.support.kubernetes_api import TOKEN, KubernetesApi
from tests.support.routes import RouteTable


@pytest.fixture
def files(tmp_path) -> certificates.Files:
    return certificates.write(tmp_path)


@pytest.fixture
def api(files, tmp_path, monkeypatch) -> Iterator[KubernetesApi]:
    with KubernetesApi(files) as made:
        url = urlsplit(made.url)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", str(url.hostname))
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(url.port))
        token = tmp_path / "token"
        token.write_text(TOKEN)
        # A pod has them at paths that a test may not write.
        monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
        monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(files.ca))
        yield made


def test_the_service_accounts_files_are_enough(api):
    deploy(api, template("digits:2"), template("digits:3"))
    rollback = build(config(kind="deployment", **NAME), RouteTable(), "digits")
    done = rollback.perform(request())
    assert done.outcome is Outcome.DONE, done.text
    assert image(api) == "digits:2"
    assert rollback.verify(request()).outcome is Outcome.DONE


def test_a_server_of_another_authority_is_told_nothing(api, tmp_path, monkeypatch):
    deploy(api, template("digits:2"), template("digits:3"))
    folder = tmp_path / "others"
    folder.mkdir()
    stranger = certificates.write(folder)
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(stranger.ca))
    rollback = build(config(kind="deployment", **NAME), RouteTable(), "digits")
    done = rollback.perform(request())
    assert done.outcome is Outcome.RETRY
    assert "certificate" in done.text.lower()
    assert api.calls == []
