"""What the agent adds to a container: prepare + start through the runner, against a plain create + start of the same container.

Both in turn on the same daemon, in one run, so that the machine's load is the same for both; medians. The Docker engine at DOCKER_HOST is
used, and an image made of this machine's static busybox; without either nothing is measured, and that is said. The plain container is
created of the very body that the runner sends. Measured from the call to the program's start; removing is not.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import shutil
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seller_agent.runners.docker_engine.daemon import clocks
from seller_agent.runners.docker_engine.daemon.host import socket_of
from seller_agent.runners.docker_engine.profile import container_name
from seller_agent.runners.docker_engine.runner import DockerRunner
from seller_agent.runners.docker_engine.sdk import SdkEngine
from seller_agent.runners.runner import RunKey, RunnerError, RunSpec, StopReason, run_folder

LIMIT_MS = 20.0
MADE_IMAGE = "gpubazaar-bench:1"


class Seen(SdkEngine):
    """Keeps the last body that a container was created of."""

    body: dict[str, Any] = {}

    def create(self, name: str, body: dict[str, Any]) -> bool:
        self.body = body
        return super().create(name, body)


def root_of(busybox: Path) -> bytes:
    """A root file system that can sleep."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(busybox, "bin/busybox")
        link = tarfile.TarInfo("bin/sleep")
        link.type, link.linkname = tarfile.SYMTYPE, "busybox"
        tar.addfile(link)
    return buffer.getvalue()


def spec_of(home: Path, number: int, image: str) -> RunSpec:
    """A job that is still there when its start is over."""
    key = RunKey(job_id=f"jbench{number}", attempt=1, epoch=1)
    return RunSpec(
        key=key,
        folder=run_folder(str(home / "runs"), key),
        argv=("sleep", "600"),
        env={},
        image=image,
        memory_mib=256,
        timeout_s=60,
        lease_until_boot_ms=clocks.boot_ms() + 3_600_000,
    )


async def through_the_runner(runner: DockerRunner, spec: RunSpec) -> float:
    """Milliseconds of prepare and start."""
    begun = time.perf_counter()
    await runner.prepare(spec, lambda phase: None)
    await runner.start(spec)
    took_ms = (time.perf_counter() - begun) * 1000
    await runner.stop(spec.key, StopReason.ASKED, 0)
    await runner.wait(spec.key)
    await runner.remove(spec.key)
    shutil.rmtree(spec.folder, ignore_errors=True)
    return took_ms


def plain(engine: SdkEngine, body: dict[str, Any], spec: RunSpec) -> float:
    """Milliseconds of create and start."""
    for name in ("job", "out"):
        (Path(spec.folder) / name).mkdir(parents=True, exist_ok=True)
    name = container_name(spec.key)
    begun = time.perf_counter()
    engine.create(name, body)
    engine.start(name)
    took_ms = (time.perf_counter() - begun) * 1000
    engine.remove(name)
    return took_ms


async def measure(socket_path: str, image: str, rounds: int, say: Callable[[str], None]) -> tuple[float, float]:
    """Medians of both, in milliseconds."""
    home = Path(tempfile.mkdtemp(prefix="docker-share-"))
    runner, engine = DockerRunner(home, "bench", socket_path=socket_path), Seen(socket_path, 4)
    runner._engine = runner._runs._engine = engine
    ours, plains = [], []
    try:
        await runner.check()
        await through_the_runner(runner, spec_of(home, 0, image))  # starts the guard, opens connections
        for number in range(1, rounds + 1):
            spec = spec_of(home, number, image)
            ours.append(await through_the_runner(runner, spec))
            plains.append(await asyncio.to_thread(plain, engine, engine.body, spec))
    finally:
        await runner.close()
        shutil.rmtree(home, ignore_errors=True)
    a, b = statistics.median(ours), statistics.median(plains)
    shares = statistics.median(x - y for x, y in zip(ours, plains, strict=True))
    say(f"{'':<28}{'p50 ms':>9}{'min ms':>9}{'max ms':>9}")
    say(f"{'plain create + start':<28}{b:>9.1f}{min(plains):>9.1f}{max(plains):>9.1f}")
    say(f"{'through the runner':<28}{a:>9.1f}{min(ours):>9.1f}{max(ours):>9.1f}")
    say(f"{'our share':<28}{a - b:>9.1f}   (median of the differences {shares:.1f}; at most {LIMIT_MS:.0f})")
    return a, b


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", help="one that is there and has `sleep`")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    socket_path = socket_of(os.environ.get("DOCKER_HOST"))
    engine, busybox = SdkEngine(socket_path, 1), shutil.which("busybox")
    try:
        engine.info()
    except RunnerError as error:
        print(f"not measured: {error}")
        return 0
    if options.image is None and busybox is None:
        print("not measured: there is no busybox here to make an image of; name one with --image")
        return 0
    if options.image is None:
        engine.import_image(MADE_IMAGE, root_of(Path(str(busybox))))
    try:
        ours, plains = asyncio.run(measure(socket_path, options.image or MADE_IMAGE, options.rounds, print))
    finally:
        if options.image is None:
            engine.remove_image(MADE_IMAGE)
        engine.close()
    return 0 if ours - plains <= LIMIT_MS else 1


if __name__ == "__main__":
    sys.exit(main())
