"""Stays with a job until it ends: says why it waits, shows its output live, survives an absent market. Shell.

What is true about the job is asked of the market (`rpc.sync`) whenever something moved; the live feed only says when to ask.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

from buyer_cli import render, render_quote, render_usage
from buyer_cli.api_reads import Api
from buyer_cli.complaint import Complaint
from buyer_cli.job_news import news
from buyer_cli.output_reader import OutputReader
from buyer_cli.session import ask_quote
from buyer_cli.terminal import Terminal
from events import subjects, wire
from events.codec import Malformed
from events.errors import BazaarError, MarketUnreachable, Refused
from events.feed import Received
from events.jobs import JobSubmitted
from events.market_client import MarketClient
from events.nats_client import Message
from events.wire import OutputFrame, QuoteRequest, SyncJob

LOOK_S = {"queued": 3.0, "claimed": 2.0, "starting": 2.0}
LOOK_ELSE_S = 5.0
GIVE_UP_S = 600.0
"""How long an absent market is waited for."""
RETRY_S = 1.0


class Following(NamedTuple):
    """What a follower needs besides the job."""

    client: MarketClient
    api: Api
    terminal: Terminal
    reader: OutputReader | None
    """None: the output is not wanted."""
    quiet: bool = False
    looked: Callable[[SyncJob], None] | None = None
    """Told of the job at every look."""


class Follower:
    """Follows one job. `order` makes the reasons of a wait available."""

    def __init__(self, job_id: str, order: JobSubmitted | None, wants: Following, *, seen: SyncJob | None = None) -> None:
        """`seen`: what the person knows already; only what is new is told."""
        self.job_id = job_id
        self._order = order
        self._wants = wants
        self._moved = asyncio.Event()
        self._seen = seen
        self._told: dict[str, str] = {}
        self._live: Any = None
        self._live_subject = ""
        self._node_names: dict[str, str] = {}

    async def follow(self) -> SyncJob:
        """The job as it ended. Raises MarketUnreachable when the market stays away for ten minutes, Refused, Complaint."""
        self._wants.client.on_event(self._on_event)
        self._wants.client.on_resync(lambda answer: self._moved.set())
        try:
            while True:
                now = await self._patiently(self._look)
                self._moved.clear()
                await self._tell(now)
                await self._output(now)
                self._seen = now
                if self._wants.looked is not None:
                    self._wants.looked(now)
                if now.state in render.EXIT_CODES:
                    return now
                await self._tell_why(now)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._look_s(now)):
                        await self._moved.wait()
        finally:
            await self._listen("")

    # --- looking ---

    def _look_s(self, now: SyncJob) -> float:
        """How long until the next look; a run with short limits is looked at more often, or its warnings would come too late."""
        if now.state != "running":
            return LOOK_S.get(now.state, LOOK_ELSE_S)
        order = self._order
        limits_s = [now.timeout_s, *((order.idle_timeout_s, order.min_utilisation_window_s) if order is not None else ())]
        shortest_s: float = min(limit_s for limit_s in limits_s if limit_s)
        return max(1.0, min(LOOK_ELSE_S, shortest_s / 20))

    def _on_event(self, received: Received) -> None:
        if getattr(received.event, "job_id", None) == self.job_id:
            self._moved.set()

    async def _look(self) -> SyncJob:
        answer = await self._wants.client.sync(job_ids=(self.job_id,))
        if not answer.jobs:
            raise Complaint("unknown_job", f"The market does not tell of {self.job_id} any longer.", "", "bazaar ps -a", exit_code=3)
        return answer.jobs[0]

    async def _patiently(self, look: Callable[[], Any]) -> SyncJob:
        loop = asyncio.get_running_loop()
        started: float | None = None
        while True:
            try:
                found: SyncJob = await look()
                break
            except MarketUnreachable as error:
                if started is None:
                    started = loop.time()
                    self._note(
                        f"the market cannot be reached ({error.why or error.what}); {self.job_id} goes on without us, trying again ..."
                    )
                elif loop.time() - started > GIVE_UP_S:
                    hint = f"the job goes on; later: bazaar logs -f {self.job_id}"
                    raise MarketUnreachable(f"The market stayed away for {render.duration(GIVE_UP_S)}.", why=error.why, hint=hint) from None
                await asyncio.sleep(RETRY_S)
        if started is not None:
            self._note("the market is back")
        return found

    # --- telling ---

    def _note(self, text: str) -> None:
        if not self._wants.quiet:
            self._wants.terminal.note(text)

    async def _tell(self, now: SyncJob) -> None:
        if self._seen is not None and (self._seen.state, self._seen.epoch) == (now.state, now.epoch):
            return
        if self._wants.terminal.as_json and not self._wants.quiet:
            state = {
                "type": "state",
                "job": self.job_id,
                "state": now.state,
                "reason": now.reason,
                "attempt": now.attempt,
                "node": now.node_id,
            }
            self._wants.terminal.emit(state)
            return
        for sentence in news(self._seen, now, await self._node_name(now)):
            self._note(sentence)

    async def _node_name(self, now: SyncJob) -> str:
        node_id = now.node_id or ""
        if node_id and node_id not in self._node_names:
            try:
                node = await asyncio.to_thread(self._wants.api.get, f"/v1/nodes/{node_id}")
                self._node_names[node_id] = f"{render.text(node.get('name'))} ({node_id})"
            except (BazaarError, Complaint):
                return node_id
        return self._node_names.get(node_id, node_id)

    async def _tell_why(self, now: SyncJob) -> None:
        """Why it waits, what the node is doing, or what will end it soon; said when it has changed."""
        if not self._wants.quiet and now.state == "running":
            await self._tell_warning()
        if self._wants.quiet or self._wants.terminal.as_json:
            return
        text = ""
        if now.state == "queued" and self._order is not None:
            text = await self._reason_of_wait(self._order)
        elif now.state in ("claimed", "starting"):
            text = await self._from_api("phase")
        news = text.partition(", free in")[0]  # a countdown is no news
        if text and self._told.get(now.state) != news:
            self._told[now.state] = news
            self._note(text)

    async def _tell_warning(self) -> None:
        warning = await self._from_api("warning")
        kind = render_usage.warning_kind(warning)
        if warning and self._told.get("warning") != kind:
            words = warning.replace("JOB", self.job_id)
            if self._wants.terminal.as_json:
                self._wants.terminal.emit({"type": "warning", "job": self.job_id, "warning": words})
            else:
                self._note(f"warning: {words}")
        self._told["warning"] = kind  # what is taken back may come again

    async def _reason_of_wait(self, order: JobSubmitted) -> str:
        request = quote_request(order, submitted=True)
        try:
            answer = await ask_quote(self._wants.client, request)
        except (MarketUnreachable, Refused):
            return ""
        return f"waiting: {render_quote.waiting_sentence(answer)}"

    async def _from_api(self, name: str) -> str:
        try:
            job = await asyncio.to_thread(self._wants.api.get, f"/v1/jobs/{self.job_id}")
        except (BazaarError, Complaint):
            return ""
        return render.text(job[name]) if job.get(name) else ""

    # --- output ---

    async def _output(self, now: SyncJob) -> None:
        reader = self._wants.reader
        if reader is None or not now.attempt or not now.output_token:
            return
        ended = now.state in render.EXIT_CODES
        try:
            if reader.attempt and reader.attempt < now.attempt:
                await reader.catch_up(reader.attempt)
                self._note(f"attempt {now.attempt}: its output starts anew")
            await self._listen(
                "" if ended else subjects.output(now.node_wallet or "", self._wants.client.wallet, self.job_id, now.output_token)
            )
            if ended:
                left = await reader.drain(now.attempt, now.stdout_bytes, now.stderr_bytes)
                if left:
                    self._note(f"{render.data_size(left)} of output were not recorded (an attempt may write 50 MB)")
            else:
                await reader.catch_up(now.attempt)
        except MarketUnreachable:
            if ended:
                self._note(f"the output could not be read to its end; later: bazaar logs {self.job_id}")

    async def _listen(self, subject: str) -> None:
        """Hear the live output on exactly this subject: it names the node's wallet and a token that only the parties know."""
        if subject == self._live_subject:
            return
        if self._live is not None:
            await self._live.unsubscribe()
        self._live, self._live_subject = None, subject
        if subject:
            self._live = await self._wants.client.connection.subscribe(subject, self._on_live)

    def _on_live(self, message: Message) -> None:
        reader = self._wants.reader
        try:
            frame = wire.decode(message.data, OutputFrame)
        except Malformed:
            return
        if reader is not None:
            reader.take_live(frame)
            if reader.has_gap:
                self._moved.set()


def quote_request(order: JobSubmitted, *, submitted: bool) -> QuoteRequest:
    """The question of who could run this job; its place in the queue as well, once it is submitted."""
    return QuoteRequest(
        requirements=order.requirements,
        num_nodes=order.num_nodes,
        variants=order.variants,
        max_price_uusd_per_gpu_hour=order.max_price_uusd_per_gpu_hour,
        max_total_uusd=order.max_total_uusd,
        priority=order.priority,
        estimate_s=order.estimate_s,
        timeout_s=order.timeout_s,
        org_id=order.org_id,
        job_id=order.job_id if submitted else None,
    )
