"""A replica as the version before or after ours would answer: a real one behind a relay that rewrites what it says.

The next minor version adds a field to every message and has words we do not know. The one before has only the older
half of every message's fields, and knows no method that is named as new.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import grpc
from google.protobuf.message import Message

from controlplane.v1 import admin_pb2

NEWER: Final = "0.2.0"
OLDER: Final = "0.0.9"
UNKNOWN: Final = b"\xfa\x06\x03new"  # field 111, three bytes
WORDS: Final = {
    "phase": "quarantined", "verdict": "doubtful", "state": "welded", "stage": "pondering", "outcome": "adjourned",
    "severity": "dire", "role": "mirror", "opinion": "shrug", "kind": "flood",
}  # fmt: skip
"""Fields whose words may grow, and a word that nobody knows yet."""
SERVICE: Final = admin_pb2.DESCRIPTOR.services_by_name["AdminService"]


def parts(message: Message) -> Iterator[Message]:
    """A message and all messages in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for item in value if field.is_repeated else (value,):
            yield from parts(item)


def grown(message: Message) -> None:
    """Make it the next minor version's."""
    for part in parts(message):
        for name in part.DESCRIPTOR.fields_by_name.keys() & WORDS.keys():
            setattr(part, name, WORDS[name])
        if "version" in part.DESCRIPTOR.fields_by_name:
            part.version = NEWER
        part.MergeFromString(UNKNOWN)


def shrunk(message: Message) -> None:
    """Leave the older half of every message's fields."""
    for part in list(parts(message)):
        fields = sorted(part.DESCRIPTOR.fields, key=lambda field: field.number)
        for field in fields[(len(fields) + 1) // 2 :]:
            part.ClearField(field.name)


@contextlib.asynccontextmanager
async def relay(
    target: str,
    rewrite: Callable[[Message], None],
    missing: frozenset[str] = frozenset(),
    *,
    drop_local: bool = False,
) -> AsyncIterator[str]:
    """Relay the unary methods of AdminService to a replica, but for `missing`; yield the address.

    With `drop_local` it ignores `mutation.local`, as a version would that has no such field.
    """
    server = grpc.aio.server()
    async with grpc.aio.insecure_channel(target) as channel:

        def handler(method: Any) -> Any:
            name = f"/{SERVICE.full_name}/{method.name}"
            kind = method.output_type._concrete_class

            async def call(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
                if drop_local:
                    asked = method.input_type._concrete_class.FromString(request)
                    asked.mutation.ClearField("local")
                    request = asked.SerializeToString()
                try:
                    answer = kind.FromString(await channel.unary_unary(name)(request))
                except grpc.aio.AioRpcError as error:
                    context.set_trailing_metadata(error.trailing_metadata())
                    await context.abort(error.code(), error.details() or "")
                rewrite(answer)
                return bytes(answer.SerializeToString())

            return grpc.unary_unary_rpc_method_handler(call)

        methods = {
            m.name: handler(m)
            for m in SERVICE.methods
            if not m.server_streaming and m.name not in missing
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE.full_name, methods),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(0)
