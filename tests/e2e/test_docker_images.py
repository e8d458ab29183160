"""Images through the whole market: a buyer's own registry login, the owner's allow-list, and what is known to be there already."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from e2e.docker_market import IMAGE, DockerMarket, docker_market, engine
from e2e.market_env import Running
from integration.image_registry import LOGIN, ImageRegistry, closed_registry

__all__ = ["closed_registry", "docker_market", "engine"]

pytestmark = pytest.mark.timeout(120)
ASKED = ("--allow-simulated", "--image")


@pytest.fixture(scope="module")
def choosy(docker_market: DockerMarket) -> Iterator[Running]:
    """A dearer node that lets only one kind of image run."""
    rules = ("--default-image", IMAGE, "--images-allow", "team/*")
    running = docker_market.seller("choosy", "--price", "0.90", "--simulate-gpus", "1xRTX 4090", "--runner", "docker", *rules)
    yield running
    assert 0 == running.stop()


def test_an_image_behind_the_buyers_login_runs_and_no_login_is_told(docker_market: DockerMarket, closed_registry: ImageRegistry) -> None:
    market = docker_market
    image = closed_registry.push(market.engine, IMAGE, "private/tool:1", LOGIN)
    told = market.bazaar("run", *ASKED, image, "--retries", "0", "--", "true", code=100)
    assert "image_auth" == market.bazaar("show", "last", "--json").json["reason"], told
    (market.work / "login").write_text(f"{LOGIN.user}:{LOGIN.password}\n")
    (market.work / "key").write_text("a secret")
    given = ("--secret", "REGISTRY_AUTH=login", "--secret", "KEY=key")
    told = market.bazaar("run", *given, *ASKED, image, "--", "sh", "-c", "ls /run/secrets; cat /run/secrets/KEY")
    assert "KEY\na secret" == told.stdout.strip()
    job = market.bazaar("show", "last", "--json").json
    assert ("succeeded", image) == (job["state"], job["image"])
    assert job["image_digest"].startswith("sha256:") and job["image_digest"] in market.bazaar("show", "last").stdout
    assert image not in str(market.get("/v1/nodes"))  # nor is it told of what is there
    assert LOGIN.password not in str(market.get(f"/v1/jobs/{job['id']}/events?limit=100"))


def test_an_image_that_the_owner_does_not_let_in_is_not_placed_there(docker_market: DockerMarket, choosy: Running) -> None:
    market = docker_market
    told = market.bazaar("run", "--now", "--target", "choosy", *ASKED, "evil/miner:1", "--", "true", code=5)
    assert "image" in told.stderr
    assert "ok\n" == market.bazaar("run", "--target", "choosy", "--allow-simulated", "--", "echo", "ok").stdout
    assert "team/*" in market.bazaar("node", "choosy").stdout


def test_what_a_node_has_already_is_told(docker_market: DockerMarket) -> None:
    market = docker_market
    own = market.own_node()
    market.bazaar("run", *ASKED, IMAGE, "--", "true")
    market.wait_until(lambda: IMAGE in market.bazaar("node", own, "--json").json["images_warm"], f"{IMAGE} is told to be there")
    assert IMAGE in market.bazaar("node", own).stdout
