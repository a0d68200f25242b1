"""Whom the command line asks, and with which certificates: flags, a configuration, the local topology."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane.cli import where
from controlplane.cli.client import Credentials
from controlplane.cli.exits import DEADLINE, FAILED, OK, UNREACHABLE
from controlplane.cli.main import hoist
from controlplane.cli.options import Options
from controlplane.config import ConfigError
from controlplane.model.errors import InvalidInputError
from tests.operate.lab import Lab, settings

FREEZE = ("freeze", "--reason", "test", "--yes")


async def weir(state_dir: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run the command line without WEIR_SERVER, again while it says that nobody answered in time."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("WEIR_")}
    for _ in range(20):
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-P", "-m", "controlplane.cli.main", *args],
            env={**env, "WEIR_STATE_DIR": str(state_dir)},
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        if done.returncode != DEADLINE:
            break
    return done


def file_of(lab: Lab, path: Path, role: str = "operator") -> Path:
    """Write a configuration of the lab, with the certificate of a role when it has an authority."""
    extra: dict[str, Any] = {}
    if lab.ca is not None:
        names = ("east", "east-9") if role == "replica" else ("test",)
        who = lab.ca.issue(role, *names)
        extra["tls"] = {
            "ca_file": str(who.ca), "cert_file": str(who.cert), "key_file": str(who.key),
        }  # fmt: skip
    data = settings(["127.0.0.1:1"], path.parent, lab.ports, "any", **extra)
    path.write_text(yaml.safe_dump(data))
    return path


async def test_replicas_and_certificates_are_those_of_the_file(
    tls_lab: Lab, tmp_path: Path
) -> None:
    """Reads and changes, by typer's way too, with the option in front or behind; a certificate that may
    not is told with the remedy, and flags stand over the file."""
    file = file_of(tls_lab, tmp_path / "weir.yaml")
    for line in (
        ("--config", str(file), "status"), ("status", f"--config={file}"),
        ("--config", str(file), *FREEZE), ("lock", "release", "a", "--owner", "o", "--token", "1", "--config", str(file)),
    ):  # fmt: skip
        done = await weir(tmp_path, *line)
        assert done.returncode == OK, (line, done.stderr)
    file = file_of(tls_lab, tmp_path / "replica.yaml", "replica")
    done = await weir(tmp_path, "--config", str(file), "status")
    assert done.returncode == FAILED
    assert "the role replica may not call" in done.stderr
    assert "--cert-file" in done.stderr
    assert tls_lab.ca is not None
    who = tls_lab.ca.issue("viewer", "test")
    own = ("--cert-file", str(who.cert), "--key-file", str(who.key))
    done = await weir(tmp_path, "--config", str(file), *own, "status")
    assert done.returncode == OK, done.stderr


async def test_the_local_topology_lends_its_certificates_to_its_own_replicas(
    tls_lab: Lab, tmp_path: Path
) -> None:
    """With `--server` too, when the address is one of them, and with a file that names them; to others
    they are not shown."""
    assert tls_lab.ca is not None
    who = tls_lab.ca.issue("breakglass", "local")
    replicas = [{"id": f"{r}-0", "grpc": tls_lab.address(r)} for r in ("east", "north")]
    tls = {"ca_file": str(who.ca), "cert_file": str(who.cert), "key_file": str(who.key)}
    (tmp_path / "topology.json").write_text(json.dumps({"replicas": replicas, "tls": tls}))
    plain = settings(["127.0.0.1:1"], tmp_path, tls_lab.ports, "any")
    del plain["regions"]["south"]["replicas"]
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(plain))
    for line, code in (
        (("status",), OK),
        (("--server", tls_lab.address("north"), "status"), OK),
        (("--server", tls_lab.address("north").replace("127.0.0.1", "localhost"), "status"), OK),
        (("--config", str(tmp_path / "plain.yaml"), "status"), OK),
        (("--server", tls_lab.address("south"), "status"), UNREACHABLE),
    ):
        done = await weir(tmp_path, *line)
        assert done.returncode == code, (line, done.stderr)


def written(path: Path, **changes: Any) -> Path:
    """Write a configuration of three replicas on ports 1 to 3."""
    data = settings([], path, {"east": (1, 0), "north": (2, 0), "south": (3, 0)}, "any")
    data["coordination"]["endpoints"] = ["127.0.0.1:9"]
    (path / "weir.yaml").write_text(yaml.safe_dump(data | changes))
    return path / "weir.yaml"


def ports(place: where.Place) -> list[int]:
    """The ports asked, in their order."""
    return [int(address.rpartition(":")[2]) for address in place.addresses]


def test_the_own_region_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the file, or by the environment that every pod has; any other variable over the file counts too."""
    assert ports(where.configured(written(tmp_path))) == [1, 2, 3]
    file = written(tmp_path, cluster={"name": "any", "region": "south"})
    assert ports(where.configured(file)) == [3, 1, 2]
    monkeypatch.setenv("WEIR_CLUSTER__REGION", "north")
    assert ports(where.configured(file)) == [2, 1, 3]
    for key in ("CA_FILE", "CERT_FILE", "KEY_FILE"):
        monkeypatch.setenv(f"WEIR_TLS__{key}", f"/{key}")
    place = where.configured(file)
    assert ports(place) == [2, 1, 3]
    assert place.credentials.key_file == Path("/KEY_FILE")


def test_a_file_without_replicas_means_the_one_it_configures(tmp_path: Path) -> None:
    """Never somebody else's: not the local topology's, whatever runs here."""
    data = yaml.safe_load(written(tmp_path).read_text())
    for region in data["regions"].values():
        del region["replicas"]
    file = written(tmp_path, regions=data["regions"], server={"grpc_listen": "127.0.0.1:77"})
    assert ports(where.configured(file)) == [77]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"regions": ["east"]}, "regions"),
        ({"tls": {"ca_file": "/x"}}, "needs ca_file, cert_file and key_file"),
        ({"regions": {"east": {"replicas": [{"id": "e", "grpc": 7}]}}}, "grpc"),
    ],
)
def test_a_file_that_is_not_plain_is_told_by_line(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    """The quick reading never guesses: whoever checks configurations says what is wrong."""
    with pytest.raises(ConfigError, match=says):
        where.configured(written(tmp_path, **change))


def test_half_a_pair_is_not_taken_for_plaintext() -> None:
    """Certificates that would be left unused, or that miss their half, are a usage error."""
    for given in ({"cert_file": Path("a")}, {"key_file": Path("a"), "ca_file": Path("c")},
                  {"cert_file": Path("a"), "key_file": Path("b")}):  # fmt: skip
        with pytest.raises(InvalidInputError, match="needs --"):
            Options(server="127.0.0.1:1", credentials=Credentials(**given)).client()


def test_the_file_may_stand_behind_the_command() -> None:
    """As every global option, also for the daemons."""
    assert hoist(["drill", "east", "--config", "f"]) == ["--config", "f", "drill", "east"]
