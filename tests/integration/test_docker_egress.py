"""Jobs that may reach the internet: from inside a container the internet is there, and the seller's machine, its LAN, the cloud's metadata
service and other jobs are not. All of it in network namespaces of the tests' own, with a Docker that may set rules of a firewall there."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import msgspec
import pytest
from integration.docker_engine import IMAGE, Engine, root_file_system, until, why_no_engine
from integration.egress_world import FAR_LAN, INTERNET, LAN, METADATA, PORT, SELLER, Agent, World

from seller_agent.runners.docker_engine.daemon import clocks
from seller_agent.runners.docker_engine.egress import firewall as docker_firewall
from seller_agent.runners.docker_engine.egress import network as docker_egress
from seller_agent.runners.docker_engine.egress.firewall import closed_networks
from seller_agent.runners.docker_engine.egress.network import Egress, EgressRefused
from seller_agent.runners.docker_engine.sdk import SdkEngine
from seller_agent.runners.runner import RunKey, RunSpec, run_folder

pytestmark = pytest.mark.timeout(120)
GATEWAY = "172.17.0.1"
TRIES = "for place in %s; do nc -w 2 $place %s </dev/null >/dev/null 2>&1 && echo reaches $place; done; true"
EVERYWHERE = (INTERNET, LAN, FAR_LAN, METADATA, SELLER, GATEWAY)


class Seller:
    """An agent on a machine of that world."""

    def __init__(self, world: World, engine: Engine, home: Path) -> None:
        self.world, self.engine, self.home = world, engine, home
        self.agent = Agent(world, home, engine.socket)

    def run(self, script: str, network: str = "egress") -> str:
        """What a job says, or why there was none."""
        key = RunKey(job_id=f"j{secrets.token_hex(6)}", attempt=1, epoch=7)
        spec = RunSpec(
            key=key,
            folder=run_folder(str(self.home / "runs"), key),
            argv=("sh", "-c", script),
            env={},
            image=IMAGE,
            network=network,
            memory_mib=64,
            timeout_s=60,
            lease_until_boot_ms=clocks.boot_ms() + 3_600_000,
        )
        return str(self.agent.ask("run", spec=msgspec.to_builtins(spec)))

    def reaches(self, *places: str, network: str = "egress") -> list[str]:
        """Which places a job reaches."""
        return [line.removeprefix("reaches ") for line in self.run(TRIES % (" ".join(places), PORT), network).splitlines()]

    def rules(self) -> str:
        return self.world.on_the_seller("iptables -S")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    if reason := why_no_engine():
        pytest.skip(reason)
    missing = [program for program in ("iptables", "ip", "nsenter", "unshare") if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed; on Debian: apt-get install iptables iproute2 util-linux")
    with contextlib.closing(World()) as new:
        yield new


@pytest.fixture(scope="module")
def seller(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seller]:
    """A seller whose egress is proved."""
    engine = Engine(Path(tempfile.mkdtemp(prefix="bazaar-docker-", dir="/tmp")))
    engine.start(network=world.network)
    engine.load(IMAGE, root_file_system())
    new = Seller(world, engine, tmp_path_factory.mktemp("egress") / "home")
    try:
        yield new
    finally:
        new.agent.close()
        engine.close()
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((new.home / "guard" / "guard.lock").read_text()), signal.SIGTERM)


@pytest.fixture
def proved(seller: Seller) -> Seller:
    if seller.agent.ask("told") == []:
        assert docker_egress.NETWORK == seller.agent.ask("open"), seller.agent.ask("told")
    assert docker_egress.NETWORK == seller.agent.ask("prove"), seller.agent.ask("told")
    return seller


def test_a_job_with_egress_reaches_the_internet_and_nothing_else(proved: Seller) -> None:
    assert [INTERNET] == proved.reaches(*EVERYWHERE)
    assert [] == proved.reaches(*EVERYWHERE, network="none")
    said = proved.run("cat /etc/resolv.conf | grep -c nameserver; ls /sys/class/net; cat /proc/net/if_inet6 | grep -vc ' lo$'")
    assert "0" == said.split()[-1]  # no IPv6 address at all


def test_without_the_rules_the_very_same_container_reaches_everything(proved: Seller) -> None:
    proved.world.on_the_seller(f"iptables -F {docker_firewall.CHAIN}; iptables -D INPUT 1")
    assert sorted(EVERYWHERE) == sorted(proved.reaches(*EVERYWHERE))


AMONG = f"-i {docker_firewall.BRIDGE} -o {docker_firewall.BRIDGE}"


@pytest.mark.parametrize(
    ("vanished", "fault"),
    [
        ("iptables -D INPUT 1", f"this machine itself at {GATEWAY}, {SELLER}"),
        (f"iptables -F {docker_firewall.CHAIN}", "10.255.255.254"),
        (f"iptables -D FORWARD {AMONG} -j DROP; iptables -I DOCKER-USER {AMONG} -j ACCEPT", "each other"),
    ],
)
def test_the_probe_notices_each_kind_of_open_door(proved: Seller, vanished: str, fault: str) -> None:
    proved.world.on_the_seller(vanished)
    try:
        assert None is proved.agent.ask("probe")
        assert fault in proved.agent.ask("told")[-1]
    finally:
        proved.world.on_the_seller(f"iptables -D DOCKER-USER {AMONG} -j ACCEPT 2>/dev/null; true")
        proved.world.on_the_seller(f"iptables -C FORWARD {AMONG} -j DROP 2>/dev/null || iptables -A FORWARD {AMONG} -j DROP")


def test_jobs_do_not_reach_each_other(proved: Seller) -> None:
    listens = ["nc", "-ll", "-p", str(PORT), "-e", "true"]
    listening = {"Image": IMAGE, "Entrypoint": listens, "HostConfig": {"NetworkMode": docker_egress.NETWORK}}
    sdk = SdkEngine(proved.engine.socket, 2)
    sdk.create("listens", listening)
    sdk.start("listens")
    found = sdk.inspect("listens")
    sdk.close()
    assert found is not None
    address = found["NetworkSettings"]["Networks"][docker_egress.NETWORK]["IPAddress"]
    knock = ["nsenter", f"--net=/proc/{found['State']['Pid']}/ns/net", "busybox", "nc", "-w", "1", address, str(PORT)]
    try:
        until(lambda: subprocess.run(knock, stdin=subprocess.DEVNULL).returncode == 0, "the neighbour to listen", 20)
        assert [INTERNET] == proved.reaches(address, INTERNET)
    finally:
        proved.engine.ask("DELETE", "/containers/listens?force=1")


def test_rules_that_vanish_are_put_back_and_stand_first_again(proved: Seller) -> None:
    before = proved.rules()
    proved.world.on_the_seller("iptables -F INPUT; iptables -F DOCKER-USER; iptables -A DOCKER-USER -j RETURN; iptables -I INPUT -j ACCEPT")
    assert docker_egress.NETWORK == proved.agent.ask("prove")
    assert f"-A DOCKER-USER -j {docker_firewall.CHAIN}" in proved.rules()
    proved.world.on_the_seller("iptables -I DOCKER-USER 1 -j ACCEPT")
    assert docker_egress.NETWORK == proved.agent.ask("prove")
    proved.world.on_the_seller("iptables -D INPUT -j ACCEPT; iptables -D DOCKER-USER -j ACCEPT")
    assert before == proved.rules()


def test_what_cannot_be_proved_is_not_offered_and_no_job_gets_it(proved: Seller, tmp_path: Path) -> None:
    broken = tmp_path / "iptables"
    broken.write_text("#!/bin/sh\necho not today >&2; exit 4\n")
    broken.chmod(0o755)
    path = proved.world.on_the_seller("echo $PATH").strip()
    proved.agent.ask("path", path=f"{tmp_path}:{path}")
    try:
        assert None is proved.agent.ask("prove")
        assert "not today" in proved.agent.ask("told")[-1]
        assert proved.run("echo ran").startswith("container_error: The job wants network 'egress'")
        assert "ran\n" == proved.run("echo ran", network="none")
    finally:
        proved.agent.ask("path", path=path)
    assert docker_egress.NETWORK == proved.agent.ask("prove")
    assert "and nothing else" in proved.agent.ask("told")[-1]


def test_a_machine_that_is_cut_off_from_the_internet_offers_none(proved: Seller) -> None:
    proved.world.on_the_seller("ip link set up0 down")
    assert None is proved.agent.ask("prove")
    assert "jobs do not reach the internet" in proved.agent.ask("told")[-1]
    proved.world.on_the_seller(f"ip link set up0 up; ip route add default via {LAN}")
    assert docker_egress.NETWORK == proved.agent.ask("prove"), proved.agent.ask("told")


def test_a_runner_that_closes_leaves_no_rule_and_no_bridge(proved: Seller) -> None:
    assert docker_firewall.BRIDGE in proved.world.on_the_seller("ip -br link")
    proved.agent.ask("close")
    left = proved.rules() + proved.world.on_the_seller("ip6tables -S; ip -br link")
    assert docker_firewall.BRIDGE not in left and docker_firewall.CHAIN not in left
    assert [] == [name for name in proved.engine.names() if "probe" in name]


def test_who_is_not_root_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    engine: Any = None
    with pytest.raises(EgressRefused) as refused:
        Egress(engine, "home").check()
    assert "root" in refused.value.why and "--egress" in refused.value.hint


def test_a_machine_in_public_networks_closes_those_too() -> None:
    assert list(docker_firewall.PRIVATE) == closed_networks([IPv4Interface("10.1.2.3/8"), IPv4Interface("192.168.7.1/16")])
    assert "1.2.3.0/24" in closed_networks([IPv4Interface("1.2.3.4/24"), IPv4Interface("10.1.2.3/8")])
