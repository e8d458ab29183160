"""What may stand in `hosts.toml`, and how everything else is refused: before anything is connected."""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from seller_agent.node.ssh_nodes import terms_of
from seller_agent.owner.offers import Terms
from seller_agent.runners.process.link import PACKAGE_ROOT
from seller_agent.runners.ssh.host import UPLOADED
from seller_agent.runners.ssh.hosts import HostEntry, HostsError, parse_hosts, public_key, read_hosts

KIND = b"ssh-ed25519"
BLOB = base64.b64encode(len(KIND).to_bytes(4, "big") + KIND + (32).to_bytes(4, "big") + bytes(32)).decode()
KEY = f"ssh-ed25519 {BLOB}"
USUAL: dict[str, Any] = {"name": "node-1", "address": "10.0.0.11", "user": "bazaar", "key_file": "id", "host_keys": [KEY]}


def table(**changes: Any) -> str:
    """A [[host]] with these changes; `None` leaves a key out."""
    words = {True: "true", False: "false"}
    lines = []
    for key, value in (USUAL | changes).items():
        if value is not None:
            if isinstance(value, dict):
                text = "{ " + ", ".join(f'"{name}" = "{one}"' for name, one in value.items()) + " }"
            else:
                text = words[value] if isinstance(value, bool) else str(value) if isinstance(value, int) else repr(value).replace("'", '"')
            lines.append(f"{key} = {text}")
    return "\n".join(["[[host]]", *lines, ""])


def refused(text: str) -> str:
    with pytest.raises(HostsError) as error:
        parse_hosts(text, Path("/etc/bazaar"))
    return f"{error.value.what} {error.value.why} {error.value.hint}"


def test_a_host_is_read_with_everything_that_it_does_not_say(tmp_path: Path) -> None:
    [entry] = parse_hosts(table(), tmp_path).nodes()
    assert (22, None, "~/.gpubazaar", {}, None, None) == (entry.port, entry.jump, entry.work, entry.labels, entry.price_uusd, entry.gpus)
    assert (str(tmp_path / "id"), (KEY,)) == (entry.key_file, entry.host_keys)


def test_a_jump_host_is_no_node_unless_it_says_so() -> None:
    text = table(name="gate") + table(jump="gate") + table(name="node-2", jump="node-1")
    assert ["node-2"] == [entry.name for entry in parse_hosts(text, Path("/")).nodes()]
    text = table(name="gate", offer=True) + table(jump="gate") + table(name="node-2", offer=False)
    hosts = parse_hosts(text, Path("/"))
    assert ["gate", "node-1"] == [entry.name for entry in hosts.nodes()]
    assert "gate" == getattr(hosts.jump_of(hosts.entries["node-1"]), "name", None)


def test_what_a_host_says_stands_over_what_was_said_for_all() -> None:
    terms = Terms(name="here", price_uusd_per_gpu_hour=350_000, gpus=(0,), labels={"rack": "a1", "site": "x"})
    [plain, own] = parse_hosts(table() + table(name="node-2", price="0.2", gpus=[1, 2], labels={"rack": "b2"}), Path("/")).nodes()
    assert terms_of(plain, terms) == Terms(name="node-1", price_uusd_per_gpu_hour=350_000, gpus=(0,), labels={"rack": "a1", "site": "x"})
    assert terms_of(own, terms) == Terms(name="node-2", price_uusd_per_gpu_hour=200_000, gpus=(1, 2), labels={"rack": "b2", "site": "x"})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no host"),
        ("[[host", "no TOML"),
        ("[node]\nx = 1\n", "'node'"),
        ("host = 5\n", "names no host"),
        ("host = [5]\n", "Host 1 is no table"),
        (table(name=None), "Host number 1"),
        (table(name="-x"), "name"),
        (table(name="a/b"), "name"),
        (table(address=None), "address"),
        (table(address="-oProxyCommand=x"), "address"),
        (table(address="a b"), "address"),
        (table(user="ro ot"), "user"),
        (table(user="-x"), "user"),
        (table(port=0), "port"),
        (table(port=65536), "port"),
        (table(host_keys=[]), "host_keys"),
        (table(host_keys=["*"]), "no public host key"),
        (table(host_keys=["ssh-ed25519 AAAA!"]), "not whole"),
        (table(host_keys=[f"ssh-rsa {BLOB}"]), "not of the type"),
        (table(password="x"), "Passwords are not accepted"),
        (table(Passphrase="x"), "Passwords are not accepted"),
        (table(colour="blue"), "colour"),
        (table(price=1), "price"),
        (table(price="cheap"), "no price"),
        (table(gpus=[-1]), "gpus"),
        (table(labels={"Bad Key": "x"}), "labels"),
        (table(work="relative"), "work"),
        (table(python="python3 -c x"), "python"),
        (table() + table(), "Two hosts are called 'node-1'"),
        (table(jump="gate"), "'gate', which is not in the file"),
        (table(jump="node-1"), "in a circle: node-1 -> node-1"),
        (table(jump="b") + table(name="b", jump="node-1"), "in a circle"),
        (table(offer=False), "None of its hosts is offered"),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_and_where(text: str, says: str) -> None:
    assert says in refused(text)


def test_a_host_key_may_be_pasted_from_ssh_keyscan_or_a_pub_file() -> None:
    assert [KEY] * 3 == [public_key(text) for text in (KEY, f"{KEY} root@node", f"[10.0.0.11]:2222 {KEY}")]


def test_a_key_file_must_be_there_and_be_its_owners_alone(tmp_path: Path) -> None:
    (tmp_path / "hosts.toml").write_text(table())
    with pytest.raises(HostsError) as missing:
        read_hosts(tmp_path / "hosts.toml")
    assert "No such file" in missing.value.why
    (tmp_path / "id").write_text("key")
    for mode in (0o644, 0o640, 0o604, 0o660):
        (tmp_path / "id").chmod(mode)
        with pytest.raises(HostsError) as open_to_others:
            read_hosts(tmp_path / "hosts.toml")
        assert f"{mode:04o}" in open_to_others.value.why
        assert f"chmod 600 {tmp_path / 'id'}" == open_to_others.value.hint
    (tmp_path / "id").chmod(0o600)
    assert ["node-1"] == [entry.name for entry in read_hosts(tmp_path / "hosts.toml").nodes()]
    (tmp_path / "id").unlink()
    os.mkfifo(tmp_path / "id", 0o600)
    with pytest.raises(HostsError, match=r"hosts\.toml"):
        read_hosts(tmp_path / "hosts.toml")


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(HostsError) as missing:
        read_hosts(tmp_path / "none.toml")
    assert "No such file or directory" == missing.value.why
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    with pytest.raises(HostsError, match="cannot be read"):
        read_hosts(tmp_path / "bytes.toml")


def test_every_key_of_a_host_is_in_the_guide() -> None:
    guide = (PACKAGE_ROOT / "docs" / "ssh-nodes.md").read_text()
    assert [] == [name for name in HostEntry.__struct_fields__ if f"`{name}`" not in guide]


def test_what_is_uploaded_needs_the_standard_library_and_itself_only() -> None:
    uploaded = {PACKAGE_ROOT / "seller_agent" / name for name in UPLOADED}
    for file in uploaded:
        assert file.parent / "__init__.py" in uploaded, f"{file}: its package"
        for line in file.read_text().splitlines():
            words = line.split()
            if words[:1] == ["import"] or (words[:1] == ["from"] and words[1].split(".")[0] != "seller_agent"):
                assert words[1].split(".")[0] in sys.stdlib_module_names, f"{file}: {line}"
            elif words[:1] == ["from"]:
                module = PACKAGE_ROOT / words[1].replace(".", "/")
                named = [module / f"{name.strip()}.py" for name in line.partition(" import ")[2].split(",")]
                assert module.with_suffix(".py") in uploaded or uploaded.issuperset(named), f"{file}: {line}"
