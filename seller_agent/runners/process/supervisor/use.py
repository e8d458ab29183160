"""What the processes of one run use, read from /proc: standard library only, copied to other machines.

Memory that processes share is counted once, as far as the kernel tells cheaply; a process that vanished meanwhile counts for nothing, and
what an ended one used is in its parent's count, or was noted when it was reaped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from seller_agent.runners.process.supervisor.proc import read_bytes
from seller_agent.runners.process.supervisor.run import Message, Run

TICK_MS = 1000 // os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def measure(run: Run, pids: Iterable[int]) -> Message:
    """Processor time so far, memory now and at its highest, of these processes of the run."""
    cpu_ms, own, shared, alive = run.reaped_cpu_ms, 0, 0, []
    for pid in sorted(pids):
        stat, pages = read_bytes(f"/proc/{pid}/stat"), read_bytes(f"/proc/{pid}/statm").split()
        if not stat or len(pages) < 3:
            continue
        fields = stat[stat.rindex(b")") + 2 :].split()
        cpu_ms += sum(int(ticks) for ticks in fields[11:15]) * TICK_MS  # its own, and that of children it has waited for
        own += int(pages[1]) - int(pages[2])
        shared = max(shared, int(pages[2]))
        alive.append(pid)
    run.cpu_ms = max(run.cpu_ms, cpu_ms)
    memory_mib = (own + shared) * PAGE >> 20
    run.peak_memory_mib = max(run.peak_memory_mib, memory_mib)
    return {"cpu_ms": run.cpu_ms, "memory_mib": memory_mib, "peak_memory_mib": run.peak_memory_mib, "pids": alive}
