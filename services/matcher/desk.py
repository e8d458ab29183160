"""Where what arrives is laid until the next turn takes it: signed messages, heartbeats, questions about the fold.

Shell. Callbacks of the connection only put things down here; nothing is decided and nothing answered between turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from events import wire
from events.codec import Malformed
from events.connection import Connection
from events.nats_client import Message
from events.streams import Intake
from services.matcher.admission import Arrival
from services.matcher.turn import ARRIVALS_MAX, BeatArrival

Answer = Callable[[Message], bytes]


class Desk:
    """Takes things in while `is_open`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._arrivals: list[tuple[Arrival, int]] = []
        self._beats: list[tuple[BeatArrival, Message]] = []
        self._questions: list[tuple[Answer, Message]] = []
        self._woken = asyncio.Event()
        self.intake = Intake(connection, self._on_intake)
        self.is_open = False

    async def listen(self, questions: dict[str, Answer]) -> None:
        """Subscribe to heartbeats and to these questions (subject -> how to answer).

        Where an answer goes cannot be seen here: a wallet's question comes through the account's import, which names a reply of its own.
        So no answer holds bytes that the asker chose, and feeds are named by a token that it does not know.
        """
        await self._connection.subscribe("rpc.beat.*", self._on_beat)
        for subject, answer in questions.items():
            await self._connection.subscribe(subject, self._asker(answer))

    def clear(self) -> None:
        """Forget what was laid down for a market that is no longer this one; who sent it will send again."""
        self._arrivals.clear()
        self._beats.clear()
        self._questions.clear()

    def wake(self) -> None:
        """End the present wait."""
        self._woken.set()

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not (self._arrivals or self._beats or self._questions)

    async def wait(self, timeout_s: float) -> None:
        """Until something is laid down, `wake` is called or the time is over."""
        self._woken.clear()
        if self.is_empty:
            with suppress(TimeoutError):  # wait_for of 3.11 can swallow a cancellation; this cannot
                async with asyncio.timeout(timeout_s):
                    await self._woken.wait()

    def take_arrivals(self) -> list[tuple[Arrival, int]]:
        """As many messages as one turn takes, each with its position in the intake."""
        taken, self._arrivals = self._arrivals[:ARRIVALS_MAX], self._arrivals[ARRIVALS_MAX:]
        return taken

    def take_beats(self) -> list[tuple[BeatArrival, Message]]:
        """All heartbeats, each with the question to answer."""
        taken, self._beats = self._beats, []
        return taken

    def take_questions(self) -> list[tuple[Answer, Message]]:
        """All questions, each with how to answer it."""
        taken, self._questions = self._questions, []
        return taken

    def _on_intake(self, position: int, subject: str, data: bytes) -> None:
        if not self.is_open:
            return  # another matcher leads: it gets the same message, and whoever sent it sends again
        self._arrivals.append((Arrival(subject.partition(".")[2], data), position))
        self._woken.set()

    def _on_beat(self, message: Message) -> None:
        if self.is_open and message.reply:
            with suppress(Malformed):
                beat = wire.decode(message.data, wire.Beat)
                self._beats.append((BeatArrival(message.subject.rpartition(".")[2], beat), message))
                self._woken.set()

    def _asker(self, answer: Answer) -> Callable[[Message], None]:
        def ask(message: Message) -> None:
            if self.is_open and message.reply:
                self._questions.append((answer, message))
                self._woken.set()

        return ask
