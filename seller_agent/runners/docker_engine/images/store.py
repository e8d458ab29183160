"""The images on this machine: which one a name means for whom, one pull for all who want it, what is warm, what may be deleted.

A name is asked of its registry again now and then, with the login of whoever asks, so that an image which was pulled with one buyer's
login is not served to another one. Only images that were pulled here are ever deleted. It decides nothing about jobs.
"""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import structlog

from events.images import allowed, full_name, repository
from seller_agent.runners.docker_engine.daemon import clocks
from seller_agent.runners.docker_engine.daemon.streams import Follower
from seller_agent.runners.docker_engine.images.logins import Login, read_logins, registry_of
from seller_agent.runners.docker_engine.images.warm import ImageUse, UseTable
from seller_agent.runners.runner import RunnerError

log = structlog.get_logger("seller.images")

PULL_TIMEOUT_S = 20 * 60
CHECK_EVERY_MS = 30 * 60 * 1000
"""A question counts as a pull with registries that allow only so many in some hours."""
CHECK_TIMEOUT_S = 10.0
AWAY_MS = 60_000
"""So long a registry that did not answer is not asked about images that are here."""
KEEP_FREE_BYTES = 10 * 10**9
PROOFS_MAX = 4096

Tell = Callable[[str], None]


class ImageTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What the node's owner says about images."""

    allow: tuple[str, ...] = ()
    """Patterns; none: every image."""
    default: str | None = None
    """The image for jobs that name none. It is always let in, and served as it is when its registry says no."""
    logins_file: str | None = None
    keep_free_bytes: int = KEEP_FREE_BYTES
    """With less room than this on Docker's disk, images that nobody uses are deleted."""
    pull_timeout_s: float = PULL_TIMEOUT_S
    check_every_ms: int = CHECK_EVERY_MS


class Engine(Protocol):
    """What of Docker the store needs. Every method raises RunnerError."""

    def inspect_image(self, image: str) -> dict[str, Any] | None:
        """A local image, or None."""

    def images_in_use(self) -> set[str]:
        """The ids of images that a container, ended ones too, was made of."""

    def image_ids(self) -> set[str]:
        """The ids of all images."""

    def remove_image(self, name: str) -> bool:
        """Forget a name, and with its last name the image; False when it is in use."""


class Registries(Protocol):
    """The daemon's way to registries. Every method raises RunnerError."""

    def pull(self, image: str, login: Login | None, tell: Tell, follower: Follower, timeout_s: float) -> None:
        """Fetch an image."""

    def digest(self, image: str, login: Login | None, follower: Follower, timeout_s: float) -> str:
        """What the name means now."""


class ImageHere(NamedTuple):
    """An image to make a container of."""

    image_id: str
    digest: str
    """The manifest's in its registry; of an image that never was in one, its id."""
    config: dict[str, Any]


class Wish(Follower):
    """Somebody who waits for an image."""

    def __init__(self, tell: Tell) -> None:
        super().__init__()
        self.tell = tell
        self.changed: Callable[[], None] = lambda: None

    def drop(self) -> None:
        """No longer wanted, from any thread."""
        super().drop()
        self.changed()


class _Pull:
    """One pull, for everybody who waits for it; cut off when nobody does any more."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._wishes: list[Wish] = []
        self._phase = "pulling"
        self._over = False
        self._failure: RunnerError | None = None
        self.follower = Follower()

    def join(self, wish: Wish) -> bool:
        """Wait with the others; False when it is over or being cut off."""
        with self._changed:
            if self._over or self.follower.dropped.is_set():
                return False
            self._wishes.append(wish)
            wish.changed = self._look
        if wish.dropped.is_set():
            self._look()
        else:
            wish.tell(self._phase)
        return True

    def _look(self) -> None:
        with self._changed:
            if all(wish.dropped.is_set() for wish in self._wishes):
                self.follower.drop()
            self._changed.notify_all()

    def tell(self, phase: str) -> None:
        """To everybody who waits."""
        with self._changed:
            self._phase = phase
            wishes = list(self._wishes)
        for wish in wishes:
            wish.tell(phase)

    def end(self, failure: RunnerError | None) -> None:
        """It is over."""
        with self._changed:
            self._over, self._failure = True, failure
            self._changed.notify_all()

    def wait(self, wish: Wish) -> None:
        """Until it is over, or this one does not want it any more. Raises RunnerError as the pull did."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or wish.dropped.is_set())
        if self._failure is not None:
            raise self._failure


class ImageStore:
    """All images of one agent on one Docker. Every method may be called from any thread; those that talk to Docker raise RunnerError."""

    def __init__(self, engine: Engine, registries: Registries, table_path: Path, terms: ImageTerms) -> None:
        self._engine = engine
        self._registries = registries
        self._terms = terms
        self._table = UseTable(table_path)
        self._lock = threading.Lock()
        self._pulls: dict[tuple[str, str], _Pull] = {}
        self._proofs: dict[tuple[str, str], int] = {}
        """(name, whose login) -> when the registry last gave it to that login, on CLOCK_BOOTTIME."""
        self._away_until_ms: dict[str, int] = {}
        self._held: Counter[str] = Counter()
        self._root: Path | None = None

    def ensure(self, image: str | None, buyer: Login | None, wish: Wish) -> ImageHere:
        """The image on this machine, pulled if need be, and held until `release`. Raises RunnerError with the reason of a failed pull."""
        if not image:
            raise RunnerError("image_refused", "The Docker runner needs an image: name one with --image, or let the node offer a default.")
        if image != self._terms.default and not allowed(self._terms.allow, image):
            raise RunnerError("image_refused", f"This node lets only these images run: {', '.join(self._terms.allow)}.")
        here = self._local(image)
        if here is None or self._is_stale(image, here, buyer, wish):
            self._pull(image, buyer, wish)
            here = self._local(image)
            if here is None:
                raise RunnerError("image_pull_timeout", f"The pull of {image} broke off.")
        self._hold(image, here)
        return here

    def _local(self, image: str) -> ImageHere | None:
        """What the name means here; a name that is only the beginning of an image's id means nothing."""
        found = self._engine.inspect_image(image)
        if found is None:
            return None
        names = [str(name) for name in (*(found.get("RepoTags") or ()), *(found.get("RepoDigests") or ()))]
        if canonical(image) not in map(canonical, names):
            return None
        digests = [name.partition("@")[2] for name in found.get("RepoDigests") or () if repository(name) == repository(image)]
        wanted = image.partition("@")[2]
        digest = wanted if wanted in digests else digests[0] if digests else str(found["Id"])
        return ImageHere(str(found["Id"]), digest, {"digests": digests, **(found.get("Config") or {})})

    # ---- whether the registry still means this one

    def _is_stale(self, image: str, here: ImageHere, buyer: Login | None, wish: Wish) -> bool:
        """Whether its name means another image by now. Raises RunnerError when the registry does not give it to this one."""
        digests, use = here.config["digests"], self._table.of(here.image_id)
        if not digests or ("@" in image and use is not None and not use.private):
            return False  # it never was in a registry, or its name cannot mean another one
        key, now = (canonical(image), _whose(buyer)), clocks.boot_ms()
        proven_ms = self._proofs.get(key)
        if proven_ms is not None and now - proven_ms < self._terms.check_every_ms:
            return False
        try:
            if self._away_until_ms.get(registry_of(image), 0) > now:
                raise RunnerError("image_pull_timeout", f"{registry_of(image)} did not answer a moment ago.")
            meant = self._registries.digest(image, self._login(image, buyer), wish, CHECK_TIMEOUT_S)
        except RunnerError as error:
            self._serve_unasked(image, error, is_known=proven_ms is not None or not (use is not None and use.private))
            return False
        self._proven(key, here.image_id)
        return meant not in digests

    def _serve_unasked(self, image: str, error: RunnerError, *, is_known: bool) -> None:
        """Whether an image that is here may serve although its registry did not say so. Raises the error when not."""
        if image != self._terms.default:
            if error.reason != "image_pull_timeout" or not is_known:
                raise error
            if self._away_until_ms.get(registry_of(image), 0) <= clocks.boot_ms():
                self._away_until_ms[registry_of(image)] = clocks.boot_ms() + AWAY_MS
        log.warning("the image that is here serves, its registry did not confirm it", image=image, why=str(error))

    def _proven(self, key: tuple[str, str], image_id: str) -> None:
        with self._lock:
            if len(self._proofs) >= PROOFS_MAX:
                self._proofs.clear()
            self._proofs[key] = clocks.boot_ms()
        if not key[1]:
            self._table.make_public(image_id)

    def _login(self, image: str, buyer: Login | None) -> Login | None:
        if buyer is not None or self._terms.logins_file is None:
            return buyer
        return read_logins(Path(self._terms.logins_file)).get(registry_of(image))

    # ---- pulling

    def _pull(self, image: str, buyer: Login | None, wish: Wish) -> None:
        """One pull for all who want the same with the same login."""
        key = (canonical(image), _whose(buyer))
        while not wish.dropped.is_set():
            with self._lock:
                pull, is_mine = self._pulls.get(key), False
                if pull is None:
                    pull, is_mine = _Pull(), True
                    self._pulls[key] = pull
            if not pull.join(wish):
                wish.dropped.wait(0.02)  # it is being cut off: the next one is ours
                continue
            if is_mine:  # in a thread of its own: who gave the first wish up must not be held by the others'
                threading.Thread(target=self._do_pull, args=(image, buyer, pull, key), name="docker-pull", daemon=True).start()
            pull.wait(wish)
            return

    def _do_pull(self, image: str, buyer: Login | None, pull: _Pull, key: tuple[str, str]) -> None:
        failure: RunnerError | None = RunnerError("image_pull_timeout", f"The pull of {image} broke off.")
        try:
            self.make_room()
            before = self._engine.image_ids()
            log.info("pulling", image=image)
            self._registries.pull(image, self._login(image, buyer), pull.tell, pull.follower, self._terms.pull_timeout_s)
            here = self._local(image)
            if here is not None:
                failure = None
                if here.image_id not in before:
                    self._table.pulled(here.image_id, image, private=buyer is not None)
                self._proven(key, here.image_id)
                self.make_room(sparing=here.image_id)
        except RunnerError as error:
            failure = error
        except OSError as error:
            failure = RunnerError("image_pull_timeout", f"The pull of {image} failed: {error}")
        finally:
            with self._lock:
                del self._pulls[key]
            pull.end(failure)

    # ---- use and room

    def _hold(self, image: str, here: ImageHere) -> None:
        with self._lock:
            self._held[here.image_id] += 1
        self._table.used(here.image_id, image)

    def release(self, here: ImageHere) -> None:
        """Its container exists, or never will."""
        with self._lock:
            self._held[here.image_id] -= 1

    def warm(self) -> tuple[str, ...]:
        """Names of images that a job could use at once, the last used first; without those that only a login opens."""
        return self._table.warm(clocks.boot_ms())

    def look(self, root: str) -> None:
        """Learn where Docker keeps images, and compare the table with what is there."""
        self._root = Path(root)
        default = self._terms.default
        here = self._local(default) if default else None
        if here is not None and default and self._table.of(here.image_id) is None:
            self._table.used(here.image_id, default)
        self._table.keep_only(self._engine.image_ids())

    def make_room(self, sparing: str = "") -> None:
        """Delete images that were pulled here and are not in use, the longest unused first, while there is too little room."""
        if self._has_room():
            return
        in_use = self._engine.images_in_use()
        for use in self._table.oldest_first():
            with self._lock:
                is_free = use.pulled and use.image_id not in in_use and use.image_id != sparing and not self._held[use.image_id]
            if is_free and self._delete(use) and self._has_room():
                return

    def _delete(self, use: ImageUse) -> bool:
        found = self._engine.inspect_image(use.image_id)
        if found is not None:
            tags = [name for name in found.get("RepoTags") or () if "<none>" not in name]
            if not set(map(canonical, tags)) <= set(map(canonical, use.names)):
                return False  # its owner has given it a name meanwhile
            digests = [name for name in found.get("RepoDigests") or () if "<none>" not in name]
            for name in (*tags, *digests) or (use.image_id,):
                if not self._engine.remove_image(name):
                    return False
        self._table.forget(use.image_id)
        log.info("deleted an image to make room", image=use.names[:1], unused_since_unix_ms=use.used_unix_ms)
        return True

    def _has_room(self) -> bool:
        try:
            return self._root is None or shutil.disk_usage(self._root).free >= self._terms.keep_free_bytes
        except OSError:
            return True  # Docker's folder is on another machine, or nobody may look: nothing to go by


def canonical(image: str) -> str:
    """One spelling for all names of one image: with registry, and with a tag or digest."""
    if "@" in image:
        return f"{repository(image)}@{image.partition('@')[2]}"
    name = full_name(image)
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _whose(buyer: Login | None) -> str:
    return buyer.fingerprint() if buyer is not None else ""
