"""Runs a job's attempt in a hardened container: the runner for other people's code.

The only module that imports the Docker SDK (its low-level client, in a pool of threads of its own). What a run goes through stands in
`docker_runs`, what a container may do in `docker_profile`, and time limits are enforced by `guard`, outside the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import docker
import docker.errors
import requests.exceptions

from seller_agent.runners import docker_profile as profile
from seller_agent.runners.docker_egress import INTERNET, Egress
from seller_agent.runners.docker_host import DEFAULT_SOCKET
from seller_agent.runners.docker_images import Registry
from seller_agent.runners.docker_logs import Follower
from seller_agent.runners.docker_outcome import classify_failure
from seller_agent.runners.docker_profile import Host
from seller_agent.runners.docker_reach import DockerReach
from seller_agent.runners.docker_runs import Dropped, EngineGone, Inspection, Runs
from seller_agent.runners.docker_store import ImageStore, ImageTerms, Wish
from seller_agent.runners.runner import Progress, RunKey, RunnerError, RunSpec, RunState, RunStatus, RunUse, StopReason, Stream, Terminal

THREADS = 32
PROVE_EVERY_S = 60.0
LASTING_THREADS_MAX = 1024
"""One for every run's output and every pull. They have a pool of their own, or many runs would leave no thread to renew or stop one."""

T = TypeVar("T")


class SdkEngine:
    """Docker's API through the SDK's low-level client, with our exceptions. Connects at the first call."""

    def __init__(self, socket_path: str, connections: int) -> None:
        self._socket = socket_path
        self._connections = connections
        self._lock = threading.Lock()
        self._client: Any = None

    @contextlib.contextmanager
    def _api(self) -> Iterator[Any]:
        try:
            with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
                probe.settimeout(60)
                probe.connect(self._socket)  # the SDK leaks a descriptor for every connection that fails
            with self._lock:
                if self._client is None:
                    base_url = f"unix://{self._socket}"
                    self._client = docker.APIClient(base_url=base_url, version="auto", timeout=60, max_pool_size=self._connections)
            yield self._client
        except docker.errors.APIError as error:
            raise RunnerError(*classify_failure(str(error.explanation or error))) from error
        except (OSError, docker.errors.DockerException) as error:  # requests' own exceptions are OSErrors too
            message = f"Docker does not answer at {self._socket} ({error}). Is it running, and may this user open its socket?"
            raise EngineGone("container_error", message) from error

    def info(self) -> dict[str, Any]:
        """The daemon and its machine."""
        with self._api() as api:
            answer: dict[str, Any] = api.info()
            return answer

    def inspect(self, name: str) -> Inspection | None:
        """A container, or None."""
        with self._api() as api:
            try:
                answer: Inspection = api.inspect_container(name)
            except docker.errors.NotFound:
                return None
            return answer

    def inspect_image(self, image: str) -> Inspection | None:
        """A local image, or None."""
        with self._api() as api:
            try:
                answer: Inspection = api.inspect_image(image)
            except docker.errors.NotFound:
                return None
            return answer

    def create(self, name: str, body: dict[str, Any]) -> bool:
        """Create a container; False when the name is taken."""
        with self._api() as api:
            try:
                api.create_container_from_config(body, name)
            except docker.errors.APIError as error:
                if error.status_code == 409 and "already in use" in str(error.explanation):
                    return False
                raise
            return True

    def start(self, name: str) -> None:
        """Start it; a running one is no error."""
        with self._api() as api:
            api.start(name)

    def signal(self, name: str, signal: str) -> None:
        """Send a signal; an ended or absent container is no error."""
        with self._api() as api:
            try:
                api.kill(name, signal)
            except docker.errors.APIError as error:
                if error.status_code not in (404, 409):
                    raise

    def wait_end(self, name: str, timeout_s: float) -> bool:
        """Whether it has ended within that time; False also when Docker went away meanwhile."""
        with self._api() as api:
            try:
                api.wait(name, timeout=timeout_s)
            except docker.errors.NotFound:
                return True
            except requests.exceptions.RequestException:
                return False
            return True

    def with_label(self, label: str) -> list[dict[str, str]]:
        """The labels of every container, ended ones too, that carries this one."""
        with self._api() as api:
            return [dict(container["Labels"]) for container in api.containers(all=True, filters={"label": [label]})]

    def images_in_use(self) -> set[str]:
        """The ids of images that a container, ended ones too, was made of."""
        with self._api() as api:
            return {str(container["ImageID"]) for container in api.containers(all=True)}

    def image_ids(self) -> set[str]:
        """The ids of all images."""
        with self._api() as api:
            return set(api.images(quiet=True))

    def remove_image(self, name: str) -> bool:
        """Forget a name, and with its last name the image; False when it is in use. An absent one is no error."""
        with self._api() as api:
            try:
                api.remove_image(name)
            except docker.errors.APIError as error:
                if error.status_code not in (404, 409):
                    raise
                return bool(error.status_code == 404)
            return True

    def import_image(self, name: str, archive: bytes) -> None:
        """Make an image of a root file system."""
        with self._api() as api:
            repository, _, tag = name.partition(":")
            api.import_image_from_data(archive, repository=repository, tag=tag)

    def inspect_network(self, name: str) -> Inspection | None:
        """A network, or None."""
        with self._api() as api:
            try:
                answer: Inspection = api.inspect_network(name)
            except docker.errors.NotFound:
                return None
            return answer

    def create_network(self, name: str, options: dict[str, str]) -> None:
        """Make a bridge without IPv6."""
        with self._api() as api:
            api.create_network(name, driver="bridge", options=options, enable_ipv6=False, check_duplicate=True)

    def remove_network(self, name: str) -> bool:
        """Remove it; False while containers are in it. An absent one is no error."""
        with self._api() as api:
            try:
                api.remove_network(name)
            except docker.errors.APIError as error:
                if error.status_code == 403:
                    return False
                if error.status_code != 404:
                    raise
            return True

    def remove(self, name: str) -> None:
        """Kill and remove it with its volumes; an absent one is no error."""
        with self._api() as api:
            try:
                api.remove_container(name, v=True, force=True)
            except docker.errors.APIError as error:
                if error.status_code != 404 and "already in progress" not in str(error.explanation):
                    raise

    def close(self) -> None:
        """Let go of the connections."""
        if self._client is not None:
            self._client.close()


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
        self._upkeep: asyncio.Task[None] | None = None

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
        self._upkeep = asyncio.create_task(self._keep_proving(say))

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
            await asyncio.shield(asyncio.wrap_future(making))
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
            return await asyncio.shield(asyncio.wrap_future(self._followed[key.name][1]))
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
        if self._upkeep is not None:
            self._upkeep.cancel()
            await asyncio.wait([self._upkeep])
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


def _environment_faults(function: Callable[..., T], *arguments: object) -> T:
    """What the operating system refuses, as the runner's own exception."""
    try:
        return function(*arguments)
    except OSError as error:
        raise RunnerError(*classify_failure(str(error))) from error
