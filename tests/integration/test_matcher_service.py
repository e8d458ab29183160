"""The matcher as the process that it is: killed, doubled, cut off from its broker, on a full disk. No acknowledged event is lost.

Each test ends with the ledger read back from its first page: what was acknowledged stands in it once, and the digest of that replay is the
one that the live matcher names.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from integration.broker_env import MARKET_ID, World, now_ms, until, world
from integration.market_env import a_job, session_of, signer

from events.jobs import JobSubmitted
from events.market import MatcherStarted, Policy
from events.market_client import MarketClient
from events.nats_client import Message
from events.nats_log import NatsLog
from events.streams import FILES, OUTPUT
from events.subjects import LIVE_MARKET
from events.ticket import Ticket
from events.wire import Outcome
from projections import snapshot
from services import broker, genesis, verify
from services.broker import Place
from services.follower import Follower
from services.processes import MarketFolder

__all__ = ["world"]  # the fixture

AT_APPEND = """
import os
from events.nats_log import NatsLog
real, appends = NatsLog.append, [0]
async def append(self, data, expected):
    appends[0] += 1
    if appends[0] == {number} and "before" == {moment!r}:
        os.kill(os.getpid(), 9)
    position = await real(self, data, expected)
    if appends[0] == {number}:
        os.kill(os.getpid(), 9)
    return position
NatsLog.append = append
"""
"""Runs before the matcher's own code: it dies at the n-th append of its life, as if `kill -9` had come just then."""

HASTY = """
from services.matcher import service
service.TICK_S, service.STANDBY_AFTER_S = 0.3, 2.0
"""

RESERVES_NOTHING = """
from events.streams import FILES, OUTPUT
OUTPUT["max_bytes"] = FILES["max_bytes"] = -1
"""

CLOCK = """
from services.matcher.service import PageClock
real = PageClock.now_ms
PageClock.now_ms = lambda self: real(self) + {ahead_ms}
"""


class MatcherProcess:
    """`bazaar-market matcher` as a child, with its own words in a file."""

    def __init__(self, url: str, home: Path, number: int, *, prelude: str = "", options: Iterable[str] = ()) -> None:
        self.words = home / f"matcher-{number}.err"
        program = ["-c", f"{prelude}\nfrom services.cli import main\nmain()"] if prelude else ["-m", "services"]
        with self.words.open("wb") as words:
            self.process = subprocess.Popen(
                [sys.executable, *program, "matcher", "--broker", url, *options],
                env={**os.environ, "BAZAAR_HOME": str(home)},
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    async def ended(self, timeout_s: float = 30.0) -> int:
        """Its exit code, once it has ended by itself."""
        try:
            await until(lambda: self.process.poll() is not None, "the matcher ends", timeout_s)
        except AssertionError:
            raise AssertionError(f"the matcher has not ended within {timeout_s} s; it said: {self.said()[-2000:]}") from None
        return int(self.process.returncode)

    async def stop(self) -> int:
        self.process.terminate()
        return await self.ended()

    def said(self) -> str:
        return self.words.read_text(errors="replace")


class Stage:
    """A broker, a home with a market's keys and genesis, and matchers and buyers that come and go."""

    def __init__(self, world: World, home: Path) -> None:
        self.world = world
        self.home = home
        self.folder = MarketFolder(home)
        self.leaders: list[int] = []
        """Process ids, as the ticks of the market named them."""
        self._matchers: list[MatcherProcess] = []
        self._buyers: list[MarketClient] = []
        root = signer(999)
        made = genesis.create(
            root=root.address,
            sign=root.sign_text,
            name="tests",
            matcher_key=bytes(world.keys.page_key.verify_key),
            policy=Policy(max_queue=100_000),
            random=bytes(16),
            now_ms=now_ms(),
        )
        genesis.save(msgspec.structs.replace(made, market_id=MARKET_ID), self.folder.genesis)

    async def watch(self) -> Stage:
        await self.world.services.subscribe(LIVE_MARKET, self._on_tick)
        return self

    def _on_tick(self, message: Message) -> None:
        self.leaders.append(int((message.headers or {})["Matcher"].split(".")[0]))

    def start(self, *, prelude: str = "", options: Iterable[str] = ()) -> MatcherProcess:
        """A matcher that may not lead yet."""
        matcher = MatcherProcess(self.world.url, self.home, len(self._matchers), prelude=prelude, options=options)
        self._matchers.append(matcher)
        return matcher

    async def leading(self, matcher: MatcherProcess, timeout_s: float = 30.0) -> MatcherProcess:
        """Returns when this matcher says where the ledger stands: the first thing that a leader does."""
        await until(
            lambda: matcher.pid in self.leaders or matcher.process.poll() is not None,
            f"{matcher.pid} leads, of {self.leaders}",
            timeout_s,
        )
        assert matcher.process.poll() is None, matcher.said()
        return matcher

    async def matcher(self, **how: Any) -> MatcherProcess:
        return await self.leading(self.start(**how))

    async def buyer(self, number: int) -> MarketClient:
        buyer = MarketClient(self.world.url, session_of(number), self.home / f"buyer-{number}", name=f"buyer {number}")
        self._buyers.append(buyer)
        return await buyer.start(wait_s=20.0)

    async def ledger(self) -> list[Any]:
        """Every record, checked page by page and folded without one that has no effect."""
        follower, records = Follower(), []
        await follower.catch_up(NatsLog(self.world.services), lambda _, __, folded: records.extend(record for record, _ in folded))
        assert {} == follower.void
        assert list(range(1, len(records) + 1)) == [record.seq for record in records]
        return records

    async def agrees(self) -> dict[str, Any]:
        """`bazaar-market verify-log`: the replay is what the live matcher holds."""
        found = await verify.verify(self.folder, self.world.url)
        assert found["agrees"] and not found["void"], found
        return found

    async def stands_once(self, sent: list[Sent]) -> None:
        """Every submission was acknowledged, with the one place in the ledger that it has."""
        submitted: dict[str, list[int]] = {}
        for record in await self.ledger():
            if isinstance(record.event, JobSubmitted):
                submitted.setdefault(record.event.job_id, []).append(record.seq)
        assert {one.job_id: [one.outcome.seq] for one in sent} == submitted
        assert {None} == {one.outcome.reason for one in sent}

    async def close(self) -> None:
        for buyer in self._buyers:
            await buyer.close()
        for matcher in self._matchers:
            if matcher.process.poll() is None:
                matcher.kill()


class Sent:
    """A submission and its answer."""

    def __init__(self, job: JobSubmitted, ticket: Ticket, told: Callable[[Outcome], None]) -> None:
        self.job_id = job.job_id
        self.ticket = ticket
        ticket.on_outcome(told)

    @property
    def outcome(self) -> Outcome:
        assert self.ticket.outcome is not None, f"{self.job_id} was never answered"
        return self.ticket.outcome


class Traffic:
    """Buyers that all have something to say, and who has been answered."""

    def __init__(self, buyers: list[MarketClient]) -> None:
        self._buyers = buyers
        self.sent: list[Sent] = []
        self.answered = 0

    def submit(self, each: int) -> None:
        """So many jobs from every buyer, at once."""
        for buyer in self._buyers:
            jobs = [a_job() for _ in range(each)]
            self.sent += [Sent(job, ticket, self._told) for job, ticket in zip(jobs, buyer.enqueue(*jobs), strict=True)]

    def _told(self, outcome: Outcome) -> None:
        self.answered += 1

    async def flow(self, over: Callable[[], bool]) -> None:
        """A few more jobs whenever a few were answered, until it is over: every turn of a matcher finds something to write."""
        while not over():
            if len(self.sent) - self.answered < 20:
                self.submit(3)
            await asyncio.sleep(0.002)

    async def answers(self, count: int | None = None, timeout_s: float = 60.0) -> None:
        """Returns when so many have their answer; without a number, everybody."""
        wanted = len(self.sent) if count is None else count
        await until(lambda: self.answered >= wanted, f"{wanted} answers", timeout_s)


@pytest.fixture
async def stage(world: World, tmp_path: Path) -> AsyncIterator[Stage]:
    made = Stage(world, tmp_path)
    await made.watch()
    try:
        yield made
    finally:
        await made.close()


# --- killed ---


async def test_whatever_a_killed_matcher_had_acknowledged_stands_in_the_ledger_once(stage: Stage) -> None:
    matcher = await stage.matcher()
    traffic = Traffic([await stage.buyer(number) for number in (1, 2, 3)])
    traffic.submit(500)
    for enough in (100, 400, 900):
        await traffic.answers(enough)
        matcher.kill()
        matcher = await stage.matcher()
    await traffic.answers()
    await stage.stands_once(traffic.sent)
    await stage.agrees()


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_matcher_killed_at_each_of_its_first_appends_loses_nothing_and_doubles_nothing(stage: Stage, moment: str) -> None:
    first = await stage.matcher()
    traffic = Traffic([await stage.buyer(1)])
    first.kill()
    for number in (1, 2, 3, 4):
        fatal = stage.start(prelude=AT_APPEND.format(number=number, moment=moment))
        flowing = asyncio.create_task(traffic.flow(lambda: fatal.process.returncode is not None))  # noqa: B023
        assert -signal.SIGKILL == await fatal.ended()
        await flowing
    await stage.matcher()
    await traffic.answers()
    await stage.stands_once(traffic.sent)
    await stage.agrees()
    starts = [record for record in await stage.ledger() if isinstance(record.event, MatcherStarted)]
    assert {"before": 1 + 3 + 1, "after": 1 + 4 + 1}[moment] == len(starts)


async def test_an_event_sent_again_after_a_kill_is_answered_with_the_place_that_it_has(stage: Stage) -> None:
    """The page was durable, the matcher died before it told anybody: the buyer hears the same place from the next one."""
    (await stage.matcher()).kill()
    fatal = stage.start(prelude=AT_APPEND.format(number=2, moment="after"))
    await stage.leading(fatal)
    buyer = MarketClient(stage.world.url, session_of(1), stage.home / "buyer", name="buyer")
    starting = asyncio.create_task(buyer.start(wait_s=60.0))
    assert -signal.SIGKILL == await fatal.ended()
    before = len(await stage.ledger())
    await stage.matcher()
    await starting
    try:
        outcome = await buyer.submit(a_job(), timeout_s=20)
    finally:
        await buyer.close()
    kinds = [type(record.event).__name__ for record in await stage.ledger()]
    assert 1 == kinds.count("SessionKeyAuthorised") == kinds[:before].count("SessionKeyAuthorised")
    assert len(kinds) == outcome.seq


# --- two of them ---


async def test_of_two_matchers_one_leads_and_nothing_is_lost_or_doubled(stage: Stage) -> None:
    first = await stage.matcher(prelude=HASTY)
    traffic = Traffic([await stage.buyer(number) for number in (1, 2)])
    traffic.submit(300)
    await traffic.answers(50)
    second = await stage.matcher(prelude=HASTY)
    await until(lambda: "standing by" in first.said(), "the first one stands by")
    traffic.submit(300)
    await traffic.answers()
    since = len(stage.leaders)
    await until(lambda: len(stage.leaders) > since + 3, "a few ticks")
    assert {second.pid} == set(stage.leaders[since:])
    assert first.process.poll() is None
    await stage.stands_once(traffic.sent)
    await stage.agrees()


async def test_a_standby_leads_when_the_leader_is_killed_and_not_before(stage: Stage) -> None:
    first = await stage.matcher(prelude=HASTY)
    second = stage.start(prelude=HASTY, options=["--standby"])
    traffic = Traffic([await stage.buyer(1)])
    traffic.submit(50)
    await traffic.answers()
    await until(lambda: len(stage.leaders) > 12, "more ticks than a standby's patience has")
    assert {first.pid} == set(stage.leaders)
    first.kill()
    traffic.submit(50)
    await stage.leading(second)
    await traffic.answers()
    await stage.stands_once(traffic.sent)
    await stage.agrees()


# --- the broker dies ---


async def test_a_matcher_outlives_its_broker_and_goes_on_where_the_ledger_ends(stage: Stage) -> None:
    matcher = await stage.matcher()
    traffic = Traffic([await stage.buyer(number) for number in (1, 2)])
    traffic.submit(1000)
    for enough in (100, 1000):
        await traffic.answers(enough)
        await stage.world.restart_broker()
    await traffic.answers()
    assert matcher.process.poll() is None
    await stage.world.services.wait_up(30)
    await stage.stands_once(traffic.sent)
    await stage.agrees()


# --- clocks ---


async def test_a_clock_behind_the_ledger_is_named_and_nothing_is_written(stage: Stage) -> None:
    ahead = await stage.matcher(prelude=CLOCK.format(ahead_ms=3_600_000))
    await ahead.stop()
    pages = await stage.world.stored("LEDGER")
    late = stage.start()
    assert 0 < await late.ended()
    assert re.search(r"clock.* behind", late.said(), re.IGNORECASE)
    assert "Traceback" not in late.said()
    assert pages == await stage.world.stored("LEDGER")


async def test_a_clock_a_little_behind_the_ledger_waits_for_it_instead_of_running_backwards(stage: Stage) -> None:
    ahead = await stage.matcher(prelude=CLOCK.format(ahead_ms=1500))
    await ahead.stop()
    await stage.matcher()
    times_ms = [record.time_ms for record in await stage.ledger()]
    assert sorted(times_ms) == times_ms


# --- snapshots ---


def how_it_began(matcher: MatcherProcess) -> str:
    """What the matcher said that it did with its snapshot."""
    [line] = [line for line in matcher.said().splitlines() if "ledger folded" in line]
    return line


async def with_a_snapshot(stage: Stage) -> bytes:
    """A market whose matcher has ended in order, after which more happened; the snapshot of the first part."""
    matcher = await stage.matcher()
    traffic = Traffic([await stage.buyer(1)])
    traffic.submit(100)
    await traffic.answers()
    assert 0 == await matcher.stop()
    matcher = await stage.matcher()
    traffic.submit(50)
    await traffic.answers()
    matcher.kill()
    data = stage.folder.snapshot.read_bytes()
    assert 100 < snapshot.restore(data, (await NatsLog(stage.world.services).head()).created).last_seq < len(await stage.ledger())
    return data


async def test_snapshot_and_tail_make_the_market_that_a_full_replay_makes(stage: Stage) -> None:
    await with_a_snapshot(stage)
    matcher = await stage.matcher()
    assert "snapshot at page" in how_it_began(matcher)
    await stage.agrees()


async def other_log(stage: Stage, data: bytes) -> bytes:
    """The same market's snapshot, of another stream."""
    created = (await NatsLog(stage.world.services).head()).created
    return snapshot.take(snapshot.restore(data, created), "2020-01-01T00:00:00Z")


async def other_page(stage: Stage, data: bytes) -> bytes:
    """A snapshot of this log that ends in a page which this log does not have there."""
    created = (await NatsLog(stage.world.services).head()).created
    market = snapshot.restore(data, created)
    market.page_hash = bytes(32)
    return snapshot.take(market, created)


async def flipped(_: Stage, data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


async def halved(_: Stage, data: bytes) -> bytes:
    return data[: len(data) // 2]


async def emptied(_: Stage, data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("spoil", [other_log, other_page, flipped, halved, emptied])
async def test_a_snapshot_that_is_not_this_ledgers_is_left_aside(stage: Stage, spoil: Callable[[Stage, bytes], Any]) -> None:
    stage.folder.snapshot.write_bytes(await spoil(stage, await with_a_snapshot(stage)))
    matcher = await stage.matcher()
    assert "replaying the whole ledger" in how_it_began(matcher)
    await stage.agrees()


async def test_a_ledger_that_has_become_shorter_than_its_snapshot_is_never_continued(stage: Stage) -> None:
    """Somebody put an older copy of the store in its place: only an operator may go on from there."""
    (await stage.matcher()).kill()
    created = (await NatsLog(stage.world.services).head()).created
    follower = Follower()
    await follower.catch_up(NatsLog(stage.world.services))
    follower.market.pages += 5
    stage.folder.snapshot.write_bytes(snapshot.take(follower.market, created))
    pages = await stage.world.stored("LEDGER")
    matcher = stage.start()
    assert 0 < await matcher.ended()
    assert "shorter" in matcher.said() or "ends at page" in matcher.said()
    assert pages == await stage.world.stored("LEDGER")


# --- no room ---

DISK_MIB = 24
AS_ROOT = [] if os.geteuid() == 0 else ["sudo", "-n"]


async def staged(home: Path) -> AsyncIterator[Stage]:
    """A stage on a broker that is started only now."""
    world = World(home / "market")
    stage: Stage | None = None
    try:
        await world.start()
        stage = await Stage(world, home).watch()
        yield stage
    finally:
        if stage is not None:
            await stage.close()
        await world.stop()


@pytest.fixture
async def small_disk(tmp_path: Path) -> AsyncIterator[Stage]:
    """A stage whose store lies on a disk of its own, with little room."""
    store = Place(tmp_path / "market").store
    store.mkdir(parents=True)
    size = f"size={DISK_MIB}m,uid={os.getuid()},mode=0700"
    mounted = subprocess.run([*AS_ROOT, "mount", "-t", "tmpfs", "-o", size, "tmpfs", store], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"a disk of its own cannot be mounted here: {mounted.stderr.strip()}")
    try:
        async for stage in staged(tmp_path):
            yield stage
    finally:
        subprocess.run([*AS_ROOT, "umount", store], check=True)


@pytest.fixture
async def small_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    """A stage whose broker may keep little; once the monkeypatch is undone, its next start gives it more."""
    shipped = broker.configuration().read_text()
    small = tmp_path / "small.conf"
    small.write_text(re.sub(r"max_file_store: \S+", "max_file_store: 60KB", shipped))
    monkeypatch.setattr(broker, "configuration", lambda: small)
    for stream in (OUTPUT, FILES):
        monkeypatch.setitem(stream, "max_bytes", -1)
    async for stage in staged(tmp_path):
        yield stage


async def test_on_a_full_disk_nothing_is_acknowledged_and_with_room_again_everything_is(small_disk: Stage) -> None:
    """nats-server stops a stream whose write has failed until it is started again: that is measured, and asserted here by its end."""
    stage, store = small_disk, small_disk.world.place.store
    matcher = await stage.matcher()
    traffic = Traffic([await stage.buyer(1)])
    traffic.submit(100)
    await traffic.answers()
    ballast = store / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    pages = await stage.world.stored("LEDGER")
    traffic.submit(100)
    await until(lambda: "no space left" in stage.world.place.log.read_text(), "the broker has met the end of its disk")
    await until(lambda: "the ledger does not answer" in matcher.said(), "the matcher says that it cannot go on")
    assert 100 == traffic.answered
    assert pages == await stage.world.stored("LEDGER")
    ballast.unlink()
    await stage.world.restart_broker()
    await traffic.answers()
    assert matcher.process.poll() is None
    await stage.world.services.wait_up(30)
    await stage.stands_once(traffic.sent)
    await stage.agrees()


async def test_on_a_used_up_quota_the_broker_refuses_at_once_and_what_was_refused_is_appended_when_there_is_room(
    small_quota: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = small_quota
    matcher = await stage.matcher(prelude=RESERVES_NOTHING)
    traffic = Traffic([await stage.buyer(1)])
    traffic.submit(2000)
    await until(lambda: re.search(r"(resources|storage).*\(100\d\d\)", matcher.said()), "the matcher says what the broker refuses")
    known = traffic.answered
    assert 0 < known < 2000
    submitted = sum(isinstance(record.event, JobSubmitted) for record in await stage.ledger())
    assert submitted == traffic.answered == known
    monkeypatch.undo()
    await stage.world.restart_broker()
    await traffic.answers()
    await stage.world.services.wait_up(30)
    await stage.stands_once(traffic.sent)
    await stage.agrees()
