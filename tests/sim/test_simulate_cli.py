"""`weir simulate` and `weir replay` as a person calls them."""

import contextlib
import json
import os
import pty
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
from typer.testing import CliRunner

from controlplane.cli.app import app
from controlplane.cli.replay import replay
from controlplane.cli.simulate import simulate
from controlplane.decision.log import DecisionLog
from controlplane.decision.state import State
from controlplane.decision.step import step
from controlplane.model.evidence import Evidence
from controlplane.model.intents import NO_INTENTS
from controlplane.simulation.demo import demo_topology
from controlplane.simulation.scenarios import SCENARIOS

for _name, _command in (("simulate", simulate), ("replay", replay)):
    if _name not in {command.name for command in app.registered_commands}:
        app.command(_name)(_command)


def call(*arguments):
    """Run `weir` in this process."""
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_simulate_prints_json_and_draws(tmp_path):
    """A crash: JSON names detection times, the plot is well-formed SVG, the seed decides all."""
    plot = tmp_path / "crash.svg"
    first = call("-o", "json", "simulate", "crash", "--seed", 3, "--plot", plot)
    assert first.exit_code == 0, first.output
    data = json.loads(first.stdout)
    assert data["detection"][0]["region"] == "east"
    assert data["detection"][0]["moved_ms"] <= 2500
    assert data["false_failovers"] == 0
    assert ET.parse(plot).getroot().tag.endswith("svg")
    again = call("-o", "json", "simulate", "crash", "--seed", 3)
    assert json.loads(again.stdout) == data


@pytest.mark.parametrize(("file", "says"), [("crash.png", ".svg"), ("gone/crash.svg", "make it")])
def test_a_plot_that_cannot_be_is_refused_before_the_run(tmp_path, file, says):
    """Another format, a folder that is not there: usage error, one line, nothing written."""
    refused = call("simulate", "crash", "--plot", tmp_path / file)
    assert refused.exit_code == 2
    assert says in refused.output
    assert len(refused.output.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_person_sees_how_far_it_is_and_a_file_does_not():
    """On a terminal stderr shows the part done while it runs; elsewhere it stays empty."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "controlplane.cli.main", "simulate", "crash"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # how Linux tells that nobody has the other end any more
        while part := os.read(ours, 4096):
            seen += part
    os.close(ours)
    out, _ = run.communicate()
    assert run.returncode == 0, seen
    assert b"crash, " in seen
    assert b"100%" in seen
    assert b"moves on suspicion" in out
    quiet = subprocess.run(command, capture_output=True, check=True)
    assert (quiet.stdout, quiet.stderr) == (out, b"")


def test_simulate_names_what_it_knows():
    """An unknown scenario is a usage error that lists the known ones."""
    outcome = call("simulate", "earthquake")
    assert outcome.exit_code == 2
    assert "provider-outage" in outcome.output


@pytest.mark.parametrize("name", sorted(set(SCENARIOS) - {"noisy", "flap", "crash"}))
def test_every_named_scenario_runs_soundly(name):
    """Each scenario ends without a broken invariant and without a false failover."""
    outcome = call("-o", "json", "simulate", name, "--days", 0.0012)
    assert outcome.exit_code == 0, outcome.output
    assert json.loads(outcome.stdout)["false_failovers"] == 0


def test_replay_exits_by_its_finding(tmp_path):
    """0 when all is the same, 1 at a difference, 2 when it is no log."""
    topology = demo_topology()
    state = State.initial(topology)
    writer = DecisionLog(topology, NO_INTENTS, state)
    lines = [writer.start()]
    for tick in range(5):
        decided = step(topology, state, Evidence(regions=()), NO_INTENTS, 500 * tick)
        lines.append(writer.tick(topology, NO_INTENTS, Evidence(regions=()), 500 * tick, decided))
        state = decided.state
    same, changed, foreign = (tmp_path / n for n in ("same.log", "changed.log", "foreign.log"))
    same.write_bytes(b"".join(lines))
    changed.write_bytes(b"".join(lines).replace(b'["east",7000]', b'["east",6999]', 1))
    foreign.write_text("hello\n")
    assert call("replay", same).exit_code == 0
    outcome = call("replay", changed)
    assert (outcome.exit_code, "plan differs" in outcome.output) == (1, True)
    assert call("replay", foreign).exit_code == 2
