"""The firewall around the network of jobs that may reach the internet: which rules, put in place and looked at again.

`iptables` and `ip` are run as programs, in this process's own network. Everything may be repeated; what is in place stays as it is. Only a
chain of our own is ever filled, and only our own rules are ever taken out again.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
from collections.abc import Iterable

BRIDGE = "gpubazaar0"
CHAIN = "GPUBAZAAR"
PRIVATE = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
)
"""What is nobody's on the internet: private, shared, link-local (where clouds keep machines' credentials), multicast, reserved."""
TOOL_S = 20.0
_RESERVED = ipaddress.IPv4Address("240.0.0.0")
TO_CHAIN = ("DOCKER-USER", f"-j {CHAIN}")
TO_HOST = ("INPUT", f"-i {BRIDGE} -j REJECT --reject-with icmp-port-unreachable")


class FirewallError(Exception):
    """A rule could not be read or put in place; in words."""


def _tool(*command: str, stdin: str = "") -> str:
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=TOOL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FirewallError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise FirewallError(f"{' '.join(command[:6])}: {done.stderr.strip()[:200]}")
    return done.stdout


def addresses() -> list[ipaddress.IPv4Interface]:
    """Every IPv4 address of this machine with its network, loopback aside. Raises FirewallError."""
    try:
        links = json.loads(_tool("ip", "-json", "-4", "address", "show") or "[]")
    except ValueError as error:
        raise FirewallError(f"ip: {error}") from error
    return [
        ipaddress.IPv4Interface(f"{address['local']}/{address['prefixlen']}")
        for link in links
        if link.get("ifname") != "lo"
        for address in link.get("addr_info", ())
    ]


def closed_networks(own: Iterable[ipaddress.IPv4Interface]) -> list[str]:
    """What jobs may not reach: everything private, and the networks that this machine itself is in."""
    private = [ipaddress.IPv4Network(text) for text in PRIVATE]
    extra = {address.network for address in own if not any(address.network.subnet_of(network) for network in private)}
    return [*PRIVATE, *sorted(str(network) for network in extra)]


def samples(networks: Iterable[str]) -> list[str]:
    """One address of each network that a packet could be sent to, whether anybody has it or not."""
    usable = [network for text in networks if not (network := ipaddress.IPv4Network(text)).is_multicast and network.prefixlen < 31]
    return [str(network[-2]) for network in usable if not network.is_loopback and not network[0].is_unspecified and network[0] < _RESERVED]


def chain_rules(networks: Iterable[str]) -> list[str]:
    """Our chain: from the bridge to nothing private, and to the bridge nothing that a job did not ask for."""
    rules = []
    for network in networks:
        # A reset for TCP: the kernel sends only a few ICMP answers a second, and a silent no would keep programs waiting for minutes.
        rules.append(f"-A {CHAIN} -d {network} -i {BRIDGE} -p tcp -j REJECT --reject-with tcp-reset")
        rules.append(f"-A {CHAIN} -d {network} -i {BRIDGE} -j REJECT --reject-with icmp-port-unreachable")
    rules.append(f"-A {CHAIN} -o {BRIDGE} -m conntrack ! --ctstate RELATED,ESTABLISHED -j REJECT --reject-with icmp-port-unreachable")
    return rules


def ensure(networks: Iterable[str]) -> bool:
    """Put all rules in place, first of their chains; whether anything had to be changed. Raises FirewallError."""
    wanted = chain_rules(networks)
    rules = _tool("iptables", "-w", "10", "-S").splitlines()
    if "-N DOCKER-USER" not in rules:
        raise FirewallError("there is no chain DOCKER-USER here: Docker was started without iptables, or its network is another one")
    changed = [rule for rule in rules if rule.startswith(f"-A {CHAIN} ")] != wanted
    if changed:
        text = "\n".join(["*filter", f":{CHAIN} - [0:0]", *wanted, "COMMIT", ""])
        _tool("iptables-restore", "-w", "10", "--noflush", stdin=text)
    for chain, rule in (TO_CHAIN, TO_HOST):
        changed = _first(chain, rule, rules) or changed
    _close_ipv6()
    return changed


def _first(chain: str, rule: str, rules: list[str]) -> bool:
    """The rule stands at the head of a chain of others; whether it had to be put there."""
    present = [line for line in rules if line.startswith(f"-A {chain} ")]
    if present[:1] == [f"-A {chain} {rule}"]:
        return False
    _tool("iptables", "-w", "10", "-I", chain, "1", *rule.split())
    for _ in range(present.count(f"-A {chain} {rule}")):
        _tool("iptables", "-w", "10", "-D", chain, str(2 + present.index(f"-A {chain} {rule}")))
        present.remove(f"-A {chain} {rule}")
    return True


def _close_ipv6() -> None:
    """Containers there have no IPv6 at all; where the machine has a firewall for it, nothing from the bridge passes that either."""
    for chain in ("INPUT", "FORWARD"):
        rule = ("-i", BRIDGE, "-j", "DROP")
        try:
            _tool("ip6tables", "-w", "10", "-C", chain, *rule)
        except FirewallError:
            try:
                _tool("ip6tables", "-w", "10", "-I", chain, "1", *rule)
            except FirewallError:
                return


def remove() -> None:
    """Take all our rules out again; what is not there is no error."""
    for tool, chain, rule in (
        ("iptables", *TO_CHAIN),
        ("iptables", *TO_HOST),
        ("ip6tables", "INPUT", f"-i {BRIDGE} -j DROP"),
        ("ip6tables", "FORWARD", f"-i {BRIDGE} -j DROP"),
    ):
        try:
            while True:
                _tool(tool, "-w", "10", "-D", chain, *rule.split())
        except FirewallError:
            continue
    for flag in ("-F", "-X"):
        try:
            _tool("iptables", "-w", "10", flag, CHAIN)
        except FirewallError:
            return
