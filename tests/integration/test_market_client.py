"""A party's client against a real broker, callout and matcher: every event is answered once, whatever breaks in between."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from integration.broker_env import MARKET_ID, World, now_ms, until, world
from integration.market_env import MarketWorld, a_job, a_market, session_of, signer

from events import home, subjects, wire
from events.errors import ConnectionRefused, IdentityError, MarketUnreachable, Refused
from events.feed import Received
from events.jobs import JobCancelRequested
from events.login import open_client
from events.market_client import ask_hello
from events.nats_client import Message
from events.reasons import Refusal
from events.session import Session, SessionStore, make_session, write_session
from events.values import Program, Role
from events.wallet import Keystore, Passphrases
from events.wire import OutputAnswer, OutputChunk, OutputFrame, SyncAnswer

__all__ = ["a_market", "world"]

NO_JOB = "j" + "a" * 19
ANSWERED_S = 30.0


async def all_answered(tickets: list[object]) -> list[wire.Outcome]:
    async with asyncio.timeout(ANSWERED_S):
        return [await ticket for ticket in tickets]  # type: ignore[misc]


def jobs_in_order(market: MarketWorld) -> list[str]:
    jobs = market.matcher.market.jobs
    return sorted(jobs, key=lambda job_id: jobs[job_id].submitted_seq)


async def test_a_submission_is_answered_with_its_place_and_heard_on_the_feed(market: MarketWorld) -> None:
    client = await market.client(session_of(1))
    heard: list[Received] = []
    client.on_event(heard.append)
    job = a_job()
    outcome = await client.submit(job, timeout_s=ANSWERED_S)
    assert outcome.reason is None
    await until(lambda: any(received.event == job for received in heard), "the submission on the feed")
    received = next(received for received in heard if received.event == job)
    assert (outcome.seq, client.wallet) == (received.seq, received.sender)
    assert job.job_id in market.matcher.market.jobs


async def test_a_refused_event_comes_back_with_its_reason(market: MarketWorld) -> None:
    client = await market.client(session_of(1))
    outcome = await client.submit(JobCancelRequested(job_id=NO_JOB), timeout_s=ANSWERED_S)
    assert Refusal.UNKNOWN_JOB == outcome.reason
    assert (await client.submit(a_job(), timeout_s=ANSWERED_S)).reason is None, "the next event is not held up"


async def test_an_event_that_is_too_large_is_refused_before_it_leaves(market: MarketWorld) -> None:
    client = await market.client(session_of(1))
    with pytest.raises(Refused) as caught:
        client.enqueue(a_job(), a_job(program=Program(argv=("x" * 8000,) * 3)))
    assert Refusal.TOO_LARGE == caught.value.refusal
    assert (await client.submit(a_job(), timeout_s=ANSWERED_S)).reason is None
    assert 1 == len(market.matcher.market.jobs)


async def test_a_thousand_events_are_taken_in_order_and_leave_the_outbox(market: MarketWorld) -> None:
    client = await market.client(session_of(1))
    jobs = [a_job() for _ in range(1000)]
    tickets = [ticket for job in jobs for ticket in client.enqueue(job)]
    outcomes = await all_answered(tickets)
    assert {None} == {outcome.reason for outcome in outcomes}
    assert [job.job_id for job in jobs] == jobs_in_order(market)
    assert 0 == client.unanswered
    await client.close()
    assert [] == _outbox_rows(market.home)


def _outbox_rows(folder: Path) -> list[tuple[bytes]]:
    with closing(sqlite3.connect(folder / "outbox.db")) as reader:
        return reader.execute("SELECT body FROM entries").fetchall()


async def test_events_are_answered_once_over_a_matcher_that_is_killed_and_restarted(market: MarketWorld) -> None:
    client = await market.client(session_of(1))
    jobs = [a_job() for _ in range(600)]
    tickets = [ticket for job in jobs for ticket in client.enqueue(job)]
    await until(lambda: any(ticket.outcome for ticket in tickets), "a first answer")
    await market.stop_matcher()
    assert client.unanswered
    await market.start_matcher()
    outcomes = await all_answered(tickets)
    assert {None} == {outcome.reason for outcome in outcomes}
    assert [job.job_id for job in jobs] == jobs_in_order(market)


async def test_events_are_answered_once_over_a_broker_that_is_killed_and_restarted(market: MarketWorld) -> None:
    client = await market.client(session_of(1))
    resyncs: list[SyncAnswer] = []
    client.on_resync(resyncs.append)
    jobs = [a_job() for _ in range(600)]
    tickets = [ticket for job in jobs for ticket in client.enqueue(job)]
    await until(lambda: any(ticket.outcome for ticket in tickets), "a first answer")
    await market.world.restart_broker()
    outcomes = await all_answered(tickets)
    assert {None} == {outcome.reason for outcome in outcomes}
    assert [job.job_id for job in jobs] == jobs_in_order(market)
    assert resyncs, "after a lost connection the whole state is told"


async def test_two_processes_of_a_home_share_a_key_without_a_single_refusal(market: MarketWorld) -> None:
    session = session_of(1)
    clients = [await market.client(session), await market.client(session)]
    tickets: list[object] = []
    for _ in range(60):
        for client in clients:
            tickets += client.enqueue(a_job(), a_job())
        await asyncio.sleep(0.002)
    outcomes = await all_answered(tickets)
    assert {None} == {outcome.reason for outcome in outcomes}
    assert 240 == len(market.matcher.market.jobs)
    numbers = sorted(outcome.number for outcome in outcomes)
    assert list(range(2, 242)) == numbers, "every number was used once"


async def test_a_client_whose_home_was_lost_goes_on_after_the_last_used_number(market: MarketWorld, tmp_path: Path) -> None:
    session = session_of(1)
    before = await market.client(session)
    await all_answered(before.enqueue(a_job(), a_job()))
    await before.close()
    after = await market.client(session, home=tmp_path / "another home")
    outcome = await after.submit(a_job(), timeout_s=ANSWERED_S)
    assert (4, None) == (outcome.number, outcome.reason)


async def test_two_machines_that_share_a_key_are_healed(market: MarketWorld, tmp_path: Path) -> None:
    session = session_of(1)
    clients = [await market.client(session, home=tmp_path / name) for name in ("one", "two")]
    tickets = [ticket for _ in range(30) for client in clients for ticket in client.enqueue(a_job())]
    outcomes = await all_answered(tickets)
    assert {None} == {outcome.reason for outcome in outcomes}
    assert 60 == len(market.matcher.market.jobs)


PROGRAM = """
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, "tests")
from integration.market_env import a_job
from events.market_client import MarketClient
from events.session import read_session

async def main():
    client = MarketClient(sys.argv[1], read_session(Path(sys.argv[2])), Path(sys.argv[3]), name="doomed")
    await client.start(wait_s=5.0)
    print("ready", flush=True)
    sys.stdin.readline()
    jobs = [a_job() for _ in range(int(sys.argv[4]))]
    await client.enqueue_durable(*jobs)
    print(*(job.job_id for job in jobs), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_what_a_killed_process_left_is_sent_by_the_next_one(market: MarketWorld, tmp_path: Path) -> None:
    session = session_of(1)
    write_session(session, tmp_path / "session.json")
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, market.world.url, str(tmp_path / "session.json"), str(market.home), "150"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": "."},
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        assert b"ready\n" == await asyncio.to_thread(process.stdout.readline)
        await market.stop_matcher()
        process.stdin.write(b"\n")
        process.stdin.flush()
        job_ids = (await asyncio.to_thread(process.stdout.readline)).decode().split()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()
    assert 150 == len(job_ids)
    await market.start_matcher()
    client = await market.client(session)
    mine = a_job()
    assert (await client.submit(mine, timeout_s=ANSWERED_S)).reason is None
    await client.settled(ANSWERED_S)
    assert [*job_ids, mine.job_id] == jobs_in_order(market)


async def test_what_was_left_under_an_old_key_is_signed_again_with_the_new_one(market: MarketWorld) -> None:
    old = await market.client(session_of(1))
    await market.stop_matcher()
    job = a_job()
    await old.enqueue_durable(job)
    await old.close()
    await market.start_matcher()
    new = await market.client(session_of(1))
    await new.settled(ANSWERED_S)
    await until(lambda: job.job_id in market.matcher.market.jobs, "the job under the new key")


async def test_an_event_that_was_sent_but_not_answered_is_kept(market: MarketWorld) -> None:
    client = await market.client(session_of(1))
    await client.settled(ANSWERED_S)
    await market.stop_matcher()
    job = a_job()
    with pytest.raises(MarketUnreachable) as caught:
        await client.submit(job, timeout_s=0.1)
    assert "it was sent" in caught.value.why
    await market.start_matcher()
    await client.settled(ANSWERED_S)
    assert [job.job_id] == jobs_in_order(market)


async def test_an_event_that_could_not_be_sent_is_taken_back(market: MarketWorld) -> None:
    client = await market.client(session_of(1))
    await client.settled(ANSWERED_S)
    market.world.broker.process.kill()
    await until(lambda: not client.connection.is_up, "the loss of the connection")
    with pytest.raises(MarketUnreachable) as caught:
        await client.submit(a_job(), timeout_s=0.05)
    assert "nothing was sent" in caught.value.why
    await market.world.restart_broker()
    assert (await client.submit(a_job(), timeout_s=ANSWERED_S)).reason is None
    assert 1 == len(market.matcher.market.jobs)


async def test_a_gap_in_the_feed_ends_with_the_whole_state(market: MarketWorld) -> None:
    client = await market.client(session_of(1))
    await client.settled(ANSWERED_S)
    resyncs: list[SyncAnswer] = []
    heard: list[Received] = []
    client.on_resync(resyncs.append)
    client.on_event(heard.append)
    job = a_job()
    client.job_ids.add(job.job_id)
    client._feed.last_seen -= 1  # as if the last frame had been lost on the way
    outcome = await client.submit(job, timeout_s=ANSWERED_S)
    await until(lambda: resyncs, "the whole state")
    assert outcome.seq <= resyncs[0].as_of_seq
    assert [(job.job_id, "queued")] == [(told.job_id, told.state) for told in resyncs[0].jobs]
    later = a_job()
    await client.submit(later, timeout_s=ANSWERED_S)
    await until(lambda: [later] == [received.event for received in heard], "only the event after the state")


async def test_a_session_near_its_end_is_followed_by_another_and_nothing_is_lost(market: MarketWorld) -> None:
    renewed = session_of(1)

    async def renew() -> Session:
        return renewed

    client = await market.client(session_of(1, validity_ms=60_300), renew=renew)
    first = await client.submit(a_job(), timeout_s=ANSWERED_S)
    await until(lambda: client.session.key == renewed.key, "the new session")
    second = await client.submit(a_job(), timeout_s=ANSWERED_S)
    assert (2, None, 2, None) == (first.number, first.reason, second.number, second.reason), "numbers start anew with each key"
    assert 2 == len(market.matcher.market.identity.keys)


async def test_a_session_that_is_over_for_the_market_alone_is_followed_by_another(
    market: MarketWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our clock is an hour slow: by it the session that lies here still holds."""
    monkeypatch.setattr("events.market_client.time", SimpleNamespace(time=lambda: now_ms() / 1000 - 3600))
    over, renewed = session_of(1, validity_ms=50_000), session_of(1)

    async def renew(*, fresh: bool = False) -> Session:
        return renewed if fresh else over

    client = await market.client(over, renew=renew)
    client._on_tick(Message(subjects.LIVE_MARKET, wire.encode(wire.Tick(seq=1, page_hash=b"", time_ms=now_ms()))))
    await until(lambda: client.session.key == renewed.key, "the new session")
    assert None is (await client.submit(a_job(), timeout_s=ANSWERED_S)).reason


async def test_a_login_that_expires_loses_nothing(tmp_path: Path) -> None:
    short = World(tmp_path / "market")
    await short.start(login_s_max=2)
    market = MarketWorld(short, tmp_path / "home")
    await market.start_matcher()
    try:
        client = await market.client(session_of(1))
        tickets = []
        while client.connection.generation < 2:
            tickets += client.enqueue(a_job())
            await asyncio.sleep(0.01)
        outcomes = await all_answered(tickets)
        assert {None} == {outcome.reason for outcome in outcomes}
        assert len(tickets) == len(market.matcher.market.jobs)
    finally:
        await market.stop()
        await short.stop()


async def test_an_expired_key_that_cannot_be_renewed_holds_nothing_up(market: MarketWorld) -> None:
    client = await market.client(session_of(1))
    await client.settled(ANSWERED_S)
    market.matcher.market.identity.keys[client.session.key].expires_ms = 1
    outcomes = await all_answered([*client.enqueue(a_job()), *client.enqueue(a_job())])
    assert [Refusal.KEY_EXPIRED] * 2 == [outcome.reason for outcome in outcomes]
    assert 0 == client.unanswered


async def test_an_expired_key_is_followed_by_another_and_its_events_are_signed_again(market: MarketWorld) -> None:
    renewed = session_of(1)

    async def renew() -> Session:
        return renewed

    client = await market.client(session_of(1), renew=renew)
    await client.settled(ANSWERED_S)
    market.matcher.market.identity.keys[client.session.key].expires_ms = 1
    outcomes = await all_answered([*client.enqueue(a_job()), *client.enqueue(a_job())])
    assert [None, None] == [outcome.reason for outcome in outcomes]
    assert renewed.key == client.session.key


async def test_a_session_of_another_market_does_not_get_in(market: MarketWorld) -> None:
    foreign = make_session(signer(1), "cd" * 32, Role.BUYER, now_ms=0, validity_ms=3_600_000)
    with pytest.raises(ConnectionRefused):
        await market.client(foreign, wait_s=0.0)


async def test_a_stranger_learns_the_market_id(market: MarketWorld) -> None:
    assert MARKET_ID == (await ask_hello(market.world.url)).market_id


async def test_a_question_that_the_market_refuses_says_why(market: MarketWorld) -> None:
    client = await market.client(session_of(1))
    with pytest.raises(Refused) as caught:
        await client.ask("sync", {"key": 7}, SyncAnswer)
    assert Refusal.MALFORMED == caught.value.refusal


async def test_nobody_there_to_answer_is_said_after_the_time_given(market: MarketWorld) -> None:
    client = await market.client(session_of(1))
    await market.stop_matcher()
    with pytest.raises(MarketUnreachable):
        await client.sync(timeout_s=0.1)
    await market.start_matcher()
    assert 0 < (await client.sync()).as_of_seq


async def test_output_is_read_along_by_its_buyer_and_by_nobody_else(market: MarketWorld) -> None:
    seller, buyer, other = [
        await market.client(session_of(number, role)) for number, role in ((1, Role.SELLER), (2, Role.BUYER), (3, Role.BUYER))
    ]
    frame = OutputFrame(attempt=1, epoch=5, chunks=(OutputChunk(1, 0, b"hello\n"),))
    seen: list[OutputFrame] = []
    strange: list[OutputFrame] = []
    reading = await buyer.output_live(NO_JOB, seen.append)
    await other.output_live(NO_JOB, strange.append)
    await market.connection.subscribe(
        "output.*.*.*.*",
        lambda message: asyncio.ensure_future(market.connection.publish(message.reply, wire.encode(OutputAnswer(stdout_bytes=6)))),
    )
    for client in (buyer, other):
        await client.connection.flush()
    await market.connection.flush()
    answer = await seller.publish_output(buyer.wallet, NO_JOB, "ab" * 8, frame)
    assert 6 == answer.stdout_bytes
    await until(lambda: seen, "the output")
    assert ([frame], []) == (seen, strange)
    await reading.unsubscribe()


async def test_from_a_keystore_to_an_answer(market: MarketWorld, tmp_path: Path) -> None:
    settings = home.resolve({}, {"BAZAAR_HOME": str(tmp_path / "mine"), "BAZAAR_MARKET": market.world.url})
    with pytest.raises(IdentityError, match="no wallet here yet"):
        await open_client(settings, Role.BUYER)
    wallet = Keystore(settings.home, scrypt_n=1 << 10).create("default", Passphrases()).wallet
    job = a_job()
    async with await open_client(settings, Role.BUYER, job_ids=(job.job_id,)) as client:
        assert wallet.address == client.wallet
        assert (await client.submit(job, timeout_s=ANSWERED_S)).reason is None
    heard: list[SyncAnswer] = []
    async with await open_client(settings, Role.BUYER, job_ids=(job.job_id,), on_resync=heard.append) as again:
        assert client.session.key == again.session.key, "the session is kept"
        assert ["queued"] == [told.state for told in heard[0].jobs]


async def test_a_brought_session_needs_no_keystore(market: MarketWorld, tmp_path: Path) -> None:
    settings = home.resolve({}, {"BAZAAR_HOME": str(tmp_path / "bare"), "BAZAAR_MARKET": market.world.url})
    brought = session_of(1, Role.SELLER)
    async with await open_client(settings, Role.SELLER, session=brought) as client:
        assert brought.wallet == client.wallet
    SessionStore(settings.home, MARKET_ID).save(brought)
    async with await open_client(settings, Role.SELLER) as client:
        assert brought.key == client.session.key
    foreign = make_session(signer(1), "cd" * 32, Role.SELLER, now_ms=0)
    with pytest.raises(IdentityError, match="another market"):
        await open_client(settings, Role.SELLER, session=foreign)


async def test_nothing_sent_twice_is_taken_twice(market: MarketWorld) -> None:
    client = await market.client(session_of(1))
    await client.settled(ANSWERED_S)
    job = a_job()
    sent: list[bytes] = []
    publish = client._sender._publish
    client._sender._publish = lambda data: (sent.append(data), publish(data))[1]
    assert (await client.submit(job, timeout_s=ANSWERED_S)).reason is None
    for _ in range(5):
        await client.connection.publish(subjects.intake(client.wallet), sent[0])
    assert (await client.submit(a_job(), timeout_s=ANSWERED_S)).reason is None
    assert 2 == len(market.matcher.market.jobs)
