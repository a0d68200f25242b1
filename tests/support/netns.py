"""Three sites in network namespaces of their own, joined by a bridge, cut apart with nft.

Each site has an address, a member of etcd and a leader process. Needs root; nothing outside the
namespaces is touched, and they vanish with `stop`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from controlplane.dev.process import Child, find_binary
from tests.support.replicas import ROOT, LeaderProcess

CUTS: Final = {
    "both": ("input iifname", "output oifname"),
    "in": ("input iifname",),
    "out": ("output oifname",),
}
"""Which packets a cut drops: all, arriving ones, leaving ones."""


def possible() -> bool:
    """Whether this machine lets us make namespaces."""
    if os.geteuid() != 0:
        return False
    name = f"weir-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode == 0:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return made.returncode == 0


def run(*command: str, stdin: str = "") -> str:
    """Run a command that must succeed."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@dataclass(slots=True)
class Sites:
    """The three sites; `processes` are their leader processes."""

    directory: Path
    cluster: str
    processes: list[LeaderProcess] = field(default_factory=list)
    members: list[Child] = field(default_factory=list)

    def _ns(self, site: int | str) -> str:
        return f"weir-{os.getpid()}-{site}"

    @property
    def endpoints(self) -> list[str]:
        """Client addresses of the members."""
        return [f"10.213.7.{site + 1}:2379" for site in range(3)]

    def start(self, **settings: Any) -> Sites:
        """Make the namespaces, start etcd and one leader process per site."""
        hub = self._ns("hub")
        run("ip", "netns", "add", hub)
        run("ip", "-n", hub, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", hub, "link", "set", "br0", "up")
        for site in range(3):
            name = self._ns(site)
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "add", "up0", "type", "veth", "peer", "name", f"s{site}",
                "netns", hub)  # fmt: skip
            run("ip", "-n", hub, "link", "set", f"s{site}", "master", "br0", "up")
            run("ip", "-n", name, "addr", "add", f"10.213.7.{site + 1}/24", "dev", "up0")
            run("ip", "-n", name, "link", "set", "up0", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
        initial = ",".join(f"m{s}=http://10.213.7.{s + 1}:2380" for s in range(3))
        for site in range(3):
            here = f"http://10.213.7.{site + 1}"
            argv = [
                "ip", "netns", "exec", self._ns(site), find_binary("etcd"), f"--name=m{site}",
                f"--data-dir={self.directory / f'm{site}'}",
                f"--listen-client-urls={here}:2379", f"--advertise-client-urls={here}:2379",
                f"--listen-peer-urls={here}:2380", f"--initial-advertise-peer-urls={here}:2380",
                f"--initial-cluster={initial}", "--log-level=warn",
            ]  # fmt: skip
            self.members.append(Child(f"m{site}", argv, self.directory / f"m{site}.log").start())
        for site, region in enumerate(("east", "north", "south")):
            own = {
                "endpoints": self.endpoints, "cluster": self.cluster, "replica": f"a{site}",
                "region": region, "rank": site, **settings,
            }  # fmt: skip
            argv = [
                "ip", "netns", "exec", self._ns(site), sys.executable, "-m",
                "tests.support.leader_process", json.dumps(own),
            ]  # fmt: skip
            child = Child(f"a{site}", argv, self.directory / f"a{site}.log", cwd=ROOT)
            self.processes.append(LeaderProcess(child.start(), own))
        return self

    def cut(self, site: int, which: str) -> None:
        """Drop packets between a site and the others."""
        chains = "; ".join(
            f"chain c{i} {{ type filter hook {rule.split()[0]} priority 0; "
            f'{rule.split()[1]} != "lo" drop; }}'
            for i, rule in enumerate(CUTS[which])
        )
        rules = f"table inet cut {{ {chains}; }}"
        run("ip", "netns", "exec", self._ns(site), "nft", "-f", "-", stdin=rules)

    def heal(self, site: int) -> None:
        """Let packets through again."""
        run("ip", "netns", "exec", self._ns(site), "nft", "delete", "table", "inet", "cut")

    def judge(self) -> list[str]:
        """Read the history from within a site and check it against the processes' lines."""
        logs = self.directory / "logs.json"
        logs.write_text(json.dumps([process.history() for process in self.processes]))
        found: list[str] = json.loads(
            run(
                "ip", "netns", "exec", self._ns(0), sys.executable, "-m", "tests.support.history",
                json.dumps(self.endpoints), self.cluster, str(logs),
            )
        )  # fmt: skip
        return found

    def stop(self) -> None:
        """Kill everything and remove the namespaces."""
        for child in [*(p.child for p in self.processes), *self.members]:
            child.kill()
        for site in (0, 1, 2, "hub"):
            subprocess.run(["ip", "netns", "del", self._ns(site)], capture_output=True, check=False)
