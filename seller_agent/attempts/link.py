"""What the agent needs of a market, as few verbs as possible; `events/market_client.py` is one."""

from __future__ import annotations

from typing import Protocol, TypeVar

from events.fact import Event
from events.session import Session
from events.ticket import Ticket
from events.wire import FilesAnswer, FilesRequest, OutputAnswer, OutputFrame, SyncAnswer

T = TypeVar("T")


class Market(Protocol):
    """The market as seen by one node. Questions raise MarketUnreachable, and Refused when the market says no."""

    @property
    def wallet(self) -> str:
        """Whose node this is."""

    @property
    def session(self) -> Session:
        """The key that speaks for that wallet now."""

    def enqueue(self, *events: Event) -> list[Ticket]:
        """Send events, in order, durably; a ticket each."""

    async def settled(self, timeout_s: float) -> None:
        """Return when everything sent is answered."""

    async def sync(self, *, node_id: str | None) -> SyncAnswer:
        """Where the wallet and this node stand in the ledger."""

    async def ask(self, verb: str, request: object, answer_type: type[T], timeout_s: float) -> T:
        """The answer to `rpc.<verb>`."""

    async def ask_files(self, request: FilesRequest) -> FilesAnswer:
        """A question to the file store."""

    async def publish_output(self, buyer: str, job_id: str, token: str, frame: OutputFrame, timeout_s: float) -> OutputAnswer:
        """Write a job's output; the answer says how far it is recorded."""
