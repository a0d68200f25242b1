"""What really happened in etcd, and whether it was allowed: the history and its checker.

etcd keeps every revision until compaction, so the history is read back whole after a test: no
recorder can miss what it judges. The checker knows nothing of how the writers work.

Rules (the first word of a violation)
- term: a write says which term it belongs to; that term was the current one at its revision.
- interleave: once a term has written, no older term writes again.
- epoch: the epochs of committed plans strictly rise.
- chain: within a term the numbers of the writes strictly rise (no late copy was applied).
- acked: a commit that was acknowledged is in the history, once, at the revision that was told.
- refused: a commit that was refused is not in the history.
- event: ids of events strictly rise and are never used twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlplane.adapters import wire
from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.etcd_keys import Keys, number_of, unpack_plan
from controlplane.model.errors import AmbiguousError, UnavailableError
from controlplane.ports import Put, WatchEvent


async def read_history(kv: EtcdClient, cluster: str) -> list[WatchEvent]:
    """Read every change below the cluster's prefix since the beginning (or last compaction)."""
    root = Keys(cluster).root
    end = root + b"zz-end"
    last = 0
    while not last:
        with contextlib.suppress(AmbiguousError, UnavailableError):  # any later mark does as well
            last = (await kv.txn((), [Put(key=end, value=b"")])).revision
    events: list[WatchEvent] = []
    async with contextlib.aclosing(kv.watch(root, 1)) as batches:
        async for batch in batches:
            events += batch
            if batch[-1].mod_revision >= last:
                return [event for event in events if event.key != end]
    raise AssertionError("a watch never ends by itself")


def epochs(events: Iterable[WatchEvent], cluster: str) -> list[int]:
    """Return the epochs of every plan ever committed, in the order of the revisions."""
    plan = Keys(cluster).plan
    return [int(unpack_plan(e.value)[0]) for e in events if e.key == plan and e.value is not None]


@dataclass(slots=True)
class _Walk:
    """State of the checker while it walks through the revisions."""

    term: int = 0
    newest_term: int = 0
    epoch: int = 0
    last_event: int = 0
    seqs: dict[int, int] = field(default_factory=dict)
    commits: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)


def check(
    events: Iterable[WatchEvent], cluster: str, logs: Iterable[Sequence[Mapping[str, Any]]] = ()
) -> list[str]:
    """Return every violation, in the order of the revisions; `logs` are the writers' own lines."""
    keys = Keys(cluster)
    walk = _Walk()
    revisions: dict[int, list[WatchEvent]] = {}
    for event in events:
        revisions.setdefault(event.mod_revision, []).append(event)
    for revision in sorted(revisions):
        _revision(walk, keys, revision, revisions[revision])
    for log in logs:
        _acknowledged(walk, log)
    return walk.found


def _revision(walk: _Walk, keys: Keys, revision: int, changes: Sequence[WatchEvent]) -> None:
    for change in changes:  # a claim puts leader key and heartbeat at one revision
        if change.key == keys.leader:
            walk.term = 0 if change.value is None else revision
    for change in changes:
        if change.value is None:
            continue
        if change.key == keys.heartbeat:
            pulse = json.loads(change.value)
            if (term := pulse.get("term")) is not None:  # the claim's own pulse names none
                _writes(walk, revision, term, "heartbeat")
                if pulse["seq"] <= walk.seqs.get(term, -1):
                    walk.found.append(
                        f"chain: revision {revision}: write {pulse['seq']} of term {term} after "
                        f"write {walk.seqs[term]}"
                    )
                walk.seqs[term] = pulse["seq"]
        elif change.key == keys.plan:
            epoch, data = unpack_plan(change.value)
            plan = wire.parse_plan(data)
            _writes(walk, revision, plan.term, f"plan {epoch}")
            if epoch <= walk.epoch:
                walk.found.append(f"epoch: revision {revision}: {epoch} after {walk.epoch}")
            walk.epoch = max(walk.epoch, epoch)
            walk.commits.setdefault((plan.term, epoch), []).append(revision)
        elif change.key.startswith(keys.events):
            number = number_of(change.key)
            if number <= walk.last_event:
                walk.found.append(f"event: revision {revision}: {number} after {walk.last_event}")
            walk.last_event = max(walk.last_event, number)


def _writes(walk: _Walk, revision: int, term: int, what: str) -> None:
    if term != walk.term:
        walk.found.append(
            f"term: revision {revision}: {what} of term {term} while the term was {walk.term}"
        )
    if term < walk.newest_term:
        walk.found.append(
            f"interleave: revision {revision}: {what} of term {term} after {walk.newest_term}"
        )
    walk.newest_term = max(walk.newest_term, term)


def _acknowledged(walk: _Walk, log: Sequence[Mapping[str, Any]]) -> None:
    """Compare one writer's own story with the history."""
    trying: Mapping[str, Any] | None = None
    for line in log:
        if line["op"] == "try":
            trying = line
        elif line["op"] == "ok":
            where = walk.commits.get((line["term"], line["epoch"]), [])
            if where != [line["revision"]]:
                walk.found.append(
                    f"acked: epoch {line['epoch']} of term {line['term']} was told at revision "
                    f"{line['revision']}, found at {where}"
                )
        elif (
            line["op"] == "refused"
            and trying
            and trying["term"] == line["term"]
            and (where := walk.commits.get((trying["term"], trying["epoch"])))
        ):
            walk.found.append(
                f"refused: epoch {trying['epoch']} of term {trying['term']} is at {where}"
            )


async def _main(endpoints: Sequence[str], cluster: str, logs: list[Any]) -> None:
    """Print the violations of a cluster's history as JSON."""
    kv = await EtcdClient.connect(endpoints)
    events = await read_history(kv, cluster)
    await kv.aclose()
    print(json.dumps(check(events, cluster, logs)))  # noqa: T201


if __name__ == "__main__":
    asyncio.run(
        _main(json.loads(sys.argv[1]), sys.argv[2], json.loads(Path(sys.argv[3]).read_text()))
    )
