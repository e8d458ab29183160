"""What owners say about containers, checked before anything is offered."""

from __future__ import annotations

from typing import cast

import pytest

from seller_agent.node.containers import ContainerTerms, has_egress, parse_image, parse_patterns, parse_places, parse_room, warm_images
from seller_agent.owner.offers import DEFAULT_IMAGE, OfferError
from seller_agent.runners.runner import Runner


@pytest.mark.parametrize(
    ("allow", "named", "image"),
    [
        ((), None, DEFAULT_IMAGE),
        (("team/*",), None, None),
        (("python",), None, DEFAULT_IMAGE),
        (("team/*",), "debian:12", "debian:12"),
    ],
)
def test_the_usual_image_is_offered_only_where_it_is_let_in(allow: tuple[str, ...], named: str | None, image: str | None) -> None:
    assert image == ContainerTerms(images_allow=allow, default_image=named).image()


def test_what_the_owner_says_is_read() -> None:
    assert ("pytorch/*", "*") == parse_patterns(["pytorch/*", "*"])
    assert (("1.1.1.1", 443),) == parse_places(["1.1.1.1:443"])
    assert 20_000_000_000 <= parse_room("20GB") << 20 < 20_002_000_000
    assert (None, "python:3.12") == (parse_image(None), parse_image("python:3.12"))


class Proves:
    """A runner with two images, whose egress holds or does not."""

    def __init__(self, network: str | None) -> None:
        self._network = network

    def warm_images(self) -> tuple[str, ...]:
        return ("b:1", "a:1")

    def egress_network(self) -> str | None:
        return self._network


def test_an_offer_has_what_its_runner_has_and_proves_at_this_moment() -> None:
    proved, failed, plain = Proves("net"), Proves(None), object()
    assert [True, False, False] == [has_egress(cast(Runner, runner)) for runner in (proved, failed, plain)]
    assert [("b:1", "a:1"), ()] == [warm_images(cast(Runner, runner)) for runner in (proved, plain)]


def test_what_cannot_be_meant_is_refused_with_an_example() -> None:
    for refused in (
        lambda: parse_patterns(["no spaces here"]),
        lambda: parse_patterns(["a"] * 17),
        lambda: parse_places(["example.org:443"]),
        lambda: parse_places(["1.1.1.1"]),
        lambda: parse_room("much"),
        lambda: parse_image("Not An Image"),
    ):
        with pytest.raises(OfferError) as failure:
            refused()
        assert failure.value.hint
