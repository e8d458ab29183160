"""A gang on the buyer's side: one job for each rank, submitted together, and shown together with the rank before every line. Shell."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence

import msgspec

from buyer_cli.complaint import USAGE, Complaint
from buyer_cli.terminal import Terminal
from events import ids
from events.codec import encode_event
from events.errors import MarketUnreachable
from events.fact import Event
from events.gangs import GANG_BYTES_MAX
from events.jobs import JobSubmitted
from events.market_client import MarketClient
from events.wire import Outcome


def ranks_of(order: JobSubmitted) -> list[JobSubmitted]:
    """The job itself, or one for each rank of a gang. Raises Complaint when they do not fit into one message together."""
    if order.num_nodes == 1:
        return [order]
    new, group_id = msgspec.structs.replace, ids.group_id(secrets.token_bytes(12))
    first = new(order, group_id=group_id, rank=0)
    others = [new(first, rank=rank, job_id=ids.job_id(secrets.token_bytes(12))) for rank in range(1, order.num_nodes)]
    size = sum(len(encode_event(rank)) for rank in (first, *others))
    if size > GANG_BYTES_MAX:
        what = f"The submissions of {order.num_nodes} ranks have {size} bytes together."
        why = f"They travel in one signed message, which takes {GANG_BYTES_MAX}."
        raise Complaint("too_large", what, why, "put arguments and variables into a file (--in), or take fewer nodes", exit_code=USAGE)
    return [first, *others]


async def submit_together(client: MarketClient, orders: Sequence[Event], timeout_s: float) -> list[Outcome]:
    """The market's answers to what is said of all ranks. Raises MarketUnreachable."""
    if len(orders) == 1:
        return [await client.submit(orders[0], timeout_s)]
    tickets = client.enqueue(*orders)
    try:
        async with asyncio.timeout(timeout_s):
            return [await ticket for ticket in tickets]
    except TimeoutError:
        withdrawn = [ticket.withdraw() for ticket in tickets]
        why = "nothing was sent" if all(withdrawn) else "it was sent, but not answered; it is sent again until it is"
        raise MarketUnreachable(why=why, hint="The market may be restarting; look again later.") from None


class RankTerminal(Terminal):
    """The terminal as one rank sees it: whole lines, each with the rank before it."""

    def __init__(self, terminal: Terminal, rank: int, ranks: int) -> None:
        super().__init__(terminal.as_json)
        self._terminal = terminal
        self._rank = rank
        self._mark = f"[{rank:>{len(str(ranks - 1))}}] "
        self._begun: dict[bool, str] = {False: "", True: ""}

    @property
    def is_interactive(self) -> bool:
        """Several ranks share the terminal: nobody is asked, and nothing moves on it."""
        return False

    def output(self, text: str, stderr: bool = False) -> None:
        """Keeps back what is not a whole line yet."""
        *lines, self._begun[stderr] = (self._begun[stderr] + text).split("\n")
        for line in lines:
            self._terminal.output(f"{self._mark}{line}\n", stderr)

    def raw_output(self, data: bytes, stderr: bool = False) -> None:
        """The same, for bytes that are shown as they are."""
        self.output(data.decode(errors="surrogateescape"), stderr)

    def emit(self, value: object) -> None:
        """With the rank in it."""
        self._terminal.emit({**value, "rank": self._rank} if isinstance(value, dict) else value)

    def note(self, text: str) -> None:
        """With the rank before it."""
        if text:
            self._terminal.note(self._mark + text)

    def finish(self) -> None:
        """Show the last lines although they have no end."""
        for stderr, text in self._begun.items():
            if text:
                self._begun[stderr] = ""
                self._terminal.output(f"{self._mark}{text}\n", stderr)
