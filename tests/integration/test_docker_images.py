"""Images from real registries: digests, one pull for all, logins, what is warm, what is deleted to make room, and what goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from integration.docker_engine import IMAGE, Engine, engine, root_file_system
from integration.docker_home import Home, home, output, quiet, run
from integration.image_registry import LOGIN, ImageRegistry, Silence, closed_registry, open_registry

from seller_agent.runners.docker_engine.images import store as docker_store
from seller_agent.runners.docker_engine.images.store import ImageTerms
from seller_agent.runners.docker_engine.runner import DockerRunner
from seller_agent.runners.runner import RunnerError, RunSpec

__all__ = ["closed_registry", "engine", "home", "open_registry"]

pytestmark = pytest.mark.timeout(120)
AUTH = (LOGIN.user, LOGIN.password)
EVERY_TIME = ImageTerms(check_every_ms=0)


@pytest.fixture
def fresh(engine: Engine) -> Iterator[Engine]:
    """An engine that afterwards has no image but its own."""
    before = {image["Id"] for image in engine.ask("GET", "/images/json")[1]}
    yield engine
    for name in engine.names():
        engine.ask("DELETE", f"/containers/{name}?force=1&v=1")
    for image in engine.ask("GET", "/images/json")[1]:
        if image["Id"] not in before:
            engine.ask("DELETE", f"/images/{image['Id']}?force=1")


def made(engine: Engine, says: str, **files: bytes) -> str:
    """An image of its own in the engine, whose file /etc/says differs from all others."""
    name = f"made-{says}:1"
    engine.load(name, root_file_system(says=says.encode(), **files))
    return name


def given(engine: Engine, registry: ImageRegistry, name: str, says: str, **files: bytes) -> str:
    """An image that only the registry has; its full name."""
    local = made(engine, says, **files)
    full = registry.push(engine, local, name, LOGIN)
    engine.ask("DELETE", f"/images/{local}?force=1")
    return full


def local_images(engine: Engine) -> set[str]:
    return {name for image in engine.ask("GET", "/images/json")[1] for name in image["RepoTags"] or ()}


async def said(runner: DockerRunner, spec: RunSpec) -> tuple[str, str]:
    """What the image of a run says, and the digest that the run is told to have."""
    status = await run(runner, spec)
    assert 0 == status.exit_code, status
    await runner.remove(spec.key)
    return output(spec), status.image_digest


async def refusal(runner: DockerRunner, spec: RunSpec) -> RunnerError:
    """Why a run cannot be prepared."""
    with pytest.raises(RunnerError) as failure:
        await runner.prepare(spec, quiet)
    return failure.value


def asks(home: Home, image: str, **changes: Any) -> RunSpec:
    return home.spec("cat /etc/says", image=image, **changes)


async def test_a_tag_becomes_a_digest_and_a_new_meaning_of_the_tag_is_seen(home: Home, fresh: Engine, open_registry: ImageRegistry) -> None:
    image = given(fresh, open_registry, "tools/moving:1", "old")
    runner = home.runner(images=EVERY_TIME)
    old = open_registry.digest(image)
    assert ("old", old) == await said(runner, asks(home, image))
    assert ("old", old) == await said(runner, asks(home, image))
    assert 1 == open_registry.asked("GET", "/v2/tools/moving/blobs/") // 2  # config and layer, once
    given(fresh, open_registry, "tools/moving:1", "new")
    assert ("new", open_registry.digest(image)) == await said(runner, asks(home, image))
    assert old != open_registry.digest(image)
    await runner.close()


async def test_a_tag_is_not_asked_of_its_registry_for_every_job(home: Home, fresh: Engine, open_registry: ImageRegistry) -> None:
    image = given(fresh, open_registry, "tools/calm:1", "calm")
    runner = home.runner()
    await said(runner, asks(home, image))
    asked = open_registry.asked("HEAD", "/v2/tools/calm/manifests/")
    for _ in range(3):
        await said(runner, asks(home, image))
    assert asked == open_registry.asked("HEAD", "/v2/tools/calm/manifests/")
    await runner.close()


async def test_an_image_that_is_here_by_its_digest_is_neither_asked_for_nor_pulled_again(
    home: Home, fresh: Engine, open_registry: ImageRegistry
) -> None:
    image = given(fresh, open_registry, "tools/pinned:1", "pinned")
    digest = open_registry.digest(image)
    pinned = f"{image.rpartition(':')[0]}@{digest}"
    runner = home.runner(images=EVERY_TIME)
    assert ("pinned", digest) == await said(runner, asks(home, pinned))
    before = open_registry.asked("GET", "/v2/tools/pinned/") + open_registry.asked("HEAD", "/v2/tools/pinned/")
    assert ("pinned", digest) == await said(runner, asks(home, pinned))
    assert before == open_registry.asked("GET", "/v2/tools/pinned/") + open_registry.asked("HEAD", "/v2/tools/pinned/")
    await runner.close()


async def test_jobs_that_want_one_image_share_one_pull_and_see_it_progress(home: Home, fresh: Engine, open_registry: ImageRegistry) -> None:
    image = given(fresh, open_registry, "tools/large:1", "large", padding=os.urandom(30_000_000))
    runner = home.runner()
    phases: list[list[str]] = [[], [], []]
    specs = [asks(home, image) for _ in phases]
    before = open_registry.asked("GET", "/v2/tools/large/blobs/")
    await asyncio.gather(*(runner.prepare(spec, told.append) for spec, told in zip(specs, phases, strict=True)))
    assert 2 == open_registry.asked("GET", "/v2/tools/large/blobs/") - before  # config and layer
    for told in phases:
        percents = [int(phase.split()[1].rstrip("%")) for phase in told if phase.endswith("%")]
        assert sorted(set(percents)) == percents and 100 == percents[-1]
        assert "creating" == told[-1] and told[0].startswith("pulling")
    assert any(phase.endswith("%") and phase != "pulling 100%" for phase in phases[0]), phases[0]
    await runner.close()


async def begun(runner: DockerRunner, spec: RunSpec) -> asyncio.Task[None]:
    """A run whose pull has begun."""
    pulling = asyncio.Event()
    preparing = asyncio.create_task(runner.prepare(spec, lambda phase: pulling.set()))
    await pulling.wait()
    return preparing


async def test_a_shared_pull_goes_on_for_who_still_wants_it(home: Home) -> None:
    with contextlib.closing(Silence()) as silence:
        runner = home.runner(images=ImageTerms(pull_timeout_s=30))
        image = f"{silence.address}/some/image:1"
        first, second = [await begun(runner, asks(home, image)) for _ in range(2)]
        first.cancel()
        await asyncio.wait([first])
        [pull] = runner._images._pulls.values()
        assert not pull.follower.dropped.is_set()
        second.cancel()
        await asyncio.wait([second])
        await asyncio.to_thread(pull.follower.dropped.wait, 10)
        async with asyncio.timeout(20):
            await runner.close()


async def test_a_registry_that_hangs_is_given_up_at_the_deadline(home: Home) -> None:
    with contextlib.closing(Silence()) as silence:
        runner = home.runner(images=ImageTerms(pull_timeout_s=0.5))
        failure = await refusal(runner, asks(home, f"{silence.address}/some/image:1"))
        assert "image_pull_timeout" == failure.reason
        await runner.close()


async def test_a_missing_tag_and_a_missing_repository_are_no_images(home: Home, fresh: Engine, open_registry: ImageRegistry) -> None:
    image = given(fresh, open_registry, "tools/here:1", "here")
    runner = home.runner()
    for name in (image.replace(":1", ":2"), f"{open_registry.address}/tools/nowhere:1", f"{image.rpartition(':')[0]}@sha256:{'0' * 64}"):
        failure = await refusal(runner, asks(home, name))
        assert "image_not_found" == failure.reason, failure
    await runner.close()


# ---- logins


async def test_an_image_behind_a_login_comes_with_the_buyers_and_with_no_other(
    home: Home, fresh: Engine, closed_registry: ImageRegistry
) -> None:
    image = given(fresh, closed_registry, "private/tool:1", "private")
    runner = home.runner(images=EVERY_TIME)
    for auth in (None, ("buyer", "guess"), ("stranger", "open sesame")):
        failure = await refusal(runner, asks(home, image, registry_auth=auth))
        assert "image_auth" == failure.reason, failure
        assert "guess" not in str(failure)
    assert "private" == (await said(runner, asks(home, image, registry_auth=AUTH)))[0]
    assert image in local_images(fresh)
    for auth in (None, ("buyer", "guess")):  # it is here now, and still not everybody's
        assert "image_auth" == (await refusal(runner, asks(home, image, registry_auth=auth))).reason
    digest = (await said(runner, asks(home, image, registry_auth=AUTH)))[1]
    pinned = f"{image.rpartition(':')[0]}@{digest}"
    assert "image_auth" == (await refusal(runner, asks(home, pinned))).reason
    assert "private" == (await said(runner, asks(home, pinned, registry_auth=AUTH)))[0]
    assert image not in runner.warm_images()
    image_id = fresh.ask("GET", f"/images/{image}/json")[1]["Id"]
    by_id = await refusal(runner, asks(home, image_id.removeprefix("sha256:")))
    assert by_id.reason in ("image_refused", "image_not_found", "image_pull_timeout"), by_id
    await runner.close()
    assert "open sesame" not in "".join(path.read_text(errors="replace") for path in home.folder.rglob("*") if path.is_file())


async def test_the_owners_logins_open_registries_for_every_job(home: Home, fresh: Engine, closed_registry: ImageRegistry) -> None:
    image = given(fresh, closed_registry, "shared/tool:1", "shared")
    logins = home.folder.parent / "config.json"
    logins.write_bytes(msgspec.json.encode({"auths": {closed_registry.address: {"username": LOGIN.user, "password": LOGIN.password}}}))
    logins.chmod(0o600)
    runner = home.runner(images=ImageTerms(logins_file=str(logins), check_every_ms=0))
    for _ in range(2):
        assert "shared" == (await said(runner, asks(home, image)))[0]
    await runner.close()


async def test_with_its_registry_away_an_image_that_is_here_serves_unless_it_is_private(
    home: Home, fresh: Engine, tmp_path: Path, closed_registry: ImageRegistry
) -> None:
    registry = ImageRegistry(tmp_path / "passing", with_login=False)
    image = given(fresh, registry, "tools/kept:1", "kept")
    runner = home.runner(images=EVERY_TIME)
    await said(runner, asks(home, image))
    registry.stop()
    assert "kept" == (await said(runner, asks(home, image)))[0]
    await runner.close()
    registry = ImageRegistry(tmp_path / "closing", with_login=True)
    image = given(fresh, registry, "tools/mine:1", "mine")
    runner = home.runner(images=EVERY_TIME)
    await said(runner, asks(home, image, registry_auth=AUTH))
    registry.stop()
    assert "mine" == (await said(runner, asks(home, image, registry_auth=AUTH)))[0]
    assert "image_pull_timeout" == (await refusal(runner, asks(home, image))).reason
    await runner.close()


# ---- the owner's rules


async def test_only_allowed_images_run_and_the_owners_default_always_does(home: Home) -> None:
    runner = home.runner(images=ImageTerms(allow=("pytorch/*", "ghcr.io/team/*:1"), default=IMAGE))
    failure = await refusal(runner, asks(home, "docker.io/evil/miner:1"))
    assert "image_refused" == failure.reason and "pytorch/*" in str(failure)
    assert 0 == (await run(runner, home.spec("true"))).exit_code
    await runner.close()


async def test_the_longest_unused_of_the_pulled_images_go_when_there_is_too_little_room(
    home: Home, fresh: Engine, open_registry: ImageRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners = made(fresh, "owners")
    images = [given(fresh, open_registry, f"tools/room{number}:1", f"room{number}") for number in range(4)]
    runner = home.runner()
    await runner.check()
    for image in images[:3]:
        await said(runner, asks(home, image))
    await said(runner, asks(home, owners))
    await said(runner, asks(home, images[0]))  # so that 1 is the longest unused
    busy = asks(home, images[2])
    await runner.prepare(busy, quiet)
    room = iter([False])  # after one deletion there is room enough
    monkeypatch.setattr(docker_store.ImageStore, "_has_room", lambda self: next(room, True))
    await said(runner, asks(home, images[3]))
    assert {owners, images[0], images[2], images[3]} == local_images(fresh) & {owners, *images}
    await runner.close()
    monkeypatch.undo()
    greedy = home.runner(images=ImageTerms(keep_free_bytes=1 << 60))  # never enough: everything goes that may
    await greedy.check()
    await said(greedy, asks(home, given(fresh, open_registry, "tools/room4:1", "room4")))
    assert {owners, images[2]} == local_images(fresh) & {owners, *images}
    await greedy.close()


async def test_what_is_warm_is_known_after_a_restart_and_forgotten_when_it_is_gone(
    home: Home, fresh: Engine, open_registry: ImageRegistry
) -> None:
    images = [given(fresh, open_registry, f"tools/warm{number}:1", f"warm{number}") for number in range(2)]
    runner = home.runner()
    for image in images:
        await said(runner, asks(home, image))
    await runner.close()
    again = home.runner(images=ImageTerms(default=IMAGE))
    await again.check()
    assert (images[1], images[0]) == again.warm_images()[1:] and IMAGE == again.warm_images()[0]
    await again.close()
    fresh.ask("DELETE", f"/images/{images[1]}?force=1")
    last = home.runner()
    await last.check()
    assert (IMAGE, images[0]) == last.warm_images()
    await last.close()
