"""What a container may do: the create call's body, and the check of what Docker made of it."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest

from seller_agent.runners.docker_engine.images.pulling import PullProgress, classify_pull, split_image
from seller_agent.runners.docker_engine.profile import (
    Control,
    Host,
    container_name,
    controls,
    create_body,
    device_requests,
    environment,
    key_of,
    labels,
    missing_controls,
)
from seller_agent.runners.runner import RunCard, RunKey, RunSpec

HOST = Host(version="28.5.2", cores=8, memory_mib=64000, swap_limit=True, maps_users=False, seccomp=True)
CARDS = tuple(RunCard(index=i, uuid=f"GPU-{i}", model="NVIDIA GeForce RTX 4090", vram_mib=24564) for i in (1, 3))
SIMULATED = (RunCard(index=0, uuid="SIM-0", model="NVIDIA GeForce RTX 4090", vram_mib=24564, simulated=True),)
SPEC = RunSpec(
    key=RunKey(job_id="jaaaabbbbccccddddeeee", attempt=2, epoch=77),
    folder="/home/seller/runs/x",
    argv=("python", "train.py"),
    env={"BAZAAR_OUT": "/out"},
    image="python:3.12",
    cores=4,
    memory_mib=1000,
    timeout_s=60,
    lease_until_boot_ms=0,
)


def body_of(spec: RunSpec = SPEC, host: Host = HOST) -> dict[str, Any]:
    return create_body(spec, host, controls(spec, host), labels(spec, home="h", node="n", created_unix_ms=0), "sha256:0")


def as_inspected(body: dict[str, Any]) -> dict[str, Any]:
    """What Docker shows of a container made of this body, if it took everything over."""
    config = {name: value for name, value in body.items() if name != "HostConfig"}
    return {"Config": config, "HostConfig": {**copy.deepcopy(body["HostConfig"]), "MaskedPaths": ["/proc/kcore"]}}


TABLE = controls(SPEC, HOST)


def test_the_hardening_is_what_we_promise() -> None:
    host_config = body_of()["HostConfig"]
    assert ["ALL"] == host_config["CapDrop"]
    assert ["no-new-privileges"] == host_config["SecurityOpt"]
    assert "65534:65534" == body_of()["User"]
    assert (True, "none", "private", True) == tuple(host_config[name] for name in ("ReadonlyRootfs", "NetworkMode", "IpcMode", "Init"))
    assert 1000 << 20 == host_config["Memory"] == host_config["MemorySwap"]
    assert (4_000_000_000, 4096, 500) == (host_config["NanoCpus"], host_config["PidsLimit"], host_config["OomScoreAdj"])
    assert {"Type": "local", "Config": {"max-size": "128m", "max-file": "2", "compress": "false"}} == host_config["LogConfig"]
    assert "nosuid,nodev" in host_config["Tmpfs"]["/tmp"]
    assert ["/home/seller/runs/x/job:/job:rw", "/home/seller/runs/x/out:/out:rw"] == host_config["Binds"]


def test_what_docker_took_over_whole_lacks_nothing() -> None:
    assert [] == missing_controls(as_inspected(body_of()), TABLE)


def weakened(wanted: Any) -> Any:
    """Some other value than the one wanted, as a careless daemon might have put."""
    if isinstance(wanted, bool):
        return not wanted
    if isinstance(wanted, int):
        return wanted + 1
    if isinstance(wanted, str):
        return "host"
    return ["evil"] if isinstance(wanted, list) else {"evil": "value"}


@pytest.mark.parametrize("control", TABLE, ids=lambda control: control.path)
def test_each_control_that_is_missing_or_different_is_noticed(control: Control) -> None:
    section, _, field = control.path.partition(".")
    different = as_inspected(body_of())
    different[section][field] = weakened(control.wanted)
    [sentence] = missing_controls(different, TABLE)
    assert control.path in sentence
    absent = as_inspected(body_of())
    del absent[section][field]
    assert (1 if control.wanted else 0) == len(missing_controls(absent, TABLE))


def test_an_images_own_intervals_of_a_health_check_that_is_not_made_change_nothing() -> None:
    inspected = as_inspected(body_of())
    inspected["Config"]["Healthcheck"] = {"Test": ["NONE"], "Interval": 1_000_000_000, "Retries": 3}
    assert [] == missing_controls(inspected, TABLE)


def test_unmasked_kernel_files_are_noticed() -> None:
    inspected = as_inspected(body_of())
    inspected["HostConfig"]["MaskedPaths"] = None
    assert 1 == len(missing_controls(inspected, TABLE))


def test_cards_are_asked_for_by_uuid_and_never_by_count() -> None:
    spec = msgspec.structs.replace(SPEC, cards=CARDS)
    [request] = body_of(spec)["HostConfig"]["DeviceRequests"]
    assert (["GPU-1", "GPU-3"], 0, [["gpu", "compute", "utility"]]) == (request["DeviceIDs"], request["Count"], request["Capabilities"])
    env = environment(spec, HOST)
    assert ("GPU-1,GPU-3", "0,1") == (env["NVIDIA_VISIBLE_DEVICES"], env["CUDA_VISIBLE_DEVICES"])


def test_cards_come_through_cdi_where_the_daemon_knows_all_of_them() -> None:
    spec = msgspec.structs.replace(SPEC, cards=CARDS)
    knows_all = msgspec.structs.replace(HOST, cdi_devices=frozenset({"nvidia.com/gpu=GPU-1", "nvidia.com/gpu=GPU-3", "nvidia.com/gpu=all"}))
    [request] = device_requests(spec.cards, knows_all)
    assert ("cdi", ["nvidia.com/gpu=GPU-1", "nvidia.com/gpu=GPU-3"]) == (request["Driver"], request["DeviceIDs"])
    assert "void" == environment(spec, knows_all)["NVIDIA_VISIBLE_DEVICES"]
    knows_one = msgspec.structs.replace(HOST, cdi_devices=frozenset({"nvidia.com/gpu=GPU-1"}))
    assert "" == device_requests(spec.cards, knows_one)[0]["Driver"]


@pytest.mark.parametrize("cards", [(), SIMULATED])
def test_a_job_without_real_cards_sees_none_whatever_the_daemons_default(cards: tuple[RunCard, ...]) -> None:
    spec = msgspec.structs.replace(SPEC, cards=cards, env={"NVIDIA_VISIBLE_DEVICES": "all"})
    assert [] == body_of(spec)["HostConfig"]["DeviceRequests"]
    assert "NVIDIA_VISIBLE_DEVICES=void" in body_of(spec)["Env"]
    assert "NVIDIA_VISIBLE_DEVICES=all" not in body_of(spec)["Env"]


@pytest.mark.parametrize("name", ["NVIDIA_DRIVER_CAPABILITIES", "LD_PRELOAD", "ld_library_path", "TINI_SUBREAPER", "A=B", "", "A\0"])
def test_variables_that_choose_devices_or_load_code_are_dropped(name: str) -> None:
    assert "mine" not in environment(msgspec.structs.replace(SPEC, env={name: "mine"}), HOST).values()


def test_without_a_figure_a_job_gets_most_of_the_machine_and_never_more_than_there_is() -> None:
    free = body_of(msgspec.structs.replace(SPEC, memory_mib=None, cores=None))["HostConfig"]
    assert (57600 << 20, 8_000_000_000) == (free["Memory"], free["NanoCpus"])
    greedy = body_of(msgspec.structs.replace(SPEC, memory_mib=10**6, cores=64))["HostConfig"]
    assert (64000 << 20, 8_000_000_000) == (greedy["Memory"], greedy["NanoCpus"])
    assert (8192 << 20, 500 << 20) == (free["ShmSize"], body_of()["HostConfig"]["ShmSize"])


def test_where_the_kernel_cannot_limit_swap_dockers_answer_is_expected() -> None:
    host = msgspec.structs.replace(HOST, swap_limit=False)
    assert -1 == body_of(SPEC, host)["HostConfig"]["MemorySwap"]


def test_the_images_own_entry_point_cannot_wrap_the_command() -> None:
    assert (["python", "train.py"], []) == (body_of()["Entrypoint"], body_of()["Cmd"])
    assert "Entrypoint" not in body_of(msgspec.structs.replace(SPEC, argv=()))


def test_an_images_volumes_become_bounded_scratch_space() -> None:
    [tmpfs] = [control.wanted for control in controls(SPEC, HOST, ["/data", "/job"]) if control.path == "HostConfig.Tmpfs"]
    assert {"/tmp", "/data"} == set(tmpfs)


def test_a_container_is_found_again_by_its_name_and_labels() -> None:
    assert "gpubazaar-jaaaabbbbccccddddeeee-2-77" == container_name(SPEC.key)
    marks = body_of()["Labels"]
    assert SPEC.key == key_of(marks)
    assert None is key_of({**marks, "gpubazaar.epoch": "x"})
    assert None is key_of({})


def test_the_daemon_tells_what_it_can() -> None:
    info = {
        "ServerVersion": "28.5.2",
        "NCPU": 4,
        "MemTotal": 8 << 30,
        "SwapLimit": True,
        "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"],
        "DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=GPU-1"}, {"Source": "other", "ID": "x"}],
    }
    host = Host.from_info(info)
    assert (4, 8192, True, True, True) == (host.cores, host.memory_mib, host.swap_limit, host.maps_users, host.seccomp)
    assert frozenset({"nvidia.com/gpu=GPU-1"}) == host.cdi_devices
    assert not Host.from_info({**info, "SecurityOptions": ["name=seccomp,profile=unconfined"]}).seccomp


@pytest.mark.parametrize(
    ("image", "split"),
    [
        ("python", ("python", "latest")),
        ("python:3.12", ("python", "3.12")),
        ("127.0.0.1:5000/a/b", ("127.0.0.1:5000/a/b", "latest")),
        ("127.0.0.1:5000/a/b:c", ("127.0.0.1:5000/a/b", "c")),
        ("a/b@sha256:12ab", ("a/b", "sha256:12ab")),
    ],
)
def test_an_images_name_is_split_as_docker_wants_it(image: str, split: tuple[str, str]) -> None:
    assert split == split_image(image)


@pytest.mark.parametrize(
    ("message", "status", "reason"),
    [
        ("manifest for x:1 not found: manifest unknown", 404, "image_not_found"),
        ("pull access denied for x, repository does not exist or may require 'docker login': denied", 404, "image_not_found"),
        ("Get https://r/v2/: no basic auth credentials", 500, "image_auth"),
        ("unauthorized: authentication required", 500, "image_auth"),
        ("no matching manifest for linux/arm64/v8 in the manifest list entries", None, "image_refused"),
        ("write /var/lib/docker/tmp/x: no space left on device", None, "disk_full"),
        ("Get https://registry-1.docker.io/v2/: dial tcp: lookup registry-1.docker.io: no such host", 500, "image_pull_timeout"),
        ("toomanyrequests: You have reached your pull rate limit", 429, "image_pull_timeout"),
    ],
)
def test_a_failed_pull_has_a_reason(message: str, status: int | None, reason: str) -> None:
    assert reason == classify_pull(message, status)[0]


def test_a_pulls_progress_only_rises_and_ends_at_a_hundred() -> None:
    progress = PullProgress()
    events: list[dict[str, Any]] = [
        {"id": "a", "status": "Pulling fs layer"},
        {"id": "b", "status": "Pulling fs layer"},
        {"id": "a", "status": "Downloading", "progressDetail": {"current": 50, "total": 100}},
        {"id": "b", "status": "Downloading", "progressDetail": {"current": 100, "total": 900}},
        {"id": "a", "status": "Download complete"},
        {"id": "a", "status": "Extracting", "progressDetail": {"current": 100, "total": 100}},
        {"id": "a", "status": "Pull complete"},
        {"id": "b", "status": "Download complete"},
        {"id": "b", "status": "Pull complete"},
        {"status": "Digest: sha256:0"},
    ]
    told = [percent for percent in map(progress.add, events) if percent is not None]
    assert sorted(set(told)) == told
    assert 100 == told[-1]
