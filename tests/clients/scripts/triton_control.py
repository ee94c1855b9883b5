"""tritonclient's calls that ask about the server or change it, over gRPC and over HTTP."""

from __future__ import annotations

import sys
import time
from types import ModuleType
from typing import Any

import harness
import numpy as np
import tritonclient.grpc
import tritonclient.http
from harness import Target, equal, holds, refused, status_of
from tritonclient.utils import InferenceServerException


def module(target: Target) -> ModuleType:
    return tritonclient.grpc if target.api == "grpc" else tritonclient.http  # type: ignore[no-any-return]


def client(target: Target) -> Any:
    if target.api == "grpc":
        # See triton_shm.py: each client may then reach another worker.
        options = [("grpc.use_local_subchannel_pool", 1)]
        return tritonclient.grpc.InferenceServerClient(target.grpc, channel_args=options)
    return tritonclient.http.InferenceServerClient(target.http)


def rows(target: Target, count: int = 1) -> list[Any]:
    made = module(target).InferInput("INPUT", [count, 4], "FP32")
    made.set_data_from_numpy(np.ones((count, 4), np.float32))
    return [made]


def index(c: Any, target: Target) -> dict[tuple[str, str], str]:
    """(model, version) → state."""
    listing = c.get_model_repository_index()
    if target.api == "grpc":
        return {(m.name, m.version): m.state for m in listing.models}
    return {(m["name"], m["version"]): m["state"] for m in listing}


def statistics(c: Any, target: Target, name: str, version: str = "") -> list[dict[str, Any]]:
    """One row per version, in the JSON form of both (64-bit figures may be strings)."""
    options = {"as_json": True} if target.api == "grpc" else {}
    answer = c.get_inference_statistics(name, version, **options)
    return list(answer.get("model_stats", []))


def duration(row: dict[str, Any], name: str) -> tuple[int, int]:
    """(count, ns); what is zero is absent from gRPC's JSON form."""
    found = row.get("inference_stats", {}).get(name, {})
    return int(found.get("count", 0)), int(found.get("ns", 0))


# --- model control -------------------------------------------------------------------------------


def check_repository_index(target: Target) -> None:
    with client(target) as c:
        found = index(c, target)
    for key in (("add_sub", "1"), ("versions", "1"), ("versions", "2")):
        equal(found.get(key), "READY", f"state of {key}")


def check_unload_and_load(target: Target) -> None:
    with client(target) as c:
        try:
            c.unload_model("loadable")
            # Not UNAVAILABLE, on which KServe's client tries three times more: it was taken away.
            absent = status_of(target, "NOT_FOUND")
            for _ in range(4 * target.workers):  # whichever worker answers
                with client(target) as other:
                    equal(other.is_model_ready("loadable"), False, "ready after unload")
                    with refused(InferenceServerException, absent, about="loadable"):
                        other.infer("loadable", rows(target))
            equal(index(c, target)["loadable", "1"], "UNAVAILABLE", "state after unload")
            equal(c.is_server_ready(), True, "the server, whose operator unloaded one model")
        finally:
            c.load_model("loadable")
        for _ in range(4 * target.workers):
            with client(target) as other:
                equal(other.is_model_ready("loadable"), True, "ready after load")
                answer = other.infer("loadable", rows(target)).as_numpy("OUTPUT")
                equal(answer, np.ones((1, 4), np.float32), "answer after load")
        equal(index(c, target)["loadable", "1"], "READY", "state after load")
        c.load_model("loadable")  # again: a reload
        equal(c.is_model_ready("loadable"), True, "ready after reload")


def check_unload_with_dependents(target: Target) -> None:
    with client(target) as c:
        c.unload_model("loadable", unload_dependents=True)
        equal(c.is_model_ready("loadable"), False, "ready after unload")
        c.load_model("loadable")
        equal(c.is_model_ready("loadable"), True, "ready after load")


def check_load_refusals(target: Target) -> None:
    wrong, absent = status_of(target, "INVALID_ARGUMENT"), status_of(target, "NOT_FOUND")
    unoffered = status_of(target, "UNIMPLEMENTED")
    with client(target) as c:
        with refused(InferenceServerException, absent, about="nonesuch"):
            c.load_model("nonesuch")
        with refused(InferenceServerException, absent, about="nonesuch"):
            c.unload_model("nonesuch")
        # A configuration or files from the network must not be passed over in silence.
        with refused(InferenceServerException, wrong, unoffered, about="config"):
            c.load_model("loadable", config='{"max_batch_size": 64}')
        if target.api == "grpc":  # the HTTP client cannot encode the bytes it makes of files
            with refused(InferenceServerException, wrong, unoffered, about="file:"):
                c.load_model("loadable", files={"file:1/weights.bin": b"x"})
        equal(c.is_model_ready("loadable"), True, "ready after refusals")


# --- statistics ----------------------------------------------------------------------------------


def check_statistics_are_true(target: Target) -> None:
    with client(target) as c:
        before = statistics(c, target, "counted")[0]
        for _ in range(10):
            c.infer("counted", rows(target, 3))
        after = statistics(c, target, "counted")[0]

        def gained(name: str) -> int:
            return int(after.get(name, 0)) - int(before.get(name, 0))

        equal((after["name"], after["version"]), ("counted", "1"), "row")
        equal(gained("inference_count"), 30, "inference_count (rows)")
        equal(gained("execution_count"), 10, "execution_count")
        for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
            new, old = duration(after, name), duration(before, name)
            equal(new[0] - old[0], 10, f"{name}.count")
            holds(new[1] > old[1] or name == "queue", f"{name}.ns did not grow: {new[1]}")
        stages = ("queue", "compute_input", "compute_infer", "compute_output")
        parts = sum(duration(after, name)[1] - duration(before, name)[1] for name in stages)
        whole = duration(after, "success")[1] - duration(before, "success")[1]
        holds(0 < parts <= whole, f"the stages take {parts} ns, the whole {whole} ns")
        sizes = {int(b["batch_size"]): b for b in after["batch_stats"]}
        holds(3 in sizes, f"batch sizes: {list(sizes)}")
        holds(int(sizes[3]["compute_infer"]["count"]) >= 10, f"batches of 3: {sizes[3]}")
        last_ms = int(after["last_inference"])
        holds(abs(last_ms - time.time_ns() // 1_000_000) < 60_000, f"last_inference {last_ms}")


def check_statistics_of_all_and_of_versions(target: Target) -> None:
    with client(target) as c:
        names = {(row["name"], row["version"]) for row in statistics(c, target, "")}
        for key in (("add_sub", "1"), ("versions", "1"), ("versions", "2")):
            holds(key in names, f"{key} is missing from {sorted(names)}")
        rows_of = {row["version"] for row in statistics(c, target, "versions")}
        equal(rows_of, {"1", "2"}, "versions")
        equal(
            [row["version"] for row in statistics(c, target, "versions", "2")], ["2"], "one version"
        )
        with refused(InferenceServerException, status_of(target, "NOT_FOUND"), about="nonesuch"):
            statistics(c, target, "nonesuch")


def check_statistics_count_failures(target: Target) -> None:
    with client(target) as c:
        before = duration(statistics(c, target, "counted")[0], "fail")[0]
        wrong = module(target).InferInput("INPUT", [1, 4], "INT32")
        wrong.set_data_from_numpy(np.ones((1, 4), np.int32))
        with refused(InferenceServerException, status_of(target, "INVALID_ARGUMENT")):
            c.infer("counted", [wrong])
        after = duration(statistics(c, target, "counted")[0], "fail")[0]
        equal(after - before, 1, "fail.count")


# --- settings ------------------------------------------------------------------------------------


def trace(answer: Any, target: Target, name: str) -> list[str]:
    if target.api == "grpc":
        return list(answer.settings[name].value)
    value = answer[name]
    return value if isinstance(value, list) else [value]


def check_trace_settings(target: Target) -> None:
    with client(target) as c:
        # As at the server's start, whatever was changed before.
        cleared = {"trace_level": None, "trace_rate": None, "trace_count": None}
        answer = c.update_trace_settings(settings=cleared)
        for name in ("trace_level", "trace_rate", "trace_count", "log_frequency", "trace_file"):
            trace(answer, target, name)
        rate = trace(answer, target, "trace_rate")
        try:
            change = {"trace_level": ["TIMESTAMPS"], "trace_rate": "5", "trace_count": "100"}
            answer = c.update_trace_settings(settings=change)
            equal(trace(answer, target, "trace_level"), ["TIMESTAMPS"], "trace_level")
            equal(trace(answer, target, "trace_rate"), ["5"], "trace_rate")
            for _ in range(4 * target.workers):
                with client(target) as other:
                    equal(trace(other.get_trace_settings(), target, "trace_rate"), ["5"], "rate")
            # A model's own setting, and back to the global one.
            answer = c.update_trace_settings("add_sub", settings={"trace_rate": "7"})
            equal(trace(answer, target, "trace_rate"), ["7"], "trace_rate of add_sub")
            equal(trace(c.get_trace_settings(), target, "trace_rate"), ["5"], "global trace_rate")
            answer = c.update_trace_settings("add_sub", settings={"trace_rate": None})
            equal(trace(answer, target, "trace_rate"), ["5"], "trace_rate of add_sub, cleared")
        finally:
            answer = c.update_trace_settings(settings=cleared)
        equal(trace(answer, target, "trace_rate"), rate, "trace_rate, cleared")
        equal(trace(answer, target, "trace_level"), ["OFF"], "trace_level, cleared")


def check_trace_refusals(target: Target) -> None:
    wrong = status_of(target, "INVALID_ARGUMENT")
    with client(target) as c:
        changes: tuple[dict[str, Any], ...] = (
            {"made_up": "1"},
            {"trace_rate": "often"},
            {"trace_level": ["LOUD"]},
        )
        for settings in changes:
            about = "LOUD" if "trace_level" in settings else next(iter(settings))
            with refused(InferenceServerException, wrong, about=about):
                c.update_trace_settings(settings=settings)
        # A file name from the network would let a client write anywhere.
        with refused(InferenceServerException, wrong, status_of(target, "UNIMPLEMENTED")):
            c.update_trace_settings(settings={"trace_file": "/etc/cron.d/x"})
        with refused(
            InferenceServerException, wrong, status_of(target, "NOT_FOUND"), about="nonesuch"
        ):
            c.get_trace_settings("nonesuch")


def check_log_settings(target: Target) -> None:
    def value(answer: Any, name: str) -> Any:
        if target.api == "grpc":
            setting = answer.settings[name]
            return getattr(setting, setting.WhichOneof("parameter_choice"))
        return answer[name]

    with client(target) as c:
        answer = c.get_log_settings()
        for name in ("log_file", "log_info", "log_warning", "log_error", "log_format"):
            value(answer, name)
        before = value(answer, "log_verbose_level"), value(answer, "log_info")
        try:
            answer = c.update_log_settings({"log_verbose_level": 1, "log_info": False})
            equal(value(answer, "log_verbose_level"), 1, "log_verbose_level")
            equal(value(answer, "log_info"), False, "log_info")
            for _ in range(4 * target.workers):
                with client(target) as other:
                    equal(value(other.get_log_settings(), "log_info"), False, "log_info")
        finally:
            c.update_log_settings({"log_verbose_level": before[0], "log_info": before[1]})
        with refused(
            InferenceServerException, status_of(target, "INVALID_ARGUMENT"), about="made_up"
        ):
            c.update_log_settings({"made_up": True})
        with refused(
            InferenceServerException,
            *(status_of(target, s) for s in ("INVALID_ARGUMENT", "UNIMPLEMENTED")),
        ):
            c.update_log_settings({"log_file": "/etc/cron.d/x"})


if __name__ == "__main__":
    harness.main(dict(vars(sys.modules["__main__"])))
