"""Where the replicas are, and with which certificates they are met.

| Asked for                    | Addresses                     | Certificates                    |
|------------------------------|-------------------------------|---------------------------------|
| `--server`, `WEIR_SERVER`    | these                         | flags, else as below            |
| `--config`, `WEIR_CONFIG`    | the file's replicas           | flags over the file's `tls`     |
| neither, and `weir dev` runs | the local topology's replicas | flags over those of `dev --tls` |
| nothing                      | 127.0.0.1:7700                | flags                           |

The local topology's certificates also serve addresses given by hand or by a file, when all of them
are replicas of it.

A read command may take 300 ms and checking a whole configuration takes longer, so only the few keys
needed here are read. A file, or an environment, that is not plain in them is left to
`controlplane.config`, which says what is wrong with it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from controlplane.cli.client import Credentials

DEFAULT_SERVER: Final = "127.0.0.1:7700"
DEFAULT_STATE_DIR: Final = ".weir/dev"
_FILES: Final = ("ca_file", "cert_file", "key_file")
_OVERRIDES: Final = ("WEIR_REGIONS", "WEIR_TLS", "WEIR_CLUSTER", "WEIR_SERVER__")
"""Beginnings of the variables that stand over what is read here."""
_OWN_REGION: Final = "WEIR_CLUSTER__REGION"
"""The one of them that every pod has: it only says who is asked first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Replicas, own region first, and the files to meet them with."""

    addresses: tuple[str, ...] = ()
    credentials: Credentials = field(default_factory=Credentials)


def local_topology() -> dict[str, Any]:
    """Return the local topology's description, empty when `weir dev` does not run here."""
    directory = Path(os.environ.get("WEIR_STATE_DIR") or DEFAULT_STATE_DIR)
    try:
        data = json.loads((directory / "topology.json").read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def local_place(topology: dict[str, Any]) -> Place:
    """Return where the local topology's replicas are."""
    tls = topology.get("tls") or {}
    return Place(
        addresses=tuple(str(replica["grpc"]) for replica in topology.get("replicas", ())),
        credentials=_credentials({key: Path(str(tls[key])) for key in _FILES if key in tls}),
    )


def is_local(addresses: Sequence[str], local: Place) -> bool:
    """Tell whether all of `addresses` are replicas of the local topology."""
    by_name = (address.replace("localhost:", "127.0.0.1:") for address in addresses)
    return bool(addresses) and set(by_name) <= set(local.addresses)


def configured(path: Path) -> Place:
    """Return the replicas and TLS files of a configuration; InvalidInputError when it is refused.

    A file that names no replicas means the one that it configures.
    """
    over = {key.upper() for key in os.environ if key.upper().startswith(_OVERRIDES)}
    try:
        place = None if over - {_OWN_REGION} else _plain(path)
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        place = None
    return place or _checked(path)


def _plain(path: Path) -> Place:
    import yaml  # noqa: PLC0415 - not every command reads a file

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        data = yaml.load(path.read_text(), Loader=loader)  # noqa: S506 - a safe loader
    except yaml.YAMLError as error:
        raise ValueError from error
    regions = {
        name: [replica["grpc"] for replica in region.get("replicas") or ()]
        for name, region in data["regions"].items()
    }
    tls = data.get("tls") or {}
    files = {key: Path(tls[key]) for key in _FILES if tls.get(key)}
    if files and len(files) < len(_FILES):
        raise ValueError
    own = os.environ.get(_OWN_REGION) or (data.get("cluster") or {}).get("region")
    listens = (data.get("server") or {}).get("grpc_listen")
    return _place(regions, own, listens, files)


def _checked(path: Path) -> Place:
    from controlplane import config  # noqa: PLC0415 - loads pydantic

    whole = config.load(path)
    regions = {name: [r.grpc for r in region.replicas] for name, region in whole.regions.items()}
    files = {key: file for key in _FILES if (file := getattr(whole.tls, key)) is not None}
    return _place(regions, whole.cluster.region, whole.server.grpc_listen, files)


def _place(
    regions: dict[str, list[str]], own: str | None, listens: str | None, files: dict[str, Path]
) -> Place:
    first = sorted(regions, key=lambda name: (name != own, name))
    named = [address for name in first for address in regions[name]] or [listens or DEFAULT_SERVER]
    if not all(isinstance(address, str) for address in named):
        raise TypeError
    return Place(addresses=tuple(named), credentials=_credentials(files))


def _credentials(files: dict[str, Path]) -> Credentials:
    ca, cert, key = (files.get(name) for name in _FILES)
    return Credentials(ca_file=ca, cert_file=cert, key_file=key)
