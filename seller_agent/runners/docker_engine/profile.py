"""What a buyer's container may and may not do: one table, used to create it and again to check what Docker made of it.

Pure: it turns a run's specification into the body of Docker's create call and back from labels. It talks to nobody.
Every control below is written at create time and read back afterwards; a run whose container lacks one is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from seller_agent.runners.docker_engine.guard.files import DEADLINE_LABEL, HOME_LABEL
from seller_agent.runners.runner import RunCard, RunKey, RunSpec

JOB_PATH = "/job"
OUT_PATH = "/out"
SECRETS_PATH = "/run/secrets"
JOB_UID = 65534
DIGEST_LABEL = "gpubazaar.image_digest"
NAME_PREFIX = "gpubazaar-"
PIDS_LIMIT = 4096
OPEN_FILES = 16384
PUBLIC_DNS = ("1.1.1.1", "9.9.9.9")
LOG_FILE_SIZE = "128m"
"""Twice this must hold a job's whole allowed output with Docker's own framing, or a restarted agent finds its head gone."""
MAX_IMAGE_VOLUMES = 16
PREPARE_ALLOWANCE_MS = 30 * 60 * 1000
"""Between create and start; the deadline label is a last resort for containers that nobody watches any more."""

MIB = 1 << 20


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What the container runtime says about its machine."""

    version: str
    cores: int
    memory_mib: int
    swap_limit: bool
    """Whether the kernel can limit swap; where it cannot, Docker drops the limit and says -1."""
    maps_users: bool
    """User ids in a container are others outside (userns-remap, rootless)."""
    seccomp: bool
    cdi_devices: frozenset[str] = frozenset()
    machine: str = "x86_64"
    root: str = ""
    """Where the daemon keeps images and containers."""
    job_uid: int = JOB_UID
    """Whom jobs run as: nobody when the agent is root, else the agent's own user, who could not delete what another one made."""

    @classmethod
    def from_info(cls, info: Mapping[str, Any], agent_uid: int = 0) -> Host:
        """From the answer of Docker's `/info`."""
        options = [str(option) for option in info.get("SecurityOptions") or []]
        maps_users = any(option.startswith(("name=userns", "name=rootless")) for option in options)
        return cls(
            version=str(info.get("ServerVersion", "")),
            cores=int(info["NCPU"]),
            memory_mib=int(info["MemTotal"]) // MIB,
            swap_limit=bool(info.get("SwapLimit")),
            maps_users=maps_users,
            machine=str(info.get("Architecture", "")),
            root=str(info.get("DockerRootDir", "")),
            job_uid=JOB_UID if maps_users or agent_uid == 0 else agent_uid,
            seccomp=any(option.startswith("name=seccomp") and "unconfined" not in option for option in options),
            cdi_devices=frozenset(str(device["ID"]) for device in info.get("DiscoveredDevices") or [] if device.get("Source") == "cdi"),
        )


class Control(msgspec.Struct, frozen=True, kw_only=True):
    """One setting that keeps a job in its box."""

    path: str
    """Where Docker shows it: `Config.X` or `HostConfig.X`."""
    wanted: Any
    why: str


def container_name(key: RunKey) -> str:
    """The same after every restart, so that creating twice is refused by Docker itself."""
    return NAME_PREFIX + key.name


def _memory_mib(spec: RunSpec, host: Host) -> int:
    """The job's memory; without a figure, what leaves the machine itself alive."""
    return min(spec.memory_mib or host.memory_mib * 9 // 10, host.memory_mib)


def _shm_mib(spec: RunSpec, host: Host) -> int:
    return min(spec.shm_mib or min(_memory_mib(spec, host) // 2, 8192), _memory_mib(spec, host))


def _tmpfs(spec: RunSpec, host: Host, volumes: Iterable[str]) -> dict[str, str]:
    """/tmp may hold programs (compilers' caches live there); the image's own volumes become small tmpfs, else they would be disk."""
    size_mib = max(16, min(_memory_mib(spec, host) // 4, 8192))
    # The owner, because the runtime gives a tmpfs the mode that the image's folder had, whatever is asked for.
    options = f"rw,nosuid,nodev,exec,mode=1777,uid={host.job_uid},gid={JOB_UID},size={size_mib}m"
    return {"/tmp": options, **{path: options for path in volumes if path not in ("/tmp", JOB_PATH, OUT_PATH)}}


def controls(spec: RunSpec, host: Host, volumes: Iterable[str] = (), network: str = "none") -> tuple[Control, ...]:
    """The table."""
    memory = _memory_mib(spec, host) * MIB
    cores = min(spec.cores or host.cores, host.cores)
    ulimits = [{"Name": "core", "Soft": 0, "Hard": 0}, {"Name": "nofile", "Soft": OPEN_FILES, "Hard": OPEN_FILES}]
    log = {"Type": "local", "Config": {"max-size": LOG_FILE_SIZE, "max-file": "2", "compress": "false"}}  # json-file spoils what is no text
    binds = [f"{spec.folder}/job:{JOB_PATH}:rw", f"{spec.folder}/out:{OUT_PATH}:rw"]
    if spec.has_secrets:
        binds.append(f"{spec.folder}/secrets:{SECRETS_PATH}:ro")
    tmpfs = _tmpfs(spec, host, volumes)
    table: list[tuple[str, Any, str]] = [
        ("Config.User", f"{host.job_uid}:{JOB_UID}", "never root, whatever the image says"),
        ("Config.Healthcheck", {"Test": ["NONE"]}, "an image's health check would run beside the job"),
        ("Config.Tty", False, "output is framed by stream"),
        ("HostConfig.CapDrop", ["ALL"], "no capability"),
        ("HostConfig.CapAdd", [], "none comes back"),
        ("HostConfig.Privileged", False, "never"),
        ("HostConfig.SecurityOpt", ["no-new-privileges"], "setuid programs gain nothing; seccomp and AppArmor stay at Docker's defaults"),
        ("HostConfig.ReadonlyRootfs", True, "the image is not a disk"),
        ("HostConfig.Tmpfs", tmpfs, "scratch space, bounded, counted as memory"),
        ("HostConfig.Binds", binds, "the run's own folders and nothing else of the host; its secrets cannot be changed"),
        ("HostConfig.PidsLimit", PIDS_LIMIT, "fork bombs"),
        ("HostConfig.Memory", memory, "the job's memory"),
        ("HostConfig.MemorySwap", memory if host.swap_limit else -1, "the same figure: no swap"),
        ("HostConfig.NanoCpus", cores * 1_000_000_000, "the job's cores"),
        ("HostConfig.ShmSize", _shm_mib(spec, host) * MIB, "data loaders need more than Docker's 64 MiB"),
        ("HostConfig.Ulimits", ulimits, "no core dumps; bounded descriptors"),
        ("HostConfig.IpcMode", "private", "no shared memory with anyone"),
        ("HostConfig.NetworkMode", network, "no network unless bought"),
        ("HostConfig.Dns", [] if network == "none" else list(PUBLIC_DNS), "the machine's own name servers may be private"),
        ("HostConfig.PidMode", "", "own processes only"),
        ("HostConfig.UTSMode", "", "own host name"),
        ("HostConfig.UsernsMode", "", "the daemon's user mapping stays"),
        ("HostConfig.Devices", [], "cards come by request, never by path"),
        ("HostConfig.Init", True, "signals reach the program and orphans are reaped"),
        ("HostConfig.OomScoreAdj", 500, "the job dies before the host does"),
        ("HostConfig.RestartPolicy", {"Name": "no", "MaximumRetryCount": 0}, "one start per attempt"),
        ("HostConfig.AutoRemove", False, "the exit code must survive"),
        ("HostConfig.PortBindings", {}, "nothing listens on the host"),
        ("HostConfig.LogConfig", log, "output kept for a restarted reader, bounded"),
        ("HostConfig.DeviceRequests", device_requests(spec.cards, host), "exactly the cards of this run"),
    ]
    return tuple(Control(path=path, wanted=wanted, why=why) for path, wanted, why in table)


def device_requests(cards: Iterable[RunCard], host: Host) -> list[dict[str, Any]]:
    """The run's cards by UUID (a count would hand the first cards to every job). Simulated cards request nothing."""
    uuids = [card.uuid for card in cards if not card.simulated]
    if not uuids:
        return []
    named = [f"nvidia.com/gpu={uuid}" for uuid in uuids]
    if host.cdi_devices.issuperset(named):
        return [{"Driver": "cdi", "Count": 0, "DeviceIDs": named, "Capabilities": [], "Options": {}}]
    return [{"Driver": "", "Count": 0, "DeviceIDs": uuids, "Capabilities": [["gpu", "compute", "utility"]], "Options": {}}]


def forbidden_variable(name: str) -> bool:
    """Names that choose devices or load code behind the job's back, or that no environment can hold."""
    return not name or "=" in name or "\0" in name or name.upper().startswith(("NVIDIA_", "LD_", "TINI_"))


def environment(spec: RunSpec, host: Host) -> dict[str, str]:
    """The job's environment: what was asked for, less what it may not set, and ours on top."""
    asked = {name: value for name, value in spec.env.items() if not forbidden_variable(name) and "\0" not in value}
    by_request = [request for request in device_requests(spec.cards, host) if request["Driver"] != "cdi"]
    visible = ",".join(by_request[0]["DeviceIDs"]) if by_request else "void"
    ours = {
        # Unset, a daemon whose default runtime is NVIDIA's would hand every card to every job, and the image may set it too.
        "NVIDIA_VISIBLE_DEVICES": visible,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(str(index) for index in range(len(spec.cards))),
        "TINI_KILL_PROCESS_GROUP": "1",
        **({"BAZAAR_SECRETS": SECRETS_PATH} if spec.has_secrets else {}),
    }
    return {"HOME": "/tmp", **asked, **ours}


def labels(spec: RunSpec, *, home: str, node: str, created_unix_ms: int, image_digest: str = "") -> dict[str, str]:
    """What lets a container be found and understood with nothing else at hand."""
    deadline = created_unix_ms + PREPARE_ALLOWANCE_MS + (spec.timeout_s + spec.grace_s) * 1000
    return {
        HOME_LABEL: home,
        DEADLINE_LABEL: str(deadline),
        "gpubazaar.node": node,
        "gpubazaar.job": spec.key.job_id,
        "gpubazaar.attempt": str(spec.key.attempt),
        "gpubazaar.epoch": str(spec.key.epoch),
        "gpubazaar.gpus": ",".join(card.uuid for card in spec.cards),
        "gpubazaar.folder": spec.folder,
        DIGEST_LABEL: image_digest,
    }


def key_of(found: Mapping[str, str]) -> RunKey | None:
    """The run that a container's labels name; None when they are not ours."""
    try:
        return RunKey(job_id=found["gpubazaar.job"], attempt=int(found["gpubazaar.attempt"]), epoch=int(found["gpubazaar.epoch"]))
    except (KeyError, ValueError):
        return None


def create_body(spec: RunSpec, host: Host, table: Iterable[Control], marks: Mapping[str, str], image: str) -> dict[str, Any]:
    """The body of Docker's create call. `image` by its id, which cannot come to mean another one."""
    body: dict[str, Any] = {
        "Image": image,
        "WorkingDir": JOB_PATH,
        "Env": [f"{name}={value}" for name, value in sorted(environment(spec, host).items())],
        "Labels": dict(marks),
        "StopSignal": "SIGTERM",
        "StopTimeout": spec.grace_s,
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "HostConfig": {},
    }
    if spec.argv:  # as the entry point, so that the image's own cannot wrap it
        body["Entrypoint"], body["Cmd"] = list(spec.argv), []
    for control in table:
        section, _, field = control.path.partition(".")
        (body if section == "Config" else body["HostConfig"])[field] = control.wanted
    return body


def missing_controls(inspected: Mapping[str, Any], table: Iterable[Control]) -> list[str]:
    """What Docker did not take over, one sentence each; empty when the container is as hardened as was asked."""
    found = []
    for control in table:
        section, _, field = control.path.partition(".")
        actual = inspected.get(section, {}).get(field)
        if field == "Healthcheck" and isinstance(actual, dict):
            actual = {"Test": actual.get("Test")}  # the image's own intervals stay, of a check that is not made
        if not _same(control.wanted, actual):
            found.append(f"{control.path} is {actual!r}, not {control.wanted!r} ({control.why})")
    if not inspected.get("HostConfig", {}).get("MaskedPaths"):
        found.append("HostConfig.MaskedPaths is empty (the kernel's own files are readable)")
    return found


def _same(wanted: Any, actual: Any) -> bool:
    """Equal, where absent, empty, zero and false are one thing to Docker."""
    if not wanted and not actual:
        return True
    if isinstance(wanted, list) and isinstance(actual, list) and len(wanted) == len(actual):
        return all(_same(a, b) for a, b in zip(wanted, actual, strict=True))
    if isinstance(wanted, dict) and isinstance(actual, dict):
        return all(_same(wanted.get(name), actual.get(name)) for name in {*wanted, *actual})
    return bool(wanted == actual)
