"""The running local topology: starts every member in order, restarts what died, stops everything.

Rules
- Children are started from the main thread only: the kernel ties a child's life to the *thread*
  that forked it.
- Starting waits for readiness that is observed (an answer), never for time to pass. A child that
  ends while it is waited for fails the start at once, with its last words.
- Once running, nothing is restarted by itself: a dead process is what the demo is about.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Any

import aiohttp

from controlplane.clock import SystemClock
from controlplane.dev import members
from controlplane.dev.layout import Layout
from controlplane.dev.members import Member, Role, State
from controlplane.dev.process import STOP_GRACE_S
from controlplane.model.errors import WeirError

START_S = 120.0
"""How long one phase of the start may take on a slow machine."""
POLL_MS = 50
PAYER_GRACE_S = 2.0
CALL_S = 1.0
"""Deadline of one question to a child."""
_PATHS = {
    Role.ETCD: "/health",
    Role.GATEWAY: "/healthz",
    Role.REPLICA: "/livez",
    Role.AGENT: "/livez",
    Role.ENVOY: "/ready",
    Role.PAYER: "/stats",
}
_HTTP_OK = 200


class StartError(WeirError):
    """The topology could not be started; the message says what to look at."""


class Cluster:
    """Every process of one `weir dev`."""

    def __init__(self, layout: Layout, rate_per_s: float) -> None:
        self.layout = layout
        self.members: dict[str, Member] = {}
        self.faults: dict[tuple[str, str], dict[str, float]] = {}
        self._rate_per_s = rate_per_s
        self._clock = SystemClock()
        self._session: aiohttp.ClientSession | None = None

    # -- questions --

    def of_region(self, region: str) -> list[Member]:
        """Members whose loss is the loss of the region."""
        return [m for m in self.members.values() if m.region == region]

    def of_role(self, role: Role, region: str = "") -> list[Member]:
        """Members of one role, optionally of one region."""
        found = [m for m in self.members.values() if m.role is role]
        return [m for m in found if not region or m.region == region]

    async def get_json(self, port: int, path: str) -> Any:
        """GET from a loopback port; None when there is no good answer in time."""
        return await self.call_json("GET", port, path)

    async def call_json(self, method: str, port: int, path: str, body: Any = None) -> Any:
        """Ask a loopback port; None when there is no good answer in time."""
        url = f"http://127.0.0.1:{port}{path}"
        try:
            async with self._http.request(method, url, json=body) as answer:
                if answer.status != _HTTP_OK:
                    return None
                return await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError, OSError):
            return None

    @property
    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=CALL_S)
            self._session = aiohttp.ClientSession(timeout=timeout)
        return self._session

    # -- start --

    async def start(self, say: Callable[[str], None]) -> None:
        """Start everything in order; StartError or MissingBinaryError says why not."""
        say("starting etcd, Redis and the gateways")
        await self._bring_up(members.infrastructure(self.layout))
        say("starting replicas and agents")
        await self._bring_up([*members.daemons(self.layout), members.envoy(self.layout)])
        say("waiting for the first plan and the first payment through Envoy")
        await self._until(self._plan_committed, "no plan was committed", Role.REPLICA)
        await self._until(self._payment_served, "Envoy serves no payment", Role.ENVOY)
        await self._bring_up([members.payer(self.layout, self._rate_per_s)])

    async def _bring_up(self, batch: Iterable[Member]) -> None:
        batch = list(batch)
        for member in batch:
            self.members[member.name] = member
            member.child.start()
        for member in batch:
            await self.wait_ready(member)

    async def wait_ready(self, member: Member) -> None:
        """Wait until a member answers; StartError when it ends or stays silent."""

        async def ready() -> bool:
            if not member.child.alive:
                raise StartError(_last_words(member))
            return await self.answers(member)

        await self._poll(ready, f"{member.name} does not answer; see {member.child.log}")

    async def answers(self, member: Member) -> bool:
        """Whether a member does its work (etcd: can write; Redis: answers PING)."""
        if member.role in {Role.REDIS, Role.SENTINEL}:
            return await _redis_answers(member.port)
        path = _PATHS[member.role]
        url = f"http://127.0.0.1:{member.port}{path}"
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with self._http.get(url) as answer:
                return answer.status == _HTTP_OK
        return False

    async def _until(self, ready: Callable[[], Any], failure: str, role: Role) -> None:
        logs = ", ".join(str(m.child.log) for m in self.of_role(role))

        async def checked() -> bool:
            for member in self.members.values():
                if not member.child.alive:
                    raise StartError(_last_words(member))
            return bool(await ready())

        await self._poll(checked, f"{failure}; see {logs}")

    async def _poll(self, ready: Callable[[], Any], failure: str) -> None:
        deadline = time.perf_counter() + START_S
        while not await ready():
            if time.perf_counter() > deadline:
                raise StartError(f"{failure} (within {START_S:g} s)")
            await self._clock.sleep_ms(POLL_MS)

    async def _plan_committed(self) -> bool:
        for member in self.of_role(Role.REPLICA):
            plan = await self.get_json(member.port, "/api/plan")
            if not plan or not plan.get("epoch") or not plan.get("routes"):
                return False
        return True

    async def _payment_served(self) -> bool:
        channel = self.layout.content.channels[0].name
        url = f"http://{self.layout.address('envoy/listener')}/v1/channels/{channel}/payments"
        headers = {"Idempotency-Key": f"weir-dev-ready-{time.perf_counter_ns()}"}
        body = {"amount": 1, "currency": "CNY"}
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with self._http.post(url, json=body, headers=headers) as answer:
                return answer.status == _HTTP_OK
        return False

    # -- while it runs --

    async def restart(self, batch: Iterable[Member]) -> list[str]:
        """Wake what hangs, start what is dead; return the names of what was started."""
        batch = list(batch)
        started = []
        for member in batch:
            if member.state is State.HUNG:
                member.child.resume()
            if member.state is State.DEAD:
                if member.role is Role.REDIS:
                    primary = await self.redis_primary()
                    port = primary.port if primary else 0
                    member.child.argv = members.redis_argv(self.layout, member.region, port)
                member.child.start()
                started.append(member.name)
        for member in batch:
            if member.role is not Role.ETCD or self._etcd_quorum():
                await self.wait_ready(member)
        await self._reapply_faults(batch)
        return started

    def _etcd_quorum(self) -> bool:
        etcd = self.of_role(Role.ETCD)
        running = [m for m in etcd if m.state is State.RUNNING]
        return len(running) > len(etcd) // 2

    async def set_fault(self, region: str, channel: str, fault: dict[str, float]) -> bool:
        """Tell a region's gateway how its provider misbehaves; kept for its next life."""
        self.faults[region, channel] = fault
        return await self._send_fault(region, channel)

    async def _send_fault(self, region: str, channel: str) -> bool:
        port = self.layout.ports[f"gateway-{region}/fault"]
        fault = self.faults[region, channel]
        return await self.call_json("PUT", port, f"/faults/{channel}", fault) is not None

    async def _reapply_faults(self, batch: Iterable[Member]) -> None:
        back = {member.region for member in batch if member.role is Role.GATEWAY}
        for region, channel in list(self.faults):
            if region in back:
                await self._send_fault(region, channel)

    async def redis_primary(self) -> Member | None:
        """Return the Redis that is primary now; None while there is none."""
        for member in self.of_role(Role.REDIS):
            if member.state is State.RUNNING and "role:master" in await _redis_role(member.port):
                return member
        return None

    async def etcd_leader(self) -> Member | None:
        """Return the etcd member that leads raft now; None while there is none."""
        for member in self.of_role(Role.ETCD):
            path = "/v3/maintenance/status"
            status = await self.call_json("POST", member.port, path, {})
            if status and status.get("leader") == status["header"]["member_id"]:
                return member
        return None

    # -- stop --

    async def close(self) -> None:
        """Close connections to the children."""
        if self._session is not None:
            await self._session.close()

    def stop(self) -> None:
        """Stop everything; SIGKILL for what does not end within the grace."""
        for member in self.of_role(Role.PAYER):  # first, so that it sees no end of the others
            member.child.resume()
            member.child.terminate()
            member.child.wait_end(PAYER_GRACE_S)
        last = (Role.ETCD, Role.REDIS, Role.SENTINEL)
        asked = [m for m in self.members.values() if m.role not in last]
        for member in asked:
            member.child.resume()
            member.child.terminate()
        deadline = time.perf_counter() + STOP_GRACE_S
        for member in asked:
            member.child.wait_end(max(0.0, deadline - time.perf_counter()))
        for member in self.members.values():
            member.child.kill()  # the servers' state dies with the demo: no need to ask nicely


def _last_words(member: Member) -> str:
    process = member.child.process
    code = process.returncode if process else None
    lines = [line for line in member.child.tail(5).splitlines() if line.strip()]
    said = f": {lines[-1].strip()}" if lines else ""
    return f"{member.name} ended at start (exit {code}){said}; see {member.child.log}"


async def _redis_answers(port: int) -> bool:
    return (await _redis_say(port, b"PING\r\n")).startswith(b"+PONG")


async def _redis_role(port: int) -> str:
    return (await _redis_say(port, b"INFO replication\r\n")).decode(errors="replace")


async def _redis_say(port: int, command: bytes) -> bytes:
    """Send one inline command and read the first part of the answer; empty when none comes."""
    try:
        async with asyncio.timeout(CALL_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(command)
                return await reader.read(4096)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return b""
