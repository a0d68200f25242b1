"""Phases: the table is total and says what the rules say."""

import itertools

from controlplane.decision.detector import suspicion_ms, wilson_low
from controlplane.decision.phases import TABLE
from controlplane.decision.signals import Signal
from controlplane.model.plan import Phase
from controlplane.model.topology import Policy


def test_table_is_total():
    """Every pair of phase and signal has its transition: nothing is left to chance."""
    assert set(TABLE) == set(itertools.product(Phase, Signal))


def test_nobody_fails_without_having_been_suspect_unless_ordered():
    """Failed is reached from suspect by evidence, from anywhere by order, and in no other way."""
    into_failed = {key for key, phase in TABLE.items() if phase is Phase.FAILED}
    by_evidence = {k for k in into_failed if k[0] is not Phase.FAILED and k[1] is not Signal.ORDER}
    assert by_evidence == {(Phase.SUSPECT, Signal.FAIL)}


def test_failed_is_left_only_by_the_ramp():
    """A fenced region returns through recovering, whatever signal comes."""
    left = {TABLE[Phase.FAILED, signal] for signal in Signal} - {Phase.FAILED}
    assert left == {Phase.RECOVERING}


def test_suspicion_shrinks_with_confirmations():
    """One witness of two waits T_max, both wait T_min; more regions shrink step by step."""
    policy = Policy()
    assert suspicion_ms(policy, 1, 2) == policy.suspicion_max_ms
    assert suspicion_ms(policy, 2, 2) == policy.suspicion_min_ms
    assert suspicion_ms(policy, 1, 1) == policy.suspicion_min_ms
    waits = [suspicion_ms(policy, downs, 11) for downs in range(1, 12)]
    assert waits == sorted(waits, reverse=True)
    assert waits[-1] == policy.suspicion_min_ms


def test_wilson_bound_needs_samples():
    """Three failures of three say little, sixty of seventy say much."""
    assert wilson_low(0, 0) == 0.0
    assert wilson_low(3, 3) < 0.5
    assert wilson_low(60, 70) > 0.5
