"""Containers with cards: the real Docker, the real NVML binding, and a machine whose four cards are made of a small library.

The hook stands where NVIDIA's would: Docker runs it for a container that was given cards by UUID, and it puts the library, and a
description of exactly those cards, into the container.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.docker_market import DockerMarket
from integration.docker_engine import Engine, root_file_system, why_no_engine

pytestmark = pytest.mark.timeout(120)

FAKE = Path(__file__).parent.parent / "integration" / "fake_nvml.c"
IMAGE = "with-nvml:1"
UUIDS = [f"GPU-0000000{number}-aaaa-bbbb-cccc-000000000000" for number in range(4)]
HOOK = """#!{python}
import json, os, pathlib, shutil, sys
state = json.load(sys.stdin)
config = json.loads(pathlib.Path(state["bundle"], "config.json").read_text())
variables = dict(entry.split("=", 1) for entry in config["process"]["env"])
asked = variables["NVIDIA_VISIBLE_DEVICES"].split(",")
here = {uuids!r}
if not set(asked) <= set(here):
    sys.exit("unknown device " + ",".join(asked))
root = pathlib.Path(state["bundle"], config["root"]["path"])
shutil.copy({library!r}, root / "lib" / "libnvidia-ml.so.1")
lines = ["count " + str(len(asked)), *("uuid %d %s" % item for item in enumerate(asked))]
(root / "etc" / "nvml.state").write_text("\\n".join(lines) + "\\n")
"""
LISTS = """
#include <stdio.h>
extern int nvmlInit_v2(void), nvmlDeviceGetCount_v2(unsigned *), nvmlDeviceGetHandleByIndex_v2(unsigned, void **);
extern int nvmlDeviceGetUUID(void *, char *, unsigned);
int main(void)
{
    unsigned count = 0, index;
    if (nvmlInit_v2() || nvmlDeviceGetCount_v2(&count)) return 1;
    for (index = 0; index < count; index++) {
        void *card;
        char uuid[96];
        if (nvmlDeviceGetHandleByIndex_v2(index, &card) || nvmlDeviceGetUUID(card, uuid, sizeof uuid)) return 2;
        printf("%u %s\\n", index, uuid);
    }
    return 0;
}
"""
SEES = (
    "cards; echo ours $BAZAAR_GPU_UUIDS; echo cuda $CUDA_VISIBLE_DEVICES; echo nvidia $NVIDIA_VISIBLE_DEVICES; "
    "while [ ! -e /job/go ]; do usleep 20000; done"
)


class Machine:
    """What a machine with four cards has on its disk."""

    def __init__(self, folder: Path) -> None:
        self.programs, self.library, self.state = folder / "programs", folder / "library", folder / "state"
        for made in (self.programs, self.library):
            made.mkdir()
        compiled = self.library / "libnvidia-ml.so.1"
        flags = ["-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1"]
        subprocess.run(["gcc", *flags, "-o", str(compiled), str(FAKE)], check=True)
        (folder / "cards.c").write_text(LISTS)
        self.lists = folder / "cards"
        subprocess.run(["gcc", "-o", str(self.lists), str(folder / "cards.c"), str(compiled)], check=True)
        self.state.write_text("count 4\n")
        hook = self.programs / "nvidia-container-runtime-hook"
        hook.write_text(HOOK.format(python=sys.executable, uuids=UUIDS, library=str(compiled)))
        hook.chmod(0o755)

    def image(self) -> bytes:
        """A root file system with the program that lists the cards it sees; without the library, which only the hook brings."""
        linked = subprocess.run(["ldd", "/bin/cat"], capture_output=True, text=True, check=True).stdout  # linked with the C library alone
        buffer = io.BytesIO(root_file_system())
        with tarfile.open(fileobj=buffer, mode="a") as tar:
            for path in (word for word in linked.split() if word.startswith("/")):
                tar.add(os.path.realpath(path), path.lstrip("/"))
            tar.add(self.lists, "bin/cards")
        return buffer.getvalue()


class GpuMarket(DockerMarket):
    """A market on that machine."""

    def __init__(self, folder: Path, engine: Engine, machine: Machine) -> None:
        super().__init__(folder, engine)
        self._machine = machine

    def environment(self, **more: str) -> dict[str, str]:
        described = {"LD_LIBRARY_PATH": str(self._machine.library), "FAKE_NVML_STATE": str(self._machine.state)}
        return super().environment(**described, **more)

    def go(self, job_id: str) -> None:
        """Let a job that waits for it end."""
        [folder] = (self.home / "seller").glob(f"*/runs/{job_id}-*/job")
        (folder / "go").touch()


@pytest.fixture(scope="module")
def gpu_market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpuMarket]:
    """A market with one node of four cards, on an engine that hands them out."""
    if reason := why_no_engine():
        pytest.skip(reason)
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler; on Debian: apt-get install gcc libc6-dev")
    machine = Machine(tmp_path_factory.mktemp("machine"))
    engine = Engine(Path(tempfile.mkdtemp(prefix="bazaar-docker-", dir="/tmp")))
    try:
        engine.start(programs=machine.programs)
        engine.load(IMAGE, machine.image())
        market = GpuMarket(tmp_path_factory.mktemp("gpu-market"), engine, machine)
        try:
            market.start("--seller", "--runner", "docker")
            market.bazaar("wallet", "new")
            yield market
        finally:
            market.close()
    finally:
        engine.close()


def submit(market: GpuMarket, gpus: int, script: str = SEES) -> str:
    return market.submit("--gpus", str(gpus), "--image", IMAGE, "--env", "FAKE_NVML_STATE=/etc/nvml.state", "--", "sh", "-c", script)


def sees(market: GpuMarket, job_id: str) -> list[str]:
    """What a running job says that it sees: the UUIDs in the order of its own numbers."""
    market.wait_for_job(job_id, "running")
    market.wait_until(lambda: "nvidia " in market.bazaar("logs", job_id).stdout, f"{job_id} has listed its cards")
    *listed, ours, cuda, nvidia = market.bazaar("logs", job_id).stdout.splitlines()
    uuids = [line.split()[1] for line in listed]
    assert [f"{number} {uuid}" for number, uuid in enumerate(uuids)] == listed
    joined = ",".join(uuids)
    assert [f"ours {joined}", "cuda " + ",".join(map(str, range(len(uuids)))), f"nvidia {joined}"] == [ours, cuda, nvidia]
    assert uuids == [card["uuid"] for card in market.job(job_id)["gpus"]]
    return uuids


def test_two_jobs_run_at_once_on_cards_of_their_own_and_a_third_waits(gpu_market: GpuMarket) -> None:
    market = gpu_market
    assert UUIDS == [card["uuid"] for card in market.get("/v1/nodes")["items"][0]["cards"]]
    first, second = submit(market, 2), submit(market, 2)
    cards = {job_id: sees(market, job_id) for job_id in (first, second)}
    assert sorted(UUIDS) == sorted(cards[first] + cards[second])
    third = submit(market, 2)
    assert "queued" == market.job(third)["state"]
    assert 2 == len(market.get("/v1/jobs?state=running")["items"])
    assert [2, 3] == sorted(card["index"] for card in market.job(second)["gpus"])  # of the machine; inside they are 0 and 1
    market.go(first)
    assert sorted(cards[first]) == sorted(sees(market, third))
    assert "running" == market.job(second)["state"]
    for job_id in (second, third):
        market.go(job_id)
    for job_id in (first, second, third):
        market.wait_for_job(job_id, "succeeded")
        market.ended_once(job_id)


def test_a_job_of_one_card_sees_one_and_a_job_of_none_sees_none(gpu_market: GpuMarket) -> None:
    market = gpu_market
    one = submit(market, 1)
    assert 1 == len(sees(market, one))
    none = submit(market, 0, "echo nvidia $NVIDIA_VISIBLE_DEVICES; ls /lib/libnvidia-ml.so.1 /etc/nvml.state 2>&1 | grep -c No; cards")
    job = market.wait_for_job(none, "failed")
    assert 127 == job["exit_code"]  # its library is not there
    assert "nvidia void\n2\n" == market.bazaar("logs", none, "--stdout").stdout
    market.go(one)
    market.wait_for_job(one, "succeeded")


def test_the_digest_and_the_cards_of_a_job_are_on_record(gpu_market: GpuMarket) -> None:
    market = gpu_market
    job_id = submit(market, 4, "cards")
    market.wait_for_job(job_id, "succeeded")
    events = {event["type"]: event["event"] for event in market.get(f"/v1/jobs/{job_id}/events?limit=100")["items"]}
    assert sorted(UUIDS) == sorted(events["JobMatched"]["cards"])
    image_id = market.engine.ask("GET", f"/images/{IMAGE}/json")[1]["Id"]
    assert image_id == events["JobStarted"]["image_digest"] == market.bazaar("show", job_id, "--json").json["image_digest"]
    assert image_id in market.bazaar("show", job_id).stdout
