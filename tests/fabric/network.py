"""Three regions and a shop as network namespaces around a router, and what can go wrong between.

The laboratory runs in a network and mount namespace of its own (`__main__` enters it), which is the
router. When its processes end, for whatever reason, the kernel removes all of it: nothing is left
to clean up. Faults act on forwarded packets only, so the laboratory itself, which talks to everyone
from the router, keeps seeing what it measures.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from controlplane.dev.process import Child

SHOP = "shop"
"""Where Envoy and the payer stand."""
RTT_MS: Mapping[tuple[str, str], int] = {
    ("east", "north"): 28,
    ("east", "south"): 32,
    ("north", "south"): 42,
}
"""Round trips between regions. The shop is near every region: it has none."""
_TUN = "delay0"
_TABLE = "100"


def run(*argv: str, stdin: str = "") -> str:
    """Run a command; CalledProcessError with its output when it fails."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stdout}{done.stderr}")
    return done.stdout


class Network:
    """Namespaces, links, delays and faults."""

    def __init__(self, regions: Sequence[str]) -> None:
        self.places = [*regions, SHOP]
        self._numbers = {place: number for number, place in enumerate(self.places, 1)}
        self._delay: Child | None = None

    def address(self, place: str) -> str:
        """IP address of a place."""
        return f"10.99.{self._numbers[place]}.1"

    def subnet(self, place: str) -> str:
        """Network of a place."""
        return f"10.99.{self._numbers[place]}.0/24"

    def enter(self, place: str, argv: Sequence[str]) -> list[str]:
        """Return a command that runs inside a place; it becomes that process, same pid."""
        return ["nsenter", f"--net=/run/netns/{place}", "--", *argv]

    def build(self, log: Path) -> None:
        """Make everything. Only inside namespaces of our own: see `__main__`."""
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        run("ip", "link", "set", "lo", "up")
        for place in self.places:
            self._link(place)
        run("nft", "-f", "-", stdin="table inet lab {\n chain forward {\n"
            "  type filter hook forward priority 0; policy accept;\n }\n}\n")  # fmt: skip
        self._start_delay(log)

    def _link(self, place: str) -> None:
        number, near = self._numbers[place], f"v-{place}"
        run("ip", "netns", "add", place)
        run("ip", "link", "add", near, "type", "veth", "peer", "name", "eth0", "netns", place)
        run("ip", "addr", "add", f"10.99.{number}.254/24", "dev", near)
        run("ip", "link", "set", near, "up")
        for command in (
            f"ip addr add 10.99.{number}.1/24 dev eth0",
            "ip link set eth0 up",
            "ip link set lo up",
            f"ip route add default via 10.99.{number}.254",
        ):
            run(*self.enter(place, command.split()))

    def _start_delay(self, log: Path) -> None:
        one_way = [f"{a}={self.subnet(a)}" for a in self.places]
        pairs = [f"{a}:{b}:{rtt / 2}" for (a, b), rtt in RTT_MS.items() if a in self._numbers]
        argv = [sys.executable, "-m", "tests.fabric.delay", _TUN, ",".join(one_way), *pairs]
        run("ip", "tuntap", "add", "dev", _TUN, "mode", "tun")
        run("ip", "link", "set", _TUN, "up")
        self._delay = Child("delay", argv, log).start()
        run("ip", "route", "add", "default", "dev", _TUN, "table", _TABLE)
        for a, b in RTT_MS:
            for source, target in ((a, b), (b, a)):
                run("ip", "rule", "add", "iif", f"v-{source}", "to", self.subnet(target),
                    "lookup", _TABLE)  # fmt: skip

    # -- faults --

    def _rule(self, text: str) -> None:
        run("nft", "add", "rule", "inet", "lab", "forward", *text.split())

    def isolate(self, place: str) -> None:
        """Nothing in, nothing out."""
        self.silence(place)
        self._rule(f"ip daddr {self.subnet(place)} drop")

    def silence(self, place: str) -> None:
        """Drop what leaves a place: it hears everybody, nobody hears it."""
        self._rule(f"ip saddr {self.subnet(place)} drop")

    def black_hole(self, place: str, port: int) -> None:
        """Drop what goes to one port of a place: its route leads nowhere."""
        self._rule(f"ip daddr {self.subnet(place)} tcp dport {port} drop")

    def lose(self, place: str, percent: int) -> None:
        """Lose part of what leaves a place."""
        self._rule(f"ip saddr {self.subnet(place)} numgen random mod 100 < {percent} drop")

    def heal(self) -> None:
        """Take every fault away."""
        run("nft", "flush", "chain", "inet", "lab", "forward")

    def close(self) -> None:
        """Stop the forwarder; the kernel does the rest."""
        if self._delay:
            self._delay.kill()
