"""What a seller's machine should be like, rule by rule: from what was found out to findings with a remedy. Pure.

A finding is `error` when jobs cannot be run or buyers' code would not be kept in its box, `warning` when something will go wrong one day,
`note` when it is only good to know. Bounds of versions are those in which a published flaw was fixed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from seller_agent.cards.card import CardTelemetry, DetectedCard, Inventory, NoCards

GIB = 1 << 30
DISK_LOW, DISK_TOO_LOW = 5 * GIB, 1 * GIB
CLOCK_OFF_MS, CLOCK_WRONG_MS = 2_000, 60_000
SHM_LOW = 64 << 20
TOOLKIT_FIXED = (
    ((1, 16, 2), "CVE-2024-0132, CVE-2024-0133"),
    ((1, 17, 4), "CVE-2025-23359"),
    ((1, 17, 8), "CVE-2025-23266, CVE-2025-23267"),
)
RUNC_FIXED = (((1, 1, 12), "CVE-2024-21626"), ((1, 2, 8), "CVE-2025-31133, CVE-2025-52565, CVE-2025-52881"))
DOCKER_OLDEST = (20, 10)
DOCKER_WITH_CDI = (28, 2)


class Finding(NamedTuple):
    """One thing that was looked at. `severity`: ok, note, warning or error."""

    severity: str
    finding: str
    remedy: str = ""


def version_of(text: str) -> tuple[int, ...]:
    """The numbers of the first version in a text; empty when there is none."""
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part or 0) for part in found.groups()) if found else ()


def clock(off_ms: int) -> Finding:
    """How far the machine's clock is from the market's."""
    words = f"clock: {off_ms} ms from the market's"
    remedy = "Synchronise it (systemd-timesyncd, chrony): session keys and prices have times."
    if off_ms > CLOCK_WRONG_MS:
        return Finding("error", words, remedy)
    return Finding("warning", words, remedy) if off_ms > CLOCK_OFF_MS else Finding("ok", words)


def python(version: tuple[int, ...], text: str) -> Finding:
    """The interpreter."""
    if version < (3, 11):
        return Finding("error", f"python: {text}", "GPU Bazaar needs Python 3.11 or newer.")
    return Finding("ok", f"python: {text}")


def disk(free: int, place: str) -> Finding:
    """Room where inputs, results, or images go."""
    words = f"disk: {free / GIB:.1f} GiB free at {place}"
    remedy = "Inputs, results and images need room: free some, or move the folder."
    if free < DISK_TOO_LOW:
        return Finding("error", words, remedy)
    return Finding("warning", words, remedy) if free < DISK_LOW else Finding("ok", words)


def memory_files(writable: bool, size: int) -> Finding:
    """/dev/shm, where the secrets of jobs are kept."""
    if not writable:
        return Finding(
            "warning", "/dev/shm: not writable, so the secrets of jobs would lie on the disk while they run", "Mount a tmpfs there."
        )
    words = f"/dev/shm: {size >> 20} MiB"
    return Finding("ok", words) if size >= SHM_LOW else Finding("warning", f"{words}: little room for secrets", "Enlarge it.")


def cards(found: Inventory, cores: int) -> list[Finding]:
    """The cards, or why there are none."""
    if found.cards:
        return [_card(card) for card in found.cards] + _drivers(found.cards)
    none = f"cards: none ({found.detail or found.reason or 'no answer'}); {cores} cores could be offered"
    match found.reason:
        case NoCards.DRIVER_MISMATCH:
            return [Finding("error", none, "The driver was replaced under the running system: drain the node, then restart the machine.")]
        case NoCards.NO_PERMISSION:
            return [Finding("error", none, "Let this user open /dev/nvidia* (often: the group video or render).")]
        case NoCards.HUNG:
            return [Finding("error", none, "Try nvidia-smi; if it hangs too, restart the machine.")]
        case NoCards.DRIVER_ABSENT:
            return [Finding("warning", none, "Load the driver: modprobe nvidia; dmesg says why it does not.")]
    return [Finding("note", none, 'Install the driver of your cards, or try --simulate-gpus "2xRTX 4090".')]


def _card(card: DetectedCard) -> Finding:
    slice_of = " (a slice)" if card.mig else ""
    words = f"card {card.index}: {card.model}{slice_of}, {card.vram_mib} MiB{', ' + card.pci if card.pci else ''}"
    return Finding("ok", words) if card.healthy else Finding("error", f"{words}: {card.fault}", "Until then it is not let.")


def _drivers(found: Iterable[DetectedCard]) -> list[Finding]:
    versions = sorted({(card.vendor.value, card.driver, card.cuda) for card in found if card.driver and not card.simulated})
    return [
        Finding("ok", f"driver: {vendor} {driver}" + (f", CUDA {cuda // 1000}.{cuda % 1000 // 10}" if cuda else ""))
        for vendor, driver, cuda in versions
    ]


def use_of_cards(readings: Iterable[CardTelemetry]) -> list[Finding]:
    """Cards that somebody uses now, or whose memory has failed."""
    found = []
    for reading in readings:
        if reading.pids:
            words = f"card {reading.index}: in use by {_count(len(reading.pids), 'program')}"
            found.append(Finding("note", words, "While programs that are no jobs of yours use it, it is not let."))
        if reading.ecc_errors:
            words = f"card {reading.index}: {_count(reading.ecc_errors, 'uncorrected memory error')} since the driver was loaded"
            found.append(Finding("error", words, "Reset it (nvidia-smi --gpu-reset) or restart; if they come back, replace it."))
    return found


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def toolkit(text: str | None, has_cards: bool, has_cdi: bool) -> list[Finding]:
    """NVIDIA's container toolkit: `text` is what `nvidia-ctk --version` says, None without it."""
    if text is None:
        if not has_cards or has_cdi:
            return []
        remedy = "Install nvidia-container-toolkit, then: nvidia-ctk runtime configure --runtime=docker"
        return [Finding("error", "nvidia toolkit: not installed, so containers cannot be given cards", remedy)]
    return [_against_flaws("nvidia toolkit", text, TOOLKIT_FIXED, "a container of a stranger can take over the machine")]


def runc(text: str) -> Finding:
    """The program that starts containers, by its version text."""
    return _against_flaws("runc", text, RUNC_FIXED, "a container of a stranger can take over the machine")


def _against_flaws(name: str, text: str, fixed: Iterable[tuple[tuple[int, ...], str]], danger: str) -> Finding:
    version = version_of(text)
    shown = re.sub(r"[^A-Za-z0-9.+~_-]", " ", text).split()
    words = f"{name}: {next((word for word in shown if version_of(word)), 'of unknown version')}"
    if not version:
        return Finding("note", words)
    flaws = [names for least, names in fixed if version < least]
    if not flaws:
        return Finding("ok", words)
    least = ".".join(str(part) for part in max(least for least, _ in fixed))
    patched = re.search(r"deb|ubuntu|el\d|fc\d|\+|~", text) is not None
    unless = "; your distribution may have mended it in this version: look in its changelog" if patched else ""
    return Finding("note" if patched else "warning", f"{words}: {danger} ({', '.join(flaws)}){unless}", f"Update to {least} or newer.")


def docker(info: Mapping[str, Any], version: Mapping[str, Any], has_cards: bool) -> list[Finding]:
    """What Docker's `/info` and `/version` say."""
    text = str(info.get("ServerVersion", ""))
    numbers = version_of(text)
    found = [Finding("ok", f"docker: {text}")]
    if numbers and numbers < DOCKER_OLDEST:
        found = [Finding("warning", f"docker: {text} is older than any that was tried", "Update to 20.10 or newer.")]
    names = [str(part.get("Version", "")) for part in version.get("Components") or () if part.get("Name") == "runc"]
    found += [runc(name) for name in names]
    options = [str(option) for option in info.get("SecurityOptions") or ()]
    if not any(option.startswith("name=seccomp") and "unconfined" not in option for option in options):
        found.append(
            Finding("error", "docker: seccomp is off, so no job is run", "Remove seccomp-profile=unconfined from its configuration.")
        )
    if not info.get("LiveRestoreEnabled"):
        remedy = 'Put "live-restore": true into /etc/docker/daemon.json, then: systemctl reload docker'
        if str((info.get("Swarm") or {}).get("LocalNodeState", "")) == "active":
            remedy = "It cannot be had together with a swarm: leave the swarm (docker swarm leave), then put live-restore into daemon.json."
        found.append(Finding("warning", "docker: live-restore is off, so that jobs die whenever Docker is restarted or updated", remedy))
    if any(option.startswith("name=rootless") for option in options):
        found.append(Finding("ok", "docker: runs without root"))
    return found + (_cards_in_docker(info, numbers) if has_cards else [])


def has_cdi(info: Mapping[str, Any]) -> bool:
    """Whether Docker knows the cards by their own names (CDI)."""
    devices = info.get("DiscoveredDevices") or ()
    return any(str(device.get("ID", "")).startswith("nvidia.com/gpu=") for device in devices)


def _cards_in_docker(info: Mapping[str, Any], numbers: tuple[int, ...]) -> list[Finding]:
    found = []
    if has_cdi(info):
        found.append(Finding("ok", "docker: gives cards to containers by name (CDI)"))
    elif str(info.get("CgroupDriver")) == "systemd":
        remedy = "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml, then restart Docker"
        if numbers and numbers < DOCKER_WITH_CDI:
            remedy = f'Update Docker to 28.2 or newer and {remedy}; or "exec-opts": ["native.cgroupdriver=cgroupfs"] in daemon.json.'
        words = "docker: with systemd's cgroups and NVIDIA's hook, running containers lose their cards at every `systemctl daemon-reload`"
        found.append(Finding("warning", words, remedy))
    if info.get("DefaultRuntime") == "nvidia":
        words = "docker: its default runtime is nvidia's, which hands every card to any container that does not say otherwise (jobs do)"
        found.append(Finding("note", words, "Make runc the default again; cards are asked for by name."))
    return found


def docker_group(members: Iterable[str], uid: int) -> list[Finding]:
    """Who may speak to Docker."""
    names = sorted(members)
    if not names:
        return []
    words = f"docker group: {', '.join(names)[:200]} can become root through it"
    return [
        Finding(
            "note", words, "That is so by design: keep the group small, or run Docker without root." if uid else "Keep the group small."
        )
    ]


def egress(uid: int, has_iptables: bool) -> Finding:
    """Whether jobs could be let out to the internet and nowhere else."""
    missing = [word for word, lacks in (("root", uid != 0), ("iptables", not has_iptables)) if lacks]
    if missing:
        words = f"egress: jobs get no network, because that takes {' and '.join(missing)}"
        return Finding("note", words, "It is an extra (--egress): run the agent as root, with iptables installed, to offer it.")
    return Finding("ok", "egress: can be offered with --egress; it is proved with a container before it is")
