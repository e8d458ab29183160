"""What an agent costs a machine with eight cards while nothing runs: memory and processor time, itself and what it has started.

A real market in a folder of its own; the cards are those of the tests' fake NVML library, read by the real binding. The process runner, and
the Docker runner where Docker answers. Run: `python benchmarks/agent_at_rest.py [SECONDS]`
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from market_speed import RunningMarket, market, say

ROOT = Path(__file__).resolve().parents[1]
CARDS = 8
MEASURED_S = 60.0
SETTLED_S = 15.0
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@contextmanager
def driver() -> Iterator[dict[str, str]]:
    """Variables under which NVML finds eight cards."""
    if shutil.which("gcc") is None:
        raise SystemExit("this needs a C compiler; on Debian: apt-get install gcc libc6-dev")
    with tempfile.TemporaryDirectory(prefix="bazaar-nvml-") as folder:
        flags = ["-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", "-o", f"{folder}/libnvidia-ml.so.1"]
        subprocess.run(["gcc", *flags, str(ROOT / "tests" / "integration" / "fake_nvml.c")], check=True)
        (Path(folder) / "state").write_text(f"count {CARDS}\n")
        yield {"LD_LIBRARY_PATH": folder, "FAKE_NVML_STATE": f"{folder}/state"}


@contextmanager
def agent(running: RunningMarket, runner: str, variables: dict[str, str]) -> Iterator[int | None]:
    """The process of an agent that has offered eight cards; None when its runner is not there."""
    command = [sys.executable, "-m", "seller_agent", "run", "--price", "0.40", "--name", runner, "--runner", runner]
    environment = {**os.environ, **variables, "BAZAAR_HOME": str(running.home)}
    log = running.home / f"{runner}.log"
    with log.open("wb") as file:
        process = subprocess.Popen([*command, "--market", running.url], env=environment, cwd=ROOT, stdout=file, stderr=file)
    try:
        until_s = time.monotonic() + 60
        while b"Offered" not in log.read_bytes() and process.poll() is None and time.monotonic() < until_s:
            time.sleep(0.1)
        yield process.pid if process.poll() is None else None
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def family(pid: int) -> list[int]:
    """A process and everything below it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def cpu_s(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def memory_mib(pid: int, field: str) -> float:
    """`Rss` or `Pss` of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) / 1024


def measure(runner: str, running: RunningMarket, variables: dict[str, str], seconds: float) -> None:
    """Two rows for one runner."""
    with agent(running, runner, variables) as pid:
        if pid is None:
            print(f"({runner} runner: left out, it does not start here)")
            return
        time.sleep(min(SETTLED_S, seconds))
        members = family(pid)
        before_s = sum(map(cpu_s, members))
        time.sleep(seconds)
        used_s = sum(map(cpu_s, members)) - before_s
        others = sum(memory_mib(member, "Pss") for member in members[1:])
        beside = f" and {others:.0f} MiB in {len(members) - 1} processes beside it" if len(members) > 1 else ""
        say(f"agent at rest, {CARDS} cards, {runner} runner: resident memory", f"{memory_mib(pid, 'Rss'):.0f} MiB{beside}", "<= 80 MiB")
        say(f"agent at rest, {CARDS} cards, {runner} runner: processor", f"{100 * used_s / seconds:.2f} % of a core", "<= 1 %")


def main() -> None:
    """Measure each runner in turn."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else MEASURED_S
    print("| what | measured | target | load |\n|---|---|---|---|")
    with driver() as variables, market() as running:
        for runner in ("process", "docker"):
            measure(runner, running, variables, seconds)


if __name__ == "__main__":
    main()
