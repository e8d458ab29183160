"""Streams and rights: what ends a stream, to the very event, also where nothing else happens; and how many one reader may have."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from integration.broker_env import World, world
from integration.test_api import ApiProcess, EventStream, Scribe, a_job, scribe

from events.identity import MemberAdded, MemberRemoved, MemberRoleChanged, OrganisationCreated, ReadTokenIssued, ReadTokenRevoked
from events.values import OrgRole
from services.api import live

__all__ = ["scribe", "world"]
HOUR_MS = 3_600_000
ORG = "o" + "a" * 15


def issued(text: str, expires_ms: int, org_id: str | None = None) -> ReadTokenIssued:
    return ReadTokenIssued(token_sha256=hashlib.sha256(text.encode()).hexdigest(), name="t", expires_ms=expires_ms, org_id=org_id)


class Member:
    """A wallet that was taken into an organisation, and the streams that it opened with its tokens."""

    def __init__(self, scribe: Scribe, api: ApiProcess) -> None:
        self.scribe, self.api = scribe, api
        self.streams: dict[str, EventStream] = {}

    @classmethod
    async def of(cls, scribe: Scribe, api: ApiProcess) -> Member:
        made = MemberAdded(org_id=ORG, wallet=scribe.other.wallet, role=OrgRole.MEMBER, alias="Ada")
        await scribe.say(scribe.buyer, OrganisationCreated(org_id=ORG, name="us"), made)
        return cls(scribe, api)

    async def follow(self, token: str, *, org_id: str | None = None, for_ms: int = HOUR_MS) -> int:
        """Open a stream and read all there is; when its token expires."""
        expires_ms = time.time_ns() // 1_000_000 + for_ms
        seq = await self.scribe.say(self.scribe.other, issued(token, expires_ms, org_id))
        await self.api.at("/v1/market", seq)
        self.streams[token] = await self.api.stream(query="?from_seq=1", token=token)
        await self.streams[token].read_to(seq)
        return expires_ms

    async def ended(self, token: str) -> list[int]:
        seen = await self.streams[token].read_to_end()
        self.streams[token].close()
        return seen


@pytest.fixture
async def open_api(world: World, scribe: Scribe, tmp_path: Path) -> AsyncIterator[ApiProcess]:
    """One that other machines reach, so that it takes tokens."""
    made = ApiProcess(world, tmp_path)
    made.bind = "0.0.0.0"
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


@pytest.fixture
async def member(scribe: Scribe, open_api: ApiProcess) -> AsyncIterator[Member]:
    made = await Member.of(scribe, open_api)
    yield made
    for stream in made.streams.values():
        stream.close()


def revoked(token: str) -> ReadTokenRevoked:
    return ReadTokenRevoked(token_sha256=hashlib.sha256(token.encode()).hexdigest())


async def test_a_stream_shows_nothing_after_the_event_that_ends_its_rights(scribe: Scribe, member: Member) -> None:
    """Neither what stands in the same page nor what comes later, even when what was taken is given back at once."""
    for token, org_id in (("of a member", ORG), ("of a wallet", None), ("revoked", None)):
        await member.follow(token, org_id=org_id)
    removed, left = MemberRemoved(org_id=ORG, wallet=scribe.other.wallet), scribe.market.last_seq
    again = MemberAdded(org_id=ORG, wallet=scribe.other.wallet, role=OrgRole.MEMBER)
    await scribe.together((scribe.buyer, removed, a_job("in the same page"), again), (scribe.other, revoked("revoked"), a_job("too")))
    await scribe.submit("later")
    for token in ("of a member", "of a wallet", "revoked"):
        seen = await member.ended(token)
        assert list(range(1, len(seen) + 1)) == seen
        assert seen[-1] <= left + 1, f"{token} has seen what came after its rights"
        assert "Ada" not in str(member.streams[token].seen), "what members call each other is theirs"


@pytest.mark.parametrize("how", ["revoked", "removed", "left"])
async def test_a_stream_ends_with_its_rights_when_nothing_else_happens(scribe: Scribe, member: Member, how: str) -> None:
    await member.follow("mine", org_id=None if how == "revoked" else ORG)
    await member.follow("other")
    removed = MemberRemoved(org_id=ORG, wallet=scribe.other.wallet)
    last = await scribe.say(scribe.buyer if how == "removed" else scribe.other, revoked("mine") if how == "revoked" else removed)
    assert (await member.ended("mine"))[-1] <= last
    if how == "revoked":
        last = await scribe.say(scribe.buyer, a_job("on"))
        assert last in await member.streams["other"].read_to(last), "the other token's stream goes on"


async def test_a_stream_ends_when_its_token_expires_though_nothing_happens(member: Member) -> None:
    expires_ms = await member.follow("short", for_ms=1500)
    await member.follow("long")
    await member.ended("short")
    assert time.time_ns() // 1_000_000 >= expires_ms, "and not before"
    assert 200 == (await member.api.get("/v1/jobs", headers={"X-Auth-Token": "long"})).status
    assert 401 == (await member.api.get("/v1/jobs", headers={"X-Auth-Token": "short"})).status


async def test_who_may_see_more_by_now_is_let_in_anew(scribe: Scribe, member: Member) -> None:
    """A stream shows what it was opened for; its reader comes back with the last event it saw and misses nothing."""
    await member.follow("mine")
    org = "o" + "b" * 15
    await scribe.say(scribe.other, OrganisationCreated(org_id=org, name="more"))
    seen = await member.ended("mine")
    last = await scribe.say(scribe.buyer, a_job("on"))
    again = await member.api.stream(last=seen[-1], token="mine")
    assert list(range(seen[-1] + 1, last + 1)) == await again.read_to(last)
    again.close()


async def test_a_change_of_roles_and_of_others_disturbs_no_stream(scribe: Scribe, member: Member) -> None:
    await member.follow("mine", org_id=ORG)
    seller = scribe.seller.wallet
    await scribe.say(
        scribe.buyer,
        MemberRoleChanged(org_id=ORG, wallet=scribe.other.wallet, role=OrgRole.VIEWER),
        MemberAdded(org_id=ORG, wallet=seller, role=OrgRole.MEMBER),
        MemberRemoved(org_id=ORG, wallet=seller),
    )
    last = await scribe.say(scribe.buyer, a_job("on"))
    assert list(range(1, last + 1)) == await member.streams["mine"].read_to(last)


async def test_one_reader_leaves_streams_for_others(scribe: Scribe, open_api: ApiProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "STREAMS_PER_READER", 1)
    for party, token in ((scribe.buyer, "a"), (scribe.other, "b")):
        await scribe.say(party, issued(token, scribe.now_ms + HOUR_MS))
    await open_api.at("/v1/market", scribe.market.last_seq)
    first = await open_api.stream(query="?from_seq=1", token="a")
    await first.read_to(scribe.market.last_seq)
    headers = {"Accept": "text/event-stream", "Authorization": "Bearer a"}
    assert 429 == (await open_api.get("/v1/events", headers=headers)).status
    second = await open_api.stream(query="?from_seq=1", token="b")
    await second.read_to(scribe.market.last_seq)
    first.close()
    second.close()
