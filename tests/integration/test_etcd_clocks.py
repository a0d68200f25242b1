"""Members of etcd whose clocks are two hours apart.

etcd is written in Go and reads the clock without the kernel (vDSO) and without the C library, so no
preloaded library can make its *wall* clock jump; nothing in etcd compares wall clocks of members.
Leases and raft's timers run on the *monotonic* clock, and a time namespace shifts that for programs
born in it. It cannot become negative: members are ahead of the third by one and by two hours, so
that to each of them another one is an hour off.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from controlplane.adapters.etcd import EtcdClient
from controlplane.dev.process import find_binary
from controlplane.dev.servers import EtcdCluster
from tests.support.etcd import *  # noqa: F403 - fixtures
from tests.support.etcd import raft_leader
from tests.support.history import check, read_history
from tests.support.replicas import Replicas, until

HOUR_S = 3600
STEADY = {"tick_ms": 100, "rules": {"takeover_after_ms": 4000, "demote_after_ms": 3000}}
LEASE_S = 60


def shifted(hours: int) -> list[str]:
    """Return the command in front of a program whose monotonic clock shall be ahead."""
    ahead = str(hours * HOUR_S)
    return [find_binary("unshare"), "--time", "--monotonic", ahead, "--boottime", ahead, "--"]


def clock_of(process: int | str) -> str:
    """Name of the time namespace that a process lives in."""
    return str(Path(f"/proc/{process}/ns/time").readlink())


def possible() -> bool:
    """Whether a program can be born with other clocks here: root, and a kernel (6.3 or so) that
    lets `exec` enter the new time namespace."""
    command = [*shifted(1), "readlink", "/proc/self/ns/time"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.strip() != clock_of("self")


if possible():

    @pytest.mark.parametrize("leads", [True, False])
    async def test_members_two_hours_apart_change_nothing(
        own_etcd: EtcdCluster, own_kv: EtcdClient, own_replicas: Replicas, leads: bool
    ) -> None:
        """The clocks of two members jump ahead by one and two hours, the one that leads raft among
        them or not: the same replica leads under the same term, and leases live on."""
        own_replicas.start(3, **STEADY)
        leader = await own_replicas.leader()
        first = await raft_leader(own_etcd)
        others = [member for member in own_etcd.members if member is not first]
        clocks = {clock_of("self")}
        lease = await own_kv.grant_lease(LEASE_S)
        for hours, member in enumerate([first, others[0]] if leads else others, 1):
            member.child.kill()
            member.child.argv = [*shifted(hours), *member.child.argv]
            member.child.start()
            own_etcd.wait_ready()
            assert clock_of(member.child.pid) not in clocks
            clocks.add(clock_of(member.child.pid))
            after = await own_kv.revision()
            await until(
                lambda a=after: len([x for x in leader.said("ok") if x["revision"] > a]) > 3,
                "it leads on",
            )
        assert await own_kv.keepalive(lease) == LEASE_S
        assert len({x["term"] for p in own_replicas.processes for x in p.said("elected")}) == 1
        logs = [list(process.history()) for process in own_replicas.processes]
        events = await read_history(own_kv, own_replicas.cluster)
        assert check(events, own_replicas.cluster, logs) == []
