"""Names of container images, and which of them a pattern means. Pure; read by the matcher, the seller and the buyer alike.

A short name means Docker Hub, as everywhere: `python:3.12` is `docker.io/library/python:3.12`. Nothing here talks to a registry.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase


def full_name(image: str) -> str:
    """The name with its registry and folder, tag or digest as they were."""
    first, slash, _ = image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return image
    return f"docker.io/{image}" if slash else f"docker.io/library/{image}"


def repository(image: str) -> str:
    """The full name without tag and digest."""
    name = full_name(image).partition("@")[0]
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0]


def matches(pattern: str, image: str) -> bool:
    """Whether the pattern (`*`, `?`) means the image; one without a tag or digest means all of a repository's."""
    if pattern == "*":
        return True
    has_version = "@" in pattern or ":" in pattern.rpartition("/")[2]
    return fnmatchcase(full_name(image) if has_version else repository(image), full_name(pattern))


def allowed(patterns: Iterable[str], image: str) -> bool:
    """Whether any pattern means the image; no pattern at all means every image."""
    patterns = tuple(patterns)
    return not patterns or any(matches(pattern, image) for pattern in patterns)
