"""Locks whose fencing tokens never go back.

For a replica of the control plane:

    link = RedisLink(RedisAddress.from_url(url, password_file=...), clock=clock)
    locks = LockManager(
        redis=link,                     # the manager runs the link
        store=etcd,                     # a KeyValueStore
        prefix=cluster,                 # names the keys in Redis
        epoch_key=keys.root + b"locks/epoch",
        limits=Limits(ttl_min_ms=..., ttl_max_ms=...),
        mode=Mode.STRICT,
        wait_replicas=0,
        clock=clock,
        may_bump=lambda: leadership.leads,      # only the leader puts epochs in force
        metrics=metrics,                # LockMetrics; nothing by default
    )
    group.create_task(locks.run())      # link and keeper, until cancelled; survives Redis and etcd
    servicer = LockServiceServicer(locks, AuditLog(etcd, keys.root + b"locks/audit/"))

`run()` ends only by cancellation or by an Alarm. Readiness does not depend on it: without Redis or
etcd calls fail with UnavailableError.

A job of Weir's own (a drill, a reconciliation) runs under a fenced lock:

    async with hold(locks, "jobs/reconcile", ttl_ms=5_000) as held:  # LockHeldError: it runs
        ...                                                          # held.token for its writes

or, worked on in rounds by whichever replica leads, under a `JobLock` (drills).

The parts: `manager` (what callers do), `acquisition` (one request from first call to grant),
`keeper` and `register` (epochs), `lua/` (what Redis runs), `codec` (calls and replies, no I/O),
`hold` (blocks with renewal), `job` (work in rounds), `guards` (the check at the resource), `direct`
(threads straight on Redis), `audit`, `watching`, `statistics`. What is promised: docs/locks.md.
"""
