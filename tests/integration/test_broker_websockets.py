"""A broker over websockets; and programs that use none do not pay for the package that could."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.broker_env import until

from events.delegation import seed_text
from events.nats_client import Message, connect
from services.broker_program import find_server

CONFIG = """
port: -1
websocket { host: "127.0.0.1", port: -1, no_tls: true }
"""


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Path]:
    """The folder in which a broker without accounts says where it listens."""
    (tmp_path / "nats.conf").write_text(CONFIG)
    command = [str(find_server()), "-c", "nats.conf", "-a", "127.0.0.1", "--ports_file_dir", str(tmp_path), "-l", str(tmp_path / "log")]
    process = subprocess.Popen(command, cwd=tmp_path)
    yield tmp_path
    process.terminate()
    process.wait()


@pytest.mark.filterwarnings("ignore:parameter 'timeout':DeprecationWarning")  # nats-py's own
async def test_a_message_passes_over_websockets(broker: Path) -> None:
    ports = await until(lambda: list(broker.glob("*.ports")), "the broker listens")
    [url] = json.loads(ports[0].read_text())["websocket"]
    heard: list[Message] = []

    async def reported(_: str) -> None:
        return None

    client = await connect(
        url, name="test", seed=seed_text(secrets.token_bytes(32)), token=None, inbox="_INBOX", tls=None, reported=reported
    )
    await client.attach("greeting", "", heard.append)
    await client.send("greeting", b"hello", "", None)
    await until(lambda: heard, "the message")
    assert [b"hello"] == [message.data for message in heard]
    await client.dispose()


def test_a_program_without_websockets_does_not_load_their_package_and_can_have_it_later() -> None:
    program = "import sys, events.connection; assert 'aiohttp' not in sys.modules; import aiohttp; assert aiohttp.ClientSession"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (0, "") == (done.returncode, done.stderr)
