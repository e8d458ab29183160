"""The cards of a machine, read by the real binding from a library whose cards misbehave on demand.

Each scenario is a process of its own, because a process keeps the first library that it has loaded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

HERE = Path(__file__).parent
PRELUDE = """
import asyncio, pathlib, sys
import msgspec
from seller_agent.cards.reader import CardReader, CardsHung
from seller_agent.cards.nvidia import Nvml, inventory, telemetry
state = pathlib.Path(sys.argv[1])
def say(value):
    print(msgspec.json.encode(value).decode())
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the fake library."""
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler; on Debian: apt-get install gcc libc6-dev")
    folder = tmp_path_factory.mktemp("nvml")
    target = folder / "libnvidia-ml.so.1"
    flags = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wl,-soname,libnvidia-ml.so.1"]
    subprocess.run(["gcc", *flags, "-o", str(target), str(HERE / "fake_nvml.c")], check=True)
    return folder


class Machine:
    """A machine with the fake library; its cards are described in a file."""

    def __init__(self, library: Path, folder: Path) -> None:
        self._library = library
        self._state = folder / "state"

    def run(self, state: str, script: str) -> list[Any]:
        """Run a script against a state; what it said, one value a line."""
        self._state.write_text(state)
        environment = {**os.environ, "LD_LIBRARY_PATH": str(self._library), "FAKE_NVML_STATE": str(self._state)}
        command = [sys.executable, "-W", "error", "-c", PRELUDE + script, str(self._state)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert (0, "") == (done.returncode, done.stderr)
        return [msgspec.json.decode(line) for line in done.stdout.splitlines()]

    def inventory(self, state: str) -> dict[str, Any]:
        """The inventory of a state."""
        [found] = self.run(state, "say(inventory())")
        return dict(found)


@pytest.fixture
def machine(library: Path, tmp_path: Path) -> Machine:
    return Machine(library, tmp_path)


def test_every_card_is_listed_with_what_its_driver_says(machine: Machine) -> None:
    found = machine.inventory("count 2\nname 1 NVIDIA A100-SXM4-80GB\n")
    assert (None, 2) == (found["reason"], len(found["cards"]))
    assert {
        "index": 0,
        "uuid": "GPU-00000000-aaaa-bbbb-cccc-000000000000",
        "model": "NVIDIA GeForce RTX 4090",
        "vram_mib": 24564,
        "driver": "550.54.15",
        "cuda": 12040,
        "pci": "00000000:00:00.0",
        "healthy": True,
        "fault": "",
        "simulated": False,
        "compute_capability": "8.9",
        "mig": False,
        "vendor": "nvidia",
    } == found["cards"][0]
    assert "NVIDIA A100-SXM4-80GB" == found["cards"][1]["model"]


@pytest.mark.parametrize(
    ("state", "reason"),
    [("init 9\n", "driver_absent"), ("init 18\n", "driver_mismatch"), ("init 4\n", "no_permission"), ("count 0\n", "none_found")],
)
def test_a_machine_without_cards_says_why(machine: Machine, state: str, reason: str) -> None:
    found = machine.inventory(state)
    assert ([], reason) == (found["cards"], found["reason"])


def test_a_machine_without_the_library_says_so() -> None:
    script = "import ctypes; ctypes.CDLL = lambda name: (_ for _ in ()).throw(OSError(name))\n" + PRELUDE + "say(inventory())"
    environment = {**os.environ, "LD_LIBRARY_PATH": ""}
    done = subprocess.run([sys.executable, "-c", script, "x"], env=environment, capture_output=True, text=True, check=True)
    assert "library_absent" == msgspec.json.decode(done.stdout)["reason"]


def test_a_lost_card_is_one_unhealthy_card_and_not_a_dead_machine(machine: Machine) -> None:
    before, after, pulse = machine.run(
        "count 2\n",
        """
before = inventory()
say(before)
state.write_text("count 2\\nfails 1 15\\n")
say(inventory(before.cards))
say(telemetry(before.cards))
""",
    )
    assert [True, True] == [card["healthy"] for card in before["cards"]]
    assert [True, False] == [card["healthy"] for card in after["cards"]]
    assert before["cards"][1]["uuid"] == after["cards"][1]["uuid"]
    assert "fallen off the bus" in after["cards"][1]["fault"]
    assert [True, False] == [card["healthy"] for card in pulse]


def test_a_lost_card_that_nobody_knew_is_left_out_and_counted(machine: Machine) -> None:
    found = machine.inventory("count 2\nfails 0 15\n")
    assert ([1], "1 of 2 cards do not answer") == ([card["index"] for card in found["cards"]], found["detail"])


def test_what_a_card_does_not_support_is_unknown_and_the_rest_is_told(machine: Machine) -> None:
    state = "count 1\nunknown power 1\nunknown ecc 1\nunknown mig 1\nunknown pci 1\nload 0 97\npid 0 4711\n"
    [pulse] = machine.run(state, "say(telemetry(inventory().cards)[0])")
    assert (None, None, 97, 1024, 41, [4711]) == tuple(
        pulse[name] for name in ("power_mw", "ecc_errors", "utilisation_percent", "memory_used_mib", "temperature_c", "pids")
    )
    assert pulse["healthy"]


def test_a_card_that_shares_the_machines_memory_is_given_the_machines(machine: Machine) -> None:
    found = machine.inventory("count 1\nunknown memory 1\n")
    total_kib = int(Path("/proc/meminfo").read_text().split()[1])
    assert total_kib // 1024 == found["cards"][0]["vram_mib"]


def test_errors_in_memory_are_told(machine: Machine) -> None:
    [pulse] = machine.run("count 1\necc 0 3\n", "say(telemetry(inventory().cards)[0])")
    assert 3 == pulse["ecc_errors"]


def test_a_divided_card_is_offered_as_its_slices(machine: Machine) -> None:
    found, pulses = machine.run("count 3\nmig 1 2\nload 1 50\n", "found = inventory()\nsay(found)\nsay(telemetry(found.cards))")
    cards = found["cards"]
    assert [0, 1, 2, 3] == [card["index"] for card in cards]
    assert [False, True, True, False] == [card["mig"] for card in cards]
    assert ["MIG-00000001-aaaa-bbbb-cccc-000000000000", "MIG-00000001-aaaa-bbbb-cccc-000000000001"] == [card["uuid"] for card in cards[1:3]]
    assert ("NVIDIA GeForce RTX 4090 MIG 1g.3gb", 3072, cards[1]["pci"]) == tuple(cards[2][name] for name in ("model", "vram_mib", "pci"))
    assert (True, 12, 41, 61000, None) == tuple(
        pulses[1][name] for name in ("healthy", "memory_used_mib", "temperature_c", "power_mw", "utilisation_percent")
    )


def test_a_card_in_mig_mode_without_slices_is_listed_and_not_let(machine: Machine) -> None:
    [card] = machine.inventory("count 1\nmig 0 -1\n")["cards"]
    assert (False, False) == (card["healthy"], card["mig"])
    assert "no slices" in card["fault"]


def test_slices_of_a_lost_card_are_all_ill(machine: Machine) -> None:
    [after] = machine.run(
        "count 2\nmig 0 3\n", 'known = inventory().cards\nstate.write_text("count 2\\nmig 0 3\\nfails 0 15\\n")\nsay(inventory(known))'
    )
    assert [False, False, False, True] == [card["healthy"] for card in after["cards"]]
    assert [0, 1, 2, 3] == [card["index"] for card in after["cards"]]


def test_a_driver_replaced_under_us_is_said_and_forgiven_when_it_fits_again(machine: Machine) -> None:
    during, still, after = machine.run(
        "count 1\n",
        """
nvml = Nvml()
cards = nvml.inventory().cards
state.write_text("count 1\\nstale 18\\n")
say(nvml.telemetry(cards))
state.write_text("count 1\\ninit 18\\n")
say(nvml.telemetry(cards))
state.write_text("count 1\\n")
say(nvml.telemetry(cards))
""",
    )
    for told in (during, still):
        assert not told[0]["healthy"]
        assert "drain the node" in told[0]["fault"]
        assert told[0]["spares_runs"]
    assert after[0]["healthy"]


def test_the_library_is_not_initialised_anew_for_each_reading(machine: Machine) -> None:
    [pulse] = machine.run(
        "count 1\n", 'nvml = Nvml()\ncards = nvml.inventory().cards\nstate.write_text("count 1\\ninit 9\\n")\nsay(nvml.telemetry(cards))'
    )
    assert pulse[0]["healthy"]


def test_a_hostile_product_name_cannot_reach_a_terminal(machine: Machine) -> None:
    found = machine.inventory("count 1\nname 0 \x1b[2JGeForce <b>4090</b>\n")
    assert "2JGeForce b 4090 /b" == found["cards"][0]["model"]


def test_a_card_taken_out_while_the_machine_runs_is_noticed(machine: Machine) -> None:
    [pulse] = machine.run("count 2\n", 'cards = inventory().cards\nstate.write_text("count 1\\n")\nsay(telemetry(cards))')
    assert [True, False] == [card["healthy"] for card in pulse]


def test_a_hung_driver_stops_nobody_and_is_forgiven_when_it_answers(machine: Machine) -> None:
    said = machine.run(
        "count 1\nhang 1\n",
        """
async def main():
    reader = CardReader(timeout_s=0.2)
    say((await reader.inventory()).detail)
    try:
        await reader.telemetry([])
    except CardsHung as error:
        say(str(error))
    state.write_text("count 1\\n")
    while not (found := await reader.inventory()).cards:
        await asyncio.sleep(0.01)
    say(len(found.cards))
    say(len(await reader.telemetry(found.cards)))
    reader.close()
asyncio.run(main())
""",
    )
    assert "has not answered for 0.2 s" in said[0]
    assert "an earlier question" in said[1]
    assert [1, 1] == said[2:]


def test_a_watched_card_is_let_only_while_it_is_well_and_nobody_else_uses_it(machine: Machine) -> None:
    said = machine.run(
        "count 2\n",
        """
import structlog
from seller_agent.cards import health as card_health
from seller_agent.cards import reader as card_reader
from seller_agent.cards import machine
structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
machine.LOOK_S, machine.HUNG_MS, card_reader.TIMEOUT_S = 0.01, 100, 0.1
card_health.FOREIGN_MS = card_health.CLEAN_MS = 50

async def main():
    cards = inventory().cards
    watch = machine.CardWatch(cards)
    held = {}
    async def ours():
        return held
    watch.ours = ours
    watching = asyncio.create_task(watch.run())
    async def until(well, what, sick=False):
        uuid = cards[1].uuid
        async with asyncio.timeout(20):
            while watch.is_healthy(uuid) is not well or (what not in watch.readings()[1].unhealthy) or (uuid in watch.sick()) is not sick:
                await asyncio.sleep(0.005)
        say(watch.readings()[1].unhealthy)
        assert watch.is_healthy(cards[0].uuid) or "hang" in state.read_text()
    await until(True, "")
    state.write_text("count 2\\npid 1 4711\\n")
    await until(False, "did not start")
    state.write_text("count 2\\n")
    await until(True, "")
    held[cards[1].uuid] = None
    state.write_text("count 2\\npid 1 4711\\nused 1 20000\\n")
    looks = 0
    take = watch._take
    def counted(*readings):
        nonlocal looks
        looks += 1
        take(*readings)
    watch._take = counted
    while looks < 20:
        await asyncio.sleep(0.01)
    assert watch.is_healthy(cards[1].uuid) and watch.readings()[1].processes == 1
    held.clear()
    state.write_text("count 2\\nused 1 20000\\n")
    await until(False, "20000 MiB")
    state.write_text("count 2\\nhang 1\\n")
    await until(False, "the driver does not answer")
    state.write_text("count 2\\n")
    await until(True, "")
    state.write_text("count 2\\nfails 1 15\\n")
    await until(False, "fallen off the bus", sick=True)
    state.write_text("count 2\\necc 1 2\\n")
    await until(False, "2 uncorrected memory errors")
    watching.cancel()
asyncio.run(main())
""",
    )
    assert 8 == len(said)
