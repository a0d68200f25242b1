"""Generate docs/api.md from the comments of the protos; `--check` reports drift only.

protoc reads the files (pinned by uv.lock), so that the page has what the server has. A message,
field or method without a comment fails: an undocumented name is a hole in the public contract.
"""

from __future__ import annotations

import importlib.resources
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from google.protobuf import descriptor_pb2 as pb

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/api.md"
FILES: Final = ("admin", "routing", "lock", "agent", "peer", "common")
"""In the order of a reader: what people call, what programs call, what Weir calls itself."""

INTRO = """# API

Generated from `proto/controlplane/v1` by `scripts/gen_api_doc.py`; do not edit.

Every replica answers every method, on the address `server.grpc_listen`; what needs the leader
travels through etcd. Beside the services below it has `grpc.health.v1.Health`, reflection and
channelz, and for data planes `envoy.service.discovery.v3.AggregatedDiscoveryService` (see
[data-planes.md](data-planes.md)). With mutual TLS the caller's role decides what it may call: see
[security.md](security.md).

**Changes** carry a `Mutation`: a `request_id` (a repeat within 24 h returns the first answer and
changes nothing), a `reason` (kept in the audit), `validate_only` (answers with what would happen)
and an `etag` (refuses a change decided on a state that is gone).

**Errors** carry `google.rpc.ErrorInfo` with the domain `weir`. A message over 4 MiB, an unknown
region or channel, a number that is none, a negative counter and a time in the future are invalid
and change nothing.

| Status | When | Detail |
|---|---|---|
| `INVALID_ARGUMENT` | something in the request cannot be | `BadRequest` with the field |
| `FAILED_PRECONDITION` | a safety rule refuses | `PreconditionFailure` with the rules |
| `UNAVAILABLE` | no plan, leader or quorum yet, or unknown whether it was done | `RetryInfo` |
| `ABORTED` | the leader was deposed meanwhile | `RetryInfo` |
| `UNAUTHENTICATED` | the certificate names nobody | |
| `PERMISSION_DENIED` | the role may not do that | |
| `RESOURCE_EXHAUSTED` | too many calls or streams of one caller | |

**HTTP.** On `server.http_listen` every replica has `/metrics` ([metrics.md](metrics.md)), `/livez`,
`/readyz`, the console at `/`, and as JSON with the names of this page `/api/plan` (`Plan`),
`/api/status` (`GetStatusResponse`) and `/api/events` (server-sent events);
[console.md](console.md) lists what else the console reads. JSON has integers as numbers and times
as RFC 3339 in UTC with milliseconds.

"""

KINDS: Final = {
    pb.FieldDescriptorProto.TYPE_DOUBLE: "double",
    pb.FieldDescriptorProto.TYPE_INT32: "int32",
    pb.FieldDescriptorProto.TYPE_INT64: "int64",
    pb.FieldDescriptorProto.TYPE_UINT32: "uint32",
    pb.FieldDescriptorProto.TYPE_UINT64: "uint64",
    pb.FieldDescriptorProto.TYPE_BOOL: "bool",
    pb.FieldDescriptorProto.TYPE_STRING: "string",
    pb.FieldDescriptorProto.TYPE_BYTES: "bytes",
}
OWN: Final = ".controlplane.v1."


def described() -> dict[str, pb.FileDescriptorProto]:
    """Return the protos by name, with their comments."""
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    protos = [str(ROOT / f"proto/controlplane/v1/{name}.proto") for name in FILES]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        command = [
            sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", f"-I{well_known}",
            "--include_source_info", f"--descriptor_set_out={out}", *protos,
        ]  # fmt: skip
        subprocess.run(command, check=True)
        found = pb.FileDescriptorSet.FromString(out.read_bytes())
    return {Path(file.name).stem: file for file in found.file}


class Page:
    """One file of the API as Markdown."""

    def __init__(self, file: pb.FileDescriptorProto) -> None:
        self.file = file
        self.said = {
            tuple(place.path): " ".join(
                (place.leading_comments or place.trailing_comments).split()
            ).replace("|", "\\|")
            for place in file.source_code_info.location
        }

    def comment(self, *path: int) -> str:
        """Return the comment of a thing; SystemExit when it has none."""
        text = self.said.get(path, "")
        if not text:
            raise SystemExit(f"{self.file.name}: no comment at {path}")
        return text

    def lines(self) -> Iterator[str]:
        """Yield the file's part of the page."""
        for number, service in enumerate(self.file.service):
            yield f"## {service.name}\n\n{self.comment(6, number)}\n"
            yield "| Method | Request | Answer | Meaning |\n|---|---|---|---|"
            for m, method in enumerate(service.method):
                asked = self.link(method.input_type, stream=method.client_streaming)
                answer = self.link(method.output_type, stream=method.server_streaming)
                text = self.comment(6, number, 2, m)
                yield f"| `{method.name}` | {asked} | {answer} | {text} |"
            yield ""
        if not self.file.service:
            yield "## Shared messages\n"
        for number, message in enumerate(self.file.message_type):
            yield from self.message(message, (4, number))

    def message(self, message: pb.DescriptorProto, path: tuple[int, ...]) -> Iterator[str]:
        """Yield one message with its fields, then those inside it."""
        yield f"### {message.name}\n\n{self.comment(*path)}\n"
        if message.field:
            yield "| Field | Type | Meaning |\n|---|---|---|"
        for number, field in enumerate(message.field):
            text = self.comment(*path, 2, number)
            yield f"| `{field.name}` | {self.kind(field, message)} | {text} |"
        if message.field:
            yield ""
        for number, inner in enumerate(message.nested_type):
            if not inner.options.map_entry:
                yield from self.message(inner, (*path, 3, number))

    def kind(self, field: pb.FieldDescriptorProto, inside: pb.DescriptorProto) -> str:
        """Return a field's type as a person writes it."""
        name = KINDS.get(field.type)
        for inner in inside.nested_type:
            if inner.options.map_entry and field.type_name.endswith(f".{inner.name}"):
                key, value = (self.kind(part, inside) for part in inner.field)
                return f"map of {key} to {value}"
        text = name or self.link(field.type_name)
        if field.label == pb.FieldDescriptorProto.LABEL_REPEATED:
            return f"list of {text}"
        return f"{text}, may be unset" if field.proto3_optional else text

    def link(self, type_name: str, *, stream: bool = False) -> str:
        """Return a type's name, as a link when it is on this page."""
        name = type_name.rpartition(".")[2]
        shown = f"[{name}](#{name.lower()})" if type_name.startswith(OWN) else f"`{type_name[1:]}`"
        return f"stream of {shown}" if stream else shown


def page() -> str:
    """Return the whole page."""
    files = described()
    return INTRO + "\n".join(line for name in FILES for line in Page(files[name]).lines())


def main() -> int:
    """Write or check; exit 1 on drift."""
    text = page().rstrip() + "\n"
    if "--check" in sys.argv:
        if PAGE.exists() and PAGE.read_text() == text:
            return 0
        print("docs/api.md is not what the protos say; run python scripts/gen_api_doc.py")
        return 1
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
