"""The kubelet of the tests keeps to Kubernetes' order, with containers of a few lines of shell."""

from __future__ import annotations

import itertools
import signal

import pytest
import yaml

from tests.e2e.support import until
from tests.support.kubelet import Pod, pod_template

#: Runs until SIGTERM, at which it ends; writes when.
STAYS = 'trap "echo ended >> $FILE; exit 0" TERM; echo began >> $FILE; while :; do sleep 0.05; done'
DEAF = 'trap "" TERM; while :; do sleep 0.05; done'


def container(name, script=STAYS, **fields):
    env = [{"name": "FILE", "value": f"/run/app/{name}"}]
    mounts = [{"name": "run", "mountPath": "/run/app"}]
    return {"name": name, "command": ["sh", "-c", script], "env": env, "volumeMounts": mounts,
            **fields}  # fmt: skip


def documents(containers, inits=(), grace_s=20, config=None):
    spec = {
        "containers": list(containers), "initContainers": list(inits),
        "terminationGracePeriodSeconds": grace_s,
        "volumes": [
            {"name": "run", "emptyDir": {}},
            {"name": "config", "configMap": {"name": "made"}},
        ],
    }  # fmt: skip
    data = {"config.yaml": yaml.safe_dump(config or {})}
    return [
        {"kind": "ConfigMap", "metadata": {"name": "made"}, "data": data},
        {"kind": "Deployment", "spec": {"template": {"spec": spec}}},
    ]


def exists(path):
    return {"exec": {"command": ["test", "-e", path]}, "periodSeconds": 0.05}


def order(pod, reason):
    return [event.container for event in pod.told(reason)]


def test_native_sidecars_start_first_and_end_last_in_reverse(tmp_path):
    hook = {"preStop": {"exec": {"command": ["sh", "-c", "echo hooked >> $FILE"]}}}
    sidecars = [
        container(name, restartPolicy="Always", lifecycle=hook,
                  startupProbe={**exists(f"/run/app/{name}.go"), "failureThreshold": 1000})
        for name in ("first", "second")
    ]  # fmt: skip
    once = container("once", "echo done >> $FILE")
    with Pod(documents([container("main")], [once, *sidecars]), tmp_path) as pod:
        pod.start()
        until(lambda: order(pod, "Started") == ["once", "first"], "the first runs")
        assert not pod.containers["first"].started.wait(0.2)
        (pod.volume("run") / "first.go").touch()
        until(lambda: order(pod, "Started") == ["once", "first", "second"], "the second runs")
        assert not pod.ready
        (pod.volume("run") / "second.go").touch()
        until(lambda: pod.ready, "the pod is ready")
        assert order(pod, "Started") == ["once", "first", "second", "main"]
        until((pod.volume("run") / "main").exists, "it hears signals")
        pod.delete()
        assert order(pod, "SIGTERM") == ["main", "second", "first"]
        assert order(pod, "Exited") == ["once", "main", "second", "first"]
        # The hooks ran before, together with the main container's end.
        assert all(event.at_s < pod.told("SIGTERM")[1].at_s for event in pod.told("PreStopHook"))
        assert (pod.volume("run") / "first").read_text() == "began\nhooked\nended\n"


def test_hooks_of_ordinary_containers_run_together(tmp_path):
    """Each waits for what the other's does: one after the other they would never end."""
    wait = "touch /run/app/{}.here; until [ -e /run/app/{}.here ]; do sleep 0.02; done"

    def meets(own, other):
        script = wait.format(own, other).replace("/run/app", "${FILE%/*}")
        return {"preStop": {"exec": {"command": ["sh", "-c", script]}}}

    both = [container("a", lifecycle=meets("a", "b")), container("b", lifecycle=meets("b", "a"))]
    with Pod(documents(both), tmp_path) as pod:
        pod.start()
        until(lambda: pod.ready, "it is ready")
        until(lambda: all((pod.volume("run") / n).exists() for n in "ab"), "they hear signals")
        assert pod.delete() < 15
        assert sorted(order(pod, "PreStopHook")) == ["a", "b"]
        assert [event.text for event in pod.told("Exited")] == ["0", "0"]


def test_after_the_grace_period_comes_the_kill_and_hooks_count_for_it(tmp_path):
    hook = {"preStop": {"exec": {"command": ["sleep", "60"]}}}
    with Pod(documents([container("a", DEAF, lifecycle=hook)], grace_s=1), tmp_path) as pod:
        pod.start()
        until(lambda: pod.ready, "it is ready")
        assert 3 <= pod.delete() < 20  # the hook's second, and the two that it has at least
        assert order(pod, "FailedPreStopHook") == ["a"]
        assert order(pod, "Killed") == ["a"]
        assert [event.text for event in pod.told("Exited")] == [str(-signal.SIGKILL)]


@pytest.mark.parametrize("kind", ["startupProbe", "livenessProbe"])
def test_a_container_whose_probe_fails_is_started_again(tmp_path, kind):
    probe = {**exists("/run/app/never"), "failureThreshold": 2}
    with Pod(documents([container("a", **{kind: probe})], grace_s=5), tmp_path) as pod:
        pod.start()
        until(lambda: pod.containers["a"].restarts >= 1, "it was ended")
        until(lambda: len(pod.told("Started")) >= 2, "it is started again")
        assert pod.told("Unhealthy")[0].text == kind


def test_readiness_comes_and_goes_without_a_restart(tmp_path):
    probe = {**exists("/run/app/go"), "failureThreshold": 2}
    with Pod(documents([container("a", readinessProbe=probe)]), tmp_path) as pod:
        pod.start()
        until((pod.volume("run") / "a").exists, "it runs")
        assert not pod.ready
        (pod.volume("run") / "go").touch()
        until(lambda: pod.ready, "it is ready")
        (pod.volume("run") / "go").unlink()
        until(lambda: not pod.ready, "it is not ready")
        assert pod.containers["a"].restarts == 0
        assert pod.told("Unhealthy") == []


def test_what_ends_is_started_again_ever_more_slowly(tmp_path):
    with Pod(documents([container("a", "exit 3")]), tmp_path, backoff_s=0.3) as pod:
        pod.start()
        until(lambda: len(pod.told("Started")) == 4, "the fourth life")
        at = [event.at_s for event in pod.told("Started")]
        pauses = [later - earlier for earlier, later in itertools.pairwise(at)]
        assert pauses[1] >= 0.3
        assert pauses[2] >= 0.6
        assert [event.text for event in pod.told("Exited")][:3] == ["3"] * 3


def test_paths_and_ports_are_rewritten_alike_everywhere(tmp_path):
    config = {
        "gateway": {"health": "0.0.0.0:9001", "label": "not 0.0.0.0:9001"},
        "monitor": {"socket": "/run/app/tap.sock", "other": "/run/apple"},
    }
    mount = {"name": "config", "mountPath": "/etc/app"}
    script = 'cat "$0" > $FILE; while :; do sleep 0.05; done'
    made = container("a", script, ports=[{"name": "health", "containerPort": 9001}])
    made["command"].append("/etc/app/config.yaml")
    made["volumeMounts"].append(mount)
    with Pod(documents([made], config=config), tmp_path) as pod:
        pod.start()
        port = pod.port(9001)
        written = pod.volume("run") / "a"
        until(lambda: written.exists() and written.read_text(), "it has read its file")
        assert yaml.safe_load(written.read_text()) == {
            "gateway": {"health": f"127.0.0.1:{port}", "label": "not 0.0.0.0:9001"},
            "monitor": {"socket": f"{pod.volume('run')}/tap.sock", "other": "/run/apple"},
        }
        assert pod.address("health") == pod.address(9001) == f"127.0.0.1:{port}"
        assert pod_template(documents([made])) is not None
