"""Plans for the agents' tests."""

from __future__ import annotations

from controlplane.v1 import common_pb2


def plan(epoch: int, east_bp: int = 7000, **values: object) -> common_pb2.Plan:
    """Return a well-formed plan for two regions and one channel."""
    message = common_pb2.Plan(
        epoch=epoch,
        term=11,
        routes=[
            common_pb2.Route(
                channel="alipay",
                weights=[
                    common_pb2.RegionWeight(region="east", weight_bp=east_bp),
                    common_pb2.RegionWeight(region="north", weight_bp=10_000 - east_bp),
                ],
                reasons=["base: configured shares"],
            )
        ],
        regions=[
            common_pb2.RegionState(name=name, phase="healthy", verdict="healthy")
            for name in ("east", "north")
        ],
        **values,  # type: ignore[arg-type]
    )
    message.committed_at.FromMilliseconds(1_700_000_000_123)
    for region in message.regions:
        region.since.FromMilliseconds(1_700_000_000_000)
    return message


def malformed() -> dict[str, common_pb2.Plan]:
    """Return plans that must be refused, by what is wrong with them; epochs are above 9."""
    empty = common_pb2.Plan(epoch=10, term=1)
    no_weights = plan(10)
    del no_weights.routes[0].weights[:]
    short = plan(10)
    short.routes[0].weights[0].weight_bp = 6999
    negative = plan(10)
    negative.routes[0].weights[0].weight_bp = -1
    negative.routes[0].weights[1].weight_bp = 10_001
    twice = plan(10)
    twice.routes.append(twice.routes[0])
    unsorted = plan(10)
    unsorted.routes[0].weights.reverse()
    failed = plan(10)
    failed.regions[0].phase = "failed"
    word = plan(10)
    word.regions[0].phase = "tired"
    drained = plan(10)
    for region in drained.regions:
        region.drained = True
    return {
        "empty": empty,
        "no weights": no_weights,
        "sum": short,
        "negative": negative,
        "twice": twice,
        "unsorted": unsorted,
        "failed region with weight": failed,
        "unknown phase": word,
        "all drained": drained,
        "epoch beyond belief": plan(1 << 62),
    }
