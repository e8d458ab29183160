"""AMD's and Apple's cards, from the files and words by which their systems tell of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from events.naming import cards_in_words
from events.values import Card, Isolation
from seller_agent.cards.card import DetectedCard, Inventory, Vendor, pci_address
from seller_agent.cards.machine import offered_card, usable_by
from seller_agent.cards.others import Amd, Apple
from seller_agent.runners.process.runner import environment_of
from seller_agent.runners.runner import RunCard, RunKey, RunSpec

GIB = 1 << 30


def sysfs(root: Path) -> Path:
    """A machine with a processor and two MI210: as the kernel shows them, the second without a sensor."""
    nodes = root / "class/kfd/kfd/topology/nodes"
    for number, unique in ((1, 0x55A4), (2, 0)):
        node = nodes / str(number)
        (node / "mem_banks/0").mkdir(parents=True)
        (node / "mem_banks/0/properties").write_text(f"heap_type 1\nsize_in_bytes {64 * GIB}\nflags 0\n")
        lines = {"simd_count": 416, "vendor_id": 4098, "location_id": number << 8, "domain": 0, "drm_render_minor": 127 + number}
        lines |= {"gfx_target_version": 90010, "unique_id": unique}
        (node / "properties").write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
        (root / f"class/drm/renderD{127 + number}/device").mkdir(parents=True)
    (nodes / "0").mkdir()
    (nodes / "0/properties").write_text("cpu_cores_count 64\nsimd_count 0\nvendor_id 0\n")
    device = root / "class/drm/renderD128/device"
    (device / "hwmon/hwmon3").mkdir(parents=True)
    (device / "ras").mkdir()
    for name, text in {
        "product_name": "Instinct MI210",
        "mem_info_vram_total": str(64 * GIB),
        "mem_info_vram_used": str(10 << 20),
        "gpu_busy_percent": "97",
        "hwmon/hwmon3/temp1_input": "41000",
        "hwmon/hwmon3/power1_average": "61000000",
        "ras/umc_err_count": "ue: 2\nce: 9",
    }.items():
        (device / name).write_text(text + "\n")
    return root


def no_library() -> None:
    return None


def test_amd_cards_are_read_from_the_kernels_files(tmp_path: Path) -> None:
    amd = Amd(sysfs(tmp_path), no_library)
    first, second = amd.cards()
    assert ("AMD-00000000000055a4", "AMD Instinct MI210", 65536, "00000000:01:00.0", "gfx90a") == (
        first.uuid, first.model, first.vram_mib, first.pci, first.compute_capability,
    )  # fmt: skip
    assert ("AMD-00000000-02-00-0", "AMD gfx90a", 65536) == (second.uuid, second.model, second.vram_mib)
    for card in (first, second):
        msgspec.convert(msgspec.to_builtins(offered_card(card)), Card)


def test_amd_cards_tell_what_they_do_and_what_they_do_not_tell_is_unknown(tmp_path: Path) -> None:
    amd = Amd(sysfs(tmp_path), no_library)
    first, second = amd.cards()
    told = amd.telemetry(first)
    assert (97, 10, 41, 61000, 2, True) == (
        told.utilisation_percent, told.memory_used_mib, told.temperature_c, told.power_mw, told.ecc_errors, told.healthy,
    )  # fmt: skip
    silent = amd.telemetry(second)
    assert (None, None, None, None, None, True) == (
        silent.utilisation_percent, silent.memory_used_mib, silent.temperature_c, silent.power_mw, silent.ecc_errors, silent.healthy,
    )  # fmt: skip
    (tmp_path / "class/drm/renderD129/device").rmdir()
    assert (False, "it is not there any more") == (amd.telemetry(second).healthy, amd.telemetry(second).fault)


def test_amds_library_lends_the_names(tmp_path: Path) -> None:
    library = SimpleNamespace(
        amdsmi_get_processor_handles=lambda: ["a", "b"],
        amdsmi_get_gpu_asic_info=lambda handle: {"market_name": "AMD Instinct MI210X"} if handle == "a" else "N/A",
        amdsmi_get_gpu_device_bdf=lambda handle: "0000:01:00.0" if handle == "a" else "0000:02:00.0",
    )
    assert ["AMD Instinct MI210X", "AMD gfx90a"] == [card.model for card in Amd(sysfs(tmp_path), lambda: library).cards()]


def test_a_library_that_fails_changes_nothing(tmp_path: Path) -> None:
    assert 2 == len(Amd(sysfs(tmp_path), lambda: SimpleNamespace()).cards())


def test_a_machine_without_such_cards_has_none(tmp_path: Path) -> None:
    assert [] == Amd(tmp_path, no_library).cards()
    assert [] == Apple("Linux", "x86_64", lambda name: "1").cards()
    assert [] == Apple("Darwin", "x86_64", lambda name: "1").cards()


def test_an_apple_machine_counts_as_one_card() -> None:
    told = {"hw.memsize": str(64 * GIB), "kern.uuid": "ABC", "machdep.cpu.brand_string": "Apple M2 Max", "kern.osproductversion": "15.1"}
    [card] = Apple("Darwin", "arm64", lambda name: told.get(name, "")).cards()
    assert ("Apple M2 Max GPU", 48 * 1024, Vendor.APPLE, "15.1") == (card.model, card.vram_mib, card.vendor, card.driver)
    assert card.uuid.startswith("MPS-")
    msgspec.convert(msgspec.to_builtins(offered_card(card)), Card)
    assert [] == Apple("Darwin", "arm64", lambda name: "").cards()


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ([("NVIDIA GeForce RTX 4090", 24576)] * 2, "2x NVIDIA RTX 4090 (48.0 GiB)"),
        (
            [("NVIDIA A100-SXM4-80GB", 81920), ("NVIDIA GeForce RTX 4090", 24564)],
            "1x NVIDIA A100-SXM4-80GB + 1x NVIDIA RTX 4090 (104.0 GiB)",
        ),
        ([], "no GPU"),
    ],
)
def test_cards_are_named_together_with_all_their_memory(models: list[tuple[str, int]], words: str) -> None:
    assert words == cards_in_words(models)


@pytest.mark.parametrize(("text", "address"), [(b"00000000:0A:00.0", "00000000:0a:00.0"), ("nonsense", ""), ("", ""), ("0:1:2", "")])
def test_an_address_is_one_or_none(text: object, address: str) -> None:
    assert address == pci_address(text)


def test_a_job_is_given_amds_cards_by_the_names_that_its_runtime_knows() -> None:
    def seen(*uuids: str) -> dict[str, str]:
        cards = tuple(RunCard(index=index, uuid=uuid, model="X", vram_mib=1) for index, uuid in enumerate(uuids))
        key = RunKey(job_id="j" + "a" * 19, attempt=1, epoch=1)
        made = environment_of(RunSpec(key=key, folder="/x", argv=("true",), env={}, cards=cards, timeout_s=1, lease_until_boot_ms=0))
        return {name: value for name, value in made.items() if name.endswith("VISIBLE_DEVICES") and not name.startswith("NVIDIA")}

    assert {"ROCR_VISIBLE_DEVICES": "GPU-00000000000055a4,GPU-00000000000055a5"} == seen("AMD-00000000000055a4", "AMD-00000000000055a5")
    assert {"CUDA_VISIBLE_DEVICES": "GPU-1,MIG-2"} == seen("GPU-1", "MIG-2")
    assert {"CUDA_VISIBLE_DEVICES": ""} == seen("MPS-1") == seen()


def test_containers_are_offered_nvidias_cards_only() -> None:
    cards = tuple(
        DetectedCard(index=index, uuid=str(index), model="X", vram_mib=1, vendor=vendor)
        for index, vendor in enumerate((Vendor.NVIDIA, Vendor.AMD))
    )
    both = Inventory(cards=cards)
    assert (both, "") == usable_by(Isolation.PROCESS, both)
    found, words = usable_by(Isolation.CONTAINER, both)
    assert ((cards[0],), True) == (found.cards, words.startswith("1 cards"))
