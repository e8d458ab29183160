"""Docker's API through the SDK's low-level client, with our exceptions: the only module that imports the Docker SDK. It decides nothing."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import docker
import docker.errors
import requests.exceptions

from seller_agent.runners.docker_engine.outcome import classify_failure
from seller_agent.runners.docker_engine.runs import EngineGone, Inspection
from seller_agent.runners.runner import RunnerError


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
