"""The global options of a call, as every command finds them (in `ctx.obj` when typer parsed)."""

from __future__ import annotations

from dataclasses import dataclass, field

from controlplane.cli.client import Client, Credentials, local_credentials, servers
from controlplane.cli.output import Format


@dataclass(slots=True)
class Options:
    """How to print and whom to ask."""

    format: Format = Format.TABLE
    server: str | None = None
    credentials: Credentials = field(default_factory=Credentials)

    def client(self) -> Client:
        """Return a client of the replicas asked for."""
        credentials = self.credentials
        if credentials.ca_file is None and self.server is None:
            credentials = local_credentials() or credentials
        return Client(servers(self.server), credentials)
