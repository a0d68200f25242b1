"""What a whole agent reads from its configuration, and refuses."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from agents.agent import Agent
from agents.targets import Subject, targets_of
from controlplane.cli import agent as cli_agent
from controlplane.model.errors import InvalidInputError, WeirError
from tests.agents.whole import config, settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cluster": {"id": "a-0"}}, "cluster.region: an agent needs its region"),
        ({"agent": {"servers": []}}, "agent.servers: no replica"),
        ({"agent": {"xds_dir": "x"}}, "agent.xds_dir: needs regions"),
        ({"agent": {"grpc_listen": "0.0.0.0:1"}}, "agent.grpc_listen: 0.0.0.0:1: not loopback"),
    ],
)
async def test_what_the_configuration_lacks_is_named(
    tmp_path: Path, change: dict[str, dict[str, Any]], message: str
) -> None:
    """Each fault names its key and the remedy, before anything is started."""
    values = settings(tmp_path, "127.0.0.1:1")
    for section, keys in change.items():
        values[section] = keys if section == "cluster" else {**values[section], **keys}
    with pytest.raises(InvalidInputError, match=message.replace(".", r"\.")):
        Agent(config(values))


def test_targets_are_those_of_the_region(tmp_path: Path) -> None:
    """An agent probes its own channels and the others' ingress, each with a deadline of its own."""
    values = settings(tmp_path, "127.0.0.1:1", interval_ms=500)
    values["channels"] = {
        "bank": {"regions": ["north"], "probe": {"target": "b:1"}},
        "alipay": {
            "regions": ["east"],
            "probe": {"target": "[::1]:443", "kind": "https"},
            "p99_ms": 100,
        },
        "slow": {"regions": ["east"], "probe": {"target": "s:1"}, "p99_ms": 1800},
        "capped": {"regions": ["east"], "probe": {"target": "c:1"}, "p99_ms": 5000},
        "other": {"regions": ["east", "north"], "probe": {"targets": {"north": "o:1"}}},
        "set": {"regions": ["east"], "probe": {"target": "t:1", "timeout_ms": 77}},
        "none": {"regions": ["east"]},
    }
    for name, region in values["regions"].items():
        region["ingress"] = {"target": f"{name}:80"}
    targets = {(t.subject, t.name): t for t in targets_of(config(values), "east")}
    channels = {name: t for (subject, name), t in targets.items() if subject is Subject.CHANNEL}
    assert set(channels) == {"alipay", "slow", "capped", "set"}
    assert (channels["alipay"].host, channels["alipay"].port) == ("::1", 443)
    assert channels["alipay"].tls
    assert channels["alipay"].authority == "[::1]:443"
    deadlines = {name: t.deadline_ms for name, t in channels.items()}
    assert deadlines == {"alipay": 400.0, "slow": 3000, "capped": 3000, "set": 77}
    assert [k for k in targets if k[0] is Subject.INGRESS] == [(Subject.INGRESS, "north")]
    assert targets[Subject.INGRESS, "north"].deadline_ms == 400.0


async def test_taken_relay_port_and_missing_configuration(tmp_path: Path) -> None:
    """The relay's address is checked like the HTTP one; a call without configuration says so."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        values = settings(tmp_path, "127.0.0.1:1", grpc_listen=address)
        with pytest.raises(WeirError, match=r"agent\.grpc_listen"):
            await Agent(config(values)).run()
    with pytest.raises(InvalidInputError, match="--config"):
        cli_agent.agent(None)
