"""`/metrics` in the words of Prometheus: where the ledger stands, what waits, what runs, and every card's last readings.

Figures are read when somebody asks, from the same fold as every other answer. With `?dcgm=1` the readings of cards carry the names that
NVIDIA's exporter gives them, so that dashboards made for those go on working.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from projections.job_states import TERMINAL, JobState
from projections.nodes import NodeState, free_cards
from services.api.market_views import WAIT_BUCKETS_S, Waits
from services.api.mirror import Mirror

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
CARD_LABELS = ("node", "node_name", "gpu", "uuid", "model")
DCGM_LABELS = ("Hostname", "gpu", "UUID", "modelName")
READINGS = (
    ("gpu_percent", "gpubazaar_gpu_utilization_percent", "DCGM_FI_DEV_GPU_UTIL", "How busy the card was."),
    ("memory_used_mib", "gpubazaar_gpu_memory_used_mebibytes", "DCGM_FI_DEV_FB_USED", "Memory in use on the card."),
    ("temperature_c", "gpubazaar_gpu_temperature_celsius", "DCGM_FI_DEV_GPU_TEMP", "Temperature of the card."),
    ("power_w", "gpubazaar_gpu_power_watts", "DCGM_FI_DEV_POWER_USAGE", "What the card draws."),
    ("ecc_errors", "gpubazaar_gpu_ecc_errors", "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", "Uncorrected memory errors since the driver was loaded."),
)
"""(field of a beat's card, our name, NVIDIA's name, help)."""


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
    """Everything about one market."""

    def __init__(self, mirror: Mirror, now_ms: int, *, dcgm: bool) -> None:
        self._mirror = mirror
        self._now_ms = now_ms
        self._dcgm = dcgm

    def collect(self) -> Iterator[Metric]:
        mirror, market = self._mirror, self._mirror.market
        yield CounterMetricFamily("gpubazaar_ledger_events", "Events in the ledger.", value=market.last_seq)
        yield CounterMetricFamily("gpubazaar_ledger_pages", "Pages of the ledger.", value=market.pages)
        age_s = max(0, self._now_ms - market.time_ms) / 1000
        yield GaugeMetricFamily("gpubazaar_ledger_last_page_age_seconds", "Since the last page was written.", value=age_s)
        yield GaugeMetricFamily("gpubazaar_matching_paused", "1 while the operator has paused the market.", value=int(market.paused))
        yield self._jobs()
        yield self._ended()
        yield from self._nodes()
        yield _waits(mirror.waits)
        yield from self._cards()

    def _jobs(self) -> Metric:
        found = GaugeMetricFamily("gpubazaar_jobs", "Jobs that have not ended, by state.", labels=("state",))
        for state in JobState:
            if state not in TERMINAL:
                found.add_metric((state.value,), self._mirror.market.states.get(state, 0))
        return found

    def _ended(self) -> Metric:
        found = CounterMetricFamily("gpubazaar_jobs_ended", "Jobs that ever ended, by state.", labels=("state",))
        for state in sorted(TERMINAL):
            found.add_metric((state.value,), self._mirror.market.states.get(state, 0))
        return found

    def _nodes(self) -> Iterator[Metric]:
        mirror = self._mirror
        states = dict.fromkeys((*(state.value for state in NodeState), "silent"), 0)
        gpus = dict.fromkeys(("free", "taken", "unhealthy"), 0)
        for node in mirror.market.nodes.values():
            silent = mirror.telemetry.is_suspect(node, mirror.market.policy.suspect_s, self._now_ms)
            states["silent" if silent else node.state.value] += 1
            if node.state is NodeState.OFFERED:
                free = len(free_cards(node))
                gpus["free"] += free
                gpus["taken"] += len(node.taken)
                gpus["unhealthy"] += max(0, len(node.offer.cards) - free - len(node.taken))
        yield _by_state("gpubazaar_nodes", "Nodes, by state.", states)
        yield _by_state("gpubazaar_gpus", "Cards of offered nodes.", gpus)

    def _cards(self) -> Iterable[Metric]:
        labels = DCGM_LABELS if self._dcgm else CARD_LABELS
        families = [GaugeMetricFamily(theirs if self._dcgm else ours, text, labels=labels) for _, ours, theirs, text in READINGS]
        telemetry = self._mirror.telemetry
        for node in self._mirror.market.nodes.values():
            if node.state in (NodeState.WITHDRAWN, NodeState.LOST):
                continue
            for card in node.offer.cards:
                beat = telemetry.card(node.node_id, card.uuid)
                if beat is None:
                    continue
                name, index = node.offer.name, str(card.index)
                values = (name, index, card.uuid, card.model) if self._dcgm else (node.node_id, name, index, card.uuid, card.model)
                for family, (field, *_) in zip(families, READINGS, strict=True):
                    reading: int = getattr(beat, field)
                    if reading >= 0:
                        family.add_metric(values, reading)
        return families


def _by_state(name: str, text: str, counts: dict[str, int]) -> Metric:
    found = GaugeMetricFamily(name, text, labels=("state",))
    for state, number in counts.items():
        found.add_metric((state,), number)
    return found


def exposition(mirror: Mirror, now_ms: int, *, dcgm: bool) -> bytes:
    """The text that Prometheus reads."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Market(mirror, now_ms, dcgm=dcgm))
    return generate_latest(registry)
