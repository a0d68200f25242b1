"""The whole agent as a process: bad input, SIGTERM, kill -9."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import yaml

from agents.agent import Agent
from agents.store import PlanFile
from controlplane.dev.process import free_port
from tests.agents.plans import plan
from tests.agents.replica import Replica
from tests.agents.timing import eventually
from tests.agents.whole import config, get, running, settings

END_S = 200
"""How long a process of our own may take from its start to its end on a starved machine."""


def weir_agent(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start `weir agent` as users do."""
    return subprocess.Popen(
        [sys.executable, "-m", "controlplane.cli.main", "agent", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def test_bad_input_is_one_line_and_an_exit_code(tmp_path: Path) -> None:
    """Broken YAML, no region, a taken port: one line on stderr that says what to
    do; 2 for usage and configuration, 1 for the rest; nothing on stdout."""
    broken = tmp_path / "broken.yaml"
    broken.write_text("regions: [")
    no_region = tmp_path / "no_region.yaml"
    values = settings(tmp_path, "127.0.0.1:1")
    del values["cluster"]["region"]
    no_region.write_text(yaml.safe_dump(values))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        port_taken = tmp_path / "port.yaml"
        values = settings(tmp_path, "127.0.0.1:1", http_listen=address)
        values["log"] = {"level": "error"}
        port_taken.write_text(yaml.safe_dump(values))
        cases = [
            (["--config", str(broken)], 2, "broken.yaml:1:"),
            (["--config", str(no_region)], 2, "cluster.region"),
            (["--config", str(port_taken)], 1, "agent.http_listen"),
        ]
        children = [(weir_agent(*arguments), code, text) for arguments, code, text in cases]
        try:
            for child, code, text in children:
                out, err = child.communicate(timeout=END_S)
                assert child.returncode == code, err
                assert text in err
                assert len(err.strip().splitlines()) == 1, err
                assert out == ""
        finally:
            for child, _, _ in children:
                with child:  # closes its pipes
                    child.kill()


async def test_sigterm_ends_in_order(tmp_path: Path, replica: Replica) -> None:
    """SIGTERM: a last report, the stream closed, exit code 0, JSON lines on stderr."""
    await replica.publish(plan(4))
    path = tmp_path / "weir.yaml"
    path.write_text(yaml.safe_dump(settings(tmp_path, replica.address)))
    child = weir_agent("--config", str(path))
    try:
        await eventually(lambda: ("east/a-0", 4, "") in replica.acks, "applied", END_S)
        child.send_signal(signal.SIGTERM)
        out, err = await asyncio.to_thread(child.communicate, timeout=END_S)
    finally:
        child.kill()
    assert child.returncode == 0, err
    assert replica.half_closed == 1
    assert out == ""
    events = [json.loads(line)["event"] for line in err.strip().splitlines()]
    assert events[-1] == "agent_stopped"
    assert events.count("agent_stopping") == 1
    assert PlanFile(tmp_path / "state").load().plan == plan(4)


async def test_kill_9_and_restart_keep_the_plan(tmp_path: Path, replica: Replica) -> None:
    """Kill -9 right after the acknowledgement: the restarted agent has the plan without replica. A
    disk that took too long to be waited for (it says so) proves nothing: then once more."""
    for epoch in range(4, 54):
        await replica.publish(plan(epoch))
        path = tmp_path / "weir.yaml"
        values = settings(tmp_path, replica.address, http_listen=f"127.0.0.1:{free_port()}")
        path.write_text(yaml.safe_dump(values))
        child = weir_agent("--config", str(path))
        try:
            await eventually(lambda e=epoch: ("east/a-0", e, "") in replica.acks, "applied", END_S)
        finally:
            child.kill()
            _, said = child.communicate()
        if "disk_slow" not in said:
            break
    await replica.kill()
    async with running(Agent(config(values))) as addresses:
        assert json.loads((await get(addresses, "/api/plan"))[1])["epoch"] == epoch
