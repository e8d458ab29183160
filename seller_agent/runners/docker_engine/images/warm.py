"""When which image was last used here, in one small file: what is warm is offered from it, and what may be deleted first is known by it.

Only the file and the order of things: it talks to no Docker, and deletes nothing.
"""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec

from events.values import ImageName
from seller_agent.runners.docker_engine.daemon import clocks
from seller_agent.runners.docker_engine.guard import files as guard_files

WARM_MAX = 32
NAMES_MAX = 8
ORDER_EVERY_MS = 10 * 60 * 1000
"""So often the order of warm images is told anew."""
CHANGE_EVERY_MS = 15_000
"""So often it is told that one came or went, after the first."""

WRITE_EVERY_MS = 60_000
"""So often the file is written for a use alone: replacing it costs more than all the rest."""


class ImageUse(msgspec.Struct, kw_only=True):
    """One image."""

    image_id: str
    names: list[str] = []
    """As jobs called it, the last one first."""
    used_unix_ms: int = 0
    pulled: bool = False
    """By us: ours to delete."""
    private: bool = False
    """It came with a buyer's login, and was never had without one."""


class UseTable:
    """The table. Safe from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._written_unix_ms = 0
        self._told: tuple[str, ...] = ()
        self._told_ms: int | None = None
        try:
            uses = msgspec.json.decode(path.read_bytes(), type=dict[str, list[ImageUse]])["images"]
        except (OSError, KeyError, msgspec.MsgspecError):
            uses = []  # without it nothing is deleted, and what is warm is learnt anew
        self._uses = {use.image_id: use for use in uses}

    def of(self, image_id: str) -> ImageUse | None:
        """What is known of an image."""
        with self._lock:
            return self._uses.get(image_id)

    def used(self, image_id: str, name: str) -> None:
        """A job uses it now."""
        with self._lock:
            use = self._uses.setdefault(image_id, ImageUse(image_id=image_id))
            use.used_unix_ms = now = clocks.unix_ms()
            is_known = use.names[:1] == [name]
            if not is_known:
                use.names = [name, *(other for other in use.names if other != name)][:NAMES_MAX]
                for other in self._uses.values():
                    if other is not use and name in other.names:
                        other.names.remove(name)  # the name means this one now
            if not is_known or now - self._written_unix_ms >= WRITE_EVERY_MS:
                self._write()

    def pulled(self, image_id: str, name: str, *, private: bool) -> None:
        """We have just pulled it, and it was not here before."""
        with self._lock:
            if image_id not in self._uses:
                self._uses[image_id] = ImageUse(
                    image_id=image_id, names=[name], used_unix_ms=clocks.unix_ms(), pulled=True, private=private
                )
                self._write()

    def make_public(self, image_id: str) -> None:
        """It was had without a login."""
        with self._lock:
            use = self._uses.get(image_id)
            if use is not None and use.private:
                use.private = False
                self._write()

    def forget(self, image_id: str) -> None:
        """It is not here any more."""
        with self._lock:
            if self._uses.pop(image_id, None) is not None:
                self._write()

    def keep_only(self, image_ids: set[str]) -> None:
        """These are here, others not."""
        with self._lock:
            gone = [image_id for image_id in self._uses if image_id not in image_ids]
            for image_id in gone:
                del self._uses[image_id]
            if gone:
                self._write()

    def oldest_first(self) -> list[ImageUse]:
        """All, the longest unused first."""
        with self._lock:
            return sorted(self._uses.values(), key=lambda use: use.used_unix_ms)

    def warm(self, now_ms: int) -> tuple[str, ...]:
        """Names of what is here, the last used first. The same answer for a while, so that an offer does not change with every job."""
        with self._lock:
            last_first = sorted(self._uses.values(), key=lambda use: -use.used_unix_ms)
            names = tuple(use.names[0] for use in last_first if use.names and not use.private and _is_name(use.names[0]))[:WARM_MAX]
            if names != self._told:
                wait_ms = ORDER_EVERY_MS if set(names) == set(self._told) else CHANGE_EVERY_MS
                if self._told_ms is None or now_ms - self._told_ms >= wait_ms:
                    self._told, self._told_ms = names, now_ms
            return self._told

    def _write(self) -> None:
        self._written_unix_ms = clocks.unix_ms()
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        guard_files.write_json(self._path, {"images": msgspec.to_builtins(list(self._uses.values()))})


def _is_name(name: str) -> bool:
    try:
        msgspec.convert(name, ImageName)
    except msgspec.ValidationError:
        return False
    return True
