"""What ends a stream: rights that were lost even for a moment, and nothing else, whatever happens in which order."""

from __future__ import annotations

import hashlib
from functools import partial

from builders import BUYER, ORG, SELLER, START_MS, By, History, make, wallet
from hypothesis import given as for_all
from hypothesis import strategies as some

from events import identity, ids
from events.identity import MemberAdded, MemberRemoved, MemberRoleChanged, OrganisationCreated, ReadTokenIssued, ReadTokenRevoked
from events.reasons import Refusal
from events.values import OrgRole
from services.api.access import OWNER_OF_THE_MACHINE, Grant, Viewer, token_grant
from services.api.problems import ProblemFound
from services.api.rights import Rights, RightsEvent, RightsLog

OTHER_ORG, FRIEND = ids.org_id(BUYER, "other"), wallet("friend")
TOKENS = {"of the wallet": None, "of the organisation": ORG}
HOUR_MS = 3_600_000


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Streams:
    """A market with an organisation, and a stream for each token of its member."""

    def __init__(self) -> None:
        self.history, self.log = History(), RightsLog()
        self.say(By(BUYER, make(OrganisationCreated)))
        self.say(By(BUYER, make(MemberAdded, wallet=SELLER)))
        for token, org_id in TOKENS.items():
            self.say(By(SELLER, make(ReadTokenIssued, token_sha256=digest_of(token), org_id=org_id, expires_ms=START_MS + HOUR_MS)))
        self.open = {token: Rights(self.grant(token), self.history.market.last_seq, partial(self.viewer, token)) for token in TOKENS}

    def say(self, happening: By) -> None:
        record = self.history.record(happening)
        if not isinstance(self.history.apply(record), Refusal):
            self.log.note(record)

    def grant(self, token: str) -> Grant:
        return token_grant(self.history.market, token, START_MS)

    def viewer(self, token: str) -> Viewer:
        return self.grant(token).viewer

    def shows_as_ever(self, token: str) -> bool:
        try:
            return self.viewer(token) == self.open[token].grant.viewer
        except ProblemFound:
            return False

    def hold(self, token: str) -> bool:
        return self.open[token].hold(self.log, START_MS)


members = some.builds(
    By,
    some.sampled_from([BUYER, SELLER, FRIEND]),
    some.one_of(
        some.builds(
            make,
            some.sampled_from([MemberAdded, MemberRoleChanged]),
            org_id=some.sampled_from([ORG, OTHER_ORG]),
            wallet=some.sampled_from([SELLER, FRIEND]),
            role=some.sampled_from(list(OrgRole)),
        ),
        some.builds(make, some.just(MemberRemoved), org_id=some.sampled_from([ORG, OTHER_ORG]), wallet=some.sampled_from([SELLER, FRIEND])),
        some.builds(make, some.just(OrganisationCreated), org_id=some.just(OTHER_ORG)),
        some.builds(make, some.just(ReadTokenRevoked), token_sha256=some.sampled_from([digest_of(token) for token in TOKENS])),
        some.builds(make, some.just(ReadTokenIssued), token_sha256=some.sampled_from([digest_of("new"), digest_of("of the wallet")])),
    ),
)


@for_all(some.lists(some.tuples(members, some.booleans()), max_size=12))
def test_a_stream_goes_on_exactly_as_long_as_its_token_shows_the_same(happenings: list[tuple[By, bool]]) -> None:
    streams = Streams()
    shown, looked = dict.fromkeys(TOKENS, True), dict.fromkeys(TOKENS, True)
    for happening, looks in happenings:
        streams.say(happening)
        for token in TOKENS:
            shown[token] = shown[token] and streams.shows_as_ever(token)
            if looks:
                looked[token] = looked[token] and streams.hold(token)
    assert shown == {token: looked[token] and streams.hold(token) for token in TOKENS}


def test_what_was_taken_and_given_back_between_two_looks_was_taken() -> None:
    streams = Streams()
    streams.say(By(BUYER, make(MemberRemoved, wallet=SELLER)))
    streams.say(By(BUYER, make(MemberAdded, wallet=SELLER)))
    assert all(streams.shows_as_ever(token) for token in TOKENS)
    assert not any(streams.hold(token) for token in TOKENS)


def test_rights_end_at_the_moment_that_their_token_expires() -> None:
    streams = Streams()
    rights = streams.open["of the wallet"]
    assert (True, 1) == (rights.hold(streams.log, START_MS + HOUR_MS - 1), rights.left_ms(START_MS + HOUR_MS - 1))
    assert (False, 0) == (rights.hold(streams.log, START_MS + HOUR_MS), rights.left_ms(START_MS + HOUR_MS))


def test_the_owner_of_the_machine_loses_nothing_by_what_others_lose() -> None:
    streams = Streams()
    owner = Rights(Grant(OWNER_OF_THE_MACHINE), streams.history.market.last_seq, lambda: OWNER_OF_THE_MACHINE)
    streams.say(By(BUYER, make(MemberRemoved, wallet=SELLER)))
    assert owner.hold(streams.log, START_MS + 2 * HOUR_MS) and owner.left_ms(START_MS) is None


def test_every_event_about_who_is_who_is_known_to_change_what_is_seen_or_not_to() -> None:
    """A new kind of event has to be thought of here."""
    changes_nothing = {identity.SessionKeyAuthorised, identity.SessionKeyRevoked, identity.MemberRoleChanged, identity.ReadTokenIssued}
    kinds = {kind for kind in vars(identity).values() if isinstance(kind, type) and kind.__module__ == identity.__name__}
    assert kinds == changes_nothing | set(RightsEvent.__args__)
