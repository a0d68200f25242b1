"""Each protective rule is removed in turn, and the property it protects is seen to fail.

A test that stays green without the rule proves nothing about the rule.
"""

import math
from dataclasses import replace

import numpy as np
import pytest

from controlplane.decision import (
    breaker,
    cells,
    circuits,
    detector,
    phases,
    planning,
    removals,
    signals,
    step,
    votes,
)
from controlplane.model.intents import Intents
from tests.sim import cell_properties as of_cells
from tests.sim import region_properties as of_regions
from tests.sim import worlds


def _without_gates(name, memory, intents, caps):
    return RETURN(name, memory, replace(intents, closed_gates=()), caps)


def _without_hold_down(name, memory, intents, caps):
    policy_ = replace(caps.policy, hold_down_ms=0)
    return RETURN(name, memory, intents, replace(caps, policy=policy_))


def _for_any_outage(intents, region, _since_ms):
    return next((back for back in intents.failback if back.region == region), None)


def _unless_called_back(intents, recall):
    return () if recall else intents.closed_gates


def _trip_though_held(tick, *rest):
    tick.hold = False
    TRIP(tick, *rest)


RETURN, TRIP, OVERRIDE = signals.return_signal, circuits._trip, planning.override_row
FAIL_OUT, CLIMB = phases.fail_while_out, phases.climb


MUTANTS = [
    (of_regions.quick_suspicions_are_damped, signals, "damped", lambda *_: False),
    (of_regions.a_short_life_is_no_return, signals, "return_signal", _without_hold_down),
    (of_regions.a_closed_gate_keeps_a_region_out, signals, "return_signal", _without_gates),
    (of_regions.a_failback_is_for_one_outage, Intents, "recall", _for_any_outage),
    (of_regions.a_gate_is_overridden_for_one_return, Intents, "recall", _for_any_outage),
    (
        of_regions.a_failback_ends_when_what_was_ordered_out_dies,
        phases,
        "fail_while_out",
        lambda memory, turn: replace(FAIL_OUT(memory, turn), since_ms=memory.since_ms),
    ),
    (of_regions.a_closed_gate_holds_a_failback, signals, "closed_gates", _unless_called_back),
    (
        of_regions.only_gates_that_were_overridden_are_passed,
        signals,
        "closed_gates",
        _unless_called_back,
    ),
    (of_regions.a_drained_region_returns_by_ramp, phases, "end_drain", lambda memory, _: memory),
    (
        of_regions.a_region_is_healthy_when_its_weight_has_arrived,
        signals,
        "ramped",
        lambda memory, caps, **_: memory.ramp >= len(caps.policy.ramp_bp),
    ),
    (
        of_regions.a_frozen_return_takes_no_step,
        phases,
        "climb",
        lambda memory, turn: memory if turn.removals.hold else CLIMB(memory, turn),
    ),
    (of_regions.a_freeze_holds_everything, removals.Removals, "refusal", lambda *_, **__: ""),
    (of_cells.a_freeze_opens_no_breaker, circuits, "_trip", _trip_though_held),
    (of_regions.a_leader_that_hears_nobody_resigns, step, "leader_cut_off", lambda *_: False),
    (of_regions.a_cold_start_blames_nobody, worlds, "TOPOLOGY", worlds.policy(warmup_ms=0)),
    (of_regions.weights_move_by_steps, planning, "approach", lambda _now, goal, *_: goal),
    (of_regions.a_return_is_a_ramp, worlds, "TOPOLOGY", worlds.policy(ramp_bp=(10_000,))),
    (
        of_regions.an_override_revives_nobody,
        planning,
        "override_row",
        lambda override, regions, _out: OVERRIDE(override, regions, frozenset()),
    ),
    (
        of_regions.nobody_left_is_no_empty_route,
        planning,
        "_fallback",
        lambda _world, share, *_: share,
    ),
    (of_cells.an_outage_moves_nothing, circuits, "_refusal", lambda *_: ""),
    (
        of_cells.a_bad_cell_carries_a_trickle_at_most,
        worlds,
        "TOPOLOGY",
        worlds.policy(trickle_bp=10_000),
    ),
    (of_cells.probation_asks_for_evidence, circuits, "PROBATION_NATS", 0.0),
    (of_cells.a_bad_cell_is_asked_less_and_less, breaker, "open_ms", lambda *_: 5000),
    (of_cells.one_failure_proves_nothing, cells, "thresholds", lambda rate, _: np.ones_like(rate)),
    (
        of_cells.failures_in_a_row_prove_enough,
        cells,
        "thresholds",
        lambda rate, _: np.full_like(rate, 1e9),
    ),
    (of_cells.probes_do_not_drown_payments, cells, "TRAFFIC_RECENT_MS", 0),
    (
        of_cells.a_decline_is_an_answer,
        cells,
        "_good_bad",
        lambda o: (o.ok, o.error + o.declined),
    ),
    (
        of_cells.an_unwell_observer_judges_no_cell,
        cells,
        "judged_cells",
        lambda world, _state: np.ones(len(world.place) + 2, dtype=np.bool_),
    ),
    (of_regions.an_outage_that_is_over_is_no_brown_out, votes, "RUN_MOST", 10**6),
    (of_regions.failures_an_hour_are_bounded, removals, "HOUR_MS", 0),
    (of_regions.suspicion_waits_before_it_fences, signals, "fail_at_ms", lambda *_: 0),
    (of_regions.liar_and_a_blind_region, detector, "WITNESSES", 1),
    (of_cells.incident_is_not_learned, cells, "CALM", math.inf),
    (of_regions.removals_are_capped, removals.Removals, "refusal", lambda *_, **__: ""),
    (of_regions.liar_is_void, votes, "_blames_everyone", lambda *_: False),
    (
        of_regions.leader_pauses,
        step,
        "_passed",
        lambda memory, _policy, now: now - (memory.clock_ms or now),
    ),
    (of_regions.weather_moves_little, votes, "_nats", lambda _loss: 100.0),
    (
        of_regions.flapping_is_one_failover,
        signals,
        "return_signal",
        lambda *_: (signals.Signal.READY, ""),
    ),
    (
        of_regions.drains_leave_somebody,
        planning,
        "honoured_drains",
        lambda _world, intents: frozenset(d.region for d in intents.drains),
    ),
    (of_regions.failed_is_at_zero, planning, "available_bp", lambda *_: 10_000),
    (of_cells.provider_outage_is_said, circuits, "_outages", lambda *_: ()),
    (of_regions.absurd_epoch_is_refused, step, "HIGHEST_EPOCH", math.inf),
]


@pytest.mark.parametrize(
    ("holds", "module", "name", "without"), MUTANTS, ids=[m[0].__name__ for m in MUTANTS]
)
def test_without_its_rule_the_property_fails(holds, module, name, without, monkeypatch):
    """With the rule the property holds; with the rule removed the same check finds it broken."""
    assert holds()
    monkeypatch.setattr(module, name, without)
    if name == "HIGHEST_EPOCH":
        monkeypatch.setattr(step, "EPOCH_JUMP", math.inf)
    assert not holds()
