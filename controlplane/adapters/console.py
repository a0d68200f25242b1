"""The console on a replica: its page, what the page reads, and what it may ask for.

- `/` and `/console/…`: the page; static files of the package, nothing from elsewhere.
- `/api/console`: what does not change: this replica, the others' addresses, the failover budget,
  whether actions are allowed.
- `/api/regions`, `/api/channels`, `/api/failovers`, `/api/explain/{channel}` and
  `/api/operations/{id}`: AdminService's answers as JSON.
- `/api/history`: how the load of the regions changed, as this replica saw it.
- `POST /api/actions/{method}`: see console_actions.

When its replica dies an open page goes on with the next one. So each replica lets the pages of the
configured replicas read `GET /api/*` (CORS), and the page's policy (CSP) lets it connect to these
and to nobody else.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Final

from aiohttp import web

from controlplane.adapters.admin_changes import AdminService
from controlplane.adapters.console_actions import ConsoleActions
from controlplane.adapters.console_call import call
from controlplane.adapters.console_feed import ConsoleFeed
from controlplane.adapters.grpc_server import LOOPBACK
from controlplane.config import WeirConfig
from controlplane.model.topology import Topology
from controlplane.v1 import admin_pb2 as pb

PAGE: Final = "index.html"
CALM: Final = 1024
"""Files below this many bytes are not compressed."""
FAILOVERS_SHOWN: Final = 20
KINDS: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
"""What is served, by the end of a file's name; nothing else is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    body: bytes
    packed: bytes
    kind: str
    etag: str


class Console:
    """Routes of the console."""

    def __init__(
        self,
        config: WeirConfig,
        admin: AdminService,
        feed: ConsoleFeed,
        topology: Callable[[], Topology],
    ) -> None:
        self._config = config
        self._admin = admin
        self._topology = topology
        self.feed = feed
        self.peers = peers(config)
        self._actions = ConsoleActions(
            admin,
            cluster=config.cluster.name,
            origins=frozenset(origins(config.server.http_listen)),
            refusal=actions_refusal(config),
        )
        self.readers: Final = frozenset(o for p in self.peers for o in origins(p["http"]))
        self._files = load_files(files("controlplane") / "console")

    def security_policy(self) -> str:
        """Return the page's Content-Security-Policy."""
        connect = " ".join(["'self'", *sorted(self.readers)])
        return (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
            f"connect-src {connect}; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'; require-trusted-types-for 'script'"
        )

    def routes(self) -> list[web.RouteDef]:
        """Return what to add to the application."""
        return [
            web.get("/", self._get_file),
            web.get("/console/{path:.+}", self._get_file),
            web.get("/api/console", self._get_console),
            web.get("/api/regions", self._get_regions),
            web.get("/api/channels", self._get_channels),
            web.get("/api/failovers", self._get_failovers),
            web.get("/api/history", self._get_history),
            web.get("/api/explain/{channel}", self._get_explanation),
            web.get("/api/operations/{id}", self._get_operation),
            web.post("/api/actions/{method}", self._actions.post),
        ]

    async def _get_file(self, request: web.Request) -> web.Response:
        found = self._files.get(request.match_info.get("path", PAGE))
        if found is None:
            raise web.HTTPNotFound(text="no such file\n")
        headers = {"ETag": found.etag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if request.headers.get("If-None-Match") == found.etag:
            return web.Response(status=304, headers=headers)
        body = found.body
        if found.packed and "gzip" in request.headers.get("Accept-Encoding", ""):
            body, headers["Content-Encoding"] = found.packed, "gzip"
        return web.Response(body=body, headers={**headers, "Content-Type": found.kind})

    async def _get_console(self, _: web.Request) -> web.Response:
        topology = self._topology()
        return web.json_response(
            {
                "cluster": self._config.cluster.name,
                "replica": self._config.cluster.id,
                "peers": self.peers,
                "budget_ms": topology.policy.budget_ms,
                "actions_refused": self._actions.refusal,
                "channels": {
                    str(c.name): {"regions": list(c.regions), "demand_tps": c.demand_tps}
                    for c in topology.channels
                },
            }
        )

    async def _get_regions(self, _: web.Request) -> web.Response:
        return await call(self._admin.ListRegions, pb.ListRegionsRequest())

    async def _get_channels(self, _: web.Request) -> web.Response:
        return await call(self._admin.ListChannels, pb.ListChannelsRequest())

    async def _get_failovers(self, _: web.Request) -> web.Response:
        request = pb.ListFailoversRequest(page_size=FAILOVERS_SHOWN)
        return await call(self._admin.ListFailovers, request)

    async def _get_history(self, _: web.Request) -> web.Response:
        return web.json_response({"points": self.feed.history()})

    async def _get_explanation(self, request: web.Request) -> web.Response:
        wanted = pb.ExplainRouteRequest(channel=request.match_info["channel"])
        return await call(self._admin.ExplainRoute, wanted)

    async def _get_operation(self, request: web.Request) -> web.Response:
        wanted = pb.GetOperationRequest(id=request.match_info["id"])
        return await call(self._admin.GetOperation, wanted)


def peers(config: WeirConfig) -> list[dict[str, Any]]:
    """List the replicas whose HTTP address is configured: id, region, http, self."""
    return [
        {
            "id": replica.id,
            "region": name,
            "http": replica.http,
            "self": replica.id == config.cluster.id,
        }
        for name, region in sorted(config.regions.items())
        for replica in region.replicas
        if replica.http is not None
    ]


def origins(address: str) -> tuple[str, ...]:
    """Return the origins a browser may give to a page of `address`; loopback has two names."""
    host, _, port = address.rpartition(":")
    names = {host, "localhost"} if address.startswith(LOOPBACK) else {host}
    return tuple(f"http://{name}:{port}" for name in sorted(names))


def actions_refusal(config: WeirConfig) -> str:
    """Return why the console may not act here, empty where it may."""
    use = "use the command line, e.g. weir drain REGION --reason …"
    if config.tls.enabled:
        return (
            "this console only shows: changes need a client certificate, and a browser has none; "
            + use
        )
    if not config.server.http_listen.startswith(LOOPBACK):
        return (
            "this console only shows: it listens beyond loopback and cannot tell who asks; " + use
        )
    return ""


def load_files(root: Traversable, prefix: str = "") -> Mapping[str, _File]:
    """Read the page's files once: a file changed on disk is served after a restart."""
    found: dict[str, _File] = {}
    for entry in root.iterdir():
        if entry.is_dir():
            found.update(load_files(entry, f"{prefix}{entry.name}/"))
            continue
        kind = KINDS.get(entry.name.rpartition(".")[2])
        if kind is None:
            continue
        body = entry.read_bytes()
        packed = gzip.compress(body, mtime=0) if len(body) > CALM else b""
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        found[prefix + entry.name] = _File(body=body, packed=packed, kind=kind, etag=etag)
    return found
