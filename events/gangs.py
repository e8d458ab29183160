"""What the ranks of a gang have in common, whoever asks: which submissions belong together, and where they meet. Pure.

A gang of K is K jobs, one for each rank, that share a group and are matched, stopped and tried again together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from events.codec import Malformed, decode_event
from events.fact import Event
from events.jobs import JobSubmitted
from events.values import JobKind, Program

GANG_BYTES_MAX = 16 * 1024 - 64
"""The submissions of a gang together: they travel in one signed message."""
PORT_FIRST, PORTS = 20_000, 10_000
"""Below the range from which Linux gives out ports by itself (32768 and above)."""
NOTHING = Program()
_MARK = b"\xa9num_nodes"
"""How the field begins in msgpack; of jobs that are no gangs it is left out."""


def master_port(group_id: str, attempt: int) -> int:
    """Where rank 0 listens for the others. Every attempt has another port, so that nothing of the last one is met there."""
    digest = hashlib.sha256(f"{group_id} {attempt}".encode()).digest()
    return PORT_FIRST + int.from_bytes(digest[:4], "big") % PORTS


def ranks_from(body: bytes) -> int:
    """How many events, from this one on, are the ranks of one gang; 1 for any other event."""
    if _MARK not in body:
        return 1
    try:
        event = decode_event(body)
    except Malformed:
        return 1
    return event.num_nodes if isinstance(event, JobSubmitted) and event.rank == 0 else 1


def fault(events: Sequence[Event], number: int) -> str:
    """Why these events are not the ranks of one gang of so many; empty when they are."""
    first = events[0] if events else None
    if not isinstance(first, JobSubmitted) or len(events) != number or first.group_id is None:
        return "the ranks of a gang have a group and come together in one message"
    if first.kind is not JobKind.BATCH or first.variants or first.requirements.target_node is not None:
        return "a gang is of batch jobs, with neither target nor variants"
    common = _common(first)
    for rank, event in enumerate(events):
        if not isinstance(event, JobSubmitted) or event.rank != rank or _common(event) != common:
            return "the ranks of a gang come one after the other, from 0 on, and ask for the same"
    if len({event.job_id for event in events if isinstance(event, JobSubmitted)}) < number:
        return "two ranks of the gang have one job id"
    return ""


def _common(event: JobSubmitted) -> JobSubmitted:
    """What is the same for all ranks: everything but what each of them runs and what it is called."""
    return msgspec.structs.replace(event, job_id="", rank=0, name="", labels={}, program=NOTHING)
