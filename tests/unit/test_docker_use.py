"""Where a container's control group lies, and what Docker's own statistics mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from seller_agent.runners.docker_engine.use import from_engine, places

V1 = """31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
INSIDE = "30 23 0:26 /docker/outer /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"


def test_in_version_1_each_controller_has_its_folder() -> None:
    groups = "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n0::/docker/abc\n"
    found = places(groups, V1)
    assert Path("/sys/fs/cgroup/memory/docker/abc") == found["memory"]
    assert Path("/sys/fs/cgroup/cpu,cpuacct/docker/abc") == found["cpuacct"]


def test_in_version_2_there_is_one_folder() -> None:
    assert {"": Path("/sys/fs/cgroup/system.slice/docker-abc.scope")} == places("0::/system.slice/docker-abc.scope\n", V2)


@pytest.mark.parametrize(("group", "found"), [("/docker/outer/inner", {"": Path("/sys/fs/cgroup/inner")}), ("/elsewhere", {})])
def test_what_is_not_mounted_here_is_not_guessed(group: str, found: dict[str, Path]) -> None:
    assert found == places(f"0::{group}\n", INSIDE)


def test_dockers_statistics_are_read_without_the_page_cache() -> None:
    told = {
        "cpu_stats": {"cpu_usage": {"total_usage": 1_500_000_000}},
        "memory_stats": {"usage": 300 << 20, "stats": {"inactive_file": 100 << 20}},
    }
    use = from_engine(told, 17)
    assert use is not None
    assert (1500, 200, (17,)) == (use.cpu_ms, use.memory_mib, use.pids)
    assert None is from_engine({"memory_stats": {}, "cpu_stats": {"cpu_usage": {"total_usage": 0}}}, None)
