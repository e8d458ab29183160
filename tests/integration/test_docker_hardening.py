"""What a job may and may not do, control by control: in the box as it is, and in one that lacks just this control.

The second half proves that the first can fail: a container that lacks a control shows the ability, and the check before a start names it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from integration.docker_engine import IMAGE, Engine, engine, root_file_system
from integration.docker_home import Home, output, run

from seller_agent.runners.docker_engine import profile
from seller_agent.runners.docker_engine.daemon.streams import EngineStream
from seller_agent.runners.docker_engine.images.store import canonical
from seller_agent.runners.docker_engine.logs import logs_target
from seller_agent.runners.docker_engine.sdk import SdkEngine
from seller_agent.runners.runner import RunSpec

__all__ = ["engine"]

pytestmark = pytest.mark.timeout(120)


class Probe(NamedTuple):
    """A control, a question for the inside of a container, the answer in the box, and how to make a box without that control."""

    control: str
    question: str
    wanted: str
    without: Any


def namespace(name: str) -> str:
    return f"readlink /proc/self/ns/{name}"


OTHER = "other than the machine's"
PROBES = [
    Probe("Config.User", "id -u", "65534", "0"),
    Probe("Config.Tty", "[ -t 1 ] && echo terminal || echo none", "none", True),
    Probe("HostConfig.CapDrop", "grep CapBnd /proc/self/status", "CapBnd: 0000000000000000", []),
    Probe("HostConfig.CapAdd", "grep CapBnd /proc/self/status", "CapBnd: 0000000000000000", ["NET_ADMIN"]),
    Probe("HostConfig.Privileged", "grep -c ' /sys sysfs ro,' /proc/mounts", "1", True),
    Probe(
        "HostConfig.SecurityOpt",
        "grep -h -E '^(NoNewPrivs|Seccomp):' /proc/self/status",
        "NoNewPrivs: 1 Seccomp: 2",
        ["seccomp=unconfined"],
    ),
    Probe("HostConfig.ReadonlyRootfs", "while read a b c d; do [ $b = / ] && echo ${d%%,*}; done </proc/mounts", "ro", False),
    Probe("HostConfig.Tmpfs", "dd if=/dev/zero of=/tmp/x bs=1M count=40 2>&1 | grep -c 'No space'", "1", {"/tmp": "rw,mode=1777,size=50m"}),
    Probe("HostConfig.Binds", "ls -d /machine 2>/dev/null || echo none", "none", ["/etc:/machine:ro"]),
    Probe("HostConfig.PidsLimit", "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null", "4096", 0),
    Probe(
        "HostConfig.Memory", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null", "67108864", 32 << 20
    ),
    Probe("HostConfig.NanoCpus", "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max 2>/dev/null | head -n 1", "100000", 0),
    Probe("HostConfig.ShmSize", "df -k /dev/shm | grep shm | tr -s ' ' | (read a b c; echo $b)", "16384", 0),
    Probe("HostConfig.Ulimits", "echo $(ulimit -c) $(ulimit -n)", "0 16384", [{"Name": "core", "Soft": 7, "Hard": 7}]),
    Probe("HostConfig.IpcMode", namespace("ipc"), OTHER, "host"),
    Probe("HostConfig.NetworkMode", namespace("net"), OTHER, "host"),
    Probe("HostConfig.PidMode", namespace("pid"), OTHER, "host"),
    Probe("HostConfig.UTSMode", namespace("uts"), OTHER, "host"),
    Probe(
        "HostConfig.Devices",
        "ls -d /dev/mine 2>/dev/null || echo none",
        "none",
        [{"PathOnHost": "/dev/zero", "PathInContainer": "/dev/mine", "CgroupPermissions": "rwm"}],
    ),
    Probe("HostConfig.Init", "cat /proc/1/comm", "docker-init", False),
    Probe("HostConfig.OomScoreAdj", "cat /proc/self/oom_score_adj", "500", 0),
]
SHOWN_BY_DOCKER = {
    "HostConfig.RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3},
    "HostConfig.LogConfig": {"Type": "json-file", "Config": {}},
    "HostConfig.PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "0"}]},
    "HostConfig.AutoRemove": True,
    "HostConfig.MemorySwap": 128 << 20,
    "HostConfig.Dns": ["127.0.0.53"],
}
"""Controls that nothing inside a container can see."""
TESTED_ELSEWHERE = {"HostConfig.DeviceRequests", "HostConfig.UsernsMode", "Config.Healthcheck"}


def plainly(answer: str, question: str) -> str:
    """An answer on one line; that of a namespace only as to whose it is."""
    words = " ".join(answer.split())
    if "/proc/self/ns/" not in question:
        return words
    return "the machine's" if words == os.readlink(question.split()[1]) else OTHER


class Box:
    """A job's container as the profile makes it, or with one control another one."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.home = Home(engine, folder)
        self.sdk = SdkEngine(engine.socket, 4)
        self.host = profile.Host.from_info(self.sdk.info())

    def spec(self, script: str) -> RunSpec:
        return self.home.spec(script, shm_mib=16, cores=1)

    def without(self, control: str, other: Any, script: str) -> tuple[str, list[str]]:
        """What a container says that lacks a control, and what the check finds missing in it."""
        spec, name = self.spec(script), f"box-{secrets.token_hex(4)}"
        for folder in ("job", "out"):
            (Path(spec.folder) / folder).mkdir(parents=True)
        table = profile.controls(spec, self.host)
        body = profile.create_body(spec, self.host, table, {}, IMAGE)
        section, _, field = control.partition(".")
        (body if section == "Config" else body["HostConfig"])[field] = other
        self.sdk.create(name, body)
        inspected = self.sdk.inspect(name)
        assert inspected is not None
        if control == "HostConfig.AutoRemove":
            return "", profile.missing_controls(inspected, table)
        self.sdk.start(name)
        self.sdk.wait_end(name, 30)
        with contextlib.closing(EngineStream(self.home.engine.socket, "GET", logs_target(name, follow=False))) as stream:
            raw = b"".join(stream)
        self.sdk.remove(name)
        frames = raw if body["Tty"] else b"".join(_contents(raw))
        return "".join(line.partition(b" ")[2].decode() + "\n" for line in frames.splitlines()), profile.missing_controls(inspected, table)


def _contents(raw: bytes) -> Iterator[bytes]:
    """The frames of Docker's two-channel stream."""
    while raw:
        length = int.from_bytes(raw[4:8], "big")
        yield raw[8 : 8 + length]
        raw = raw[8 + length :]


@pytest.fixture(scope="module")
def box(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    new = Box(engine, tmp_path_factory.mktemp("box") / "home")
    yield new
    new.sdk.close()
    for name in engine.names():
        engine.ask("DELETE", f"/containers/{name}?force=1&v=1")
    pid = new.home.guard_pid()
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 15)


@pytest.fixture(scope="module")
def answers(box: Box) -> dict[str, str]:
    """What a hardened job answers to every question, all in one container."""

    async def ask() -> str:
        runner = box.home.runner()
        spec = box.spec("".join(f"echo '== {probe.control}'\n{probe.question}\n" for probe in PROBES) + "true")
        assert 0 == (await run(runner, spec)).exit_code
        await runner.remove(spec.key)
        await runner.close()
        return output(spec)

    parts = asyncio.run(ask()).split("== ")[1:]
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in parts}


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.control)
def test_in_the_box(probe: Probe, answers: dict[str, str]) -> None:
    found = plainly(answers[probe.control], probe.question)
    assert probe.wanted == found.removesuffix(" 100000") or probe.wanted == found


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.control)
def test_without_the_control_the_job_can_do_it_and_the_check_sees_that_it_is_missing(probe: Probe, box: Box) -> None:
    said, missing = box.without(probe.control, probe.without, probe.question)
    assert probe.wanted != plainly(said, probe.question)
    assert any(probe.control in sentence for sentence in missing), missing


@pytest.mark.parametrize("control", SHOWN_BY_DOCKER)
def test_a_control_that_is_invisible_inside_is_checked_in_what_docker_shows(control: str, box: Box) -> None:
    _, missing = box.without(control, SHOWN_BY_DOCKER[control], "true")
    assert any(control in sentence for sentence in missing), missing


def test_every_control_of_the_table_is_tried(box: Box) -> None:
    tried = {probe.control for probe in PROBES} | set(SHOWN_BY_DOCKER) | TESTED_ELSEWHERE
    assert {control.path for control in profile.controls(box.spec("true"), box.host)} == tried


def test_an_images_health_check_does_not_run_beside_the_job(box: Box) -> None:
    change = "&changes=HEALTHCHECK%20--interval=1s%20CMD%20touch%20/job/checked"
    box.home.engine.load(f"checked:1{change}", root_file_system())
    assert canonical("checked") == "docker.io/library/checked:latest"

    async def state() -> tuple[Any, bool]:
        runner = box.home.runner()
        spec = box.home.spec("while [ ! -e /job/go ]; do usleep 20000; done", image="checked:1")
        await runner.prepare(spec, lambda phase: None)
        await runner.start(spec)
        inspected = box.sdk.inspect(profile.container_name(spec.key))
        (Path(spec.folder) / "job" / "go").touch()
        await runner.wait(spec.key)
        await runner.remove(spec.key)
        await runner.close()
        assert inspected is not None
        return inspected["State"].get("Health"), (Path(spec.folder) / "job" / "checked").exists()

    assert (None, False) == asyncio.run(state())
    box.sdk.create("plainly-checked", {"Image": "checked:1", "Cmd": ["true"]})
    inspected = box.sdk.inspect("plainly-checked")
    assert inspected is not None and "touch /job/checked" in str(inspected["Config"]["Healthcheck"])
    box.sdk.remove("plainly-checked")


def test_a_setuid_program_gains_nothing(box: Box) -> None:
    """The image's file may well belong to root and say so; the kernel does not heed it."""
    asked = "ls -l /bin/busybox >/dev/null; grep -h NoNewPrivs /proc/self/status; mount -t tmpfs none /job 2>&1 | grep -c denied"

    async def ask() -> str:
        runner = box.home.runner()
        spec = box.spec(asked)
        await run(runner, spec)
        await runner.remove(spec.key)
        await runner.close()
        return output(spec)

    assert "NoNewPrivs: 1 1" == " ".join(asyncio.run(ask()).split())
