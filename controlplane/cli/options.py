"""The global options of a call, as every command finds them (in `ctx.obj` when typer parsed)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlplane.cli.client import Client, Credentials
from controlplane.cli.output import Format
from controlplane.cli.where import DEFAULT_SERVER, Place, configured, is_local, local_place
from controlplane.cli.where import local_topology as _local_topology


@dataclass(slots=True)
class Options:
    """How to print and whom to ask."""

    format: Format = Format.TABLE
    server: str | None = None
    credentials: Credentials = field(default_factory=Credentials)
    config: Path | None = None

    def client(self) -> Client:
        """Return a client of the replicas asked for."""
        place = self.place()
        return Client(place.addresses, place.credentials)

    def place(self) -> Place:
        """Return the replicas asked for and the files to meet them with."""
        local = local_place(_local_topology())
        named = configured(self.config) if self.config else Place()
        given = tuple(part.strip() for part in (self.server or "").split(",") if part.strip())
        addresses = given or named.addresses or local.addresses or (DEFAULT_SERVER,)
        beneath = named.credentials
        if beneath == Credentials() and is_local(addresses, local):
            beneath = local.credentials
        return Place(addresses=addresses, credentials=self.credentials.over(beneath).checked())

    def local_topology(self) -> dict[str, Any]:
        """Return the local topology's description if it is what is asked, else nothing."""
        topology = _local_topology()
        return topology if is_local(self.place().addresses, local_place(topology)) else {}
