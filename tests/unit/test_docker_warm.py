"""Which images are warm, and which go first: the table of their use."""

from __future__ import annotations

from pathlib import Path

import pytest

from seller_agent.runners.docker_engine.daemon import clocks
from seller_agent.runners.docker_engine.guard import files as guard_files
from seller_agent.runners.docker_engine.images.store import canonical
from seller_agent.runners.docker_engine.images.warm import CHANGE_EVERY_MS, ORDER_EVERY_MS, WARM_MAX, UseTable


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UseTable:
    """A table whose clock goes on by a second with every look."""
    clock = iter(range(1_000, 10**9, 1_000))
    monkeypatch.setattr(clocks, "unix_ms", lambda: next(clock))
    return UseTable(tmp_path / "home" / "images.json")


def test_the_last_used_is_the_first_named_and_the_longest_unused_the_first_to_go(table: UseTable) -> None:
    for name in ("a", "b", "c", "a"):
        table.used(f"sha256:{name}", f"{name}:1")
    assert ("a:1", "c:1", "b:1") == table.warm(0)
    assert ["sha256:b", "sha256:c", "sha256:a"] == [use.image_id for use in table.oldest_first()]


def test_a_new_order_is_told_late_and_a_new_image_soon(table: UseTable) -> None:
    table.used("sha256:a", "a:1")
    assert ("a:1",) == table.warm(0)
    table.used("sha256:b", "b:1")
    assert ("a:1",) == table.warm(CHANGE_EVERY_MS - 1)
    assert ("b:1", "a:1") == table.warm(CHANGE_EVERY_MS)
    table.used("sha256:a", "a:1")
    assert ("b:1", "a:1") == table.warm(CHANGE_EVERY_MS + ORDER_EVERY_MS - 1)
    assert ("a:1", "b:1") == table.warm(CHANGE_EVERY_MS + ORDER_EVERY_MS)


def test_what_came_with_a_buyers_login_is_not_told_until_it_came_without(table: UseTable) -> None:
    table.pulled("sha256:a", "private/a:1", private=True)
    assert () == table.warm(0)
    table.make_public("sha256:a")
    assert ("private/a:1",) == table.warm(0)


def test_at_most_so_many_are_told_and_only_names_that_an_offer_can_hold(table: UseTable) -> None:
    table.used("sha256:odd", "Not A Name")
    for number in range(WARM_MAX + 5):
        table.used(f"sha256:{number}", f"image{number}:1")
    warm = table.warm(0)
    assert WARM_MAX == len(warm) and "Not A Name" not in warm


def test_a_name_that_moved_names_the_new_image_only(table: UseTable) -> None:
    table.used("sha256:old", "tool:1")
    table.used("sha256:new", "tool:1")
    assert ("tool:1",) == table.warm(0)
    assert [[], ["tool:1"]] == [use.names for use in table.oldest_first()]


def test_the_table_outlives_the_agent_and_a_torn_file_costs_only_what_was_known(tmp_path: Path) -> None:
    path = tmp_path / "images.json"
    first = UseTable(path)
    first.pulled("sha256:a", "a:1", private=False)
    again = UseTable(path).of("sha256:a")
    assert again is not None and again.pulled
    path.write_text('{"images": [{"im')
    assert [] == UseTable(path).oldest_first()


def test_a_use_alone_is_not_written_every_time(table: UseTable, monkeypatch: pytest.MonkeyPatch) -> None:
    table.used("sha256:a", "a:1")
    written: list[object] = []
    monkeypatch.setattr(guard_files, "write_json", lambda path, value: written.append(value))
    table.used("sha256:a", "a:1")
    assert [] == written
    table.used("sha256:b", "b:1")
    assert 1 == len(written)


@pytest.mark.parametrize(
    ("image", "means"),
    [
        ("python", "docker.io/library/python:latest"),
        ("team/tool:2", "docker.io/team/tool:2"),
        ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest"),
        ("team/tool:2@sha256:12", "docker.io/team/tool@sha256:12"),
    ],
)
def test_all_spellings_of_a_name_are_one(image: str, means: str) -> None:
    assert means == canonical(image)
