"""A watch that survives its member: exact resume, silence detection, re-listing on compaction.

Theory. Every delivered event has a mod_revision, and etcd never splits a revision over two
answers (we do not ask for fragments). So "everything from the last delivered mod_revision + 1 on"
is an exact resume, on any member. The header's revision is not: the reply "created" to a watch on
an old revision already carries the newest one, and in etcd 3.4 progress answers may run ahead of
the events. It is never used.

Rules. A stopped member closes nothing, so the watch asks for progress every `progress_ms` and
leaves a member that said nothing for `silence_ms`. An isolated member still answers progress
requests: a watch brings news, it never proves that anybody leads; `hasleader` makes the member
end the stream once it notices.

Failure modes. CompactedError when the wanted revision was compacted, or when etcd's own revision
is below what was already delivered (restored from a backup): the caller lists again. Anything
else is retried for ever, a bounded pause between rounds.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import grpc
from etcd3 import etcdrpc

from controlplane.adapters.etcd_links import (
    EtcdError,
    Fault,
    Link,
    Links,
    Metadata,
    classify,
    prefix_end,
    typed,
)
from controlplane.clock import Clock
from controlplane.model.errors import CompactedError, UnavailableError
from controlplane.ports import WatchEvent


class _SilentError(Exception):
    """The member said nothing for too long."""


async def watch(
    links: Links, clock: Clock, prefix: bytes, start_revision: int
) -> AsyncGenerator[Sequence[WatchEvent], None]:
    """Yield whole revisions below `prefix`, each exactly once, from `start_revision` on."""
    next_revision, failures, link = start_revision, 0, links.current
    metadata: Metadata = ()
    while True:
        try:
            metadata = await links.metadata(links.options.attempt_ms / 1000)
            stream = _stream(links, clock, link, metadata, prefix, next_revision)
            async with contextlib.aclosing(stream):
                async for events in stream:
                    failures = 0
                    if events:
                        next_revision = events[-1].mod_revision + 1
                        yield events
        except CompactedError:
            links.stats.watch_relists += 1
            raise
        except (grpc.aio.AioRpcError, _SilentError, UnavailableError) as error:
            fault = classify(error) if isinstance(error, grpc.aio.AioRpcError) else Fault.UNSENT
            if fault is Fault.FINAL:
                raise typed(error) from error
            if fault is Fault.LOGIN:
                links.forget_token(metadata)
            links.stats.watch_resumes += 1
            links.failed(link)
            failures += 1
            await links.backoff(failures)
            link = links.other_than(link)


async def _stream(
    links: Links, clock: Clock, link: Link, metadata: Metadata, prefix: bytes, start_revision: int
) -> AsyncGenerator[Sequence[WatchEvent], None]:
    """Watch on one member until it fails; an empty sequence is a sign of life."""
    options = links.options
    await _check_history(link, options.attempt_ms / 1000, metadata, prefix, start_revision)
    call = link.watch.Watch(metadata=metadata)
    reading: asyncio.Future[Any] | None = None
    heard_ms = clock.monotonic_ms()
    try:
        await call.write(_create(prefix, start_revision))
        while True:
            # a cancelled read cancels the whole call, so the read outlives the wait for it
            reading = reading or asyncio.ensure_future(call.read())
            await asyncio.wait({reading}, timeout=options.progress_ms / 1000)
            if not reading.done():
                # a member that has just failed somebody else's call deserves half the patience
                failed = link.failed_at_ms > heard_ms
                patience_ms = options.silence_ms // 2 if failed else options.silence_ms
                if clock.monotonic_ms() - heard_ms > patience_ms:
                    raise _SilentError(link.endpoint)
                await call.write(_progress())
                continue
            answer, reading = reading.result(), None
            if answer is grpc.aio.EOF:
                raise _SilentError(link.endpoint)
            heard_ms = clock.monotonic_ms()
            if answer.canceled:
                _refuse(answer, start_revision)
            yield [
                event
                for event in map(_event, answer.events)
                if event.mod_revision >= start_revision
            ]
    except asyncio.InvalidStateError as error:  # the call ended between a read and a write
        raise _SilentError(link.endpoint) from error
    finally:
        call.cancel()
        if reading is not None:
            reading.cancel()
            await asyncio.wait({reading})


async def _check_history(
    link: Link, timeout_s: float, metadata: Any, prefix: bytes, start_revision: int
) -> None:
    """Refuse to resume in a history that is shorter than what was already delivered.

    A linearizable read: a member that merely lags must not look like a restored one.
    """
    request = etcdrpc.RangeRequest(
        key=prefix or b"\0", range_end=prefix_end(prefix), count_only=True
    )
    answer = await link.kv.Range(request, timeout=timeout_s, metadata=metadata)
    if answer.header.revision < start_revision - 1:
        raise CompactedError(
            f"etcd is at revision {answer.header.revision}, {start_revision - 1} was already seen: "
            "restored from a backup; list again",
        )


def _refuse(answer: Any, start_revision: int) -> None:
    if answer.compact_revision:
        raise CompactedError(
            f"revision {start_revision} was compacted, history begins at {answer.compact_revision}"
        )
    if "permission denied" in answer.cancel_reason:
        raise EtcdError(answer.cancel_reason)
    raise _SilentError(answer.cancel_reason)


def _create(prefix: bytes, start_revision: int) -> Any:
    return etcdrpc.WatchRequest(
        create_request=etcdrpc.WatchCreateRequest(
            key=prefix or b"\0", range_end=prefix_end(prefix), start_revision=start_revision
        )
    )


def _progress() -> Any:
    return etcdrpc.WatchRequest(progress_request=etcdrpc.WatchProgressRequest())


def _event(event: Any) -> WatchEvent:
    deleted = event.type == event.DELETE
    return WatchEvent(
        key=event.kv.key,
        value=None if deleted else event.kv.value,
        mod_revision=event.kv.mod_revision,
    )
