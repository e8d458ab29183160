"""What the ranks of a gang have in common, whoever asks: which submissions belong together, and where they meet. Pure.

A gang of K is K jobs, one for each rank, that share a group and are matched, stopped and tried again together.
"""

from __future__ import annotations

import hashlib

from events.codec import Malformed, decode_event
from events.jobs import JobSubmitted

GANG_BYTES_MAX = 16 * 1024 - 64
"""The submissions of a gang together: they travel in one signed message."""
PORT_FIRST, PORTS = 20_000, 10_000
"""Below the range from which Linux gives out ports by itself (32768 and above)."""
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
