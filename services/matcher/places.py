"""Which node is the best for a kind of job now. Pure; reads the index of nodes and changes nothing.

Two questions: the cheapest node for a shape, whatever its jobs pay, which tells whether any job of it fits anywhere; and, under a policy
that spreads work, the node with the least work left among those that a certain job pays for.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter

from services.matcher.feasibility import CONDITIONS, Condition, Scene, obstacle
from services.matcher.node_index import Bucket, How, NodeIndex
from services.matcher.policies import Place, Rank, place, rank
from services.matcher.shapes import Placed, Shape

BusyRank = tuple[int, Rank]
"""(work left in ms, rank)."""


def cheapest(index: NodeIndex, shape: Shape, scene: Scene) -> Rank | None:
    """The best node for jobs of this shape that its limits allow, whatever they pay."""
    if shape.target is not None:
        return target_of(index, shape, scene)
    best, most = None, shape.cap
    buckets = index.open
    index.tally.touched += len(buckets)
    until_ms = scene.now_ms + shape.timeout_ms if shape.timeout_ms else 0
    for bucket, price in buckets.items():
        if price > most:
            continue
        how = bucket.shapes.get(shape)
        if how is None:
            continue
        key = bucket.nodes.first(shape.cores, shape.memory_mib, shape.avoid, until_ms)
        if key is not None and key[0] <= most:
            found = rank(key[0], how[0], how[1], key[1])
            if best is None or found < best:
                best, most = found, key[0]
    return best


def cheapest_of_gang(index: NodeIndex, shape: Shape, scene: Scene, number: int) -> list[Rank]:
    """The so many best nodes for jobs or ranks of this shape that its limits allow, whatever they pay; fewer where there are no more. None
    of those where a place is kept."""
    best = list[Rank]()
    least = (shape.cores, shape.memory_mib, scene.now_ms + shape.timeout_ms if shape.timeout_ms else 0)
    avoid = shape.avoid | scene.kept.keys() if scene.kept else shape.avoid
    index.tally.touched += len(index.open)
    for bucket, price in index.open.items():
        most = shape.cap if len(best) < number else min(shape.cap, best[-1][0])
        how = bucket.shapes.get(shape) if price <= most else None
        if how is not None:
            best += [rank(key[0], how[0], how[1], key[1]) for key in bucket.nodes.firsts(number, least, avoid, most)]
            best.sort()
            del best[number:]
    return best


def least_busy(index: NodeIndex, shape: Shape, scene: Scene, most_uusd: int) -> BusyRank | None:
    """The node with the least expected work left at which a job of this shape that pays so much may run."""
    if shape.target is not None:
        there = target_of(index, shape, scene)
        return None if there is None or there[0] > most_uusd else (0, there)
    best = None
    most_uusd = min(most_uusd, shape.cap)
    for bucket in index.open:
        how = bucket.shapes.get(shape)
        if how is not None:
            found = _least_busy_of(bucket, how, shape, scene, most_uusd)
            if found is not None and (best is None or found < best):
                best = found
    return best


def best_of(placed: Placed, index: NodeIndex, scene: Scene, most_uusd: int, *, by_backlog: bool) -> tuple[Place, Shape]:
    """The best place of a job that has one and pays so much, over all shapes in which it lies."""
    found = []
    for shape, variant in zip(placed.shapes, placed.variants, strict=True):
        if by_backlog:
            best = least_busy(index, shape, scene, most_uusd)
        else:
            there = cheapest(index, shape, scene)
            best = None if there is None or there[0] > most_uusd else (0, there)
        if best is not None:
            found.append((place(best[0], shape.ask.requirements.num_gpus, variant, best[1]), shape))
    return min(found, key=itemgetter(0))


def _least_busy_of(bucket: Bucket, how: How, shape: Shape, scene: Scene, most_uusd: int) -> BusyRank | None:
    """Of nodes with equally many attempts under way the order never changes; so the first of each number is looked at."""
    now_ms, best = scene.now_ms, None
    least = (shape.cores, shape.memory_mib, now_ms + shape.timeout_ms if shape.timeout_ms else 0, -most_uusd)
    for number, group in bucket.busy.items():
        key = group.first(least, shape.avoid)
        if key is not None:
            found = (key[0] - number * now_ms, rank(key[1], how[0], how[1], key[2]))
            if best is None or found < best:
                best = found
    return best


def target_of(index: NodeIndex, shape: Shape, scene: Scene, conditions: Iterable[Condition] = CONDITIONS) -> Rank | None:
    """The one node that jobs of this shape name, if it meets these conditions and limits allow it."""
    index.tally.touched += 1
    node = scene.market.nodes.get(shape.target or "")
    if node is None or node.node_id in shape.avoid or node.price_uusd_per_gpu_hour > shape.cap:
        return None
    if obstacle(shape.ask, node, scene, conditions) is not None:
        return None
    return rank(node.price_uusd_per_gpu_hour, 0, 0, node.node_id)
