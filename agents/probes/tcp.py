"""TCP probe: a connection is accepted.

It proves that the name resolves, the route carries packets both ways and something listens. It does
not prove that an application is alive: the kernel of a stopped process goes on accepting until its
queue is full. Use http or grpc wherever the target speaks it.
"""

from __future__ import annotations

from agents.probes.dial import connect
from agents.probes.dns import Resolver
from agents.probes.observation import Trace
from agents.targets import Target


async def probe(target: Target, resolver: Resolver, trace: Trace) -> None:
    """Return when the target accepted a connection; OSError if not."""
    addresses = await resolver.resolve(target.host, trace)
    with trace.phase("tcp"):
        sock = await connect(addresses, target, trace)
    sock.close()
