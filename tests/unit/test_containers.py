"""What owners say about containers, checked before anything is offered."""

from __future__ import annotations

import pytest

from seller_agent.containers import ContainerTerms, parse_image, parse_patterns, parse_places, parse_room
from seller_agent.offers import DEFAULT_IMAGE, OfferError


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
