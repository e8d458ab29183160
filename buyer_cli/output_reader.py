"""A job's output from the record and the live feed, each byte once and in order. Shell around `output_merge.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from buyer_cli.output_merge import STDERR, STDOUT, OutputMerge, Piece
from events.errors import Refused
from events.reasons import Refusal
from events.wire import FilesAnswer, FilesRequest, OutputFrame

AskFiles = Callable[[FilesRequest], Awaitable[FilesAnswer]]
Show = Callable[[Piece], None]
DRAIN_S = 10.0
"""How long the record may lag behind what the node says it has shipped."""
POLL_S = 0.1


class OutputReader:
    """Shows the output of a job's attempts as they come; `show` gets each piece once."""

    def __init__(self, ask: AskFiles, job_id: str, show: Show) -> None:
        self._ask = ask
        self._job_id = job_id
        self._show = show
        self._merge = OutputMerge()
        self._cursor = 0
        self.attempt = 0

    @property
    def has_gap(self) -> bool:
        """Whether a live piece went missing: then `catch_up` is due."""
        return self._merge.has_gap

    def show_with(self, show: Show) -> None:
        """Show what comes from now on elsewhere."""
        self._show = show

    def take_live(self, frame: OutputFrame) -> None:
        """A frame of the live feed. Frames of other attempts are left to the record."""
        if frame.attempt == self.attempt:
            for chunk in frame.chunks:
                self._show_all(self._merge.add(chunk.channel, chunk.offset, chunk.data))

    async def catch_up(self, attempt: int) -> None:
        """Show everything recorded of this attempt that has not been shown. Raises Refused, MarketUnreachable."""
        if attempt != self.attempt:
            self._merge, self._cursor, self.attempt = OutputMerge(), 0, attempt
        while True:
            answer = await self._ask(FilesRequest(op="output", job_id=self._job_id, attempt=attempt, cursor=self._cursor))
            if answer.failure is not None:
                raise Refused(Refusal(answer.failure.code), answer.failure.detail)
            for chunk in answer.chunks:
                self._show_all(self._merge.add(chunk.channel, chunk.offset, chunk.data))
            if not answer.chunks:
                return
            self._cursor = answer.cursor

    async def drain(self, attempt: int, stdout_bytes: int, stderr_bytes: int) -> int:
        """Read an ended attempt to its last byte; how many bytes never came to the record."""
        await self.catch_up(attempt)
        deadline = asyncio.get_running_loop().time() + DRAIN_S
        while (left := self._left(stdout_bytes, stderr_bytes)) > 0 and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(POLL_S)
            await self.catch_up(attempt)
        return left

    def _left(self, stdout_bytes: int, stderr_bytes: int) -> int:
        return max(0, stdout_bytes - self._merge.shown(STDOUT)) + max(0, stderr_bytes - self._merge.shown(STDERR))

    def _show_all(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            self._show(piece)
