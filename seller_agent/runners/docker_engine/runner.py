"""Runs a job's attempt in a hardened container: the runner for other people's code.

Docker itself is reached through `sdk`, in a pool of threads of its own. What a run goes through stands in `runs`, what a
container may do in `profile`, and time limits are enforced by `guard`, outside the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from seller_agent.runners.docker_engine import profile
from seller_agent.runners.docker_engine.daemon.host import DEFAULT_SOCKET
from seller_agent.runners.docker_engine.daemon.streams import Follower
from seller_agent.runners.docker_engine.egress.network import INTERNET, Egress
from seller_agent.runners.docker_engine.images.pulling import Registry
from seller_agent.runners.docker_engine.images.store import ImageStore, ImageTerms, Wish
from seller_agent.runners.docker_engine.outcome import classify_failure
from seller_agent.runners.docker_engine.profile import Host
from seller_agent.runners.docker_engine.reach import DockerReach
from seller_agent.runners.docker_engine.runs import Dropped, Runs
from seller_agent.runners.docker_engine.sdk import SdkEngine
from seller_agent.runners.runner import Progress, RunKey, RunnerError, RunSpec, RunState, RunStatus, RunUse, StopReason, Stream, Terminal

THREADS = 32
PROVE_EVERY_S = 60.0
LOOK_EVERY_S = 300.0
LASTING_THREADS_MAX = 1024
"""One for every run's output and every pull. They have a pool of their own, or many runs would leave no thread to renew or stop one."""

T = TypeVar("T")


class DockerRunner:
    """See `runner.Runner`. `state_dir` is the agent's own folder; two agents on one Docker never touch each other's runs."""

    name = "docker"

    def __init__(
        self,
        state_dir: Path,
        node_id: str,
        *,
        socket_path: str = DEFAULT_SOCKET,
        images: ImageTerms | None = None,
    ) -> None:
        """`images` is what the owner says about them."""
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="docker")
        self._lasting = ThreadPoolExecutor(LASTING_THREADS_MAX, thread_name_prefix="docker-follow")
        self._engine = SdkEngine(socket_path, THREADS)
        self._reach = DockerReach(socket_path)
        self._home = hashlib.sha256(str(state_dir.resolve()).encode()).hexdigest()[:16]
        self._egress: Egress | None = None
        self._looking = False
        self._images = ImageStore(self._engine, Registry(socket_path), state_dir / "images.json", images or ImageTerms())
        self._runs = Runs(
            self._engine,
            self._images,
            socket_path=socket_path,
            guard_dir=state_dir / "guard",
            home=self._home,
            node_id=node_id,
            egress_network=self.egress_network,
        )
        self._followed: dict[str, tuple[Follower, Future[RunStatus]]] = {}
        self._wishes: set[Wish] = set()
        self._making: dict[str, Future[None]] = {}
        self._upkeep: list[asyncio.Task[None]] = []

    def job_path(self, spec: RunSpec) -> str:
        """`/job`, whatever the host calls it."""
        return profile.JOB_PATH

    def out_path(self, spec: RunSpec) -> str:
        """`/out`, whatever the host calls it."""
        return profile.OUT_PATH

    async def check(self) -> Host:
        """What Docker says of itself and its machine. Raises RunnerError when it does not answer."""
        host = await self._in_thread(self._runs.host)
        await self._in_thread(self._images.look, host.root)
        return host

    def warm_images(self) -> tuple[str, ...]:
        """Images that a job could use at once, the last used first."""
        return self._images.warm()

    def egress_network(self) -> str | None:
        """The network from which jobs reach the internet and nothing else; None while that is not proved, or was not asked for."""
        return self._egress.network() if self._egress is not None else None

    async def open_egress(self, say: Callable[[str], None], internet: tuple[tuple[str, int], ...] = INTERNET) -> None:
        """Let jobs reach the internet, proved now and again for as long as the runner lives. Raises EgressRefused, RunnerError."""
        host = await self._in_thread(self._runs.host)
        egress = Egress(self._engine, self._home, machine=host.machine, internet=internet)
        await self._in_thread(egress.check)
        self._egress = egress
        await self._prove(say)
        self._upkeep.append(asyncio.create_task(self._keep_proving(say)))

    async def _keep_looking(self) -> None:
        """Images come and go without us, and so does room."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            with contextlib.suppress(RunnerError):
                await self._in_thread(self._images.look, (await self._in_thread(self._runs.host)).root)
                await self._in_thread(self._images.make_room)

    async def _keep_proving(self, say: Callable[[str], None]) -> None:
        while True:
            await asyncio.sleep(PROVE_EVERY_S)
            await self._prove(say)

    async def _prove(self, say: Callable[[str], None]) -> None:
        assert self._egress is not None
        before = self._egress.fault
        fault = await self._in_thread(self._egress.prove)
        if fault and fault != before:
            say(f"No job gets a network here for now: {fault}.")
        elif before and not fault:
            say("Jobs that ask for it reach the internet from here, and nothing else: tried from inside a container.")

    async def prepare(self, spec: RunSpec, progress: Progress) -> None:
        """Folders, image, container. Raises RunnerError."""
        loop = asyncio.get_running_loop()

        def tell(phase: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody listens any more
                loop.call_soon_threadsafe(progress, phase)

        await self._in_thread(self._runs.open, spec)
        wish = Wish(tell)
        self._wishes.add(wish)
        making = self._making[spec.key.name] = self._lasting.submit(_environment_faults, self._runs.prepare, spec, wish)
        try:
            await _shielded(making)
        finally:
            wish.drop()  # also when nobody waits for it any longer
            self._wishes.discard(wish)
            if making.done():
                self._making.pop(spec.key.name, None)

    async def start(self, spec: RunSpec) -> RunStatus:
        """Start the container and follow its output; what has ended by then is told with its output. Raises RunnerError."""
        status = await self._in_thread(self._runs.start, spec)
        self._follow(spec.key, Path(spec.folder))
        return status if status.state is RunState.RUNNING else await self.wait(spec.key)

    async def adopt(self) -> list[RunStatus]:
        """Every run of this home, from labels and watch files; the output of running ones is followed again, that of ended ones copied."""
        if not self._looking:
            self._looking = True
            self._upkeep.append(asyncio.create_task(self._keep_looking()))
        found = await self._in_thread(self._runs.adopt)
        for record, status in found:
            if status.state is not RunState.PREPARED:
                self._follow(record.key, Path(record.folder))
        return [await self.wait(status.key) if status.state is RunState.EXITED else status for _, status in found]

    async def wait(self, key: RunKey) -> RunStatus:
        """The run's end, once both output files are complete. Raises RunnerError when there is no such run."""
        if key.name not in self._followed:
            folder = await self._in_thread(self._runs.folder_of, key)
            if folder is None:
                raise RunnerError("container_error", f"There is no run {key.name} here.")
            self._follow(key, folder)
        try:
            return await _shielded(self._followed[key.name][1])
        except RunnerError:
            self._followed.pop(key.name, None)  # the next wait tries again
            raise
        except Dropped:
            raise RunnerError(
                "container_error", f"The run {key.name} was removed, or the runner closed, while it was waited for."
            ) from None

    async def renew(self, key: RunKey, lease_until_boot_ms: int) -> None:
        """Move the lease that the guard goes by."""
        await self._in_thread(self._runs.renew, key, lease_until_boot_ms)

    async def stop(self, key: RunKey, reason: StopReason, grace_s: int) -> None:
        """TERM, wait, KILL; returns when nothing of the run lives any more."""
        await self._in_thread(self._runs.stop, key, reason, grace_s)

    async def extend(self, key: RunKey, timeout_s: int) -> None:
        """Move the deadline that the guard goes by."""
        await self._in_thread(self._runs.extend, key, timeout_s)

    async def use(self, key: RunKey) -> RunUse | None:
        """From the files of its control group, else from Docker."""
        return await self._in_thread(self._runs.use, key)

    async def dial(self, key: RunKey, place: str) -> Stream:
        """Into the container. Raises ConnectionError, RunnerError."""
        folder = await self._in_thread(self._runs.folder_of, key)
        return await self._reach.dial(await self._in_thread(self._engine.inspect, profile.container_name(key)), f"{folder}/job", place)

    async def shell(self, key: RunKey, argv: tuple[str, ...], columns: int, rows: int) -> Terminal:
        """Beside the job's own program, confined as it is. Raises RunnerError."""
        return await self._reach.shell(await self._in_thread(self._engine.inspect, profile.container_name(key)), argv, columns, rows)

    async def remove(self, key: RunKey) -> None:
        """Remove container, watch file and follower; the folder stays."""
        followed = self._followed.pop(key.name, None)
        if followed is not None:
            followed[0].drop()
        making = self._making.pop(key.name, None)
        if making is not None:  # given up in the middle: what it may still create must not outlive this
            await asyncio.wait([asyncio.wrap_future(making)])
        await self._in_thread(self._runs.remove, key)

    async def close(self) -> None:
        """Let go of everything; runs and the guard go on."""
        for task in self._upkeep:
            task.cancel()
        await asyncio.gather(*self._upkeep, return_exceptions=True)
        if self._egress is not None:
            await self._in_thread(self._egress.close)
        for follower in (*self._wishes, *(follower for follower, _ in self._followed.values())):
            follower.drop()
        for pool in (self._lasting, self._pool):
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)
        self._runs.close()
        self._engine.close()

    def _follow(self, key: RunKey, folder: Path) -> None:
        if key.name not in self._followed:
            follower = Follower()
            self._followed[key.name] = (follower, self._lasting.submit(_environment_faults, self._runs.follow, key, folder, follower))

    async def _in_thread(self, function: Callable[..., T], *arguments: object, pool: ThreadPoolExecutor | None = None) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool or self._pool, _environment_faults, function, *arguments)


async def _shielded(future: Future[T]) -> T:
    """A thread's result; who is cancelled leaves the thread alone, and what it raises then is nobody's."""
    waiting = asyncio.wrap_future(future)
    waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(waiting)


def _environment_faults(function: Callable[..., T], *arguments: object) -> T:
    """What the operating system refuses, as the runner's own exception."""
    try:
        return function(*arguments)
    except OSError as error:
        raise RunnerError(*classify_failure(str(error))) from error
