"""What the console may change: POST /api/actions/{method}, and everything that stands before it.

The HTTP listener knows no client identity. Actions are therefore allowed only where the same
caller could do the same over gRPC: no TLS is configured, and HTTP listens on loopback. Everywhere
else they are refused and the answer names the command line, which has an identity.

A browser on this machine also runs pages of others. Against those, all of these must hold
- `Origin` and `Host` are this replica's own addresses (a foreign page has a foreign Origin; a name
  rebound to 127.0.0.1 has a foreign Host);
- the header `X-Weir-Console` is there and the content type is JSON: no form and no plain
  cross-origin request can have them, and CORS grants neither;
- `Sec-Fetch-Site`, where the browser sends it, says same-origin.

The body is {"request": the method's request as JSON, "confirm": text}. A change (not a
`validate_only`) must be confirmed by the name of what it changes, typed by a person: the region,
the channel, or for a freeze the cluster. Safety rules cannot be overridden here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import structlog
from aiohttp import web
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message

from controlplane.adapters.admin_changes import AdminService
from controlplane.adapters.console_call import call, refuse
from controlplane.adapters.identity import LOCAL
from controlplane.model.permissions import allowed
from controlplane.v1 import admin_pb2 as pb

log = structlog.get_logger(__name__)

HEADER: Final = "X-Weir-Console"
METHODS: Final[Mapping[str, tuple[type[Message], str]]] = {
    "DrainRegion": (pb.DrainRegionRequest, "region"),
    "UndrainRegion": (pb.UndrainRegionRequest, "region"),
    "StartFailover": (pb.StartFailoverRequest, "from_region"),
    "StartFailback": (pb.StartFailbackRequest, "region"),
    "Freeze": (pb.FreezeRequest, ""),
    "Unfreeze": (pb.UnfreezeRequest, ""),
    "SetOverride": (pb.SetOverrideRequest, "channel"),
    "ClearOverride": (pb.ClearOverrideRequest, "channel"),
}
"""Method -> its request and the field that names what it changes; empty: the cluster."""
_SERVICE: Final = "/controlplane.v1.AdminService/"


class ConsoleActions:
    """The one handler that changes anything. `refusal` is empty where actions are allowed."""

    def __init__(
        self, service: AdminService, *, cluster: str, origins: frozenset[str], refusal: str
    ) -> None:
        self._service = service
        self._cluster = cluster
        self._origins = origins
        self.refusal = refusal

    async def post(self, request: web.Request) -> web.Response:
        """Answer POST /api/actions/{method} with the Operation or an error."""
        stopped = self._stopped(request)
        if stopped is not None:
            return stopped
        name = request.match_info["method"]
        if name not in METHODS or not allowed(_SERVICE + name, LOCAL.roles):
            return refuse(404, "NOT_FOUND", f"no action {name[:64]!r}")
        try:
            body = json.loads(await request.text())
            kind, field = METHODS[name]
            message: Any = ParseDict(body["request"], kind())
            confirm = str(body.get("confirm", ""))
        except (ValueError, TypeError, KeyError, ParseError, RecursionError):
            return refuse(400, "INVALID_ARGUMENT", 'the body must be {"request": …, "confirm": …}')
        if message.mutation.override_rules:
            return refuse(
                403, "PERMISSION_DENIED", "override a safety rule with weir … --override-rule"
            )
        target = getattr(message, field) if field else self._cluster
        if not message.mutation.validate_only and confirm != target:
            return refuse(400, "INVALID_ARGUMENT", f"confirm: type {target} to confirm")
        return await call(getattr(self._service, name), message)

    def _stopped(self, request: web.Request) -> web.Response | None:
        """Return why this request may not act, None when it may."""
        if self.refusal:
            return refuse(403, "PERMISSION_DENIED", self.refusal)
        origin = request.headers.get("Origin", "")
        foreign = (
            origin not in self._origins
            or f"http://{request.host}" not in self._origins
            or request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin"
            or HEADER not in request.headers
        )
        if foreign:
            log.warning("console_action_foreign", origin=origin[:128], host=request.host[:128])
            return refuse(
                403, "PERMISSION_DENIED", "only this replica's own console may ask for this"
            )
        if request.content_type != "application/json":
            return refuse(415, "INVALID_ARGUMENT", "Content-Type must be application/json")
        return None
