"""A whole market on this machine, as a person would use it: start, offer, run, see one job refused and one fail, stop. `make demo`.

Everything goes through the installed commands, in a home of its own that is removed at the end.
The exit code is 0 when all of it went as it should.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
SIMULATED = "2xRTX 4090"
START_LIMIT_S = 60
STOP_LIMIT_S = 30
LEFT_LIMIT_S = 5


class DemoFailed(Exception):
    """Something did not go as it should; the message says what."""


def environment(home: Path) -> dict[str, str]:
    """What the programs see: this home, a passphrase, a folder to work in, and nothing of the caller's own market."""
    work = home / "work"
    shutil.copytree(HERE, work / "examples")
    passphrase = home / "passphrase"
    passphrase.touch(mode=0o600)
    passphrase.write_text(secrets.token_hex(16))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BAZAAR_")}
    path = f"{BIN}{os.pathsep}{kept.get('PATH', '')}"
    return kept | {"BAZAAR_HOME": str(home), "BAZAAR_PASSPHRASE_FILE": str(passphrase), "PATH": path, "PWD": str(work)}


def say(text: str) -> None:
    print(f"\n# {text}", flush=True)


def run(command: str, env: dict[str, str], expected: int = 0) -> None:
    """Show a command and let it speak; raises DemoFailed when it ends otherwise than expected."""
    print(f"$ {command}", flush=True)
    code = subprocess.run(shlex.split(command), env=env, cwd=env["PWD"], stdin=subprocess.DEVNULL, timeout=300).returncode
    if code != expected:
        raise DemoFailed(f"`{command}` ended with {code}, expected {expected}")


def has_cards(env: dict[str, str]) -> bool:
    """Whether this machine has GPUs of its own to offer."""
    found = subprocess.run(["bazaar-seller", "gpus", "--json"], env=env, capture_output=True, text=True, timeout=60)
    if found.returncode != 0:
        raise DemoFailed(f"`bazaar-seller gpus` ended with {found.returncode}: {found.stderr}")
    return bool(json.loads(found.stdout)["cards"])


def start_market(home: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """The embedded market with a seller, ready to be asked. Raises DemoFailed."""
    # As plain processes, also where Docker answers: a demo must not wait for a registry, and the jobs are our own.
    command = "bazaar-market up --port 0 --api-port 0 --seller --price 0.40 --runner process"
    if not has_cards(env):
        command += f" --simulate-gpus {shlex.quote(SIMULATED)}"
    print(f"$ {command} &", flush=True)
    with (home / "up.log").open("wb") as log:
        market = subprocess.Popen(shlex.split(command), env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    deadline = time.monotonic() + START_LIMIT_S
    while not (home / "market" / "endpoints.json").exists() or not has_nodes(env):
        if market.poll() is not None or time.monotonic() > deadline:
            with suppress(DemoFailed):
                stop_market(market)
            raise DemoFailed(f"the market did not start:\n{(home / 'up.log').read_text(errors='replace')[-3000:]}")
        time.sleep(0.1)
    return market


def has_nodes(env: dict[str, str]) -> bool:
    found = subprocess.run(["bazaar", "nodes", "--json"], env=env, capture_output=True, text=True, timeout=60)
    return found.returncode == 0 and found.stdout.strip() not in {"", "[]"}


def stop_market(market: subprocess.Popen[bytes]) -> None:
    """End it as Ctrl-C would; raises DemoFailed when it does not end, or not well."""
    market.terminate()
    try:
        code = market.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        market.kill()
        raise DemoFailed(f"the market did not stop within {STOP_LIMIT_S} s") from None
    if code != 0:
        raise DemoFailed(f"the market ended with {code}")


def left_running(home: Path) -> list[str]:
    """The command of every process of this user that names the demo's home, in its arguments or its environment."""
    mark, found = str(home).encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes()
            if int(process.name) != os.getpid() and command and (mark in command or mark in (process / "environ").read_bytes()):
                found.append(f"{process.name} {command.replace(bytes(1), b' ').decode(errors='replace')[:200]}")
    return found


def check_nothing_left(home: Path) -> None:
    """Raises DemoFailed when something of the demo still runs once what is about to end had time for it."""
    deadline = time.monotonic() + LEFT_LIMIT_S
    while left := left_running(home):
        if time.monotonic() > deadline:
            raise DemoFailed("still running:\n" + "\n".join(left))
        time.sleep(0.1)


def scenes(env: dict[str, str]) -> None:
    say("What is on offer.")
    run("bazaar nodes", env)
    say("Run a job; its output streams, its results come back.")
    run("bazaar run --allow-simulated examples/hello_gpu.py", env)
    say("What became of it, and the bill.")
    run("bazaar show last", env)
    say("A job that no node could ever run is refused, with the condition that fails.")
    run("bazaar run --now --allow-simulated --vram 96GB examples/hello_gpu.py", env, expected=5)
    say("A job that fails, and why.")
    run("""bazaar run --allow-simulated -c 'import sys; print("the data is missing"); sys.exit(7)'""", env, expected=100)
    run("bazaar show last", env)
    say("All of them.")
    run("bazaar ps -a", env)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="bazaar-demo-") as folder:
        home = Path(folder)
        env = environment(home)
        try:
            say("A buyer is a wallet.")
            run("bazaar wallet new", env)
            say("A market, with a seller on this machine.")
            market = start_market(home, env)
            try:
                scenes(env)
            finally:
                stop_market(market)
            check_nothing_left(home)
        except DemoFailed as failure:
            print(f"\nThe demo failed: {failure}", file=sys.stderr)
            return 1
    say("The market has stopped; nothing is left running.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
