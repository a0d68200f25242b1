"""Metrics of an agent: what it probes, whether it is heard, which plan it has applied."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from controlplane.adapters import metric_catalogue as catalogue
from controlplane.adapters.prometheus import Meters, one_of


class AgentMetrics(Meters):
    """Metrics of one agent; `region` is its own. Names that are not configured count as `other`."""

    def __init__(
        self, *, region: str, regions: Collection[str], channels: Collection[str], version: str
    ) -> None:
        super().__init__("agent", version, frozenset())
        self._region = region
        self._regions = frozenset(regions)
        self._channels = frozenset(channels)
        for result in catalogue.REPORT_RESULTS:
            self.counters["weir_agent_reports"].labels(result)
        for result in catalogue.PLAN_RESULTS:
            self.counters["weir_agent_plans"].labels(result)
        self.gauges["weir_agent_disk_ok"].set(1)

    def reconfigure(self, *, regions: Collection[str], channels: Collection[str]) -> None:
        """Use other names from now on (after a reload)."""
        self._regions = frozenset(regions)
        self._channels = frozenset(channels)

    def probe_phase(self, channel: str, phase: str, seconds: float) -> None:
        """Count the time one probe spent in dns, tcp, tls or first_byte."""
        self.histograms["weir_probe_phase_seconds"].labels(
            self._region, one_of(channel, self._channels), one_of(phase, catalogue.PROBE_PHASES)
        ).observe(seconds)

    def probe(self, channel: str, ok: bool) -> None:
        """Count a probe of a channel."""
        self.counters["weir_agent_probes"].labels(
            self._region, one_of(channel, self._channels), "ok" if ok else "error"
        ).inc()

    def ingress_probe(self, target: str, ok: bool) -> None:
        """Count a probe of another region's ingress."""
        self.counters["weir_agent_ingress_probes"].labels(
            self._region, one_of(target, self._regions), "ok" if ok else "error"
        ).inc()

    def report(self, result: str) -> None:
        """Count a report by the replica's answer: accepted, duplicate, invalid or refused."""
        self.counters["weir_agent_reports"].labels(one_of(result, catalogue.REPORT_RESULTS)).inc()

    def set_link_up(self, up: bool) -> None:
        """Set whether there is a stream to a replica."""
        self.gauges["weir_agent_link_up"].set(up)

    def set_plan_epoch(self, epoch: int) -> None:
        """Set the epoch this agent has applied."""
        self.gauges["weir_agent_plan_epoch"].set(epoch)

    def set_loop_lag(self, seconds: float) -> None:
        """Set how late the agent's own timers fire."""
        self.gauges["weir_agent_loop_lag_seconds"].set(seconds)

    def probe_failure(self, reason: str) -> None:
        """Count a failed probe by its reason."""
        self.counters["weir_agent_probe_failures"].labels(
            self._region, one_of(reason, catalogue.PROBE_REASONS)
        ).inc()

    def plan_offered(self, result: str) -> None:
        """Count what became of an offered plan: applied, refused or not_taken."""
        word = one_of(result, catalogue.PLAN_RESULTS)
        self.counters["weir_agent_plans"].labels(word).inc()

    def set_disk_ok(self, ok: bool) -> None:
        """Set whether the plan in force is on disk, or could be."""
        self.gauges["weir_agent_disk_ok"].set(ok)

    def set_clock_offset(self, seconds: float | None) -> None:
        """Set this clock minus the reference; None while unknown."""
        gauge = self.gauges["weir_agent_clock_offset_seconds"]
        gauge.clear()
        if seconds is not None:
            gauge.labels(self._region).set(seconds)

    def set_queue_lags(self, seconds: Mapping[str, float]) -> None:
        """Set the lags known now; at most as many queues as a source may name."""
        gauge = self.gauges["weir_agent_queue_lag_seconds"]
        gauge.clear()
        for queue, lag_s in seconds.items():
            gauge.labels(self._region, queue).set(lag_s)
