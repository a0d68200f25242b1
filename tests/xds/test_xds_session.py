"""The parts of the ADS server that need no server: who has applied what, and which writes are slow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from controlplane.adapters.xds_roster import REMEMBERED_MAX, Roster
from controlplane.adapters.xds_session import SECOND_LOOK_MS, Session, mark_slow
from controlplane.adapters.xds_stream import Outgoing, Peer, Receipt, View
from controlplane.model.ids import Epoch

LIMIT_MS = 5000


@dataclass
class Told:
    """A stream's state, told by the test."""

    peer: Peer
    applied_epoch: Epoch = Epoch(1)
    waiting: bool = False
    routes_traffic: bool = True
    refusal: str = ""
    asked: bool = False

    def receive(self, request: Any) -> tuple[Receipt, str]:
        """Not used here."""
        raise NotImplementedError

    def due(self, view: View) -> list[Outgoing]:
        """Not used here."""
        raise NotImplementedError

    def refresh(self, view: View) -> list[Outgoing]:
        """Not used here."""
        raise NotImplementedError

    def error(self, type_url: str) -> str:
        """Not used here."""
        raise NotImplementedError


def session(name: str, epoch: int = 1, **told: Any) -> Session:
    """Return an open stream without a task."""
    machine = Told(Peer(name=name), applied_epoch=Epoch(epoch), **told)
    return Session(machine, cast("Any", None))


def roster(*sessions: Session, remember_ms: int = 60_000) -> Roster:
    """Return a roster with streams open."""
    made = Roster(remember_ms)
    made.sessions.update(sessions)
    return made


def test_who_hangs_stays_behind_and_grows_older() -> None:
    """A stream that is open but answers nothing is not applied: its epoch stands, its age grows
    from the first push it did not answer, and further pushes do not make it younger."""
    hung = session("hung")
    hung.machine.waiting = True  # type: ignore[misc]
    hung.writing(1000)
    hung.written()
    hung.writing(9000)
    hung.written()
    (seen,) = roster(hung).subscribers(11_000)
    assert (seen.applied_epoch, seen.age_ms) == (1, 10_000)


def test_several_streams_of_one_name_are_as_far_as_the_slowest() -> None:
    """The oldest epoch, the greatest age and any refusal stand for the subscriber, in any order."""
    late = session("same", 3, refusal="eds: no")
    late.waiting_since_ms = 500
    for order in ((session("same", 4), late), (late, session("same", 4))):
        (seen,) = roster(*order).subscribers(1500)
        assert (seen.applied_epoch, seen.age_ms, seen.error) == (3, 1000, "eds: no")


def test_who_left_is_remembered_and_counts_no_more_when_it_is_back() -> None:
    """A departed subscriber ages from when it left, or from what it owed an answer to; a new stream of its name replaces it; nobody is
    remembered for longer than asked, and only so many are."""
    made = roster(session("a"), session("idle", routes_traffic=False))
    for left in list(made.sessions):
        made.leave(left, 1000)
    assert [(s.name, s.age_ms) for s in made.subscribers(31_000)] == [("a", 30_000)]
    made.sessions.add(session("a", 2))
    assert [(s.applied_epoch, s.age_ms) for s in made.subscribers(31_000)] == [(2, 0)]
    made.sessions.clear()
    hung = session("hung")
    hung.waiting_since_ms = 30_000
    made.leave(hung, 33_000)
    assert {s.name: s.age_ms for s in made.subscribers(36_000)} == {"a": 35_000, "hung": 6000}
    made = roster(session("a"))
    made.leave(next(iter(made.sessions)), 1000)
    assert made.subscribers(61_001) == ()
    for number in range(REMEMBERED_MAX + 5):
        made.leave(session(f"n{number}"), 70_000)
    assert len(made.subscribers(70_000)) == REMEMBERED_MAX


def test_a_write_is_slow_on_the_second_look_only() -> None:
    """What is overdue once may be this replica's own pause; what is overdue twice is ended. The next
    look is due when the next write might be slow, and none when nothing is being written."""
    old, new, idle = session("old"), session("new"), session("idle")
    old.writing(0)
    new.writing(LIMIT_MS - 30)
    everybody = (old, new, idle)
    assert mark_slow(everybody, LIMIT_MS - 40, LIMIT_MS) == ([], 40)
    assert mark_slow(everybody, LIMIT_MS, LIMIT_MS) == ([], SECOND_LOOK_MS)
    assert mark_slow(everybody, LIMIT_MS + 100, LIMIT_MS) == ([old], LIMIT_MS - 130)
    new.written()
    assert mark_slow(everybody, 3 * LIMIT_MS, LIMIT_MS) == ([], None)
    pardoned = session("pardoned")
    pardoned.writing(0)
    assert mark_slow([pardoned], LIMIT_MS, LIMIT_MS) == ([], SECOND_LOOK_MS)
    pardoned.written()
    assert mark_slow([pardoned], LIMIT_MS + 100, LIMIT_MS) == ([], None)
