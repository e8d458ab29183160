"""`/metrics` in the words of Prometheus: where the ledger stands, what waits, what runs, and every card's last readings.

Figures are read when somebody asks, from the same fold as every other answer. With `?dcgm=1` the readings of cards carry the names that
NVIDIA's exporter gives them, so that dashboards made for those go on working.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import islice
from operator import attrgetter

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from projections.job_states import TERMINAL, JobState
from projections.nodes import Node, NodeState
from services.api.market_views import WAIT_BUCKETS_S, Waits
from services.api.mirror import Mirror
from services.api.telemetry import Telemetry

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
NODES_AT_ONCE = 100
"""So many nodes' cards are written down before others have their turn."""
CARD_LABELS = 'gpu="{index}",model="{model}",node="{node}",node_name="{name}",uuid="{uuid}"'
DCGM_LABELS = 'Hostname="{name}",UUID="{uuid}",gpu="{index}",modelName="{model}"'
READINGS = (
    ("gpu_percent", "gpubazaar_gpu_utilization_percent", "DCGM_FI_DEV_GPU_UTIL", "How busy the card was."),
    ("memory_used_mib", "gpubazaar_gpu_memory_used_mebibytes", "DCGM_FI_DEV_FB_USED", "Memory in use on the card."),
    ("temperature_c", "gpubazaar_gpu_temperature_celsius", "DCGM_FI_DEV_GPU_TEMP", "Temperature of the card."),
    ("power_w", "gpubazaar_gpu_power_watts", "DCGM_FI_DEV_POWER_USAGE", "What the card draws."),
    ("ecc_errors", "gpubazaar_gpu_ecc_errors", "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", "Uncorrected memory errors since the driver was loaded."),
)
"""(field of a beat's card, our name, NVIDIA's name, help)."""
_readings = attrgetter(*(field for field, *_ in READINGS))


def _waits(waits: Waits) -> HistogramMetricFamily:
    """The histogram as Prometheus has it: each bucket holds those below, too."""
    found = HistogramMetricFamily("gpubazaar_job_wait_seconds", "From a job's submission to its match.")
    running, buckets = 0, []
    for bound, number in zip((*map(str, WAIT_BUCKETS_S), "+Inf"), waits.counts, strict=True):
        running += number
        buckets.append((bound, float(running)))
    found.add_metric([], buckets, waits.total_s)
    return found


class _Market(Collector):
    """Everything about one market but the readings of its cards."""

    def __init__(self, mirror: Mirror, now_ms: int) -> None:
        self._mirror = mirror
        self._now_ms = now_ms

    def collect(self) -> Iterator[Metric]:
        mirror, market = self._mirror, self._mirror.market
        yield CounterMetricFamily("gpubazaar_ledger_events", "Events in the ledger.", value=market.last_seq)
        yield CounterMetricFamily("gpubazaar_ledger_pages", "Pages of the ledger.", value=market.pages)
        age_s = max(0, self._now_ms - market.time_ms) / 1000
        yield GaugeMetricFamily("gpubazaar_ledger_last_page_age_seconds", "Since the last page was written.", value=age_s)
        yield GaugeMetricFamily("gpubazaar_matching_paused", "1 while the operator has paused the market.", value=int(market.paused))
        states = market.states
        yield _by_state(
            "gpubazaar_jobs", "Jobs that have not ended, by state.", {s.value: states.get(s, 0) for s in JobState if s not in TERMINAL}
        )
        ended = CounterMetricFamily("gpubazaar_jobs_ended", "Jobs that ever ended, by state.", labels=("state",))
        for state in sorted(TERMINAL):
            ended.add_metric((state.value,), states.get(state, 0))
        yield ended
        yield from self._nodes()
        yield _waits(mirror.waits)

    def _nodes(self) -> Iterator[Metric]:
        tallies = self._mirror.tallies
        tallies.settle(self._now_ms)
        states = {state.value: tallies.states[state] - tallies.silent_states[state] for state in NodeState}
        yield _by_state("gpubazaar_nodes", "Nodes, by state.", states | {"silent": len(tallies.silent)})
        cards = tallies.offered
        gpus = {"free": cards.free, "taken": cards.taken, "unhealthy": max(0, cards.gpus - cards.free - cards.taken)}
        yield _by_state("gpubazaar_gpus", "Cards of offered nodes.", gpus)


def _by_state(name: str, text: str, counts: dict[str, int]) -> Metric:
    found = GaugeMetricFamily(name, text, labels=("state",))
    for state, number in counts.items():
        found.add_metric((state,), number)
    return found


async def exposition(mirror: Mirror, now_ms: int, *, dcgm: bool) -> AsyncIterator[bytes]:
    """The text that Prometheus reads, a piece at a time: the cards of a large market are many megabytes, and nobody is to wait for them."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Market(mirror, now_ms))
    yield generate_latest(registry)
    nodes = iter([node for node in mirror.market.nodes.values() if node.state not in (NodeState.WITHDRAWN, NodeState.LOST)])
    families: list[list[bytes]] = [[_head(theirs if dcgm else ours, text)] for _, ours, theirs, text in READINGS]
    while some := list(islice(nodes, NODES_AT_ONCE)):
        for family, lines in zip(families, card_lines(some, mirror.telemetry, dcgm=dcgm), strict=True):
            family.append(lines)
        await asyncio.sleep(0)
    for family in families:
        for piece in family:
            yield piece


def _head(name: str, text: str) -> bytes:
    return f"# HELP {name} {text}\n# TYPE {name} gauge\n".encode()


def card_lines(nodes: Sequence[Node], telemetry: Telemetry, *, dcgm: bool) -> list[bytes]:
    """The readings of these nodes' cards, a text for each of `READINGS`: written here, as this is nearly all that there is to write."""
    template = DCGM_LABELS if dcgm else CARD_LABELS
    found: list[tuple[list[str], str]] = [([], theirs if dcgm else ours) for _, ours, theirs, _ in READINGS]
    for node in nodes:
        name, node_id = _escaped(node.offer.name), node.offer.node_id
        for card in node.offer.cards:
            beat = telemetry.card(node_id, card.uuid)
            if beat is None:
                continue
            labels = template.format(index=card.index, model=_escaped(card.model), node=node_id, name=name, uuid=_escaped(card.uuid))
            for (lines, family), reading in zip(found, _readings(beat), strict=True):
                if reading >= 0:
                    lines.append(f"{family}{{{labels}}} {reading}.0\n")
    return ["".join(lines).encode() for lines, _ in found]


def _escaped(text: str) -> str:
    """As the value of a label."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
