"""The monitor's service over real gRPC, with a view that the test fills."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import fields, replace

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from sidecar.errors import ConfigError
from sidecar.monitor.client import MonitorCallError, MonitorClient
from sidecar.monitor.rows import EvidenceKey, EvidenceRow, StoreError
from sidecar.monitor.service import SERVICE, MonitorServer
from sidecar.monitor.view import CaseView, MonitorStatus, MonitorView, VerdictEvent
from sidecar.monitor.view_drift import DriftView
from sidecar.monitor.view_messages import MESSAGES, from_message, to_json, to_message
from sidecar.protocol.pb import monitor_pb2 as pb
from tests.monitor.views import INT8, ONNX, FakeView, drift, event, status
from validators.verdict import Verdict

WITHIN_S = 60
CASE = CaseView(
    "c1", "digits", INT8, ONNX, "worst:kl", 5, "r-1", "cases/0.safetensors", 812, True,
    {"kl": 0.25}, {"outcome": "OK"},
)  # fmt: skip


class Served:
    """A view, its server, and a channel to it."""

    def __init__(self, view: FakeView, watchers_max: int = 4) -> None:
        self.view = view
        as_protocol: MonitorView = view
        self.server = MonitorServer(as_protocol, watchers_max=watchers_max)
        self.address = self.server.start("127.0.0.1:0")
        self.channel = self.connect()

    def connect(self) -> grpc.Channel:
        """A connection of its own, with windows that do not grow."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
        return grpc.insecure_channel(self.address, options)

    def call(self, method: str, request, answer):
        made = self.channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=lambda one: (
                one if isinstance(one, bytes) else one.SerializeToString()
            ),
            response_deserializer=answer.FromString,
        )
        return made(request, timeout=WITHIN_S)

    def watch(self, channel: grpc.Channel | None = None, **request):
        made = (channel or self.channel).unary_stream(
            f"/{SERVICE}/WatchVerdicts",
            request_serializer=pb.WatchVerdictsRequest.SerializeToString,
            response_deserializer=pb.WatchVerdictsResponse.FromString,
        )
        return made(pb.WatchVerdictsRequest(**request), timeout=WITHIN_S)

    def close(self) -> None:
        self.channel.close()
        self.server.stop(0)


@pytest.fixture
def served() -> Iterator[Served]:
    found = Served(FakeView())
    yield found
    found.close()


def code_of(call) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code().name, caught.value.details()


# --- what is answered -----------------------------------------------------------------------------


def test_the_status_arrives_as_it_was(served):
    answer = served.call("GetStatus", pb.GetStatusRequest(), pb.MonitorStatus)
    assert from_message(answer, MonitorStatus) == served.view.now
    with MonitorClient(served.address, timeout_s=WITHIN_S) as client:
        assert client.status() == served.view.now


def test_a_status_with_nothing_in_it_arrives_as_it_was(served):
    served.view.now = replace(status(Verdict.INVALID, requests=0), models=[])
    with MonitorClient(served.address, timeout_s=WITHIN_S) as client:
        assert client.status() == served.view.now


def test_evidence_comes_page_by_page_while_rows_come_and_go(served):
    def page(token=""):
        request = pb.GetEvidenceRequest(model="digits", page_size=2, page_token=token)
        return served.call("GetEvidence", request, pb.GetEvidenceResponse)

    first = page()
    assert [row.key.block for row in first.rows] == [0, 1]
    assert dict(first.rows[0].cells) == {"n": 8.0, "k": 0.5}
    del served.view.rows[1]  # where the next page begins
    served.view.rows.append(EvidenceRow(EvidenceKey("a", INT8, ONNX), "life", {"n": 1.0}))
    second = page(first.next_page_token)
    third = page(second.next_page_token)
    assert [row.key.block for row in (*second.rows, *third.rows)] == [2, 3, 4]
    assert third.next_page_token == ""
    everything = served.call("GetEvidence", pb.GetEvidenceRequest(), pb.GetEvidenceResponse)
    assert len(everything.rows) == 5
    assert everything.rows[0].key.model == "a"


def test_certificates_and_cases(served):
    served.view.kept_cases = [replace(CASE, id=f"c{i}") for i in range(150)]
    answer = served.call(
        "ListCertificates", pb.ListCertificatesRequest(model="digits"), pb.ListCertificatesResponse
    )
    assert [(one.n, one.bound, one.certified_wall_ns) for one in answer.certificates] == [
        (500, 0.0091, 17)
    ]
    assert not answer.certificates[0].HasField("requests_to_go")
    found = served.call("ListCases", pb.ListCasesRequest(), pb.ListCasesResponse)
    assert len(found.cases) == 100
    assert from_message(found.cases[0], CaseView) == replace(CASE, id="c0")
    found = served.call("ListCases", pb.ListCasesRequest(limit=3), pb.ListCasesResponse)
    assert [case.id for case in found.cases] == ["c0", "c1", "c2"]


# --- the stream -----------------------------------------------------------------------------------


def test_drift_arrives_as_it_was_also_of_a_model_without_a_candidate(served):
    collecting = DriftView("cats", "", "collecting", "insufficient_data", 0, 12, 1000)
    served.view.drifts = [drift(), collecting]
    with MonitorClient(served.address, timeout_s=WITHIN_S) as client:
        assert client.drift() == [drift(), collecting]
        assert client.drift("cats") == [collecting]
        with pytest.raises(MonitorCallError, match=r"'dogs' is watched for drift.*digits, cats"):
            client.drift("dogs")


def test_a_watcher_gets_what_is_kept_and_then_what_comes(served):
    served.view.tell(event(1), event(2))
    stream = served.watch(after_seq=0)
    begun = next(stream).watching
    assert (begun.incarnation, begun.after_seq, begun.counted_anew) == (
        "0123456789abcdef", 0, False,
    )  # fmt: skip
    assert from_message(next(stream).event, VerdictEvent) == event(1)
    assert from_message(next(stream).event, VerdictEvent) == event(2)
    served.view.tell(event(3, Verdict.FAIL))
    assert from_message(next(stream).event, VerdictEvent) == event(3, Verdict.FAIL)
    stream.cancel()


def test_without_a_place_to_begin_only_what_comes_is_told(served):
    served.view.tell(event(1), event(2))
    stream = served.watch()
    assert next(stream).watching.after_seq == 2
    served.view.tell(event(3))
    assert next(stream).event.seq == 3
    stream.cancel()


def test_a_watcher_goes_on_where_it_was(served):
    served.view.tell(*(event(seq) for seq in range(1, 6)))
    stream = served.watch(after_seq=3)
    assert not next(stream).watching.counted_anew
    assert [next(stream).event.seq for _ in range(2)] == [4, 5]
    stream.cancel()


def test_a_watcher_of_another_store_is_told_and_begins_anew(served):
    served.view.tell(event(1))
    stream = served.watch(after_seq=900)
    begun = next(stream).watching
    assert (begun.after_seq, begun.counted_anew) == (0, True)
    assert next(stream).event.seq == 1
    stream.cancel()


def test_a_watcher_of_one_model_misses_nothing_by_the_others(served):
    served.view.tell(event(1, model="other"), event(2), event(3, model="other"), event(4))
    stream = served.watch(after_seq=0, model="digits")
    answers = [next(stream) for _ in range(3)]
    assert [answer.WhichOneof("what") for answer in answers] == ["watching", "event", "event"]
    assert [answer.event.seq for answer in answers[1:]] == [2, 4]
    stream.cancel()


def test_a_slow_reader_is_told_what_it_missed_and_holds_nobody_else():
    served = Served(FakeView(events_kept=50))
    try:
        other = served.connect()
        slow, quick = served.watch(after_seq=0), served.watch(other, after_seq=0)
        for stream in (slow, quick):
            assert next(stream).WhichOneof("what") == "watching"
        long_text = "x" * 20_000  # so that the windows of the connection are full soon
        told = 400
        for seq in range(1, told + 1):
            served.view.tell(replace(event(seq), text=long_text))
            while (answer := next(quick)).WhichOneof("what") != "event":
                pass
            assert answer.event.seq == seq, "the quick one is not held up"
        seen, missed = [], 0
        while not seen or seen[-1] < told:
            answer = next(slow)
            missed += answer.missed
            if answer.WhichOneof("what") == "event":
                seen.append(answer.event.seq)
        assert missed > 0
        assert len(seen) + missed == told
        assert seen == sorted(set(seen))
        other.close()
    finally:
        served.close()


def test_one_watcher_too_many_is_refused_and_the_rest_still_answers():
    served = Served(FakeView(), watchers_max=2)
    try:
        open_ones = [served.watch(after_seq=0) for _ in range(2)]
        for stream in open_ones:
            next(stream)
        code, said = code_of(lambda: next(served.watch(after_seq=0)))
        assert (code, said) == (
            "RESOURCE_EXHAUSTED", "2 streams of verdicts are open, which is the most",
        )  # fmt: skip
        assert served.call("GetStatus", pb.GetStatusRequest(), pb.MonitorStatus).state == "running"
        open_ones[0].cancel()
        deadline = threading.Event()
        timer = threading.Timer(WITHIN_S, deadline.set)
        timer.start()
        while not deadline.is_set():  # the server learns of it a moment later
            stream = served.watch(after_seq=0)
            try:
                assert next(stream).WhichOneof("what") == "watching"
                break
            except grpc.RpcError:
                continue
        timer.cancel()
        assert not deadline.is_set()
    finally:
        served.close()


def test_stopping_ends_the_streams(served):
    stream = served.watch(after_seq=0)
    next(stream)
    stopper = threading.Thread(target=served.server.stop, args=(WITHIN_S,))
    stopper.start()
    assert list(stream) == [], "it ends in order, as the monitor is still there to say so"
    stopper.join()
    with (
        MonitorClient(served.address, timeout_s=WITHIN_S) as client,
        pytest.raises(MonitorCallError, match="no monitor answers"),
    ):
        client.status()


# --- bad input and faults -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "request_", "code", "said"),
    [
        ("GetEvidence", pb.GetEvidenceRequest(model="cats"), "NOT_FOUND",
         "no model 'cats' is watched; there is digits"),
        ("ListCertificates", pb.ListCertificatesRequest(model="cats"), "NOT_FOUND", "digits"),
        ("ListCases", pb.ListCasesRequest(model="cats"), "NOT_FOUND", "digits"),
        ("ListCases", pb.ListCasesRequest(limit=-1), "INVALID_ARGUMENT",
         "limit is -1; it must be between 1 and 1000"),
        ("GetEvidence", pb.GetEvidenceRequest(page_size=10_001), "INVALID_ARGUMENT", "page_size"),
        ("GetEvidence", pb.GetEvidenceRequest(page_token="bm9uZQ=="), "INVALID_ARGUMENT",
         "page_token is not one that this service gave"),
        ("GetEvidence", pb.GetEvidenceRequest(page_token="[1]"), "INVALID_ARGUMENT", "page_token"),
        ("GetEvidence", pb.GetEvidenceRequest(page_token="é"), "INVALID_ARGUMENT", "page_token"),
        ("GetStatus", b"\xff\xff\xff", "INVALID_ARGUMENT", "the body is not a GetStatusRequest"),
        ("GetNothing", b"", "UNIMPLEMENTED", "Method not found"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(served, method, request_, code, said):
    found, text = code_of(lambda: served.call(method, request_, pb.MonitorStatus))
    assert found == code
    assert said in text


def test_a_stream_of_an_unknown_model_is_refused(served):
    code, said = code_of(lambda: next(served.watch(model="cats")))
    assert code == "NOT_FOUND"
    assert "there is digits" in said


def test_a_fault_of_the_view_is_an_answer_and_its_text_stays_here(served, caplog):
    served.view.error = ZeroDivisionError("a secret")
    code, said = code_of(lambda: served.call("GetStatus", b"", pb.MonitorStatus))
    assert code == "INTERNAL"
    assert "secret" not in said
    assert "a secret" in caplog.text
    assert code_of(lambda: next(served.watch()))[0] == "INTERNAL"
    served.view.error = StoreError("the database is locked")
    code, said = code_of(lambda: served.call("GetStatus", b"", pb.MonitorStatus))
    assert (code, said) == ("UNAVAILABLE", "the database is locked")


def test_an_address_in_use_is_said(served):
    with pytest.raises(ConfigError, match=rf"monitor.grpc: cannot listen on {served.address}"):
        MonitorServer(FakeView()).start(served.address)


# --- what tools expect ----------------------------------------------------------------------------


def test_health(served):
    stub = health_pb2_grpc.HealthStub(served.channel)
    for name in ("", SERVICE):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=WITHIN_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    served.server.set_serving(serving=False)
    answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=WITHIN_S)
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_reflection_gives_the_whole_description(served):
    stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)
    [answer] = stub.ServerReflectionInfo(iter([request]), timeout=WITHIN_S)
    file = FileDescriptorProto.FromString(answer.file_descriptor_response.file_descriptor_proto[0])
    assert [method.name for method in file.service[0].method] == [
        "GetStatus", "GetEvidence", "ListCertificates", "ListCases", "WatchVerdicts", "Drift",
        "DriftReport", "PutLabels", "ListRoutes", "SetRoute", "Compare", "Rollback",
        "ListDecisions", "Freeze", "Approve", "Undo", "TestAlerts",
    ]  # fmt: skip
    found = descriptor_pool.DescriptorPool().AddSerializedFile(file.SerializeToString())
    assert found.services_by_name["Monitor"].full_name == SERVICE


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_data_and_messages_have_the_same_fields(kind):
    names = [field.name for field in MESSAGES[kind].DESCRIPTOR.fields]
    assert [field.name for field in fields(kind)] == names


def test_verdicts_have_the_same_names():
    names = {f"VERDICT_{verdict.name}" for verdict in Verdict}
    assert set(pb.Verdict.keys()) == names | {"VERDICT_UNSPECIFIED"}
    message = to_message(event(1))
    message.verdict = 99  # of a later release
    assert from_message(message, VerdictEvent).verdict is Verdict.INVALID


def test_json_has_no_numbers_that_json_does_not_know():
    found = to_json(replace(status().coverage, rate=math.inf, dropped={"full": 1}))
    assert found["rate"] is None
    assert found["dropped"] == {"full": 1}
