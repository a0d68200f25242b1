# /// script
# requires-python = ">=3.11"
# dependencies = ["redis>=5,<6", "hiredis", "pottery>=3,<4", "python-redis-lock>=4,<5", "redlock-ng>=2,<3"]
# ///
"""Other Redis locks for `bench/locks.py`: `uv run --script bench/locks_peers.py --redis PORT`.

They need another redis-py than the project, so they run in an environment of their own, with
threads of one process like the rest, and beside that redis-py's own Lock. Prints one line of JSON
per slice.
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


def redis_py_pair(port, client):
    connection = redis.Redis(port=port)

    def pair(name):
        lock = connection.lock(f"py5:{name}", timeout=TTL_S)
        lock.acquire()
        got = time.perf_counter()
        lock.release()
        return got

    return pair


PEERS = {
    "redis-py 5": redis_py_pair,
    "pottery": pottery_pair,
    "python-redis-lock": python_redis_lock_pair,
    "redlock-ng": redlock_ng_pair,
}


def run(pairs, contended, seconds):
    """One slice. A client that waits for a lock which somebody else left held is not waited for."""
    clients = len(pairs)
    waits, counts = [], [0] * clients
    started, cpu = time.perf_counter(), time.process_time()

    def work(client):
        pair = pairs[client]
        name = "one" if contended else f"n{client}"
        while (asked := time.perf_counter()) < started + seconds:
            waits.append(pair(name) - asked)
            counts[client] += 1

    threads = [threading.Thread(target=work, args=(c,), daemon=True) for c in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    ended = time.perf_counter()
    ordered = sorted(waits)
    return {
        "rate": len(ordered) / (ended - started),
        "p50_ms": ordered[len(ordered) // 2] * 1000,
        "p99_ms": ordered[int(len(ordered) * 0.99)] * 1000,
        "cpu_us": (time.process_time() - cpu) / len(ordered) * 1e6,
        "counts": counts,
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--redis", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slice-ms", type=int, default=250)
    args = parser.parse_args()
    if not args.redis:
        print("run by bench/locks.py, which starts a Redis and an environment for it")
        return
    for clients, contended in ((1, False), (16, False), (16, True)):
        made = {what: [make(args.redis, c) for c in range(clients)] for what, make in PEERS.items()}
        for turn in range(args.rounds + 1):
            for what, pairs in made.items():
                found = run(pairs, contended, args.slice_ms * (4 if contended else 1) / 1000)
                if turn:
                    key = {"what": what, "clients": clients, "contended": contended}
                    print(json.dumps(key | found), flush=True)


if __name__ == "__main__":
    main()
