"""Images as registries have them: pulling one with progress and a deadline, and naming what went wrong with it.

Which image is pulled, when, and for whom stands in `store`.
"""

from __future__ import annotations

import contextlib
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from events.images import full_name
from seller_agent.runners.docker_engine.daemon.asking import quoted
from seller_agent.runners.docker_engine.daemon.streams import EngineStream, Follower, StreamFailed
from seller_agent.runners.docker_engine.images.logins import Login
from seller_agent.runners.runner import RunnerError

NOT_FOUND = ("manifest unknown", "not found", "does not exist", "name unknown", "repository name not known")
AUTH = ("unauthorized", "no basic auth credentials", "authentication required", "denied", "forbidden")
REFUSED = ("invalid reference format", "no matching manifest", "unsupported media type", "not supported", "invalid tag format", "malformed")
DISK = ("no space left",)
WEIGHT_PULL, WEIGHT_EXTRACT = 0.8, 0.2


def split_image(image: str) -> tuple[str, str]:
    """Repository and tag (or digest) as Docker's pull call wants them; `latest` when there is none."""
    name, at, digest = image.partition("@")
    if at:
        return name, digest
    head, colon, tag = image.rpartition(":")
    return (head, tag) if colon and "/" not in tag else (image, "latest")


def classify_pull(message: str, status: int | None = None) -> tuple[str, str]:
    """Registries differ in status codes and agree, more or less, in words: reason and sentence for a failed pull."""
    text = message.lower()
    said = message.strip()[:300]
    if any(words in text for words in DISK):
        return "disk_full", f"The disk is full while pulling the image: {said}"
    if any(words in text for words in REFUSED):
        return "image_refused", f"This machine cannot use the image: {said}"
    if status == 404 or any(words in text for words in NOT_FOUND):
        return "image_not_found", f"There is no such image, or not for everyone: {said}"
    if status in (401, 403) or any(words in text for words in AUTH):
        return "image_auth", f"The registry wants credentials for this image: {said}"
    return "image_pull_timeout", f"The image's registry cannot be reached from this machine: {said}"


class PullProgress:
    """Per cent of a pull, from Docker's events per layer; it never goes back although layers become known one by one."""

    def __init__(self) -> None:
        self._layers: dict[str, tuple[int, float]] = {}
        self._percent = 0

    def add(self, event: Mapping[str, Any]) -> int | None:
        """Take one event; the new percentage when it rose."""
        layer, status = str(event.get("id") or ""), str(event.get("status") or "")
        detail = event.get("progressDetail") or {}
        total, current = int(detail.get("total") or 0), int(detail.get("current") or 0)
        known = self._layers.get(layer, (1, 0.0))
        if status in ("Pulling fs layer", "Waiting"):
            self._layers[layer] = known
        elif status == "Downloading" and total:
            self._layers[layer] = (total, WEIGHT_PULL * min(1.0, current / total))
        elif status == "Extracting" and total:
            self._layers[layer] = (max(known[0], total), WEIGHT_PULL + WEIGHT_EXTRACT * min(1.0, current / total))
        elif status in ("Download complete", "Verifying Checksum"):
            self._layers[layer] = (known[0], max(known[1], WEIGHT_PULL))
        elif status in ("Pull complete", "Already exists"):
            self._layers[layer] = (known[0], 1.0)
        return self._risen()

    def _risen(self) -> int | None:
        whole = sum(size for size, _ in self._layers.values())
        percent = int(100 * sum(size * done for size, done in self._layers.values()) / whole) if whole else 0
        if percent <= self._percent:
            return None
        self._percent = percent
        return percent


class Registry:
    """What of the world's registries a daemon is asked for, as the machine sees them. Every method raises RunnerError."""

    def __init__(self, socket_path: str) -> None:
        self._socket = socket_path

    def pull(self, image: str, login: Login | None, tell: Callable[[str], None], follower: Follower, timeout_s: float) -> None:
        """Fetch an image; `follower` can cut it off."""
        tell("pulling")
        repository, tag = split_image(image)
        target = f"/images/create?fromImage={quoted(repository)}&tag={quoted(tag)}"
        progress = PullProgress()
        for event in self._ask(image, "POST", target, login, follower, timeout_s=timeout_s):
            if "error" in event:
                raise RunnerError(*classify_pull(str(event["error"])))
            percent = progress.add(event)
            if percent is not None:
                tell(f"pulling {percent}%")

    def digest(self, image: str, login: Login | None, follower: Follower, timeout_s: float) -> str:
        """What the image's name means now, to whoever has this login."""
        name = urllib.parse.quote(full_name(image), safe="/:@")
        for answer in self._ask(image, "GET", f"/distribution/{name}/json", login, follower, timeout_s=timeout_s):
            return str((answer.get("Descriptor") or {}).get("digest") or "")
        raise RunnerError("image_pull_timeout", f"Docker said nothing about {image}.")

    def _ask(
        self, image: str, method: str, target: str, login: Login | None, follower: Follower, *, timeout_s: float
    ) -> Iterator[dict[str, Any]]:
        headers = login.header(image) if login is not None else {}
        try:
            asked = EngineStream(self._socket, method, target, deadline_s=timeout_s, follower=follower, headers=headers)
            with contextlib.closing(asked) as stream:
                yield from stream.lines()
        except StreamFailed as error:
            raise RunnerError(*classify_pull(str(error), error.status)) from error
        except msgspec.MsgspecError as error:
            raise RunnerError("image_pull_timeout", f"Docker's answer about {image} broke off.") from error
        except TimeoutError as error:
            raise RunnerError("image_pull_timeout", f"{image}: its registry had not done it after {timeout_s:.0f} s.") from error
