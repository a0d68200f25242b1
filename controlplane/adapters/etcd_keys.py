"""Names of Weir's keys in etcd, all below `/weir/<cluster>/`.

    leader                 who leads; its mod_revision is the term; under the leader's lease
    heartbeat              last write of the leader, put in every leader transaction
    plan                   20-digit epoch, newline, controlplane.v1.Plan
    state                  decision state that belongs to the plan, maybe compressed
    events/<20 digits>     controlplane.v1.Event
    failovers/<id>         controlplane.v1.Failover
    intents/<kind>/<name>  JSON, under a lease
    replicas/<id>          JSON, presence of a replica, under its lease
    requests/<uuid>        first answer to a mutation, under a lease
    operations/<id>        long-running operations
    locks/epoch            fencing epochs of the locks

The epoch stands first in the plan's value so that etcd itself can compare it: values compare as
bytes, and 20 digits order as numbers do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from controlplane.model.errors import InvalidInputError
from controlplane.model.ids import Epoch, valid_name

DIGITS: Final = 20


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys of one cluster."""

    cluster: str

    def __post_init__(self) -> None:
        if not valid_name(self.cluster):
            raise InvalidInputError("cluster.name", f"{self.cluster!r} is no name")

    @property
    def root(self) -> bytes:
        """Prefix of every key."""
        return f"/weir/{self.cluster}/".encode()

    @property
    def leader(self) -> bytes:
        """Who leads."""
        return self.root + b"leader"

    @property
    def heartbeat(self) -> bytes:
        """Last write of the leader."""
        return self.root + b"heartbeat"

    @property
    def plan(self) -> bytes:
        """The plan in force."""
        return self.root + b"plan"

    @property
    def state(self) -> bytes:
        """Decision state."""
        return self.root + b"state"

    @property
    def events(self) -> bytes:
        """Prefix of events."""
        return self.root + b"events/"

    @property
    def failovers(self) -> bytes:
        """Prefix of failovers."""
        return self.root + b"failovers/"

    @property
    def intents(self) -> bytes:
        """Prefix of intents."""
        return self.root + b"intents/"

    @property
    def replicas(self) -> bytes:
        """Prefix of presence keys."""
        return self.root + b"replicas/"

    @property
    def forced_releases(self) -> bytes:
        """Prefix of the audit of locks taken away."""
        return self.root + b"locks/forced/"

    @property
    def generation(self) -> bytes:
        """Written by every change of an operator: changes are serialised on it."""
        return self.root + b"generation"

    @property
    def operations(self) -> bytes:
        """Prefix of operations."""
        return self.root + b"operations/"

    @property
    def locks_epoch(self) -> bytes:
        """Fencing epochs."""
        return self.root + b"locks/epoch"

    def event(self, event_id: int) -> bytes:
        """One event."""
        return self.events + b"%020d" % event_id

    def failover(self, failover_id: str) -> bytes:
        """One failover."""
        return self.failovers + failover_id.encode()

    def intent(self, kind: str, name: str) -> bytes:
        """One intent."""
        return self.intents + f"{kind}/{name}".encode()

    def replica(self, replica: str) -> bytes:
        """Presence of one replica."""
        return self.replicas + replica.encode()

    def request(self, request_id: str) -> bytes:
        """One answered mutation."""
        return self.root + b"requests/" + request_id.encode()

    def operation(self, operation_id: str) -> bytes:
        """One operation."""
        return self.operations + operation_id.encode()


def number_of(key: bytes) -> int:
    """Return the number at the end of an event's key."""
    return int(key[-DIGITS:])


def pack_plan(epoch: int, plan: bytes) -> bytes:
    """Put the epoch before the plan."""
    return b"%020d\n" % epoch + plan


def unpack_plan(value: bytes) -> tuple[Epoch, bytes]:
    """Split a plan's value into epoch and plan; raises InvalidInputError."""
    head, newline, plan = value[:DIGITS], value[DIGITS : DIGITS + 1], value[DIGITS + 1 :]
    if newline != b"\n" or not head.isdigit():
        raise InvalidInputError("plan", "the value in etcd does not begin with 20 digits")
    return Epoch(int(head)), plan
