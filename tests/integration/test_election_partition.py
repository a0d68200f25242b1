"""The leader's whole site (replica and etcd member) is cut off with nft, in network namespaces.

Made where the machine allows namespaces (root); the same cut through proxies, which needs nothing,
is in test_election.py.
"""

from __future__ import annotations

from pathlib import Path

from tests.support import netns
from tests.support.etcd import *  # noqa: F403 - fixtures
from tests.support.replicas import now_ms, until

SETTINGS = {"tick_ms": 100, "rules": {"takeover_after_ms": 800, "demote_after_ms": 700}}

if netns.possible():

    async def test_a_site_cut_off_is_replaced_and_comes_back(
        etcd_scratch: Path, cluster_name: str
    ) -> None:
        """All packets, then only leaving ones, then only arriving ones: each time the others go on
        without the cut-off leader, it writes nothing, and healed it follows."""
        sites = netns.Sites(etcd_scratch, cluster_name).start(**SETTINGS)
        try:
            for which in ("both", "out", "in"):
                begun = now_ms()
                leader = await until(
                    lambda t=begun: next(
                        (p for p in sites.processes if len(p.said("ok", t)) > 3), None
                    ),
                    "one leads",
                )
                site = sites.processes.index(leader)
                cut = now_ms()
                sites.cut(site, which)
                other = await until(
                    lambda t=cut, me=leader: next(
                        (p for p in sites.processes if p is not me and len(p.said("ok", t)) > 3),
                        None,
                    ),
                    "another leads",
                )
                await until(lambda t=cut, p=leader: p.said("lost", t), "the one cut off steps back")
                term = other.said("elected", cut)[-1]["term"]  # the revision it began at
                assert not any(line["revision"] > term for line in leader.said("ok"))
                sites.heal(site)
                await until(lambda t=now_ms(), p=other: len(p.said("ok", t)) > 3, "it leads on")  # noqa: B008
            assert sites.judge() == []
        finally:
            sites.stop()
