"""The same no-op jobs on this market, on HyperQueue, on Dask and on Slurm, by turns in one run, and this market's other targets; the whole
goes to docs/benchmarks.md.

Peers that are not installed are left out and named: HyperQueue and Dask in an environment whose interpreter --python names, Slurm from the
distribution's packages (and only for root, who may start its daemons).
Run: `python benchmarks/against_peers.py --python PYTHON --write` on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from peers import this_market
from peers.page import DASK, HYPERQUEUE, OURS, SBATCH, SRUN, Figures, against, aims_table, alone, cpu_words, peers_table

HERE = Path(__file__).resolve().parent
DOCUMENT = HERE.parent / "docs" / "benchmarks.md"
PEER_S = 1200
QUIET = 0.5

STARTS, DRAINED, FEW_QUEUED, MANY_QUEUED = 200, 2_000, 10_000, 100_000
SLURM_STARTS, SLURM_DRAINED_8, SLURM_DRAINED_64 = 20, 100, 400


class Work(NamedTuple):
    """What a system is asked for."""

    what: str
    counts: tuple[int, ...]


class System(NamedTuple):
    """One of those compared, and its work by the name of the figure."""

    name: str
    measure: Callable[..., Any]
    works: dict[str, Work]


WORKS = {
    "start": Work("start", (STARTS,)),
    "drain 8": Work("drain", (DRAINED, 8)),
    "drain 64": Work("drain", (DRAINED, 64)),
    "10k": Work("queue", (FEW_QUEUED,)),
    "100k": Work("queue", (MANY_QUEUED,)),
}
SBATCH_WORKS = {
    "start": Work("start", (SLURM_STARTS,)),
    "drain 8": Work("drain", (SLURM_DRAINED_8, 8)),
    "drain 64": Work("drain", (SLURM_DRAINED_64, 64)),
    "10k": Work("queue", (FEW_QUEUED,)),
}
SRUN_WORKS = {"start": Work("start_srun", (SLURM_STARTS,))}


def peer(script: str, python: str) -> Callable[..., Any]:
    """How a peer's script is asked for a figure."""

    def measure(what: str, *counts: int) -> Any:
        command = [python, str(HERE / "peers" / script), what, *map(str, counts)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PEER_S)
        if done.returncode:
            raise SystemExit(f"{script} {what}: {done.stderr[-2000:]}")
        return json.loads(done.stdout.strip().splitlines()[-1])

    return measure


def systems(python: str) -> tuple[list[System], list[str]]:
    """What can be compared here, and what is missing."""
    found, missing = [System(OURS, this_market.measure, WORKS)], []
    for name, module, script in ((HYPERQUEUE, "hyperqueue", "hyperqueue_peer.py"), (DASK, "distributed", "dask_peer.py")):
        if subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 0:
            found.append(System(name, peer(script, python), WORKS))
        else:
            missing.append(name)
    if os.geteuid() == 0 and all(shutil.which(program) for program in ("slurmctld", "slurmd", "munged", "sbatch")):
        measure = peer("slurm_peer.py", sys.executable)
        found += [System(SBATCH, measure, SBATCH_WORKS), System(SRUN, measure, SRUN_WORKS)]
    else:
        missing.append("Slurm")
    return found, missing


def told(key: str, answer: Any, drained: int) -> dict[str, float]:
    """The figures in a system's answer, by their names."""
    if key == "start":
        delays = sorted(answer)
        return {"start p50": delays[len(delays) // 2], "start p99": delays[len(delays) * 99 // 100]}
    if key.startswith("drain"):
        alone = {"s": answer} if isinstance(answer, float) else answer
        return {f"{what} {key}" if what != "s" else key: drained / value if what == "s" else value for what, value in alone.items()}
    return {f"{what} {key}": value for what, value in answer.items()}


def rounds(found: list[System], number: int) -> tuple[Figures, list[float]]:
    """Every figure of every system, by turns, so many times; and the load before each."""
    figures: Figures = {one.name: {} for one in found}
    loads = []
    for _ in range(number):
        for key in WORKS:
            for one in found:
                work = one.works.get(key)
                if work is None:
                    continue
                loads.append(os.getloadavg()[0])
                for what, value in told(key, one.measure(work.what, *work.counts), work.counts[0]).items():
                    figures[one.name].setdefault(what, []).append(value)
                    print(
                        f"{time.strftime('%H:%M:%S')} load {loads[-1]:4.1f}  {one.name:14} {what:24} {value:,.3f}",
                        file=sys.stderr,
                        flush=True,
                    )
    return figures, loads


def own_figures(number: int) -> dict[str, float]:
    """Of this market alone, in a process of its own."""
    command = [sys.executable, str(HERE / "own_targets.py"), "--json", "--rounds", str(number)]
    return dict(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))


def machine() -> str:
    """Cores and model, with nothing that names the machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return f"{os.cpu_count()} cores ({model}), {memory_kib / 2**20:.0f} GiB, Linux {platform.release().split('-')[0]}"


def versions(python: str) -> str:
    """Of everything that was compared."""
    asked = "\n".join(
        (
            "import importlib.metadata as m",
            "for n in ('hyperqueue', 'distributed'):",
            " try: print(n, m.version(n))",
            " except m.PackageNotFoundError: pass",
        )
    )
    beside = str(Path(sys.executable).with_name("nats-server"))
    broker = beside if os.access(beside, os.X_OK) else shutil.which("nats-server")
    commands = [[broker, "--version"] if broker else [], [python, "-c", asked], ["slurmctld", "-V"] if shutil.which("slurmctld") else []]
    answers = [subprocess.run(command, capture_output=True, text=True).stdout.split("\n") for command in commands if command]
    lines = [line.strip().replace(": v", " ") for answer in answers for line in answer if line.strip()]
    return ", ".join([f"gpubazaar {metadata.version('gpubazaar')}", *lines, f"Python {platform.python_version()}"])


HOW = f"""\
The job makes one empty file (`touch`), or prints the clock where its start is timed. Everything runs on one machine, so every system pays
for the jobs' own processes out of the same cores, and a slot is a claim, not a core. Every figure is taken with a system that was started
empty for it, by turns, and is the median of the rounds; behind it, the least and the most.

- **Start**: {STARTS} jobs one by one on an idle system ({SLURM_STARTS} with Slurm), from the call that submits until the job's own process
  reads the clock.
- **Drain**: {DRAINED:,} jobs ({SLURM_DRAINED_8} and {SLURM_DRAINED_64} with Slurm) are queued while no slot is free; timed from the moment
  that the slots are, until the last job has made its file. A worker, or node, has eight slots; Slurm has one node with all of them.
- **Submissions, memory**: of one client, {FEW_QUEUED:,} jobs that cannot run yet; growth of the resident memory of the process that keeps
  the queue (with HyperQueue and Dask it holds the client too).
- **Restart**: until it answers again with the whole queue. This market's matcher is killed and starts as it would anywhere: from its last
  snapshot, taken each minute and after 50,000 events, and what came after it; with {FEW_QUEUED:,} jobs that is the whole ledger. Slurm's
  controller is ended in order. {MANY_QUEUED:,} jobs were not queued in Slurm: at its rate of submissions that takes minutes.

What each of them does for it:

- **GPU Bazaar**: broker, callout, matcher, gateway, API and sellers, all separate processes. Every submission, match, claim and end is
  signed, checked and on disk before anybody is told (`sync_interval: always`); each job has a price, a bill and a place in the read model.
  One wallet may send 10,000 events a second; beyond a burst of 20,000, {MANY_QUEUED:,} submissions take ten seconds.
- **HyperQueue**: the wheel's `LocalCluster`, one worker of eight `cpus` for every eight slots; server, workers and client in one process.
  It is made without a journal (the wheel has no way to ask for one): nothing is stored, so it cannot be restarted. No signatures, no
  prices. On an idle system a start takes it either some two milliseconds or some twenty.
- **Dask**: one scheduler, one worker process of eight threads for every eight slots, no dashboard. Nothing is stored; no signatures. Its
  {FEW_QUEUED:,} submissions are one call of `map`.
- **Slurm**: one controller, one node, tuned as its guide for high throughput says (`sched/builtin`, `batch_sched_delay=0`,
  `default_queue_depth=10000`, `sched_min_interval=1000`, `MinJobAge=2`, quiet logs), without accounting. It writes its state to disk every
  few seconds, not before it answers. Its submissions are calls of `sbatch`; `srun` keeps a terminal and a process of its own for each job.
"""


def page(options: argparse.Namespace, figures: Figures, own: dict[str, float], told_of: dict[str, str]) -> str:
    """The whole document."""
    again = "python -m venv /tmp/peers && /tmp/peers/bin/pip install hyperqueue distributed   # and slurmctld slurmd slurm-client munge"
    run = ".venv/bin/python benchmarks/against_peers.py --python /tmp/peers/bin/python --write"
    return "\n\n".join(
        [
            "# How fast, measured against others",
            f"Written by `benchmarks/against_peers.py` on {time.strftime('%Y-%m-%d', time.gmtime())}. {told_of['machine']}. "
            f"{told_of['versions']}. "
            f"`sync_interval: always`. {told_of['load']} Rounds: {options.rounds}, in {told_of['minutes']} minutes.",
            "## The same job on each",
            peers_table(figures),
            *([told_of["missing"]] if told_of["missing"] else []),
            "## Targets",
            aims_table(against(figures)),
            *([cpu_words(figures, os.cpu_count() or 1)] if OURS in figures else []),
            "Without a broker, CPU time of one process. 10,000 nodes and 100,000 queued jobs, each with a price of its own, 1 to 8 GPUs, "
            "five priorities, and a head of the queue that can never run:",
            aims_table(alone(own)),
            "## How it was measured",
            HOW.strip(),
            "## Again",
            f"On a machine that does nothing else, as root (Slurm's daemons), from the root of the repository:\n\n```\n{again}\n{run}\n```",
        ]
    )


def wrapped(text: str) -> str:
    """Long paragraphs in lines of 140; tables, lists and commands as they are."""
    blocks = [
        block if block[:1] in "|-#`" or "```" in block or "\n" in block else textwrap.fill(block, 140, break_on_hyphens=False)
        for block in text.split("\n\n")
    ]
    return "\n\n".join(blocks) + "\n"


def main() -> None:
    """Measure, print, and write the page when told to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has hyperqueue and distributed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"write {DOCUMENT.name}")
    options = parser.parse_args()
    found, missing = systems(options.python)
    began, load = time.monotonic(), os.getloadavg()[0]
    if load > QUIET:
        print(f"the load is {load:.1f} before anything has begun: these figures will not be this machine's best", file=sys.stderr)
    own = own_figures(options.rounds)
    figures, loads = rounds(found, options.rounds)
    words = {
        "machine": machine(),
        "versions": versions(options.python),
        "load": f"Load {load:.1f} before the run; {min(loads):.1f} to {max(loads):.1f} before each figure, where it is the run's own.",
        "minutes": f"{(time.monotonic() - began) / 60:.0f}",
        "missing": f"Not here: {', '.join(missing)}." if missing else "",
    }
    text = wrapped(page(options, figures, own, words))
    print(text)
    if options.write:
        DOCUMENT.write_text(text)


if __name__ == "__main__":
    main()
