"""What a reader of the API is told: the contract's JSON, who may see what, and how hostile questions end. No server, no broker."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import msgspec
import pytest
from builders import (
    BUYER,
    NODE,
    OPERATOR,
    ORG,
    SELLER,
    START_MS,
    By,
    History,
    Later,
    card,
    given,
    job_id,
    job_of,
    job_submitted,
    make,
    matched,
    node_of,
    node_offered,
    wallet,
)
from hypothesis import given as for_all
from hypothesis import strategies as some

from buyer_cli.render_nodes import CARD_HEADERS, card_row
from events.identity import MemberAdded, OrganisationCreated, ReadTokenIssued, ReadTokenRevoked
from events.jobs import GpusReleased, JobCancelRequested, JobClaimed, JobReprioritised, JobStarted, JobSucceeded
from events.market import Policy, PolicyChanged
from events.nodes import NodeDrained, NodeWithdrawn
from events.values import Isolation, OrgRole, RunUsage
from events.wire import Beat, BeatCard, BeatLease, BeatView
from projections.market import Market
from services.api import access, paging, queries
from services.api.event_feed import Entry, EventFeed, Owner, event_view
from services.api.guard import host_name, names_this_machine
from services.api.market_views import remembered, stats_view
from services.api.paging import ByPrice, BySeq
from services.api.problems import TROUBLES, ProblemFound, Trouble
from services.api.queries import JOBS, OFFERS, Parameter
from services.api.read_model import FinishedJob, JobFilter
from services.api.standing import Standing
from services.api.tallies import Tallies
from services.api.telemetry import Telemetry
from services.api.views import job_view, node_view, without_secrets

CONTRACT_FIELDS = """
id state reason detail phase kind name buyer buyer_alias org group labels node node_name gpus num_gpus image price_uusd_per_gpu_hour
max_price_uusd_per_gpu_hour priority queue_position attempt epoch exit_code submitted_ms matched_ms started_ms ended_ms updated_ms
timeout_s estimate_s charged_uusd"""
SIX_MINUTES_MS = 360_000


def told(view: msgspec.Struct) -> dict[str, Any]:
    """The view as a reader gets it."""
    value: dict[str, Any] = json.loads(msgspec.json.encode(view))
    return value


def running() -> History:
    """A job that runs on a node with two cards."""
    history = History()
    history.happen(node_offered(gpus=2, default_image="debian:12"), job_submitted(labels={"team": "vision"}))
    attempt = attempt_of(history, matched(history.market))
    history.happen(make(JobClaimed, **attempt), Later(1000), make(JobStarted, **attempt))
    return history


def attempt_of(history: History, match: Any) -> dict[str, Any]:
    history.happen(match)
    run = job_of(history.market).run
    assert run is not None
    return {"job_id": match.job_id, "attempt": run.attempt, "epoch": run.epoch}


def over(history: History) -> Market:
    """The same job, six minutes later, with its cards released."""
    run = job_of(history.market).run
    assert run is not None
    attempt = {"job_id": job_id("job"), "attempt": run.attempt, "epoch": run.epoch}
    history.happen(
        Later(SIX_MINUTES_MS), make(JobSucceeded, **attempt, ran_ms=SIX_MINUTES_MS, stdout_bytes=3), make(GpusReleased, **attempt)
    )
    return history.market


# --- jobs ---


def test_job_json_has_every_field_of_the_contract() -> None:
    market = given(job_submitted())
    assert set() == set(CONTRACT_FIELDS.split()) - set(told(job_view(job_of(market), market)))


def test_a_waiting_job_has_no_node_no_cards_and_no_price() -> None:
    market = given(job_submitted(max_price=500_000))
    view = told(job_view(job_of(market), market, queue_position=0))
    absent = ("node", "node_name", "price_uusd_per_gpu_hour", "epoch", "matched_ms", "started_ms", "ended_ms", "exit_code", "charged_uusd")
    assert dict.fromkeys(absent) == {name: view[name] for name in absent}
    assert ("queued", [], 1, 0, 500_000, 0) == (
        view["state"],
        view["gpus"],
        view["num_gpus"],
        view["attempt"],
        view["max_price_uusd_per_gpu_hour"],
        view["queue_position"],
    )


def test_a_running_job_names_its_node_its_cards_and_the_locked_price() -> None:
    market = running().market
    said = BeatLease(job_id("job"), 1, 3, "saving", 1234, 50, 2000, 3000, "stops in 5 min: run timeout; bazaar extend JOB 1h")
    view = told(job_view(job_of(market), market, lease=said))
    assert said.warning == view["warning"]
    assert {"ran_ms": 1234, "gpu_percent": 50, "memory_mib": 2000, "gpu_memory_mib": 3000} == view["using"]
    assert [{"index": 0, "uuid": card(0).uuid, "model": "NVIDIA GeForce RTX 4090", "vram_mib": 24_564}] == view["gpus"]
    assert ("running", NODE, "node", 400_000, "saving", "debian:12") == (
        view["state"],
        view["node"],
        view["node_name"],
        view["price_uusd_per_gpu_hour"],
        view["phase"],
        view["image"],
    )
    assert view["started_ms"] == view["matched_ms"] + 1000
    assert view["charged_uusd"] is None, "the bill is known at the end"


def test_a_node_that_isolates_nothing_has_no_image() -> None:
    history = History()
    history.happen(node_offered(isolation=Isolation.PROCESS, default_image="debian:12"), job_submitted())
    history.happen(matched(history.market))
    assert told(job_view(job_of(history.market), history.market))["image"] is None


def test_an_ended_job_has_its_bill_and_says_until_when_its_output_is_kept() -> None:
    market = over(running())
    view = told(job_view(job_of(market), market, lease=BeatLease(job_id("job"), 1, 3, "saving", warning="stops in 5 min: idle")))
    assert (None, None, None) == (view["warning"], view["using"], view["usage"])
    assert ("succeeded", "exited_zero", 0, 40_000, 3, None) == (
        view["state"],
        view["reason"],
        view["exit_code"],
        view["charged_uusd"],
        view["stdout_bytes"],
        view["phase"],
    )
    assert view["kept_until_ms"] == view["ended_ms"] + 30 * 86_400_000


def test_an_ended_job_tells_what_it_used_card_by_card() -> None:
    history = running()
    run = job_of(history.market).run
    assert run is not None
    usage = RunUsage(samples=9, cpu_ms=1000, mean_gpu_percent=(5,), max_gpu_percent=(-1,), peak_gpu_memory_mib=(1000,))
    history.happen(make(JobSucceeded, job_id=job_id("job"), attempt=1, epoch=run.epoch, ran_ms=2000, usage=usage))
    job = job_of(history.market)
    view = told(job_view(job, history.market))
    assert {
        "gpus": [card(0).uuid],
        "samples": 9,
        "cpu_ms": 1000,
        "peak_memory_mib": 0,
        "mean_gpu_percent": [5],
        "max_gpu_percent": [None],
        "peak_gpu_memory_mib": [1000],
    } == view["usage"]
    shown = told(without_secrets(job_view(job, history.market)))
    assert (None, None, None) == (shown["usage"], shown["using"], shown["warning"])


def test_a_job_says_how_long_it_may_run_by_its_tightest_limit() -> None:
    market = given(job_submitted(estimate_s=10, estimate_limit=2))
    view = told(job_view(job_of(market), market))
    assert (3600, 20) == (view["timeout_s"], view["limit_s"])


def test_a_job_cancelled_while_it_waited_costs_nothing_and_had_no_node() -> None:
    market = given(job_submitted(), make(JobCancelRequested))
    view = told(job_view(job_of(market), market))
    assert ("cancelled", "cancelled_by_buyer", 0, None, None) == (
        view["state"],
        view["reason"],
        view["charged_uusd"],
        view["node"],
        view["kept_until_ms"],
    )


def test_cards_that_a_node_no_longer_offers_keep_their_uuid() -> None:
    history = running()
    history.happen(node_offered(gpus=0))
    view = told(job_view(job_of(history.market), history.market))
    assert [{"index": None, "uuid": card(0).uuid, "model": None, "vram_mib": None}] == view["gpus"]


def test_a_member_s_alias_stands_beside_the_wallet() -> None:
    market = given(
        make(OrganisationCreated), make(MemberAdded, wallet=SELLER, role=OrgRole.MEMBER, alias="ada"), By(SELLER, job_submitted(org_id=ORG))
    )
    assert "ada" == job_view(job_of(market), market).buyer_alias


def test_a_stranger_sees_that_a_job_is_there_but_not_what_it_is() -> None:
    market = running().market
    view = told(without_secrets(job_view(job_of(market), market)))
    assert (None, {}, "running", 1) == (view["name"], view["labels"], view["state"], view["num_gpus"])


def test_a_stranger_does_not_see_which_image_a_job_runs_in_as_its_events_do_not_say_it_either() -> None:
    view = job_view(job_of(running().market), running().market)
    shown = told(without_secrets(msgspec.structs.replace(view, image="registry.example/secret:1", image_digest="sha256:" + "a" * 64)))
    assert (None, None) == (shown["image"], shown["image_digest"])


# --- nodes ---


def test_a_node_tells_which_job_has_which_card() -> None:
    market = running().market
    view = told(node_view(node_of(market), market, Telemetry(), START_MS + 1000))
    assert [("taken", job_id("job")), ("free", None)] == [(card["state"], card["job"]) for card in view["cards"]]
    assert (2, 1, [job_id("job")], 3600) == (view["num_gpus"], view["gpus_free"], view["running"], view["backlog_s"])


def test_a_card_shows_the_readings_of_the_last_heartbeat_and_null_for_what_is_unknown() -> None:
    market = given(node_offered())
    telemetry = Telemetry()
    reading = BeatCard(card(0).uuid, True, 87, 20_000, -1, 310)
    telemetry.note(BeatView(beat=Beat(node_id=NODE, boot="b", cards=(reading,)), wallet=SELLER, time_ms=START_MS), START_MS)
    shown = told(node_view(node_of(market), market, telemetry, START_MS))["cards"][0]
    assert (87, 20_000, None, 310) == (shown["gpu_percent"], shown["memory_used_mib"], shown["temperature_c"], shown["power_w"])
    assert (None, None, None) == (shown["ecc_errors"], shown["processes"], shown["unhealthy"])


def test_a_card_that_its_node_calls_ill_is_shown_as_such_with_the_reason() -> None:
    market = given(node_offered())
    telemetry = Telemetry()
    reading = BeatCard(card(0).uuid, False, 0, 300, 41, 61, 3, 1, "3 uncorrected memory errors")
    telemetry.note(BeatView(beat=Beat(node_id=NODE, boot="b", cards=(reading,)), wallet=SELLER, time_ms=START_MS), START_MS)
    shown = told(node_view(node_of(market), market, telemetry, START_MS))["cards"][0]
    assert ("unhealthy", False, 3, 1, "3 uncorrected memory errors") == tuple(
        shown[name] for name in ("state", "healthy", "ecc_errors", "processes", "unhealthy")
    )
    assert "unhealthy (3 uncorrected memory errors)" in card_row(shown)
    assert len(CARD_HEADERS) == len(card_row(shown))


@pytest.mark.parametrize(("silent_s", "suspect"), [(15, False), (16, True)])
def test_a_node_is_suspect_once_it_is_silent_for_longer_than_the_policy_allows(silent_s: int, suspect: bool) -> None:
    market = given(node_offered())
    telemetry = Telemetry(since_ms=START_MS)
    assert suspect == node_view(node_of(market), market, telemetry, START_MS + silent_s * 1000).suspect


def test_a_withdrawn_node_is_not_suspect_however_silent() -> None:
    market = given(node_offered(), make(NodeWithdrawn))
    assert not node_view(node_of(market), market, Telemetry(), START_MS + 10**9).suspect


def test_a_lease_that_the_next_heartbeat_does_not_name_has_no_phase_left() -> None:
    telemetry = Telemetry()
    for leases in ((BeatLease(job_id("job"), 1, 7, "pulling 43%"),), ()):
        telemetry.note(BeatView(beat=Beat(node_id=NODE, boot="b", leases=leases), wallet=SELLER, time_ms=0), 0)
    assert telemetry.lease(7) is None


def test_figures_count_cards_on_offer_and_what_the_last_hour_saw() -> None:
    history = running()
    market = over(history)
    history.happen(node_offered("idle", gpus=2), job_submitted("next", num_gpus=8))
    history.happen(make(NodeDrained, node_id=node_of(market, "idle").node_id))
    tallies = Tallies(market, Telemetry(history.now_ms))
    view = stats_view(market, tallies, remembered(market.jobs), history.now_ms)
    assert (1, 2, 2, 0, 1, 1, 0.0) == (
        view.nodes,
        view.gpus,
        view.available_gpus,
        view.utilization_percent,
        view.waiting,
        view.jobs_per_hour,
        view.mean_wait_s,
    )
    later = stats_view(market, tallies, remembered(market.jobs), history.now_ms + 2 * 3_600_000)
    assert (0, None) == (later.jobs_per_hour, later.mean_wait_s)


# --- indexes ---


def names_in_order(market: Market, standing: Standing) -> list[str]:
    return [market.jobs[name].submitted.name for name in standing.queue.in_order()]


def test_the_queue_is_in_the_order_of_the_policy_and_follows_it() -> None:
    history = History()
    history.happen(job_submitted("first"), job_submitted("second"), job_submitted("urgent", priority=100))
    market = history.market
    standing = Standing(market)
    assert ["urgent", "first", "second"] == names_in_order(market, standing)
    history.happen(make(JobReprioritised, job_id=job_id("second"), priority=100))
    standing.touch(job_id("second"), job_of(market, "second"))
    assert ["urgent", "second", "first"] == names_in_order(market, standing)
    assert 1 == standing.queue.position(job_id("second"))
    history.happen(make(PolicyChanged, policy=Policy(name="fcfs")))
    standing.reorder()
    assert ["first", "urgent", "second"] == names_in_order(market, standing)


def test_an_index_kept_in_step_is_the_one_made_anew() -> None:
    history = running()
    kept = Standing(history.market)
    history.happen(job_submitted("waits"))
    over(history)
    for name in ("job", "waits"):
        kept.touch(job_id(name), job_of(history.market, name))
    anew = Standing(history.market)
    for index in (kept, anew):
        assert [job_id("waits")] == list(index.unfinished.newest_first(JobFilter(buyer=BUYER), None))
        assert [] == list(index.unfinished.newest_first(JobFilter(buyer=SELLER), None))
        assert [job_id("waits")] == list(index.queue.in_order())


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (JobFilter(), ["b2", "b1", "a2", "a1"]),
        (JobFilter(states=frozenset({"queued"})), ["b2", "b1", "a2"]),
        (JobFilter(states=frozenset({"queued", "matched"})), ["b2", "b1", "a2", "a1"]),
        (JobFilter(labels=("team=a",)), ["a2", "a1"]),
        (JobFilter(labels=("team=a", "nothing=1")), []),
        (JobFilter(node=NODE), ["a1"]),
        (JobFilter(seen_by=(SELLER, frozenset())), ["b2", "b1"]),
    ],
)
def test_unfinished_jobs_are_found_by_the_rarest_thing_they_are_asked_for_by(wanted: JobFilter, names: list[str]) -> None:
    history = History()
    history.happen(node_offered(), job_submitted("a1", labels={"team": "a"}), job_submitted("a2", labels={"team": "a"}))
    history.happen(By(SELLER, job_submitted("b1")), By(SELLER, job_submitted("b2")))
    market = history.market
    standing = Standing(market)
    history.happen(matched(market, "a1"))
    standing.touch(job_id("a1"), job_of(market, "a1"))
    found = [market.jobs[name].submitted.name for name in standing.unfinished.newest_first(wanted, None)]
    assert names == found
    before = job_of(market, "b1").submitted_seq
    assert [name for name in names if name < "b1"] == [
        market.jobs[name].submitted.name for name in standing.unfinished.newest_first(wanted, before)
    ]


def a_row(**changes: Any) -> FinishedJob:
    values: dict[str, Any] = {
        "submitted_seq": 1,
        "job_id": job_id("job"),
        "ended_seq": 9,
        "submitted_ms": 1000,
        "state": "failed",
        "buyer": BUYER,
        "node": NODE,
        "org": None,
        "group": None,
        "labels": ("a=1", "b=2"),
        "body": b"{}",
    }
    return FinishedJob(**(values | changes))


@pytest.mark.parametrize(
    ("wanted", "passes"),
    [
        (JobFilter(), True),
        (JobFilter(states=frozenset({"failed", "queued"})), True),
        (JobFilter(states=frozenset({"succeeded"})), False),
        (JobFilter(labels=("a=1", "b=2")), True),
        (JobFilter(labels=("a=1", "b=1")), False),
        (JobFilter(since_ms=1000, until_ms=1001), True),
        (JobFilter(until_ms=1000), False),
        (JobFilter(seen_by=(SELLER, frozenset())), False),
        (JobFilter(seen_by=(BUYER, frozenset())), True),
    ],
)
def test_rows_that_are_not_on_disk_yet_are_filtered_alike(wanted: JobFilter, passes: bool) -> None:
    assert passes == wanted.passes(a_row())


# --- events ---


def test_tokens_and_logins_never_show_in_an_event() -> None:
    history = running()
    shown = b"".join(msgspec.json.encode(event_view(record, private=True)) for record in history.records)
    assert b"output_token" not in shown
    assert b"wallet_signature" not in shown
    assert b'"type":"JobClaimed"' in shown


def test_a_stranger_s_event_of_a_job_lacks_name_labels_and_program() -> None:
    history = running()
    entry = next(Entry(record, Owner(BUYER, None)) for record in history.records if getattr(record.event, "program", None) is not None)
    private, plain = json.loads(entry.json(private=True)), json.loads(entry.json(private=False))
    assert {"name", "labels", "program"} <= set(private["event"])
    assert set() == {"name", "labels", "program"} & set(plain["event"])
    assert (private["seq"], private["type"], private["hash"]) == (plain["seq"], plain["type"], plain["hash"])


async def test_a_feed_tells_what_comes_after_a_place_and_rings_when_more_has_come() -> None:
    history = History()
    feed = EventFeed(0)
    history.happen(node_offered(), job_submitted())
    for record in history.records[:-1]:
        feed.add(record, None)
    last_but_one, last = history.records[-2:]
    assert [] == feed.after(last_but_one.seq, 10)
    waiting = asyncio.create_task(feed.more(10.0))
    await asyncio.sleep(0)
    feed.add(last, None)
    feed.wake()
    await waiting
    assert [last] == [entry.record for entry in feed.after(last_but_one.seq, 10)]


# --- who may see what ---


def token_market(**changes: Any) -> Market:
    issued = {"token_sha256": digest_of("secret"), "expires_ms": START_MS + 1000} | changes
    return given(make(OrganisationCreated), make(ReadTokenIssued, **issued))


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_token_shows_its_wallet_s_and_its_organisation_s_jobs() -> None:
    viewer = access.token_grant(token_market(org_id=ORG), "secret", START_MS).viewer
    assert (True, True, False) == (viewer.may_see(BUYER, None), viewer.may_see(SELLER, ORG), viewer.may_see(SELLER, None))


def test_a_token_that_is_unknown_expired_or_revoked_opens_nothing() -> None:
    market = token_market()
    revoked = given(make(ReadTokenIssued, token_sha256=digest_of("secret")), make(ReadTokenRevoked, token_sha256=digest_of("secret")))
    for state, text, now_ms in ((market, "guess", START_MS), (market, "secret", START_MS + 1000), (revoked, "secret", START_MS)):
        with pytest.raises(ProblemFound) as refused:
            access.token_grant(state, text, now_ms)
        assert Trouble.TOKEN_REFUSED is refused.value.code


def test_without_a_token_only_the_machine_s_own_owner_sees_everything() -> None:
    market = given(job_submitted())
    assert access.http_grant(market, {}, is_loopback=True, now_ms=0).viewer.may_see_job(job_of(market))
    assert not access.http_grant(market, {}, is_loopback=False, now_ms=0).viewer.may_see_job(job_of(market))
    assert not access.wallet_viewer(market, wallet("other")).may_see_job(job_of(market))
    assert not access.wallet_viewer(market, OPERATOR).may_see_job(job_of(market)), "an operator reads on the market's own machine"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8420", "localhost", "LOCALHOST:1", "[::1]:8420", "[::1]", "::1", "127.9.9.9:80", "localhost."]
)
def test_names_of_this_machine_are_answered_to(host: str) -> None:
    assert names_this_machine(host_name(host))


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8420",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "10.0.0.1",
        "",
        "[::2]",
        "[::1",
        "[::1]x",
        "0.0.0.0",
    ],
)
def test_any_other_name_is_a_rebinding_attack(host: str) -> None:
    assert not names_this_machine(host_name(host))


# --- questions ---


def asked(query: dict[str, str], known: tuple[Parameter, ...] = JOBS) -> dict[str, Any]:
    return queries.read(query.items(), known)


def test_a_query_is_read_into_values() -> None:
    pairs = [("state", "queued, running"), ("state", "failed"), ("label", "team=vision"), ("limit", "7"), ("min_seq", "3"), ("wait", "2s")]
    expected = {"state": ("queued", "running", "failed"), "label": ("team=vision",), "limit": 7, "min_seq": 3, "wait": 2}
    assert expected == queries.read(pairs, JOBS)


def test_sizes_and_prices_are_read_as_the_command_line_reads_them() -> None:
    expected = {"vram": 22_889, "max_price": 400_000, "min_cuda": 12_040, "model": ("RTX 4090",)}
    assert expected == asked({"vram": "24GB", "max_price": "0.40", "min_cuda": "12.4", "model": "RTX 4090"}, OFFERS)


@pytest.mark.parametrize(
    "query",
    [
        {"stat": "queued"},
        {"state": "flying"},
        {"limit": "0"},
        {"limit": "1001"},
        {"limit": "1e2"},
        {"limit": "-1"},
        {"buyer": "0x12"},
        {"node": "n'; DROP TABLE jobs"},
        {"label": "team"},
        {"label": "=x"},
        {"since_ms": "99999999999999999999"},
        {"min_seq": "x" * 10_000},
        {"\x1b[2J<script>": "1"},
    ],
)
def test_a_query_that_cannot_be_meant_is_a_problem_that_names_it(query: dict[str, str]) -> None:
    with pytest.raises(ProblemFound) as refused:
        asked(query)
    assert (Trouble.BAD_QUERY, 400) == (refused.value.code, refused.value.status)
    body = refused.value.body()
    assert 1 == len(json.loads(body)["errors"])
    assert not any(byte < 32 or byte in b"<>" for byte in body)


def test_a_name_that_stands_twice_is_a_problem() -> None:
    with pytest.raises(ProblemFound):
        queries.read([("limit", "1"), ("limit", "2")], JOBS)


@for_all(some.text(max_size=60), some.text(max_size=60))
def test_any_query_ends_in_values_or_in_a_problem(name: str, text: str) -> None:
    for known in (JOBS, OFFERS, queries.QUOTES):
        for key in (name, *(parameter.name for parameter in known)):
            try:
                queries.read([(key, text)], known)
            except ProblemFound as refused:
                assert 400 == refused.status


@for_all(some.integers(0, 1 << 62))
def test_a_cursor_leads_back_to_its_place(seq: int) -> None:
    assert BySeq(seq) == paging.read(paging.write(BySeq(seq)), BySeq)


@for_all(some.one_of(some.text(max_size=250), some.binary(max_size=80).map(lambda data: data.decode("latin-1"))))
def test_a_made_up_cursor_is_a_problem_and_nothing_else(text: str) -> None:
    try:
        key = paging.read(text, BySeq)
    except ProblemFound as refused:
        assert Trouble.BAD_QUERY is refused.code
    else:
        assert isinstance(key, BySeq)


def test_a_cursor_of_another_list_is_refused() -> None:
    with pytest.raises(ProblemFound):
        paging.read(paging.write(ByPrice(400_000, NODE)), BySeq)


@pytest.mark.parametrize("trouble", list(Trouble))
def test_every_problem_says_what_why_and_what_to_try(trouble: Trouble) -> None:
    body = json.loads(ProblemFound(trouble).body("/v1/jobs", 7))
    assert all(body[name] for name in ("type", "title", "detail", "hint", "code"))
    assert (TROUBLES[trouble].status, trouble.value, "/v1/jobs", 7) == (body["status"], body["code"], body["instance"], body["as_of_seq"])
