"""A replica that shows what it is told: states that a real topology reaches only on a bad night.

It serves the files of the real page and the JSON that the real replica would (`to_json` of the same
messages), over real HTTP with an event stream that stays open. It says the same thing every second, its time
included: the page's clock follows it and stands still too.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from controlplane.adapters.console import PAGE, load_files
from controlplane.adapters.console_feed import frame
from controlplane.adapters.jsonview import to_json
from controlplane.clock import SystemClock, rfc3339
from controlplane.v1 import admin_pb2, common_pb2

REGIONS = ("east", "north", "south")
SINCE_S = 95


def ago(seconds: float) -> Timestamp:
    """Return a time in the past."""
    stamp = Timestamp()
    stamp.FromMilliseconds(SystemClock().wall_ms() - round(seconds * 1000))
    return stamp


@dataclass(slots=True)
class Scene:
    """What the page is to show. `plan` None is a replica without one."""

    channels: int = 4
    regions: tuple[str, ...] = REGIONS
    phases: dict[str, str] = field(default_factory=dict)
    drained: frozenset[str] = frozenset()
    breakers: dict[tuple[str, str], str] = field(default_factory=dict)
    shed_bp: dict[str, int] = field(default_factory=dict)
    plan: bool = True
    status: dict[str, Any] = field(default_factory=dict)
    events: int = 0
    known_s: float | None = None
    """How long etcd has not answered; None while it does."""

    def last_known(self) -> admin_pb2.LastKnown | None:
        """Return how old the answers are."""
        if self.known_s is None:
            return None
        return admin_pb2.LastKnown(age_ms=round(self.known_s * 1000), read_at=ago(self.known_s))

    def names(self) -> list[str]:
        """Names of the channels."""
        return [f"channel_{number:03d}" for number in range(self.channels)]

    def plan_message(self) -> common_pb2.Plan:
        """Return the plan."""
        taking = [r for r in self.regions if self.phase(r) == "healthy" and r not in self.drained]
        weight = {r: 10_000 // len(taking) for r in taking}
        weight[taking[0]] += 10_000 - sum(weight.values())
        return common_pb2.Plan(
            epoch=7,
            term=3,
            committed_at=ago(1),
            panic=self.status.get("panic", False),
            frozen=self.status.get("frozen", False),
            routes=[
                common_pb2.Route(
                    channel=name,
                    shed_bp=self.shed_bp.get(name, 0),
                    reasons=["base_share: alike"],
                    weights=[
                        common_pb2.RegionWeight(region=r, weight_bp=weight.get(r, 0))
                        for r in self.regions
                    ],
                )
                for name in self.names()
            ],
            breakers=[
                common_pb2.BreakerState(
                    region=region,
                    channel=name,
                    state=self.breakers.get((region, name), "closed"),
                    since=ago(SINCE_S),
                    cause="errors 31% of 200 calls, usual 0.4%",
                )
                for region in self.regions
                for name in self.names()
            ],
        )

    def phase(self, region: str) -> str:
        """Return a region's phase."""
        return self.phases.get(region, "healthy")

    def status_message(self) -> admin_pb2.GetStatusResponse:
        """Return the status."""
        told: dict[str, Any] = {
            "cluster": "scene", "replica": "east-0", "region": "east", "leader": "north-0",
            "term": 3, "plan_epoch": 7, "coordinated": True, "subscribers": 4, "version": "0.1.0",
        }  # fmt: skip
        return admin_pb2.GetStatusResponse(
            **{**told, **self.status},
            plan=self.plan_message() if self.plan else None,
            last_known=self.last_known(),
        )

    def region_messages(self) -> admin_pb2.ListRegionsResponse:
        """Return the regions."""
        plan = self.plan_message()
        weights = {w.region: w.weight_bp for w in plan.routes[0].weights} if plan.routes else {}
        listed = [
            admin_pb2.Region(
                name=region,
                role="dr" if region == self.regions[-1] else "primary",
                phase=self.phase(region),
                drained=region in self.drained,
                since=ago(SINCE_S),
                cause="" if self.phase(region) == "healthy" else "no report for 8.4 s",
                capacity_tps=6000,
                report_age_ms=100,
                agents_live=1,
                agents_expected=1,
                load_bp=weights.get(region, 0),
                target_load_bp=weights.get(region, 0),
                utilisation_bp=4700,
                applied_epoch=7,
                votes=[
                    admin_pb2.Vote(vantage=other, opinion="up", last_success_age_ms=100)
                    for other in self.regions
                    if other != region
                ],
            )
            for region in self.regions
        ]
        return admin_pb2.ListRegionsResponse(regions=listed, last_known=self.last_known())

    def stream(self) -> bytes:
        """Return what a new event stream begins with."""
        regions = {
            "now": rfc3339(SystemClock().wall_ms()),
            **to_json(self.region_messages()),
        }
        happened = [
            admin_pb2.Event(
                id=number, at=ago(number), kind="region_ramp", severity="warning", epoch=number,
                message="east now returns with 25 % of its share",
            )
            for number in range(1, self.events + 1)
        ]  # fmt: skip
        return b"".join(
            (
                frame("status", to_json(self.status_message())),
                frame("regions", regions),
                *(frame("decision", to_json(event)) for event in happened),
            )
        )

    def answer(self, path: str) -> Any:
        """Return the JSON of a GET, None for what is not there."""
        known: dict[str, Any] = {
            "/api/console": {
                "cluster": "scene", "replica": "east-0", "peers": [], "budget_ms": 30_000,
                "actions_refused": "this console only shows", "channels": {},
            },
            "/api/history": {"points": []},
            "/api/failovers": {"failovers": []},
        }  # fmt: skip
        return known.get(path)


@contextlib.contextmanager
def shown(scene: Scene) -> Iterator[str]:
    """Serve a scene; yields the page's address."""
    served = load_files(files("controlplane") / "console")
    over, beat = threading.Event(), scene.stream()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/api/events":
                self._begin("text/event-stream")
                while not over.is_set():
                    with contextlib.suppress(OSError):
                        self.wfile.write(beat)
                        self.wfile.flush()
                        over.wait(1.0)
                        continue
                    return
            elif (answer := scene.answer(self.path)) is not None:
                self._begin("application/json")
                self.wfile.write(json.dumps(answer).encode())
            elif file := served.get(self.path.removeprefix("/console/").strip("/") or PAGE):
                self._begin(file.kind)
                self.wfile.write(file.body)
            else:
                self.send_error(404)

        def _begin(self, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()
