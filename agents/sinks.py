"""Who must have a plan before it counts as applied at this agent."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from agents.probes.dns import Resolver
from controlplane.model.dataplane import DataPlane
from controlplane.model.errors import UnavailableError
from controlplane.model.plan import Plan

if TYPE_CHECKING:
    from agents.xds_files import XdsFiles


class FreshNames:
    """Makes the probes resolve names anew with each new plan."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._epoch = 0

    async def take(self, plan: Plan, *, confirmed: bool) -> None:
        """Flush the DNS cache once an epoch."""
        del confirmed
        if plan.epoch != self._epoch:
            self._resolver.flush()
            self._epoch = plan.epoch


class EnvoyFiles:
    """Writes the files of a local Envoy, in a thread: each is forced to disk.

    They follow committed plans only: a local override passes by, and so does its end, which must
    not renew what lives on confirmations.
    """

    def __init__(self, directory: Path, dataplane: DataPlane, listener: tuple[str, int]) -> None:
        self._directory = directory
        self._dataplane = dataplane
        self._listener = listener
        self._files: XdsFiles | None = None
        self._vouched = False
        self._written: Plan | None = None

    def epoch_on_disk(self) -> int:
        """Return the epoch the files hold; 0 when there are none, or the folder is out of reach."""
        try:
            return self._open().epoch
        except OSError:
            return 0

    async def take(self, plan: Plan, *, confirmed: bool) -> None:
        """Bring the files to the plan; raises when they could not be written."""
        if plan.local is not None or (plan is self._written and not confirmed):
            return
        self._vouched = self._vouched or confirmed  # what was once vouched for is not written empty
        await asyncio.to_thread(self._write, plan, self._vouched)
        self._written = plan

    def _write(self, plan: Plan, confirmed: bool) -> None:
        files = self._open()
        if not files.write(plan, confirmed=confirmed):
            raise UnavailableError(f"Envoy's files hold a newer plan, epoch {files.epoch}")

    def _open(self) -> XdsFiles:
        # only agents that feed an Envoy pay for its 36 MB of message types
        from agents.xds_files import XdsFiles  # noqa: PLC0415

        if self._files is None:
            self._files = XdsFiles(self._directory, self._dataplane, listener=self._listener)
        return self._files
