"""Who calls: the certificate's SPIFFE URI, or the loopback interface.

`spiffe://<trust domain>/weir/<role>/<name>` or, for agents and replicas,
`spiffe://<trust domain>/weir/<role>/<region>/<name>`. Without TLS (loopback, or said explicitly in
the configuration) everybody is `local` with every role: whoever reaches the port is trusted, which
is why it may not leave the machine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from controlplane.model.permissions import EVERYBODY, RoleName

_SPIFFE: Final = re.compile(
    r"spiffe://[a-z0-9._-]{1,255}/weir/(?P<role>[a-z]+)(?:/(?P<region>[a-z0-9_-]+))?/(?P<name>[A-Za-z0-9._@-]+)"
)
_REGIONAL: Final = {RoleName.AGENT, RoleName.REPLICA}


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A caller: `name` for the audit, `region` only for agents and replicas."""

    name: str
    roles: frozenset[RoleName]
    region: str | None = None


LOCAL: Final = Identity(name="local", roles=EVERYBODY)
NOBODY: Final = Identity(name="", roles=frozenset())


def parse_spiffe(uri: str) -> Identity | None:
    """Read a SPIFFE URI; None when it is not one of ours."""
    match = _SPIFFE.fullmatch(uri)
    if match is None or match["role"] not in set(RoleName):
        return None
    role = RoleName(match["role"])
    if (role in _REGIONAL) != (match["region"] is not None):
        return None
    return Identity(name=uri, roles=frozenset({role}), region=match["region"])


def caller(context: Any, *, tls: bool) -> Identity:
    """Return who calls; NOBODY when the certificate has no SPIFFE URI of ours."""
    if not tls:
        return LOCAL
    names = context.auth_context().get("x509_subject_alternative_name", ())
    for name in names:
        identity = parse_spiffe(name.decode(errors="replace"))
        if identity is not None:
            return identity
    return NOBODY
