"""A service ends when it is told to, also one that has not come to its broker yet."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ENDS_IN_S = 30


@pytest.mark.parametrize("name", ["matcher", "files"])
async def test_a_service_that_waits_for_its_broker_still_hears_that_it_is_to_end(name: str, tmp_path: Path) -> None:
    words = tmp_path / "words"
    with socket.create_server(("127.0.0.1", 0)) as mute, words.open("wb") as stream:
        mute.setblocking(False)
        service = subprocess.Popen(
            [sys.executable, "-m", "services", name, "--broker", f"nats://127.0.0.1:{mute.getsockname()[1]}"],
            env={**os.environ, "BAZAAR_HOME": str(tmp_path / "home")},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
        )
        try:
            async with asyncio.timeout(ENDS_IN_S):
                taken, _ = await asyncio.get_running_loop().sock_accept(mute)  # it is connected, and never greeted
            service.send_signal(signal.SIGTERM)
            code = await asyncio.to_thread(service.wait, ENDS_IN_S)
            taken.close()
        finally:
            service.kill()
            service.wait()
    assert (0, False) == (code, "Traceback" in words.read_text(errors="replace")), words.read_text(errors="replace")
