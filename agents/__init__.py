"""A region's agent: measures what a payment meets, reports it, applies the plan.

    targets   what to probe, from the configuration        probes/   how to probe it
    cadence   when to probe it (pure)                       prober    runs them, bounded
    counters  what was seen, cumulative since boot          sources   application outcomes, queues
    sntp, lag how far this observer may be trusted          report    all of it as one report
    servers   which replica to talk to (pure)               link      talks to it
    apply     accept or refuse a plan                       store     keep it on disk
    http      /livez /readyz /metrics /api/plan             relay     the plan for local sidecars
    agent     puts them together and ends them in order

Static stability is the rule above all others: with every replica gone the agent goes on probing,
counting and serving its last plan, and it starts from disk into such an outage too.
"""
