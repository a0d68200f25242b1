# /// script
# requires-python = ">=3.11"
# dependencies = ["redis>=5,<6", "hiredis", "pottery>=3,<4", "python-redis-lock>=4,<5", "redlock-ng>=2,<3"]
# ///
"""Other Redis locks for `bench/locks.py`: `uv run --script bench/locks_peers.py --redis PORT`.

They need another redis-py than the project, so they run in an environment of their own, each with
sixteen threads of one process like the rest. Prints one line of JSON per peer.
"""

# ruff: noqa: D103, PLC0415, ARG001, E501 - each peer is imported only where it is used

import argparse
import json
import threading
import time

import redis

TTL_S = 5


def pottery_pair(port, client):
    from pottery import Redlock

    connection = redis.Redis(port=port)

    def pair(name):
        lock = Redlock(key=f"po:{name}", masters={connection}, auto_release_time=TTL_S)
        lock.acquire()
        got = time.perf_counter()
        lock.release()
        return got

    return pair


def python_redis_lock_pair(port, client):
    import redis_lock

    connection = redis.StrictRedis(port=port)

    def pair(name):
        lock = redis_lock.Lock(connection, f"rl:{name}", expire=TTL_S)
        lock.acquire()
        got = time.perf_counter()
        lock.release()
        return got

    return pair


def redlock_ng_pair(port, client):
    import redlock

    manager = redlock.Redlock([f"redis://127.0.0.1:{port}/0"])

    def pair(name):
        while not (held := manager.acquire(f"ng:{name}", TTL_S * 1000, blocking=True)):
            time.sleep(0.001)
        got = time.perf_counter()
        manager.release(held)
        return got

    return pair


PEERS = {
    "pottery": pottery_pair,
    "python-redis-lock": python_redis_lock_pair,
    "redlock-ng": redlock_ng_pair,
}


def run(make, port, clients, contended, pairs):
    waits, counts, half = [], [0] * clients, []
    gate = threading.Barrier(clients + 1)

    def work(client):
        pair = make(port, client)
        name = "one" if contended else f"n{client}"
        pair(f"warm{client}")
        gate.wait()
        for _ in range(pairs // clients):
            asked = time.perf_counter()
            waits.append(pair(name) - asked)
            counts[client] += 1
            if not half and len(waits) >= pairs // 2:
                half.append(list(counts))

    threads = [threading.Thread(target=work, args=(c,), daemon=True) for c in range(clients)]
    for thread in threads:
        thread.start()
    gate.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join(60)
    ended = time.perf_counter()
    ordered = sorted(waits)
    shares = half[0] if half else counts
    return {
        "rate": len(ordered) / (ended - started),
        "p50_ms": ordered[len(ordered) // 2] * 1000,
        "p99_ms": ordered[int(len(ordered) * 0.99)] * 1000,
        "fairness": min(shares) / max(1, *shares),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--redis", type=int, default=0)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=1_000)
    parser.add_argument("--contended", action="store_true")
    args = parser.parse_args()
    if not args.redis:
        print("run by bench/locks.py, which starts a Redis and an environment for it")
        return
    for what, make in PEERS.items():
        pairs = args.pairs // 4 if args.contended else args.pairs
        found = run(make, args.redis, args.clients, args.contended, pairs)
        print(json.dumps({"what": what} | found), flush=True)


if __name__ == "__main__":
    main()
