"""`weir status` names what stands behind: an old heartbeat, replicas not heard or with an old plan."""

from __future__ import annotations

import re
from typing import Any

import pytest

from controlplane.adapters.wire import timestamp
from controlplane.cli.options import Options
from controlplane.cli.read import status
from controlplane.clock import SystemClock
from controlplane.v1 import admin_pb2 as pb

ALL_WELL = pb.GetStatusResponse(
    cluster="weir", leader="east-0", term=7, plan_epoch=4, coordinated=True, subscribers=3,
    heartbeat_age_ms=200,
    replicas=[
        pb.ReplicaState(id="east-0", digest_age_ms=0, plan_epoch=4),
        pb.ReplicaState(id="north-0", digest_age_ms=180, plan_epoch=4),
    ],
)  # fmt: skip


class Answering(Options):
    """Options whose replica answers what it was given."""

    def __init__(self, answer: pb.GetStatusResponse) -> None:
        super().__init__()
        self.answer = answer

    def client(self) -> Any:
        """Return itself: it is asked like a client."""
        return self

    def call(self, *_args: Any) -> pb.GetStatusResponse:
        """Give the answer."""
        return self.answer


def shown(capsys: pytest.CaptureFixture[str], change: pb.GetStatusResponse) -> str:
    """Return what status prints when `change` is laid over a cluster that is well."""
    answer = pb.GetStatusResponse()
    answer.CopyFrom(ALL_WELL)
    for replica in change.replicas:
        del answer.replicas[-1]
        answer.replicas.append(replica)
    change.ClearField("replicas")
    answer.MergeFrom(change)
    status(Answering(answer))
    return capsys.readouterr().out


def test_all_well_says_nothing_of_replicas(capsys: pytest.CaptureFixture[str]) -> None:
    """A line that always stands there is not read when it matters."""
    text = shown(capsys, pb.GetStatusResponse())
    assert "leader east-0 (term 7)" in text
    assert not any(word in text for word in ("heartbeat", "not heard", "older plan"))


def test_a_replica_that_is_silent_is_named_with_its_age(capsys: pytest.CaptureFixture[str]) -> None:
    """Its old plan is no news beside that."""
    lost = pb.ReplicaState(id="north-0", digest_age_ms=41_300, plan_epoch=2)
    text = shown(capsys, pb.GetStatusResponse(replicas=[lost]))
    assert "not heard: north-0 (41.3 s)" in text
    assert "older plan" not in text


def test_a_replica_never_heard_is_not_a_recent_one(capsys: pytest.CaptureFixture[str]) -> None:
    """An age below zero says never."""
    lost = pb.ReplicaState(id="north-0", digest_age_ms=-1)
    assert "not heard: north-0 (never)" in shown(capsys, pb.GetStatusResponse(replicas=[lost]))


def test_a_replica_behind_is_named_with_its_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    """It is heard and serves a plan that others left behind."""
    late = pb.ReplicaState(id="north-0", digest_age_ms=100, plan_epoch=2)
    text = shown(capsys, pb.GetStatusResponse(replicas=[late]))
    assert "older plan at north-0 (epoch 2)" in text
    assert "not heard" not in text


@pytest.mark.parametrize(
    ("age_ms", "words"), [(12_000, ", heartbeat 12.0 s ago"), (-1, ", no heartbeat seen")]
)
def test_a_heartbeat_that_stands_still_is_told(
    capsys: pytest.CaptureFixture[str], age_ms: int, words: str
) -> None:
    """Who led last and since when nothing was heard of it: the first question when nobody leads."""
    assert words in shown(capsys, pb.GetStatusResponse(heartbeat_age_ms=age_ms))


@pytest.mark.parametrize(
    ("order", "left_s", "words"),
    [
        (pb.Order(kind="drain", target="east", by="ops/anna", reason="INC-42"), 1_190, r"drain east  \d\d:\d\dZ \(in 19 min\)  ops/anna  INC-42"),
        (pb.Order(kind="freeze", by="ops/ben", reason="INC-7"), 260_000, r"freeze  \d\d-\d\d \d\d:\d\dZ \(in 3 d\)  ops/ben  INC-7"),
        (pb.Order(kind="override", target="alipay", by="ann", reason="INC", local=True), -30, r"override alipay \(here only\)  \d\d-\d\d \d\d:\d\dZ \(over\)  ann  INC"),
        (pb.Order(kind="gate", target="reconciliation", by="job", reason="82"), None, r"gate reconciliation  opened  job  82"),
    ],
)  # fmt: skip
def test_what_stands_by_a_word_is_a_line(
    capsys: pytest.CaptureFixture[str], order: pb.Order, left_s: int | None, words: str
) -> None:
    """An end of another day has its day; one that is past is not taken for one to come."""
    if left_s is not None:
        order.expires_at.CopyFrom(timestamp(SystemClock().wall_ms() + left_s * 1000))
    text = shown(capsys, pb.GetStatusResponse(orders=[order]))
    assert re.search(words, text), text


def test_nothing_stands_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """No table without a row."""
    assert "ORDER" not in shown(capsys, pb.GetStatusResponse())
