"""The market, its rules and figures, and its nodes. All of it is public; all of it comes from memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import msgspec

from events.quantities import pair
from events.reasons import Refusal
from events.values import Isolation, Network, Requirements, Tier
from events.wire import QuoteRequest
from projections import snapshot
from projections.nodes import Node, NodeState
from services.api import queries
from services.api.asking import Asked, Endpoint, Reply
from services.api.market_views import MarketView, PolicyView, StatsView, market_view, policy_view, stats_view
from services.api.paging import LIMIT_DEFAULT, ByPrice, BySeq
from services.api.paging import read as read_cursor
from services.api.paging import write as write_cursor
from services.api.problems import ProblemFound
from services.api.quoting import QuoteView, quote_view, quoted
from services.api.views import NodeView, node_view
from services.matcher.feasibility import CONDITIONS, Ask, Scene, obstacle
from services.matcher.policies import POLICIES

ABOUT_WHO_ASKS = frozenset({"accepts you", "target", "simulated", "min_gpus", "cards", "sessions", "image", "address"})
ON_OFFER = tuple(condition for condition in CONDITIONS if condition.static and condition.name not in ABOUT_WHO_ASKS)
"""The matcher's own conditions, as far as they are about the machine and not about who asks or what runs there."""


async def market(asked: Asked) -> Reply:
    """Where the market stands."""
    mirror = asked.mirror
    digest = snapshot.digest(mirror.market) if asked.value("digest", False) else None
    return Reply(asked.as_of_seq, market_view(mirror.market, mirror.follower.void, digest))


async def policy(asked: Asked) -> Reply:
    """The rules in force."""
    market = asked.mirror.market
    row = POLICIES.get(market.policy.name) or POLICIES["priority"]
    return Reply(asked.as_of_seq, policy_view(market.policy, row.sentence, market.policy_seq))


async def stats(asked: Asked) -> Reply:
    """Figures."""
    mirror = asked.mirror
    return Reply(asked.as_of_seq, stats_view(mirror.market, mirror.tallies, mirror.hour, asked.now_ms))


class NodePage(msgspec.Struct, frozen=True, kw_only=True):
    """Nodes."""

    items: list[NodeView]
    next_cursor: str | None


async def nodes(asked: Asked) -> Reply:
    """Nodes, the newest first. One that was withdrawn is told of while something still runs there, or when asked for."""
    wanted = set(asked.value("state", ()))
    cursor = read_cursor(asked.value("cursor"), BySeq)
    passing = [node for node in _nodes(asked) if (node.state.value in wanted if wanted else _is_there(node))]
    passing.sort(key=_newest_first)
    if cursor is not None:
        passing = [node for node in passing if node.offered_seq < cursor.seq]
    limit = asked.value("limit", LIMIT_DEFAULT)
    shown = passing[:limit]
    next_cursor = write_cursor(BySeq(shown[-1].offered_seq)) if len(passing) > limit else None
    return Reply(asked.as_of_seq, NodePage(items=[_view(asked, node) for node in shown], next_cursor=next_cursor))


def _nodes(asked: Asked) -> Iterator[Node]:
    return iter(asked.mirror.market.nodes.values())


def _is_there(node: Node) -> bool:
    return node.state is not NodeState.WITHDRAWN or bool(node.allocations)


def _newest_first(node: Node) -> int:
    return -node.offered_seq


def _view(asked: Asked, node: Node) -> NodeView:
    return node_view(node, asked.mirror.market, asked.mirror.telemetry, asked.now_ms)


async def node(asked: Asked) -> Reply:
    """One node, whatever its state."""
    found = asked.mirror.market.nodes.get(asked.name)
    if found is None:
        raise ProblemFound(Refusal.UNKNOWN_NODE)
    return Reply(asked.as_of_seq, _view(asked, found))


def requirements_in(asked: Asked) -> Requirements:
    """What the query asks of a machine. Without `gpus`: a card when something is said of cards, else none."""
    about_cards = any(name in asked.values for name in ("vram", "total_vram", "model", "min_cuda"))
    isolation, tier = asked.value("isolation"), asked.value("min_tier")
    return Requirements(
        num_gpus=asked.value("gpus", 1 if about_cards else 0),
        vram_mib=asked.value("vram", 0),
        total_vram_mib=asked.value("total_vram", 0),
        gpu_models=asked.value("model", ()),
        min_cuda=asked.value("min_cuda", 0),
        cores=asked.value("cores", 0),
        memory_mib=asked.value("memory", 0),
        isolation=None if isolation is None else Isolation(isolation),
        min_tier=None if tier is None else Tier(tier),
        network=Network(asked.value("network", Network.NONE.value)),
        node_labels=dict(pair(label) for label in asked.value("node_label", ())),
        allow_simulated=True,
    )


async def offers(asked: Asked) -> Reply:
    """Offered nodes that have what is asked for, the cheapest first."""
    market, limit = asked.mirror.market, asked.value("limit", LIMIT_DEFAULT)
    ask = Ask(requirements_in(asked), None, asked.value("max_price"))
    scene = Scene(market, asked.now_ms)
    cursor = read_cursor(asked.value("cursor"), ByPrice)
    ordered = asked.mirror.cheapest_first(None if cursor is None else (cursor.price, cursor.node_id))
    passing = list(islice((node for node in ordered if obstacle(ask, node, scene, ON_OFFER) is None), limit + 1))
    shown = passing[:limit]
    next_cursor = write_cursor(ByPrice(*_price_and_id(shown[-1]))) if len(passing) > limit else None
    return Reply(asked.as_of_seq, NodePage(items=[_view(asked, node) for node in shown], next_cursor=next_cursor))


def _price_and_id(node: Node) -> tuple[int, str]:
    return node.price_uusd_per_gpu_hour, node.node_id


async def quotes(asked: Asked) -> Reply:
    """Who could run this, as `rpc.quote` answers; without a wallet, as a stranger would be served."""
    viewer, requirements = asked.viewer, requirements_in(asked)
    if viewer.sees_all:
        viewer = viewer._replace(wallet=asked.value("buyer"))
    request = QuoteRequest(
        requirements=msgspec.structs.replace(
            requirements,
            num_gpus=asked.value("gpus", 1),
            allow_simulated=asked.value("allow_simulated", False),
            target_node=asked.value("node"),
        ),
        max_price_uusd_per_gpu_hour=asked.value("max_price"),
        timeout_s=asked.value("timeout", asked.mirror.market.policy.timeout_batch_s),
        org_id=asked.value("org"),
        job_id=asked.value("job"),
    )
    return Reply(asked.as_of_seq, quote_view(quoted(asked.mirror, request, viewer, asked.now_ms)))


MARKET_ENDPOINTS = (
    Endpoint("/v1/market", market, MarketView, "Where the market stands.", (queries.DIGEST,), public=True, past=True),
    Endpoint("/v1/policy", policy, PolicyView, "The rules in force.", public=True, past=True),
    Endpoint("/v1/stats", stats, StatsView, "Figures of this moment and of the last hour.", public=True, past=True),
    Endpoint("/v1/nodes", nodes, NodePage, "Nodes, newest first.", (queries.NODE_STATE, *queries.PAGE), public=True, past=True),
    Endpoint("/v1/nodes/{name}", node, NodeView, "One node.", public=True, past=True),
    Endpoint("/v1/offers", offers, NodePage, "Offered nodes, cheapest first.", queries.OFFERS, public=True, past=True),
    Endpoint("/v1/quotes", quotes, QuoteView, "Who could run this, and at what price.", queries.QUOTES, public=True, past=True),
)
