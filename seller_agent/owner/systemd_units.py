"""The systemd units of a seller's node, as text. Pure.

The agent may be restarted at any time: what runs has guards of its own, so the unit ends the agent's process only (KillMode=process).
What must not be switched on here: ProtectClock and PrivateDevices (both close the device cgroup, and with it the cards), PrivateTmp for a
home under /tmp (Docker would look for its files elsewhere), the namespaces of ProtectSystem in a user's own manager, which mostly may not
make any.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

import msgspec

WATCHDOG_S = 60
REAP_EVERY_S = 30
MARK = "# Written by `bazaar-seller install-service`; "


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """What the units are made of."""

    node: str
    program: tuple[str, ...]
    """How `bazaar-seller` is started, absolute."""
    run: tuple[str, ...]
    """What follows `run`, the node's name included."""
    home: str
    environment: Mapping[str, str] = {}
    system: bool = False
    user: str | None = None
    """Of a system unit: whose agent it is; root when there is none."""


def unit_name(node: str) -> str:
    """The unit's name without its ending; letters that a unit may have."""
    return "bazaar-seller-" + re.sub(r"[^A-Za-z0-9._-]", "-", node)


def units(service: Service) -> dict[str, str]:
    """File name -> text: the agent, and the reaper with its timer."""
    name = unit_name(service.node)
    return {
        f"{name}.service": _sealed(_agent(service)),
        f"{name}-reap.service": _sealed(_reap(service)),
        f"{name}-reap.timer": _sealed(_timer(service)),
    }


def word(text: str) -> str:
    """One word of a command line or assignment, as systemd reads it back."""
    text = text.replace("\\", "\\\\").replace("%", "%%").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"' if re.search(r"[\s\"';\\]", text) or not text else text


def argument(text: str) -> str:
    """Likewise in ExecStart, where `$` would be a variable."""
    return word(text.replace("$", "$$"))


def is_changed(text: str) -> bool:
    """Whether a unit that lies there is not as we wrote it."""
    first, _, rest = text.partition("\n")
    return not first.startswith(MARK) or first.rpartition(" ")[2] != _digest(rest)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _sealed(text: str) -> str:
    return f"{MARK}changed by hand, it is not overwritten. {_digest(text)}\n{text}"


def _environment(service: Service) -> list[str]:
    values = {"BAZAAR_HOME": service.home, **service.environment}
    return [f"Environment={word(f'{name}={value}')}" for name, value in sorted(values.items())]


def _shelter(service: Service) -> list[str]:
    lines = ["NoNewPrivileges=yes", "LockPersonality=yes", "RestrictRealtime=yes", "SystemCallArchitectures=native", "UMask=0077"]
    if service.system:
        lines += ["ProtectSystem=strict", "ProtectHome=read-only", f"ReadWritePaths={word(service.home)} -/run -/var/run"]
        if not service.home.startswith(("/tmp/", "/var/tmp/")):
            lines.append("PrivateTmp=yes")
        if service.user is not None:
            lines.append(f"User={service.user}")
    return lines


def _agent(service: Service) -> str:
    start = " ".join(argument(text) for text in (*service.program, "run", *service.run))
    lines = [
        "[Unit]",
        f"Description=GPU Bazaar agent of node {service.node.replace('%', '%%')}",
        "After=network-online.target docker.service nvidia-persistenced.service",
        "Wants=network-online.target",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        f"ExecStart={start}",
        *_environment(service),
        "Restart=always",
        "RestartSec=5",
        "# A wrong command line or wallet does not mend itself.",
        "RestartPreventExitStatus=2 4",
        "TimeoutStartSec=15min",
        f"WatchdogSec={WATCHDOG_S}",
        "# What runs has guards of its own and is found again: only the agent's process is ended.",
        "KillMode=process",
        "TimeoutStopSec=90",
        "# A job that takes too much memory ends alone.",
        "OOMPolicy=continue",
        "LimitNOFILE=65536",
        *_shelter(service),
        "",
        "[Install]",
        f"WantedBy={'multi-user.target' if service.system else 'default.target'}",
        "",
    ]
    return "\n".join(lines)


def _reap(service: Service) -> str:
    start = " ".join(argument(text) for text in (*service.program, "reap", "--name", service.node))
    lines = [
        "[Unit]",
        f"Description=End what is past its time on node {service.node.replace('%', '%%')}",
        "",
        "[Service]",
        "Type=oneshot",
        f"ExecStart={start}",
        *_environment(service),
        "KillMode=process",
        *_shelter(service),
        "",
    ]
    return "\n".join(lines)


def _timer(service: Service) -> str:
    lines = [
        "[Unit]",
        f"Description=Look every {REAP_EVERY_S} s for what is past its time on node {service.node.replace('%', '%%')}",
        "",
        "[Timer]",
        f"OnActiveSec={REAP_EVERY_S}",
        f"OnUnitInactiveSec={REAP_EVERY_S}",
        "AccuracySec=5",
        "",
        "[Install]",
        "WantedBy=timers.target",
        "",
    ]
    return "\n".join(lines)
