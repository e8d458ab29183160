"""When a card is let: broken, erring, used by somebody else, still full of what has gone; and when it is let again."""

from __future__ import annotations

import msgspec
import pytest

from seller_agent.cards.card import CardTelemetry, DetectedCard
from seller_agent.cards.health import CLEAN_MS, FOREIGN_MS, CardJudge, Judgement, Ours

CARD = DetectedCard(index=0, uuid="GPU-0", model="NVIDIA GeForce RTX 4090", vram_mib=24564)
IDLE = CardTelemetry(index=0, uuid="GPU-0", utilisation_percent=0, memory_used_mib=300, pids=())
STEP_MS = 5000


class Desk:
    """A judge and its clock; readings come every five seconds."""

    def __init__(self) -> None:
        self.judge = CardJudge()
        self.now_ms = 0

    def see(self, times: int = 1, ours: Ours | None = None, card: DetectedCard = CARD, **reading: object) -> Judgement:
        for _ in range(times):
            self.now_ms += STEP_MS
            found = self.judge.judge(card, msgspec.structs.replace(IDLE, **reading), ours or {}, self.now_ms)
        return found


ENOUGH = FOREIGN_MS // STEP_MS + 1


def test_an_idle_card_is_let() -> None:
    assert Judgement(True, False, "") == Desk().see(10)


def test_a_card_that_does_not_answer_is_broken_at_once_and_well_at_once() -> None:
    desk = Desk()
    assert Judgement(False, True, "it has fallen off the bus") == desk.see(healthy=False, fault="it has fallen off the bus")
    assert desk.see().well


def test_a_driver_replaced_under_us_is_no_reason_to_end_what_runs() -> None:
    found = Desk().see(healthy=False, fault="the driver was replaced", spares_runs=True, ours={"GPU-0": None})
    assert (False, False) == (found.well, found.broken)


def test_errors_in_memory_take_a_card_off_the_market_but_what_runs_on_it_goes_on() -> None:
    found = Desk().see(ecc_errors=3, ours={"GPU-0": None})
    assert (False, False) == (found.well, found.broken)
    assert "3 uncorrected memory errors" in found.why
    assert Desk().see(ecc_errors=0).well


@pytest.mark.parametrize("reading", [{"pids": (4711,)}, {"memory_used_mib": 9000}, {"pids": None, "utilisation_percent": 60}])
def test_somebody_elses_work_takes_a_card_off_the_market_once_it_has_lasted(reading: dict[str, object]) -> None:
    desk = Desk()
    assert desk.see(ENOUGH - 1, **reading).well
    found = desk.see(**reading)
    assert (False, False) == (found.well, found.broken)
    assert "we did not start" in found.why or "nothing that we started" in found.why
    assert not desk.see(CLEAN_MS // STEP_MS).well, "it must stay clean for a while"
    assert desk.see().well


def test_a_moments_use_changes_nothing() -> None:
    desk = Desk()
    for _ in range(5):
        assert desk.see(ENOUGH - 1, pids=(4711,)).well
        assert desk.see().well


def test_our_own_run_is_never_taken_for_somebody_else() -> None:
    for ours in (None, frozenset({4711, 4712})):
        assert Desk().see(5 * ENOUGH, ours={"GPU-0": ours}, pids=(4711, 4712), memory_used_mib=20_000, utilisation_percent=100).well


def test_somebody_beside_our_own_run_is_noticed_where_our_processes_are_known() -> None:
    found = Desk().see(ENOUGH, ours={"GPU-0": frozenset({4711})}, pids=(4711, 9))
    assert (False, False, "a program that we did not start uses it") == (found.well, found.broken, found.why)


def test_a_card_that_a_run_of_ours_leaves_full_is_not_given_out_again() -> None:
    desk = Desk()
    desk.see(10, ours={"GPU-0": frozenset({4711})}, pids=(4711,), memory_used_mib=20_000)
    assert not desk.see(ENOUGH, memory_used_mib=20_000).well
    assert desk.see(CLEAN_MS // STEP_MS + 1).well


def test_what_a_desktop_or_a_driver_holds_is_no_use() -> None:
    assert Desk().see(5 * ENOUGH, memory_used_mib=1500, pids=()).well
    assert Desk().see(5 * ENOUGH, memory_used_mib=2400, pids=()).well


def test_a_card_of_which_nothing_is_known_is_let() -> None:
    assert Desk().see(5 * ENOUGH, memory_used_mib=None, pids=None, utilisation_percent=None).well


def test_a_card_that_does_not_exist_is_used_by_nobody() -> None:
    simulated = msgspec.structs.replace(CARD, simulated=True)
    assert Desk().see(5 * ENOUGH, card=simulated, pids=(1,)).well


def test_a_card_that_could_never_be_let_does_not_become_well() -> None:
    divided = msgspec.structs.replace(CARD, healthy=False, fault="its MIG mode is on and it has no slices")
    assert Judgement(False, False, "its MIG mode is on and it has no slices") == Desk().see(5, card=divided)
