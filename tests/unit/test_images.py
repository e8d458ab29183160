"""Names of images and the patterns that mean them."""

from __future__ import annotations

import pytest

from events.images import allowed, full_name, matches, repository


@pytest.mark.parametrize(
    ("image", "full", "plain"),
    [
        ("python", "docker.io/library/python", "docker.io/library/python"),
        ("python:3.12", "docker.io/library/python:3.12", "docker.io/library/python"),
        ("pytorch/pytorch:2.5", "docker.io/pytorch/pytorch:2.5", "docker.io/pytorch/pytorch"),
        ("ghcr.io/a/b@sha256:00", "ghcr.io/a/b@sha256:00", "ghcr.io/a/b"),
        ("localhost:5000/a:1", "localhost:5000/a:1", "localhost:5000/a"),
        ("localhost/a", "localhost/a", "localhost/a"),
    ],
)
def test_a_short_name_means_docker_hub(image: str, full: str, plain: str) -> None:
    assert (full, plain) == (full_name(image), repository(image))


@pytest.mark.parametrize(
    ("pattern", "image", "means"),
    [
        ("*", "evil.example/x", True),
        ("python", "python:3.12", True),
        ("python:3.*", "python:3.12", True),
        ("python:3.12", "python:3.13", False),
        ("pytorch/*", "pytorch/pytorch:2.5", True),
        ("pytorch/*", "evil.example/pytorch/pytorch:2.5", False),
        ("docker.io/library/python", "python@sha256:00", True),
        ("ghcr.io/lab/*", "ghcr.io/lab/train:1", True),
        ("ghcr.io/lab/*", "ghcr.io/laboratory/train:1", False),
        ("python", "python.example/python", False),
    ],
)
def test_a_pattern_means_what_a_shell_would_take_it_for(pattern: str, image: str, means: bool) -> None:
    assert means is matches(pattern, image)


def test_no_pattern_means_every_image_and_one_pattern_only_its_own() -> None:
    assert allowed((), "python")
    assert not allowed(("pytorch/*",), "python")
    assert allowed(("pytorch/*", "python"), "python:3.12")
