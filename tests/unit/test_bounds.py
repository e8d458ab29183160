"""What a wallet may have of what the market remembers for ever: a number of each, and a refusal that says which."""

from __future__ import annotations

import hashlib

import pytest
from builders import BUYER, FOR_EVER_MS, ORG, SELLER, START_MS, By, History, Later, digest, given, make, node_offered, wallet

from events import ids
from events.identity import MemberAdded, OrganisationCreated, ReadTokenIssued, ReadTokenRevoked, SessionKeyAuthorised, SessionKeyRevoked
from events.reasons import REFUSALS, Refusal
from events.values import OrgRole, Role
from projections import identity, snapshot
from projections.identity import KEY_KEPT_MS, KEYS_MAX, MEMBERS_MAX, NODES_MAX, ORGS_MAX, TOKENS_MAX
from projections.market import Market
from services.matcher.bounds import too_many

DAY_MS = 86_400_000


def a_token(number: int, *, for_ms: int = FOR_EVER_MS) -> ReadTokenIssued:
    return make(ReadTokenIssued, token_sha256=digest(f"token {number}").hex(), expires_ms=for_ms)


def an_org(number: int) -> OrganisationCreated:
    return make(OrganisationCreated, org_id=ids.org_id(BUYER, f"org {number}"), name=f"org {number}")


def a_key(number: int, *, expires_ms: int = FOR_EVER_MS) -> SessionKeyAuthorised:
    return make(SessionKeyAuthorised, key=hashlib.sha256(b"%d" % number).hexdigest(), role=Role.BUYER, expires_ms=expires_ms)


def with_tokens(number: int, *, for_ms: int = FOR_EVER_MS) -> History:
    history = History()
    history.happen(*(By(BUYER, a_token(one, for_ms=for_ms)) for one in range(number)))
    return history


def test_a_wallet_may_have_a_hundred_good_tokens_and_is_told_to_revoke_one() -> None:
    history = with_tokens(TOKENS_MAX - 1)
    assert "" == too_many(history.market, BUYER, a_token(TOKENS_MAX))
    history.happen(By(BUYER, a_token(TOKENS_MAX)))
    told = too_many(history.market, BUYER, a_token(TOKENS_MAX + 1))
    assert "this wallet has 100 read tokens; revoke one first" == told
    assert "" == too_many(history.market, SELLER, a_token(TOKENS_MAX + 1)), "others have theirs"


def test_a_revoked_token_makes_room_and_is_forgotten_when_the_room_is_used() -> None:
    history = with_tokens(TOKENS_MAX)
    history.happen(By(BUYER, ReadTokenRevoked(token_sha256=a_token(7).token_sha256)))
    assert a_token(7).token_sha256 in history.market.identity.tokens, "a list of tokens still shows it"
    history.happen(By(BUYER, a_token(TOKENS_MAX)))
    assert TOKENS_MAX == len(history.market.identity.tokens)
    assert a_token(7).token_sha256 not in history.market.identity.tokens
    assert "" != too_many(history.market, BUYER, a_token(TOKENS_MAX + 1))


def test_expired_tokens_are_forgotten_by_the_time_of_the_ledger() -> None:
    history = with_tokens(TOKENS_MAX, for_ms=START_MS + DAY_MS)
    assert "" != too_many(history.market, BUYER, a_token(TOKENS_MAX))
    history.happen(Later(DAY_MS), make(OrganisationCreated))
    assert "" == too_many(history.market, BUYER, a_token(TOKENS_MAX))
    history.happen(By(BUYER, a_token(TOKENS_MAX)))
    assert [a_token(TOKENS_MAX).token_sha256] == list(history.market.identity.tokens)


def test_two_thousand_tokens_one_after_the_other_leave_a_hundred() -> None:
    history = History()
    for number in range(2_000):
        history.happen(By(BUYER, a_token(number)), By(BUYER, ReadTokenRevoked(token_sha256=a_token(number).token_sha256)))
    assert TOKENS_MAX >= len(history.market.identity.tokens)
    assert snapshot.digest(snapshot.decode(snapshot.encode(history.market))) == snapshot.digest(history.market)


def test_a_wallet_founds_thirty_two_organisations() -> None:
    market = given(*(an_org(number) for number in range(ORGS_MAX)))
    assert "this wallet has founded 32 organisations, and may found no more" == too_many(market, BUYER, an_org(ORGS_MAX))
    assert "" == too_many(market, BUYER, an_org(0)), "that one exists, and the fold says so"
    assert "" == too_many(market, SELLER, an_org(ORGS_MAX))


def a_full_organisation() -> Market:
    market = given(make(OrganisationCreated))
    for number in range(MEMBERS_MAX - 1):
        market.identity.orgs[ORG].members[wallet(f"member {number}")] = OrgRole.MEMBER
    return market


def test_an_organisation_has_a_thousand_members() -> None:
    market = a_full_organisation()
    one_more = make(MemberAdded, wallet=wallet("late"))
    assert "the organisation has 1000 members; remove one first" == too_many(market, BUYER, one_more)
    assert "" == too_many(market, BUYER, make(MemberAdded, wallet=wallet("member 3"))), "that one is a member already"


def test_who_does_not_own_an_organisation_does_not_learn_that_it_is_full() -> None:
    assert "" == too_many(a_full_organisation(), SELLER, make(MemberAdded, wallet=wallet("late")))


def test_nodes_are_counted_by_name_and_not_by_offer() -> None:
    market = given(node_offered(), node_offered(price=1), node_offered("other"))
    assert 2 == identity.holdings_of(market.identity, SELLER).nodes
    identity.holdings_of(market.identity, SELLER).nodes = NODES_MAX
    assert "this wallet has offered 10000 nodes; offer one of them again, under its name" == too_many(market, SELLER, node_offered("third"))
    assert "" == too_many(market, SELLER, node_offered("other"))


def fill_with_keys(state: identity.Identity, *, expires_ms: int) -> None:
    for number in range(KEYS_MAX):
        assert identity.authorise(state, a_key(number, expires_ms=expires_ms), BUYER, START_MS) is None


def test_a_thousand_keys_are_enough_and_one_that_expired_a_month_ago_makes_room() -> None:
    market = Market(time_ms=START_MS)
    fill_with_keys(market.identity, expires_ms=START_MS + DAY_MS)
    told = too_many(market, BUYER, a_key(KEYS_MAX))
    assert "this wallet has 1000 session keys; use one of them until another has been over for a month" == told
    market.time_ms = START_MS + DAY_MS + KEY_KEPT_MS
    assert "" == too_many(market, BUYER, a_key(KEYS_MAX))
    assert identity.authorise(market.identity, a_key(KEYS_MAX), BUYER, market.time_ms) is None
    assert [bytes.fromhex(a_key(KEYS_MAX).key)] == list(market.identity.keys)


def test_a_revoked_key_is_remembered_as_long_as_its_delegation_holds() -> None:
    market = Market(time_ms=START_MS)
    fill_with_keys(market.identity, expires_ms=START_MS + DAY_MS)
    stolen = a_key(5)
    assert identity.revoke(market.identity, bytes.fromhex(stolen.key), BUYER) is None
    assert "" != too_many(market, BUYER, a_key(KEYS_MAX)), "its delegation could be brought again"
    assert Refusal.ILLEGAL_IN_STATE is identity.authorise(market.identity, stolen, BUYER, START_MS)


@pytest.mark.parametrize("other", [SessionKeyRevoked(key=a_key(0).key), make(MemberAdded, org_id=ids.org_id(SELLER, "none"))])
def test_what_is_refused_for_something_else_is_not_refused_for_its_number(other: MemberAdded | SessionKeyRevoked) -> None:
    assert "" == too_many(Market(), BUYER, other)


def test_the_refusal_says_what_to_do_and_that_waiting_does_not_help() -> None:
    row = REFUSALS[Refusal.TOO_MANY]
    assert (403, 5, False) == (row.status, row.exit_code, row.transient)
    assert "revoke" in row.hint
