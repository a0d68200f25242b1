"""Weir agents: probes, reports and local application of the plan."""
