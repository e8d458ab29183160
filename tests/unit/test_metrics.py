"""What Prometheus reads of cards: written by hand for speed, so its own parser has to read it, whatever nodes and cards are called."""

from __future__ import annotations

import pytest
from builders import SELLER, card, given, node_of, node_offered
from prometheus_client.parser import text_string_to_metric_families as parsed

from events.wire import Beat, BeatCard, BeatView
from services.api.metrics import NODES_AT_ONCE, READINGS, card_lines, exposition
from services.api.mirror import Mirror
from services.api.telemetry import Telemetry
from services.follower import Follower

ODD = ("plain", 'quo"ted', "back\\slash", "\\n is no line", 'end\\"', "comma,brace}")


def heard(telemetry: Telemetry, node_id: str, *cards: BeatCard) -> None:
    telemetry.note(BeatView(beat=Beat(node_id=node_id, boot="b", cards=cards), wallet=SELLER, time_ms=0), 0)


@pytest.mark.parametrize("dcgm", [False, True])
@pytest.mark.parametrize("odd", ODD)
def test_odd_names_come_through_as_they_are(odd: str, dcgm: bool) -> None:
    market, telemetry = given(node_offered("node", cards=(card(model=odd, uuid=odd),))), Telemetry()
    node = node_of(market)
    heard(telemetry, node.node_id, BeatCard(odd, gpu_percent=97, memory_used_mib=0, temperature_c=-1, power_w=1_000_000))
    lines = dict(zip((field for field, *_ in READINGS), card_lines([node], telemetry, dcgm=dcgm), strict=True))
    assert b"" == lines["temperature_c"], "what could not be read is not told"
    for field, value in (("gpu_percent", 97.0), ("memory_used_mib", 0.0), ("power_w", 1_000_000.0)):
        [sample] = [sample for family in parsed(lines[field].decode()) for sample in family.samples]
        model, uuid = ("modelName", "UUID") if dcgm else ("model", "uuid")
        assert (value, odd, odd) == (sample.value, sample.labels[model], sample.labels[uuid])
        assert ("node", "0") == (sample.labels["Hostname" if dcgm else "node_name"], sample.labels["gpu"])


async def test_all_families_of_a_large_market_are_whole_and_each_stands_together() -> None:
    names = [f"n{number}" for number in range(2 * NODES_AT_ONCE + 1)]
    follower = Follower(given(*(node_offered(name, gpus=2) for name in names)))
    mirror = Mirror(follower, log_created="", on_disk_pages=0, now_ms=follower.market.time_ms)
    for node in mirror.market.nodes.values():
        heard(mirror.telemetry, node.node_id, *(BeatCard(one.uuid, gpu_percent=1, temperature_c=2) for one in node.offer.cards))
    text = b"".join([piece async for piece in exposition(mirror, follower.market.time_ms, dcgm=False)]).decode()
    families = {family.name: family for family in parsed(text)}
    assert len(families) == text.count("# TYPE")
    cards = [(sample.labels["node_name"], sample.labels["gpu"]) for sample in families["gpubazaar_gpu_utilization_percent"].samples]
    assert [(name, index) for name in names for index in ("0", "1")] == cards
    assert 2.0 * len(names) == next(s.value for s in families["gpubazaar_gpus"].samples if s.labels == {"state": "free"})
