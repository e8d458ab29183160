"""What the doctor thinks of what was found: one machine as it should be, and one fault at a time."""

from __future__ import annotations

from typing import Any

import pytest

from seller_agent.cards.card import CardTelemetry, DetectedCard, Inventory, NoCards
from seller_agent.doctor import rules
from seller_agent.doctor.rules import Finding

CARD = DetectedCard(
    index=0, uuid="GPU-0", model="NVIDIA A100-SXM4-80GB", vram_mib=81920, driver="580.65.06", cuda=13000, pci="00000000:01:00.0"
)
GOOD: dict[str, Any] = {
    "ServerVersion": "28.5.2",
    "SecurityOptions": ["name=seccomp,profile=builtin", "name=cgroupns"],
    "LiveRestoreEnabled": True,
    "CgroupDriver": "systemd",
    "DefaultRuntime": "runc",
    "DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=GPU-0"}],
}
RUNC = {"Components": [{"Name": "Engine", "Version": "28.5.2"}, {"Name": "runc", "Version": "1.3.4"}]}


def worst(findings: list[Finding]) -> list[str]:
    """What is not fine, as `severity: words`."""
    return [f"{found.severity}: {found.finding}" for found in findings if found.severity != "ok"]


def only(findings: list[Finding]) -> Finding:
    [found] = [found for found in findings if found.severity != "ok"]
    assert found.remedy
    return found


def test_a_machine_as_it_should_be_has_nothing_to_mend() -> None:
    found = [
        rules.clock(3),
        rules.python((3, 12, 1), "3.12.1"),
        rules.disk(100 << 30, "/home"),
        rules.memory_files(True, 8 << 30),
        *rules.cards(Inventory(cards=(CARD,)), 8),
        *rules.use_of_cards([CardTelemetry(index=0, uuid="GPU-0", ecc_errors=0, pids=())]),
        *rules.docker(GOOD, RUNC, True),
        *rules.toolkit("NVIDIA Container Toolkit CLI version 1.17.8\ncommit: f202b80", True, True),
        rules.egress(0, True),
    ]
    assert [] == worst(found)
    assert "driver: nvidia 580.65.06, CUDA 13.0" in [item.finding for item in found]


@pytest.mark.parametrize(("off_ms", "severity"), [(0, "ok"), (2_000, "ok"), (2_001, "warning"), (60_001, "error"), (3_600_000, "error")])
def test_a_clock_that_is_off(off_ms: int, severity: str) -> None:
    assert severity == rules.clock(off_ms).severity


@pytest.mark.parametrize(("free", "severity"), [(1 << 30, "warning"), ((1 << 30) - 1, "error"), (5 << 30, "ok")])
def test_a_disk_that_is_nearly_full(free: int, severity: str) -> None:
    assert severity == rules.disk(free, "/home").severity


@pytest.mark.parametrize(
    ("text", "severity", "flaw"),
    [
        ("NVIDIA Container Toolkit CLI version 1.16.1", "warning", "CVE-2024-0132"),
        ("NVIDIA Container Toolkit CLI version 1.17.3", "warning", "CVE-2025-23359"),
        ("NVIDIA Container Toolkit CLI version 1.17.7", "warning", "CVE-2025-23266"),
        ("NVIDIA Container Toolkit CLI version 1.18.0", "ok", ""),
        ("who knows", "note", ""),
    ],
)
def test_a_toolkit_that_lets_containers_out_is_named_with_the_flaw(text: str, severity: str, flaw: str) -> None:
    [found] = rules.toolkit(text, True, False)
    assert severity == found.severity
    assert flaw in found.finding
    assert ("1.17.8" in found.remedy) is bool(flaw)


def test_without_the_toolkit_containers_get_no_cards() -> None:
    assert "error" == only(rules.toolkit(None, True, False)).severity
    assert [] == rules.toolkit(None, False, False) == rules.toolkit(None, True, True)


@pytest.mark.parametrize(
    ("text", "severity"), [("1.1.11", "warning"), ("1.1.5+ds1-1+deb12u1", "note"), ("1.2.7", "warning"), ("1.3.4", "ok"), ("1.2.8", "ok")]
)
def test_a_runc_with_known_flaws(text: str, severity: str) -> None:
    assert severity == rules.runc(text).severity


@pytest.mark.parametrize(
    ("changes", "severity", "words"),
    [
        ({"LiveRestoreEnabled": False}, "warning", "live-restore is off"),
        ({"LiveRestoreEnabled": False, "Swarm": {"LocalNodeState": "active"}}, "warning", "live-restore is off"),
        ({"SecurityOptions": ["name=seccomp,profile=unconfined"]}, "error", "seccomp is off"),
        ({"DiscoveredDevices": None}, "warning", "daemon-reload"),
        ({"DefaultRuntime": "nvidia"}, "note", "hands every card"),
        ({"ServerVersion": "19.03.1"}, "warning", "older"),
    ],
)
def test_a_docker_that_will_do_harm_one_day(changes: dict[str, Any], severity: str, words: str) -> None:
    found = only(rules.docker({**GOOD, **changes}, RUNC, True))
    assert severity == found.severity
    assert words in found.finding


def test_the_swarms_own_obstacle_is_said() -> None:
    info = {**GOOD, "LiveRestoreEnabled": False, "Swarm": {"LocalNodeState": "active"}}
    assert "swarm" in only(rules.docker(info, RUNC, True)).remedy


def test_the_reload_trap_is_no_matter_with_cgroupfs_or_without_cards() -> None:
    assert [] == worst(rules.docker({**GOOD, "DiscoveredDevices": None, "CgroupDriver": "cgroupfs"}, RUNC, True))
    assert [] == worst(rules.docker({**GOOD, "DiscoveredDevices": None}, RUNC, False))


@pytest.mark.parametrize(
    ("reason", "severity"),
    [
        (NoCards.DRIVER_MISMATCH, "error"),
        (NoCards.NO_PERMISSION, "error"),
        (NoCards.HUNG, "error"),
        (NoCards.DRIVER_ABSENT, "warning"),
        (NoCards.LIBRARY_ABSENT, "note"),
        (NoCards.NONE_FOUND, "note"),
    ],
)
def test_a_machine_without_cards_is_told_what_to_do(reason: NoCards, severity: str) -> None:
    assert severity == only(rules.cards(Inventory(reason=reason), 8)).severity


def test_cards_that_are_used_or_erring_are_said() -> None:
    found = rules.use_of_cards([CardTelemetry(index=1, uuid="GPU-1", ecc_errors=1, pids=(9,))])
    assert ["note: card 1: in use by 1 program", "error: card 1: 1 uncorrected memory error since the driver was loaded"] == worst(found)


def test_who_speaks_to_docker_is_root() -> None:
    assert "alice, bob" in only(rules.docker_group(["bob", "alice"], 1000)).finding
    assert [] == rules.docker_group([], 1000)


def test_egress_takes_root_and_a_firewall() -> None:
    assert "root and iptables" in rules.egress(1000, False).finding
    assert "iptables" in rules.egress(0, False).finding and "root" not in rules.egress(0, False).finding


def test_secrets_need_memory() -> None:
    assert ["warning", "warning"] == [rules.memory_files(False, 0).severity, rules.memory_files(True, 1 << 20).severity]
